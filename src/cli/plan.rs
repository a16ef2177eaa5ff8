//! `hostler plan`: the agent's plan for a directory of specs.
//!
//! The core plans on the basis of the status files; this command reads its arguments and prints the
//! plan.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    lifecycle::{PlannedAction, PlannedChange, Planner, Policy},
    model::{problem::Problem, status::Status},
    spec_dir,
    status_file::StatusFiles,
};

use super::{Failure, Format, NoDirectory, configuration, print, text::columns};

/// The exit codes, for `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes: 0 no disk would be wiped; 1 a spec has a problem, or a file cannot be read; 2 a disk
would be wiped, at once or when the breaker is overruled.";

const WIPES: u8 = 2;

/// The arguments of `hostler plan`: the directory to judge.
#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// The directory of specs; by default the agent's own. The plan for another one assumes that it
    /// replaces the agent's.
    dir: Option<PathBuf>,
    /// The directory of the status files; by default that of the configuration, and without one the
    /// directory of the specs.
    #[arg(long)]
    status_dir: Option<PathBuf>,
    /// The agent's configuration; without it the one of this machine, if there is one.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The format of the output.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(super) fn plan(args: &PlanArgs, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let config = configuration(args.config.as_deref())?;
    let agents = config.as_ref().map(|config| &config.specs);
    let dir = args.dir.as_ref().or(agents.map(|specs| &specs.dir)).ok_or(NoDirectory)?;
    let status_dir = args
        .status_dir
        .as_ref()
        .or(agents.map(|specs| specs.status_dir.as_ref().unwrap_or(&specs.dir)))
        .unwrap_or(dir);
    let defaults = config.as_ref().and_then(|config| config.defaults.as_ref());
    let policy = Policy {
        attempts_max: 1,
        imagings_max: 1,
        polls_max: 1,
        breaker: config.as_ref().is_none_or(|config| config.safety.breaker),
        enforce_power: config.as_ref().is_some_and(|config| config.safety.enforce_power),
    };

    let shown_as = dir.to_string_lossy();
    let shown_as = shown_as.trim_end_matches('/');
    let found = spec_dir::read_dir(dir, shown_as, defaults)?;
    let before = agents
        .filter(|specs| specs.dir != *dir)
        .and_then(|specs| spec_dir::read_dir(&specs.dir, shown_as, defaults).ok())
        .map_or_else(|| found.nodes.clone(), |before| before.nodes);
    let statuses = read_statuses(status_dir)?;
    let planner = Planner::new(policy, statuses, &before, found.nodes, Timestamp::now());
    let in_force = planner.effective_specs();
    let clashes = spec_dir::clashes(shown_as, in_force.iter().map(AsRef::as_ref));
    let plan = planner.judge(&clashes);

    match args.output {
        Format::Table => write!(out, "{}", table(&plan, &found.problems))?,
        Format::Json => {
            writeln!(out, "{}", print::json(&json(&plan, &found.problems))?)?;
        }
    }
    let broken = plan
        .iter()
        .any(|node| matches!(node.action, PlannedAction::Invalid | PlannedAction::Clash));
    Ok(if broken || !found.problems.is_empty() {
        ExitCode::FAILURE
    } else if plan.iter().any(|node| node.wipes.is_some()) {
        ExitCode::from(WIPES)
    } else {
        ExitCode::SUCCESS
    })
}

/// Reads all statuses: a missing one would make its machine look unclaimed.
fn read_statuses(dir: &Path) -> Result<Vec<Status>, Failure> {
    let statuses: Result<Vec<Status>, _> = StatusFiles::new(dir).read_all()?.into_iter().collect();
    Ok(statuses?)
}

fn table(plan: &[PlannedChange], problems: &[Problem]) -> String {
    let rows: Vec<[String; 3]> = plan
        .iter()
        .map(|node| [node.node.to_string(), node.action.as_str().to_owned(), what(node)])
        .collect();
    let problems: Vec<String> = problems.iter().map(|problem| format!("{problem}\n")).collect();
    columns(&rows) + &problems.concat()
}

fn what(node: &PlannedChange) -> String {
    let Some(disk) = &node.wipes else { return node.reason.clone() };
    let wipes = if node.action == PlannedAction::Breaker { "would WIPE" } else { "WIPES" };
    let of = node.machine.as_ref().map_or_else(String::new, |machine| format!(" of {machine}"));
    let unless_on = if node.unless_on { ", unless it is on" } else { "" };
    format!("{wipes} {disk}{of}{unless_on}: {}", node.reason)
}

fn json(plan: &[PlannedChange], problems: &[Problem]) -> Value {
    let nodes: Vec<Value> = plan
        .iter()
        .map(|node| {
            json!({
                "node": node.node,
                "machine": node.machine,
                "action": node.action.as_str(),
                "wipes": node.wipes,
                "unless_on": node.unless_on,
                "reason": node.reason,
            })
        })
        .collect();
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    json!({ "nodes": nodes, "problems": problems })
}

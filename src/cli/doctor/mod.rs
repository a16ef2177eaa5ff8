//! `hostler doctor`: checks all that a site needs before its first machine, and after each change.
//!
//! One line for each check: the host's (`host`), its boot files' (`boot_files`), its nodes'
//! (`nodes`), and its DHCP server's (`dhcp`). Nothing is changed: no directory is made, no BMC gets
//! a command, and the DHCP server only makes an offer. The agent may be running; then it
//! asks the BMCs itself.

mod boot_files;
mod dhcp;
mod finding;
mod host;
mod nodes;

use std::{collections::BTreeSet, io::Write, path::PathBuf, process::ExitCode, sync::Arc};

use crate::{
    config::{self, Config, ConfigError},
    model::{
        ids::NodeName,
        problem::{Problem, ProblemKind, Severity},
        spec::{Goal, NodeSpec},
    },
    spec_dir::{self, CheckContext},
};

use self::finding::Finding;
use super::{Failure, Format, agent_alive::AgentAlive};

/// The exit codes, for `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes: 0 nothing fails, although there may be warnings; 1 something fails. Run it as root, who
may try the ports and look into all directories.";

/// The arguments of `hostler doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// The agent's configuration.
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The format of the output.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Checks the site, and prints a line for each check.
pub(super) fn doctor(args: &DoctorArgs, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let findings = match config::read(&args.config) {
        Ok(config) => {
            let shown = args.config.display().to_string();
            let mut findings = vec![Finding::ok("config", shown)];
            findings.extend(of_site(&config)?);
            findings
        }
        Err(error) => of_config(&error),
    };
    let fails = findings.iter().any(|finding| finding.level == finding::Level::Failure);
    finding::print(&findings, args.output, out)?;
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn of_config(error: &ConfigError) -> Vec<Finding> {
    let hint = "correct the configuration; the other checks need it";
    match error {
        ConfigError::Unreadable { .. } => {
            vec![Finding::failure("config", error.to_string(), hint)]
        }
        ConfigError::Invalid(problems) => problems
            .iter()
            .map(|problem| Finding::failure("config", problem.to_string(), hint))
            .collect(),
    }
}

fn of_site(config: &Config) -> Result<Vec<Finding>, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let status_dir = config.specs.status_dir.as_ref().unwrap_or(&config.specs.dir);
    let runs = AgentAlive::look(status_dir).is_ok_and(|agent| agent.is_alive());
    let mut findings = host::check(config, runs);
    let (specs, of_specs) = specs(config);
    findings.extend(of_specs);
    let to_install: Vec<Arc<NodeSpec>> =
        specs.iter().filter(|spec| spec.goal == Goal::Deployed).cloned().collect();
    findings.extend(boot_files::check(config, &to_install));
    findings.extend(runtime.block_on(nodes::check(config, &specs, &to_install, runs)));
    findings.extend(dhcp::check(config, &to_install));
    Ok(findings)
}

/// The good specs, and the problems of the others.
fn specs(config: &Config) -> (Vec<Arc<NodeSpec>>, Vec<Finding>) {
    let dir = &config.specs.dir;
    let hint = "correct it; `hostler check` shows the specs alone";
    let agent_defaults = config.defaults.as_ref();
    let read = spec_dir::read_dir(dir, &dir.to_string_lossy(), agent_defaults);
    let context = CheckContext { agent_defaults, known_disks: &|_| None };
    let report = spec_dir::check_dir(dir, &dir.to_string_lossy(), None, &context);
    let (snapshot, report) = match (read, report) {
        (Ok(snapshot), Ok(report)) => (snapshot, report),
        (Err(error), _) | (_, Err(error)) => {
            let hint = "make that directory, or correct specs.dir";
            return (Vec::new(), vec![Finding::failure("specs", error.to_string(), hint)]);
        }
    };
    let problem = |problem: &Problem| match problem.kind.severity() {
        Severity::Error => Finding::failure("specs", problem.to_string(), hint),
        Severity::Warning | Severity::Note => Finding::warning("specs", problem.to_string(), hint),
    };
    // A site may wait for its first spec.
    let reported = report.problems.iter().filter(|found| found.kind != ProblemKind::NothingFound);
    let mut findings: Vec<Finding> = reported.map(problem).collect();
    findings.extend(snapshot.passed_over.iter().map(|passed_over| {
        Finding::warning(
            "specs",
            passed_over.to_string(),
            "if it is a spec, rename it: hostler then may WIPE its machine",
        )
    }));
    if report.good.is_empty() && findings.is_empty() {
        let message = format!("{}: there is no spec", dir.display());
        findings.push(Finding::warning(
            "specs",
            message,
            "write NODE.toml there: hostler then may WIPE its machine",
        ));
    } else if findings.is_empty() {
        let message = format!("{}: good specs: {}", dir.display(), report.good.len());
        findings.push(Finding::ok("specs", message));
    }
    let good: BTreeSet<&NodeName> = report.good.iter().collect();
    let specs = snapshot.nodes.into_iter().filter(|(name, _)| good.contains(name));
    (specs.filter_map(|(_, spec)| spec.ok()).collect(), findings)
}

//! `hostler status` and `hostler watch`: print status files for operators and programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::json;

use crate::{
    model::{
        ids::NodeName,
        printable::escaped,
        status::{Phase, Status},
    },
    spec_dir,
    status_file::{StatusFileError, StatusFiles, Unwritten},
};

use super::{
    Failure, Format,
    agent_alive::{AgentAlive, NO_AGENT},
    print,
    text::{clock, columns, progress, span},
};

/// The exit codes, for `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes: 0 every node is shown; 1 wrong usage, or a file cannot be read; 6 no agent runs: the
statuses are as old as its last sign of life.";

/// Poll interval of `watch`: that of the agent's progress reports.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn show(
    dir: &Path,
    specs: &Path,
    format: Format,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let StatusDirContent { statuses, unwritten, mut unreadable } = read(dir)?;
    let agent = AgentAlive::look(dir).unwrap_or_else(|error| {
        unreadable.push(error);
        AgentAlive::unknown()
    });
    match format {
        Format::Json => {
            let shown = json!({ "agent": agent.to_json()?, "nodes": statuses });
            writeln!(out, "{}", print::json(&shown)?)?;
        }
        Format::Table => {
            write!(out, "{}", table(&statuses, &unwritten, Timestamp::now()))?;
            for not_node in spec_dir::not_nodes(specs) {
                writeln!(out, "note: {not_node}")?;
            }
            if let Some(caution) = agent.caution() {
                writeln!(out, "{caution}")?;
            } else if agent.is_absent() {
                writeln!(
                    out,
                    "no agent has written in {}: systemctl status hostler says whether it runs, \
                     and journalctl -u hostler why not",
                    dir.display()
                )?;
            } else if statuses.is_empty() {
                writeln!(out, "no nodes: a spec is a file NODE.toml in {}", specs.display())?;
            }
        }
    }
    unreadable.extend(unwritten.into_iter().map(|(node, why)| unwritten_error(dir, &node, &why)));
    if !unreadable.is_empty() {
        return Err(Unreadable(unreadable).into());
    }
    let is_dead = agent.is_dead() || agent.is_absent();
    Ok(if is_dead { ExitCode::from(NO_AGENT) } else { ExitCode::SUCCESS })
}

/// Status files that are missing from the output, or unreliable.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
struct Unreadable(Vec<StatusFileError>);

/// Prints a line for every change, so that the output is the same on a terminal and in a log.
pub(super) fn watch(dir: &Path, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let mut shown: BTreeMap<NodeName, String> = BTreeMap::new();
    let mut troubles: BTreeSet<String> = BTreeSet::new();
    let mut was_dead = false;
    loop {
        let seen = read(dir)?;
        // A mark that is unreadable now changes nothing.
        if let Ok(agent) = AgentAlive::look(dir)
            && agent.is_dead() != was_dead
        {
            was_dead = agent.is_dead();
            let caution = agent.caution().filter(|_| was_dead);
            let updates = caution.unwrap_or_else(|| "an agent runs again".to_owned());
            writeln!(out, "{} {updates}", clock(Timestamp::now()))?;
        }
        let found = seen.troubles(dir);
        for trouble in found.difference(&troubles) {
            writeln!(out, "{} {trouble}", clock(Timestamp::now()))?;
        }
        let there: BTreeSet<&NodeName> = seen.statuses.iter().map(|status| &status.node).collect();
        shown.retain(|name, _| there.contains(name));
        for status in &seen.statuses {
            let line = escaped(&line(status, &seen.unwritten));
            if shown.get(&status.node) != Some(&line) {
                writeln!(out, "{} {line}", clock(status.updated))?;
                shown.insert(status.node.clone(), line);
            }
        }
        out.flush()?;
        troubles = found;
        thread::sleep(POLL_INTERVAL);
    }
}

/// The content of a status directory.
#[derive(Debug)]
struct StatusDirContent {
    statuses: Vec<Status>,
    /// The nodes whose status files the agent cannot write: an existing status is old.
    unwritten: Unwritten,
    unreadable: Vec<StatusFileError>,
}

impl StatusDirContent {
    /// The reasons why statuses are missing or unreliable, each in one line.
    fn troubles(&self, dir: &Path) -> BTreeSet<String> {
        let unwritten = self.unwritten.iter().map(|(node, why)| unwritten_error(dir, node, why));
        let errors = self.unreadable.iter().map(ToString::to_string);
        errors
            .chain(unwritten.map(|error| error.to_string()))
            .map(|error| escaped(&error))
            .collect()
    }
}

fn unwritten_error(dir: &Path, node: &NodeName, why: &str) -> StatusFileError {
    StatusFileError::Unwritten { path: StatusFiles::new(dir).path(node), why: escaped(why) }
}

fn read(dir: &Path) -> Result<StatusDirContent, StatusFileError> {
    let (mut statuses, mut unreadable) = (Vec::new(), Vec::new());
    let files = StatusFiles::new(dir);
    for status in files.read_all()? {
        match status {
            Ok(status) => statuses.push(status),
            Err(mut error) => {
                // Shown all the same; the error explains its value.
                statuses.extend(error.take_seeming());
                unreadable.push(error);
            }
        }
    }
    let unwritten = files.unwritten().unwrap_or_else(|error| {
        unreadable.push(error);
        Unwritten::new()
    });
    statuses.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(StatusDirContent { statuses, unwritten, unreadable })
}

fn table(statuses: &[Status], unwritten: &Unwritten, now: Timestamp) -> String {
    let head = ["NODE", "PHASE", "FOR", "ATTEMPT", "PROGRESS", "MESSAGE"].map(str::to_owned);
    let rows = statuses.iter().map(|status| {
        [
            status.node.to_string(),
            phase(status, unwritten),
            span(now.duration_since(status.since)),
            status.attempt.to_string(),
            status.progress.as_ref().map(progress).unwrap_or_default(),
            status.message.clone(),
        ]
    });
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn line(status: &Status, unwritten: &Unwritten) -> String {
    let progress =
        status.progress.as_ref().map(|p| format!(" {}", progress(p))).unwrap_or_default();
    format!("{} {}{progress}: {}", status.node, phase(status, unwritten), status.message)
}

/// The phase, with important conditions beside it.
fn phase(status: &Status, unwritten: &Unwritten) -> String {
    let mark = if unwritten.contains_key(&status.node) {
        " (old status)"
    } else if !status.spec_valid && status.phase != Phase::Invalid {
        " (spec invalid)"
    } else if status.phase == Phase::Deployed && !status.ready {
        " (drifted)"
    } else {
        ""
    };
    format!("{}{mark}", status.phase.as_str())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::model::status::{ImagingStage, Progress};

    fn status(node: &str, phase: &str, extra: &str) -> Status {
        let text = format!(
            "version = 1\nnode = {node:?}\nphase = {phase:?}\nready = true\n\
             message = \"as it says\"\nspec_valid = true\n\
             since = \"2026-11-22T12:00:00Z\"\nattempt = 1\nupdated = \"2026-11-22T12:00:00Z\"\n\
             {extra}"
        );
        toml::from_str(&text).unwrap()
    }

    /// Invariant (status): No command shows a status that the agent cannot write without calling it
    /// old.
    #[test]
    fn the_table_shows_each_node_with_its_progress() {
        let mut imaging = status("edge-07", "imaging", "");
        imaging.progress = Some(Progress {
            stage: ImagingStage::Write,
            done_bytes: 42 << 20,
            total_bytes: 100 << 20,
            rate_bytes: 2 << 20,
            remaining_s: Some(29),
        });
        let mut fetching = status("edge-09", "preparing", "");
        fetching.progress = imaging.progress.map(|progress| Progress {
            stage: ImagingStage::Fetch,
            total_bytes: 0,
            remaining_s: None,
            ..progress
        });
        let mut drifted = status("edge-8", "deployed", "");
        drifted.ready = false;
        let old = status("edge-9", "deployed", "");
        let unwritten = Unwritten::from([(old.node.clone(), "no space".to_owned())]);
        let now = "2026-11-22T12:02:10Z".parse().unwrap();
        expect![[r#"
            NODE     PHASE                  FOR    ATTEMPT  PROGRESS                                    MESSAGE
            edge-07  imaging                2m10s  1        write [####......] 42% 2.0 MiB/s, 29s left  as it says
            edge-09  preparing              2m10s  1        fetch 42.0 MiB, 2.0 MiB/s                   as it says
            edge-8   deployed (drifted)     2m10s  1                                                    as it says
            edge-9   deployed (old status)  2m10s  1                                                    as it says
        "#]]
        .assert_eq(&table(&[imaging, fetching, drifted, old], &unwritten, now));
    }
}

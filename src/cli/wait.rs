//! `hostler wait`: for scripts that write a spec and continue when its machine is ready.
//!
//! It polls the status file; the agent need not run for that. It must never report the status of
//! another installation as success or failure.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use crate::{
    model::{
        ids::{Digest, NodeName},
        printable::escaped,
        status::{Condition, HistoryEntry, Phase, Status},
        toml_reader::duration,
    },
    status_file::{self, StatusFileError, StatusFiles},
};

use super::{Failure, NodeArgs, agent_alive::AgentAlive, print, text::clock};

/// The exit codes, for `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes: 0 the goal is reached; 1 wrong usage, no such node, or the status cannot be read; 3 the
node failed; 4 timed out; 5 an operator is needed: the node is held, drifted, paused, unmanaged or
kept off, or its spec is invalid. The status of another digest is none of these.";

const FAILED: u8 = 3;
const TIMED_OUT: u8 = 4;
const OPERATOR_NEEDED: u8 = 5;
/// Interval of the polls, each of which reads one small file.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long a failure must last before it counts. The agent may just be reading the corrected file,
/// or an operator's retry.
const SETTLE_TIME: Duration = Duration::from_secs(3);

/// The arguments of `hostler wait`.
#[derive(Debug, clap::Args)]
pub(super) struct Goal {
    /// Only a status of this installation counts: the output of `hostler digest`. Without it a
    /// status from before the change of the spec counts too.
    #[arg(long)]
    digest: Option<Digest>,
    /// The time limit, for example 30m or 1h 30m.
    #[arg(long, default_value = "1h", value_parser = duration)]
    timeout: Duration,
    /// The phase to wait for. `deployed` and `available` also wait until no work is left; a short
    /// phase may be missed.
    #[arg(long, default_value = "deployed", value_parser = phase)]
    phase: Phase,
    /// Do not print every phase on standard error.
    #[arg(long)]
    quiet: bool,
}

fn phase(text: &str) -> Result<Phase, String> {
    Phase::ALL
        .into_iter()
        .find(|phase| phase.as_str() == text)
        .ok_or_else(|| format!("must be one of {}", Phase::ALL.map(Phase::as_str).join(", ")))
}

/// Neither a spec nor a status file names the node: it would never get a status.
#[derive(Debug, thiserror::Error)]
#[error(
    "{node}: no such node: there is neither a spec {} nor a status file {}; if the specs are \
     elsewhere, name the agent's configuration with --config",
    spec.display(),
    status.display()
)]
struct NoSuchNode {
    node: NodeName,
    spec: PathBuf,
    status: PathBuf,
}

/// The meaning of a status for the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitVerdict {
    /// The goal is reached.
    Reached,
    /// The goal may be reached later.
    NotYet,
    /// The node failed.
    Failed,
    /// The goal needs an operator's act.
    OperatorNeeded,
}

impl Goal {
    fn judge(&self, status: &Status) -> WaitVerdict {
        let other = |wanted: &Digest| status.spec_digest.as_ref().is_some_and(|is| is != wanted);
        if self.digest.as_ref().is_some_and(other) {
            return WaitVerdict::NotYet;
        }
        let named = self.digest.is_none() || self.digest == status.spec_digest;
        let done = !matches!(self.phase, Phase::Deployed | Phase::Available) || status.ready;
        match status.phase {
            phase if phase == self.phase && named && done => WaitVerdict::Reached,
            Phase::Failed => WaitVerdict::Failed,
            Phase::Held | Phase::Invalid => WaitVerdict::OperatorNeeded,
            // The spec demands this phase, and does not change by itself.
            phase @ (Phase::Paused | Phase::Unmanaged) if phase != self.phase => {
                WaitVerdict::OperatorNeeded
            }
            Phase::Available if self.phase == Phase::Deployed => WaitVerdict::OperatorNeeded,
            phase if !phase.is_busy() && !status.spec_valid => WaitVerdict::OperatorNeeded,
            // Another installation: only an operator may consent to WIPE it.
            Phase::Deployed
                if self.phase == Phase::Deployed
                    && !status.ready
                    && !is_verifying_netboot(status)
                    && status.installed_digest != status.spec_digest =>
            {
                WaitVerdict::OperatorNeeded
            }
            _ => WaitVerdict::NotYet,
        }
    }
}

/// Whether only the netboot files differ, and the agent is verifying them.
fn is_verifying_netboot(status: &Status) -> bool {
    let has = |kind: &str, reason: Option<&str>| {
        let is = |one: &Condition| one.kind == kind && reason.is_none_or(|it| one.reason == it);
        status.conditions.iter().any(is)
    };
    has("Drifted", Some("NetbootChanged")) && !has("NetbootVerified", None)
}

pub(super) fn wait(place: &NodeArgs, goal: &Goal) -> Result<ExitCode, Failure> {
    let dir = place.status_dir()?;
    if !dir.is_dir() {
        return Err(format!("{}: no such directory", dir.display()).into());
    }
    let files = StatusFiles::new(&dir);
    let file = files.path(&place.node);
    let spec = place.spec_beside(&dir)?;
    let began = Instant::now();
    let (mut reported, mut reported_doubt) = (None, None);
    let mut bad_since: Option<(WaitVerdict, Instant)> = None;
    loop {
        let status = read(&file)?;
        if status.is_none() && !spec.exists() {
            return Err(NoSuchNode { node: place.node.clone(), spec, status: file }.into());
        }
        if !goal.quiet {
            tell(&place.node, status.as_ref(), &mut reported)?;
        }
        let mut verdict = status.as_ref().map_or(WaitVerdict::NotYet, |status| goal.judge(status));
        // Checked after the read of the status, so that it covers a status that was already old.
        let doubt = status.as_ref().and_then(|_| doubt(&files, &dir, &place.node, verdict));
        if let Some(doubt) = &doubt {
            verdict = WaitVerdict::NotYet;
            if !goal.quiet && reported_doubt.as_ref() != Some(doubt) {
                writeln!(print::stderr(), "{doubt}")?;
                reported_doubt = Some(doubt.clone());
            }
        }
        bad_since = match verdict {
            WaitVerdict::Reached => return Ok(ExitCode::SUCCESS),
            WaitVerdict::NotYet => None,
            WaitVerdict::Failed | WaitVerdict::OperatorNeeded => bad_since
                .filter(|(before, _)| *before == verdict)
                .or(Some((verdict, Instant::now()))),
        };
        let settled = bad_since.filter(|(_, since)| since.elapsed() >= SETTLE_TIME);
        if let Some((verdict, _)) = settled {
            return give_up("", &place.node, status.as_ref(), verdict, None);
        }
        if began.elapsed() >= goal.timeout {
            let limit = jiff::SignedDuration::try_from(goal.timeout)?;
            let why = format!("timed out after {limit:#}: ");
            let agent = AgentAlive::look(&dir).ok().and_then(|agent| agent.caution());
            let caution = doubt.or(agent);
            return give_up(&why, &place.node, status.as_ref(), verdict, caution);
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// The reason why a status is unreliable, if it is: the agent cannot write its file, or was killed.
fn doubt(files: &StatusFiles, dir: &Path, node: &NodeName, verdict: WaitVerdict) -> Option<String> {
    let unwritten = files.check_written(node).err().map(|error| escaped(&error.to_string()));
    let silent = || {
        // A failure is worth reporting at any age.
        let agent = AgentAlive::look(dir).ok().filter(|_| verdict == WaitVerdict::Reached);
        agent.filter(AgentAlive::is_silent)?.caution()
    };
    unwritten.or_else(silent)
}

/// Reads the node's status; `None` if there is no file yet.
fn read(file: &Path) -> Result<Option<Status>, Failure> {
    match status_file::read(file) {
        Err(StatusFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        status => Ok(Some(print::printable(&status?)?)),
    }
}

/// Prints the phases since the last printed one; at first only the current one.
fn tell(
    node: &NodeName,
    status: Option<&Status>,
    reported: &mut Option<HistoryEntry>,
) -> io::Result<()> {
    let history = status.map(|status| status.history.as_slice()).unwrap_or_default();
    let seen = match reported {
        Some(last) => history.iter().rposition(|entry| entry == last).map_or(0, |at| at + 1),
        None => history.len().saturating_sub(1),
    };
    for HistoryEntry { at, phase, message } in history.iter().skip(seen) {
        writeln!(print::stderr(), "{} {node} {}: {message}", clock(*at), phase.as_str())?;
    }
    *reported = history.last().cloned();
    Ok(())
}

fn give_up(
    why: &str,
    node: &NodeName,
    status: Option<&Status>,
    verdict: WaitVerdict,
    agent: Option<String>,
) -> Result<ExitCode, Failure> {
    let mut err = print::stderr();
    let stands = status.map_or_else(
        || format!("{node}: no status yet"),
        |status| format!("{node} {}: {}", status.phase.as_str(), status.message),
    );
    writeln!(err, "error: {why}{stands}")?;
    let hint = status.and_then(|status| status.last_error.as_ref()).map(|last| &last.fault.hint);
    if let (WaitVerdict::Failed, Some(hint)) = (verdict, hint) {
        writeln!(err, "  hint: {hint}")?;
    }
    let waits = status.and_then(|status| status.deadline_reason.as_ref().zip(status.deadline));
    if let Some((reason, deadline)) = waits {
        writeln!(err, "  waiting for {reason}, until {}", clock(deadline))?;
    }
    if let Some(agent) = agent {
        writeln!(err, "  {agent}")?;
    }
    Ok(ExitCode::from(match verdict {
        WaitVerdict::Failed => FAILED,
        WaitVerdict::OperatorNeeded => OPERATOR_NEEDED,
        WaitVerdict::Reached | WaitVerdict::NotYet => TIMED_OUT,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAT: &str = "version = 1\nnode = \"edge-07\"\nmessage = \"as it says\"\n\
                        since = \"2026-11-22T12:00:00Z\"\n\
                        attempt = 1\nupdated = \"2026-11-22T12:00:00Z\"\n";

    fn digest(digit: &str) -> String {
        format!("sha256:{}", digit.repeat(64))
    }

    /// Makes a status in this phase; `wants` and `has` are digits for its digests.
    fn status(phase: &str, wants: &str, has: &str) -> Status {
        let ready = wants == has;
        let digests = [("spec_digest", wants), ("installed_digest", has)].map(|(key, digit)| {
            (!digit.is_empty()).then(|| format!("{key} = {:?}\n", digest(digit)))
        });
        let digests: String = digests.into_iter().flatten().collect();
        toml::from_str(&format!(
            "phase = {phase:?}\nready = {ready}\nspec_valid = true\n{digests}{FLAT}"
        ))
        .unwrap()
    }

    fn goal(wanted: &str) -> Goal {
        let digest = (!wanted.is_empty()).then(|| digest(wanted).parse().unwrap());
        Goal { digest, timeout: Duration::ZERO, phase: Phase::Deployed, quiet: true }
    }

    /// Invariant (status): Waiting never takes another installation's status for an answer.
    #[test]
    fn a_status_of_another_digest_is_never_success_or_failure() {
        for phase in Phase::ALL {
            for has in ["", "a", "b"] {
                let status = status(phase.as_str(), "a", has);
                assert_eq!(goal("b").judge(&status), WaitVerdict::NotYet, "{phase:?} {has}");
            }
        }
    }

    #[test]
    fn a_kernel_that_is_being_verified_is_waited_for_and_one_that_cannot_be_had_is_not() {
        let condition = |kind: &str, reason: &str| Condition {
            kind: kind.to_owned(),
            status: String::new(),
            reason: reason.to_owned(),
            message: String::new(),
        };
        let mut status = status("deployed", "b", "a");
        assert_eq!(goal("b").judge(&status), WaitVerdict::OperatorNeeded);
        status.conditions = vec![condition("Drifted", "NetbootChanged")];
        assert_eq!(goal("b").judge(&status), WaitVerdict::NotYet);
        status.conditions.push(condition("NetbootVerified", "OwnBootFilesMissing"));
        assert_eq!(goal("b").judge(&status), WaitVerdict::OperatorNeeded);
    }

    #[test]
    fn only_what_is_installed_as_wanted_is_there() {
        for wanted in ["", "a"] {
            let judge = |phase, has| goal(wanted).judge(&status(phase, "a", has));
            assert_eq!(judge("deployed", "a"), WaitVerdict::Reached);
            assert_eq!(judge("deployed", "b"), WaitVerdict::OperatorNeeded);
            for phase in ["pending", "imaging", "restarting"] {
                assert_eq!(judge(phase, "a"), WaitVerdict::NotYet, "{phase}");
            }
        }
    }

    #[test]
    fn a_machine_that_is_only_off_is_waited_for() {
        let mut off = status("deployed", "a", "a");
        off.ready = false;
        assert_eq!(goal("a").judge(&off), WaitVerdict::NotYet);
    }

    #[test]
    fn what_will_not_come_by_itself_is_told_apart() {
        for wanted in ["", "a"] {
            let judge = |phase| goal(wanted).judge(&status(phase, "a", ""));
            assert_eq!(judge("failed"), WaitVerdict::Failed);
            assert_eq!(judge("held"), WaitVerdict::OperatorNeeded);
            assert_eq!(judge("invalid"), WaitVerdict::OperatorNeeded);
            let mut broken = status("pending", "a", "");
            broken.spec_valid = false;
            assert_eq!(goal(wanted).judge(&broken), WaitVerdict::OperatorNeeded);
            broken.phase = Phase::Imaging;
            assert_eq!(goal(wanted).judge(&broken), WaitVerdict::NotYet);
        }
    }

    #[test]
    fn what_its_spec_keeps_from_being_installed_needs_an_operator() {
        for phase in [Phase::Paused, Phase::Unmanaged, Phase::Available] {
            let status = status(phase.as_str(), "a", "");
            for wanted in ["", "a"] {
                assert_eq!(goal(wanted).judge(&status), WaitVerdict::OperatorNeeded, "{phase:?}");
            }
            let waits_for_it = Goal { phase, ..goal("") };
            let ready = Status { ready: true, ..status };
            assert_eq!(waits_for_it.judge(&ready), WaitVerdict::Reached, "{phase:?}");
        }
    }

    #[test]
    fn a_spec_that_never_was_good_needs_an_operator_whatever_is_waited_for() {
        for wanted in ["", "a"] {
            let mut never = status("invalid", "", "");
            never.spec_valid = false;
            assert_eq!(goal(wanted).judge(&never), WaitVerdict::OperatorNeeded);
        }
    }

    #[test]
    fn another_phase_is_there_when_it_is_shown_for_that_digest() {
        let imaging = Goal { phase: Phase::Imaging, ..goal("a") };
        assert_eq!(imaging.judge(&status("imaging", "a", "")), WaitVerdict::Reached);
        assert_eq!(imaging.judge(&status("imaging", "", "")), WaitVerdict::NotYet);
        assert_eq!(imaging.judge(&status("failed", "a", "")), WaitVerdict::Failed);
        let failed = Goal { phase: Phase::Failed, ..goal("a") };
        assert_eq!(failed.judge(&status("failed", "a", "")), WaitVerdict::Reached);
    }
}

//! `hostler explain`: the timeline of one node, for operators.
//!
//! The timeline comes from the status file and the files beside it; the spec file adds changes that
//! the agent has not read yet.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    model::{
        consent,
        ids::NodeName,
        problem::{Problem, ProblemKind},
        spec::NodeSpec,
        status::{Booted, Installed, LastSeen, Phase, Status},
    },
    spec_dir,
    status_file::{self, StatusFiles},
};

use super::{
    Failure, NodeArgs,
    agent_alive::AgentAlive,
    print,
    text::{clock, filled, progress, span},
};

/// Longest line of an explanation, in characters.
const LINE_CHARS_MAX: usize = 80;

/// The current spec file; `None` if it does not exist, or its directory is unknown.
type SpecNow = Option<Result<NodeSpec, Vec<Problem>>>;

#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// The node's name, or a code such as HS012.
    #[arg(value_name = "NODE|CODE")]
    subject: Subject,
    /// The directory of the node's status file; by default that of the configuration.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The agent's configuration; without it the one of this machine, if there is one.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// The subject of an explanation. Codes are in upper case, and names of nodes are not.
#[derive(Clone, Debug)]
enum Subject {
    Node(NodeName),
    Code(ProblemKind),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(kind) = ProblemKind::with_code(text) {
            return Ok(Self::Code(kind));
        }
        let is_code = text.strip_prefix("HS").is_some_and(|number| number.parse::<u16>().is_ok());
        if is_code {
            let last = ProblemKind::ALL.last().map_or("", |kind| kind.code());
            return Err(format!("there is no code {text}; they are HS001 to {last}"));
        }
        text.parse().map(Self::Node)
    }
}

pub(super) fn explain(args: ExplainArgs, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let ExplainArgs { subject, dir, config } = args;
    match subject {
        Subject::Node(node) => timeline(&NodeArgs { node, dir, config }, out),
        Subject::Code(kind) => {
            let severity = kind.severity().as_str();
            writeln!(out, "{} ({severity}): {}\n", kind.code(), kind.title())?;
            write!(out, "{}", filled(kind.explanation(), LINE_CHARS_MAX))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn timeline(place: &NodeArgs, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let files = StatusFiles::new(place.status_dir()?);
    let (status, doubt) = match status_file::read(&files.path(&place.node)) {
        Ok(status) => (status, None),
        Err(mut error) => match error.take_seeming() {
            Some(status) => (status, Some(error)),
            None => return Err(error.into()),
        },
    };
    let status = print::printable(&status)?;
    let (agent, mark_doubt) = match AgentAlive::look(&place.status_dir()?) {
        Ok(agent) => (agent.caution(), None),
        Err(error) => (Some("it is unknown whether an agent runs".to_owned()), Some(error)),
    };
    let doubt = doubt.or_else(|| files.check_written(&place.node).err()).or(mark_doubt);
    let there = |path: PathBuf| path.exists().then_some(path);
    let console = there(files.console_path(&place.node));
    let ramdisk_log = there(files.ramdisk_log_path(&place.node));
    let (file, defaults) = place.spec()?;
    let spec = file.exists().then(|| spec_dir::read_file(&file, defaults.as_ref()));
    let now = Timestamp::now();
    Timeline { status: &status, agent, spec, console, ramdisk_log, now }.print(out)?;
    // Printed last, where it is noticed: the timeline may be wrong.
    doubt.map_or(Ok(ExitCode::SUCCESS), |doubt| Err(doubt.into()))
}

struct Timeline<'a> {
    status: &'a Status,
    /// A sentence about the agent, if it needs attention.
    agent: Option<String>,
    spec: SpecNow,
    /// The machine's console log, if there is one.
    console: Option<PathBuf>,
    /// The file with the log of the node's deploy ramdisk, if there is one.
    ramdisk_log: Option<PathBuf>,
    now: Timestamp,
}

impl Timeline<'_> {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        self.head(out)?;
        self.history(out)?;
        self.seen(out)?;
        self.logged(out)?;
        self.last_error(out)?;
        self.conditions(out)?;
        self.next(out)
    }

    fn head(&self, out: &mut impl Write) -> io::Result<()> {
        let status = self.status;
        let attempt = match status.attempt {
            0 => String::new(),
            attempt => format!(", attempt {attempt}"),
        };
        let lasted = span(self.now.duration_since(status.since));
        writeln!(out, "{} is {} for {lasted}{attempt}", status.node, status.phase.as_str())?;
        writeln!(out, "  {}", status.message)?;
        if let Some(agent) = &self.agent {
            writeln!(out, "  {agent}")?;
        }
        if let Some(meter) = &status.progress {
            writeln!(out, "  {}", progress(meter))?;
        }
        writeln!(out, "\nSpec")?;
        let none = || "none: no spec was good yet".to_owned();
        let effective = status.spec_digest.as_ref().map_or_else(none, ToString::to_string);
        writeln!(out, "  effective  {effective}")?;
        if let Some(machine) = &status.machine {
            writeln!(out, "  machine    {machine}")?;
        }
        match &status.installed {
            None => writeln!(out, "  installed  nothing by hostler")?,
            Some(installed) => {
                writeln!(out, "  installed  {}", installed.digest)?;
                writeln!(out, "             on {}, {}", installed.disk, clock(installed.at))?;
                self.first_boot(installed, out)?;
                let machine = installed.machine.as_ref();
                if let Some(machine) = machine.filter(|one| Some(*one) != status.machine.as_ref()) {
                    writeln!(out, "             when the machine was {machine}")?;
                }
            }
        }
        self.problems(out)
    }

    /// Prints whether the installed system came up, with its address and SSH banner.
    fn first_boot(&self, installed: &Installed, out: &mut impl Write) -> io::Result<()> {
        let booted = match (installed.booted, installed.booted_at) {
            (None | Some(Booted::Unchecked), _) => "not checked ([boot_check])".to_owned(),
            (Some(Booted::Waiting), _) => "its system has yet to show that it is up".to_owned(),
            (Some(Booted::Missed), _) => "its system did not show in time that it is up".to_owned(),
            (Some(Booted::Up), at) => {
                let at = at.map(|at| format!(", {}", self.ago(at))).unwrap_or_default();
                format!("its system came up{at}")
            }
        };
        writeln!(out, "  first boot {booted}")?;
        let Some(system) = &installed.system else { return Ok(()) };
        let address = system.address.map(|address| format!("at {address}"));
        let hostname = system.hostname.as_ref().map(|name| format!("as {name}"));
        let shown = hostname.into_iter().chain(address).chain(system.ssh_banner.clone());
        let shown = shown.collect::<Vec<_>>();
        if !shown.is_empty() {
            writeln!(out, "             {}", shown.join(", "))?;
        }
        system.ssh_host_keys.iter().try_for_each(|key| writeln!(out, "             {key}"))
    }

    /// Prints the problems that the agent found, or else those of the current spec file.
    fn problems(&self, out: &mut impl Write) -> io::Result<()> {
        let reported = &self.status.problems;
        match &self.spec {
            _ if !reported.is_empty() => list(reported, out),
            Some(Err(found)) => list(found, out),
            Some(Ok(spec)) if Some(spec.digest()) != self.status.spec_digest => {
                writeln!(out, "  file       {}: the agent has not taken it up", spec.digest())
            }
            Some(Ok(_)) | None => Ok(()),
        }
    }

    fn history(&self, out: &mut impl Write) -> io::Result<()> {
        let history = &self.status.history;
        if history.is_empty() {
            return Ok(());
        }
        writeln!(out, "\nHistory")?;
        let ends = history.iter().skip(1).map(|entry| entry.at).chain([self.now]);
        let rows: Vec<(String, &str, String, &str)> = history
            .iter()
            .zip(ends)
            .map(|(entry, end)| {
                let took = span(end.duration_since(entry.at));
                (clock(entry.at), entry.phase.as_str(), took, entry.message.as_str())
            })
            .collect();
        let phase_width = rows.iter().map(|row| row.1.len()).max().unwrap_or(0);
        let took_width = rows.iter().map(|row| row.2.len()).max().unwrap_or(0);
        for (at, phase, took, message) in rows {
            writeln!(out, "  {at}  {phase:phase_width$}  {took:>took_width$}  {message}")?;
        }
        Ok(())
    }

    fn seen(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "\nEvidence")?;
        match self.status.power {
            None if self.powered_manually() => {
                writeln!(out, "  power    not known: there is no BMC (bmc.driver = \"none\")")?;
            }
            None => writeln!(out, "  power    not seen since the agent started")?,
            Some(power) => {
                let state = power.observed.as_str();
                writeln!(out, "  power    {state}, {}", self.ago(power.observed_at))?;
            }
        }
        if let Some(installed) = &self.status.installed
            && let (times @ 1.., Some(at)) =
                (installed.unexpected_netboots, installed.unexpected_netboot_at)
        {
            let ago = self.ago(at);
            writeln!(out, "  netboot  {times}x instead of booting its disk, the last one {ago}")?;
        }
        if self.status.attempt == 0 {
            return Ok(());
        }
        let nothing = LastSeen::default();
        let seen = self.status.last_seen.as_ref().unwrap_or(&nothing);
        let from = seen.address.map(|address| format!(" from {address}")).unwrap_or_default();
        match (seen.fetched, &seen.fetched_path, seen.fetched_at) {
            (Some(stage), Some(path), Some(at)) => {
                let stage = stage.as_str();
                writeln!(out, "  fetched  its {stage}, {path}{from}, {}", self.ago(at))?;
            }
            _ => writeln!(out, "  fetched  nothing: it has not netbooted in this attempt")?,
        }
        if let (None, Some(path)) = (seen.fetched, &seen.missing_loader) {
            let times = seen.missing_loader_times;
            let from = seen.missing_loader_from.map(|from| format!(" by {from}"));
            let from = from.unwrap_or_default();
            writeln!(out, "  refused  {path}, asked for {times}x{from}: not among the loaders")?;
        }
        if seen.fetched.is_none() {
            for mac in &seen.unknown_macs {
                writeln!(out, "  refused  a boot menu, asked for by {mac}, which no spec names")?;
            }
        }
        if let Some(at) = seen.netbooted_at {
            let ago = self.ago(at);
            writeln!(out, "  netboot  after it was restarted into its own system, {ago}")?;
        }
        match (&seen.callback, seen.callback_at) {
            (Some(call), Some(at)) => writeln!(out, "  called   {call}{from}, {}", self.ago(at))?,
            _ => writeln!(out, "  called   nothing: its deploy ramdisk has not called back")?,
        }
        if seen.refused > 0 {
            let why = seen.refused_reason.as_deref().unwrap_or("unknown");
            writeln!(out, "  refused  {} calls, the last because: {why}", seen.refused)?;
        }
        Ok(())
    }

    /// Prints where the ramdisk's log is, under Evidence, whether the attempt failed or not.
    fn logged(&self, out: &mut impl Write) -> io::Result<()> {
        let Some(path) = &self.ramdisk_log else { return Ok(()) };
        writeln!(out, "  logged   what its deploy ramdisk logged is in {}", path.display())
    }

    fn last_error(&self, out: &mut impl Write) -> io::Result<()> {
        let Some(last) = &self.status.last_error else { return Ok(()) };
        let at = self.ago(last.at);
        writeln!(out, "\nLast error: {} in attempt {}, {at}", last.fault.code, last.attempt)?;
        writeln!(out, "  {}", last.fault.message)?;
        writeln!(out, "  hint: {}", last.fault.hint)?;
        match &self.console {
            Some(path) => writeln!(out, "  what the machine printed is in {}", path.display()),
            None => Ok(()),
        }
    }

    fn conditions(&self, out: &mut impl Write) -> io::Result<()> {
        let conditions = &self.status.conditions;
        if conditions.is_empty() {
            return Ok(());
        }
        writeln!(out, "\nConditions")?;
        let width = conditions.iter().map(|one| one.kind.chars().count()).max().unwrap_or(0);
        for condition in conditions {
            let message = if condition.message.is_empty() { "" } else { ": " };
            writeln!(
                out,
                "  {:width$}  {:5}  {}{message}{}",
                condition.kind, condition.status, condition.reason, condition.message
            )?;
        }
        Ok(())
    }

    fn next(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "\nNext")?;
        let status = self.status;
        if let Some(at) = status.deadline {
            let reason = status.deadline_reason.as_deref().unwrap_or("the next step");
            writeln!(out, "  waiting for {reason}, until {}", self.ahead(at))?;
        }
        if let Some(at) = status.next_attempt_at {
            writeln!(out, "  the next attempt starts at {}", self.ahead(at))?;
        }
        for step in self.ways() {
            writeln!(out, "  you can: {step}")?;
        }
        if status.deadline.is_none() && status.next_attempt_at.is_none() && self.ways().is_empty() {
            writeln!(out, "  nothing")?;
        }
        Ok(())
    }
    /// The operator's possible steps, mildest first.
    fn ways(&self) -> Vec<String> {
        let node = &self.status.node;
        let condition = |kind: &str| self.status.conditions.iter().find(|one| one.kind == kind);
        let held_for = |reason: &str| condition("Held").is_some_and(|held| held.reason == reason);
        let ways: Vec<String> = match self.status.phase {
            Phase::Held if held_for("TooManyChanges") => vec![
                "take the change back".to_owned(),
                consent::approve(node),
                consent::APPROVE_ALL.to_owned(),
            ],
            Phase::Held => {
                // For a machine that is kept off, consent only allows hostler to switch it off.
                // Only the agent knows whether that is so: the file may be newer than the effective
                // spec.
                if self.status.message.contains(&consent::keep_off(node)) {
                    vec![consent::keep_off(node)]
                } else {
                    let off = held_for("PoweredOn").then(|| consent::SWITCH_OFF.to_owned());
                    let keep = "set state = \"unmanaged\" in its spec, to keep its disk as it is"
                        .to_owned();
                    let wipe = [consent::approve(node), consent::CHANGE_REDEPLOY.to_owned()];
                    [keep].into_iter().chain(wipe).chain(off).collect()
                }
            }
            Phase::Failed => {
                // The installation succeeded; only its restart failed.
                let is_good = self.status.installed_digest.is_some()
                    && self.status.installed_digest == self.status.spec_digest;
                let restart = || format!("run `hostler retry {node}`, to have it restarted");
                let then = |retry| format!("repair what the last error names, then {retry}");
                let booted = self.status.installed.as_ref().and_then(|it| it.booted);
                match booted {
                    Some(Booted::Missed) => vec![then(consent::retry_boot(node))],
                    _ if is_good => vec![then(restart())],
                    _ => vec![then(consent::retry(node)), consent::CHANGE_SPEC.to_owned()],
                }
            }
            Phase::Pending if self.status.next_attempt_at.is_some() => {
                vec![format!("run `hostler retry {node}`, not to wait for that")]
            }
            Phase::Invalid => vec!["correct its spec".to_owned()],
            Phase::Paused => vec!["take `paused` out of its spec".to_owned()],
            Phase::Deployed | Phase::Available => self.ways_at_rest(),
            phase if phase.is_busy() => {
                let hand = condition("WaitingForPerson").map(|one| one.message.clone());
                let stop = "set `paused = true` in its spec, to stop this";
                let keeps_on = phase == Phase::Booting;
                let off = if hand.is_some() || keeps_on || self.powered_manually() {
                    ""
                } else {
                    ", and have the machine switched off"
                };
                hand.into_iter().chain([format!("{stop}{off}")]).collect()
            }
            _ => Vec::new(),
        };
        if self.status.spec_valid || self.status.phase == Phase::Invalid {
            return ways;
        }
        ["correct its spec: until then nothing starts".to_owned()].into_iter().chain(ways).collect()
    }

    /// The operator's possible steps for a machine that is installed, or kept off.
    fn ways_at_rest(&self) -> Vec<String> {
        let node = &self.status.node;
        let condition = |kind: &str| self.status.conditions.iter().find(|one| one.kind == kind);
        let is_deployed = self.status.phase == Phase::Deployed;
        if is_deployed && condition("NetbootVerified").is_some() {
            vec![
                "put the files where image.kernel and image.ramdisk say, or correct these"
                    .to_owned(),
                format!("hostler retry {node}, not to wait until they are looked at again"),
            ]
        } else if is_deployed
            && condition("Drifted").is_some_and(|it| it.reason == "NetbootChanged")
        {
            vec!["wait: kernel and ramdisk are being verified".to_owned()]
        } else if is_deployed && self.drifted() {
            vec!["leave it: nothing is touched".to_owned(), consent::CHANGE_REDEPLOY.to_owned()]
        } else if condition("BmcReachable").is_some() {
            vec![format!("repair its BMC, then run `hostler bmc {node} status`, to have it asked")]
        } else if condition("PowerAsWanted").is_some_and(|one| one.status == "False") {
            vec![format!("run `hostler retry {node}`, to have its power as its spec says")]
        } else if self.status.installed.as_ref().is_some_and(|it| it.unexpected_netboots > 0) {
            vec![format!(
                "run `hostler bmc {node} bootdev disk --persistent`, to have it boot its disk, or \
                 correct its boot order"
            )]
        } else {
            Vec::new()
        }
    }

    /// Whether the machine has no BMC, by its spec.
    fn powered_manually(&self) -> bool {
        matches!(&self.spec, Some(Ok(spec)) if spec.bmc.is_none())
    }

    fn drifted(&self) -> bool {
        self.status.installed_digest.is_some()
            && self.status.installed_digest != self.status.spec_digest
    }

    fn ago(&self, at: Timestamp) -> String {
        format!("{}, {} ago", clock(at), span(self.now.duration_since(at)))
    }

    fn ahead(&self, at: Timestamp) -> String {
        let rest = at.duration_since(self.now);
        if rest >= SignedDuration::ZERO {
            format!("{}, in {}", clock(at), span(rest))
        } else {
            format!("{}, {} overdue: does the agent run?", clock(at), span(-rest))
        }
    }
}

fn list(problems: &[Problem], out: &mut impl Write) -> io::Result<()> {
    problems.iter().try_for_each(|problem| writeln!(out, "  problem    {problem}"))
}

#[cfg(test)]
mod tests;

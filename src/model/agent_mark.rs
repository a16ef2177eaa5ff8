//! The mark of a status directory: the agent that acts upon its nodes, with a heartbeat.
//!
//! Written and judged by the agent, read by the commands. It holds nothing secret.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::problem::shown;

/// The version of the mark's format. It changes only with a change that breaks readers.
pub const MARK_VERSION: u32 = 1;
/// Missing heartbeats after which a reader calls the agent dead.
const MISSING_MAX: i64 = 3;

/// An agent that acts upon a status directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentMark {
    /// The format's version, [`MARK_VERSION`].
    pub version: u32,
    /// The name of the agent's host.
    pub host: String,
    /// The agent's process id on that host.
    pub pid: u32,
    /// The agent's version of hostler.
    pub hostler: String,
    /// When the agent began to act upon this directory.
    pub started: Timestamp,
    /// The time of the last heartbeat.
    pub heartbeat: Timestamp,
    /// The time between two heartbeats, in seconds.
    pub interval_s: u32,
    /// When the agent stopped; `None` while it runs, or if it was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Timestamp>,
    /// Identifies the agent's state directory, which no two agents share.
    pub state_id: String,
    /// Identifies this start of the agent.
    pub run_id: String,
    /// Identifies the host: a hash of its machine id; empty if it has none.
    pub machine_id: String,
    /// Identifies the host's present boot; empty if unknown.
    pub boot_id: String,
    /// When the process started, in the kernel's clock ticks since boot. With `pid` and `boot_id`,
    /// it tells the process from a later one with the same number.
    pub pid_started_ticks: u64,
}

impl AgentMark {
    /// Returns the agent's last sign of life if it is stopped or dead at `now`; `None` while it
    /// lives.
    ///
    /// A heartbeat too far in the future counts as missing, too.
    pub fn dead_since(&self, now: Timestamp) -> Option<Timestamp> {
        let patience = SignedDuration::from_secs(i64::from(self.interval_s) * MISSING_MAX);
        let is_fresh = now.duration_since(self.heartbeat).abs() <= patience;
        self.stopped.or_else(|| (!is_fresh).then_some(self.heartbeat))
    }
}

impl fmt::Display for AgentMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, pid, hostler, started, .. } = self;
        write!(
            f,
            "process {pid} on host {}, hostler {}, since {started:.0}",
            shown(host),
            shown(hostler)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-11-22T{text}Z").parse().unwrap()
    }

    #[test]
    fn an_agent_is_dead_from_its_last_heartbeat_when_three_are_missing_and_at_once_when_stopped() {
        let mut mark: AgentMark = toml::from_str(
            "version = 1\nhost = \"a\"\npid = 7\nhostler = \"0.1.0\"\n\
             started = \"2026-11-22T11:00:00Z\"\nheartbeat = \"2026-11-22T12:00:00Z\"\n\
             interval_s = 10\nstate_id = \"s\"\nrun_id = \"r\"\nmachine_id = \"\"\n\
             boot_id = \"\"\npid_started_ticks = 0\n",
        )
        .unwrap();
        assert_eq!(mark.dead_since(at("12:00:30")), None);
        assert_eq!(mark.dead_since(at("12:00:31")), Some(at("12:00:00")));
        assert_eq!(mark.dead_since(at("11:59:30")), None);
        assert_eq!(mark.dead_since(at("11:59:29")), Some(at("12:00:00")));
        mark.stopped = Some(at("12:00:05"));
        assert_eq!(mark.dead_since(at("12:00:06")), Some(at("12:00:05")));
    }
}

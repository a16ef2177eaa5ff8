//! The mark of an agent: which agent acts upon the nodes of a status directory, and when it last
//! said that it lives.
//!
//! Written and judged by the agent, read by the commands. It holds nothing secret.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::problem::shown;

/// The version of the mark's format; it changes only when a reader would have to.
pub const MARK_VERSION: u32 = 1;
/// Heartbeats that may be missing before a reader calls the agent dead.
const MISSING_MAX: i64 = 3;

/// Which agent acts here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentMark {
    /// [`MARK_VERSION`]
    pub version: u32,
    /// The name of its host.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// The version of hostler.
    pub hostler: String,
    /// When it began to act here.
    pub started: Timestamp,
    /// When it last said that it lives.
    pub heartbeat: Timestamp,
    /// How often it says so, in seconds.
    pub interval_s: u32,
    /// When it was stopped; `None` while it runs, or if it was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Timestamp>,
    /// Identifies its state directory: two agents never share one.
    pub state_id: String,
    /// Identifies this start of it.
    pub run_id: String,
    /// Identifies the host, a hash of its machine id; empty where there is none.
    pub machine_id: String,
    /// Identifies the host's present boot; empty where that is not known.
    pub boot_id: String,
    /// When the process started, in the kernel's clock ticks since boot. Together with `pid` and
    /// `boot_id` it tells the process from a later one with the same number.
    pub pid_started_ticks: u64,
}

impl AgentMark {
    /// Since when no agent has acted here, as far as the mark tells at `now`; `None` while one
    /// does.
    ///
    /// A heartbeat that lies as far ahead of `now` as it may lie behind counts as missing too.
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

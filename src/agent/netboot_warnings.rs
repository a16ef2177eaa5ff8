//! Warns of installed machines that netboot instead of booting their disk, at most once an hour for
//! each.
//!
//! Called with every status that is shown. The count in the status is complete; the log must not
//! grow with a machine in a boot loop, nor with a stranger's requests.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use tracing::warn;

use crate::model::{ids::NodeName, status::Status};

/// The least time between two warnings about a node.
const INTERVAL: Duration = Duration::from_secs(3600);
/// A netboot is new for this time. An older one was warned of before the agent was restarted.
const NEW_FOR: SignedDuration = SignedDuration::from_secs(60);

/// The time of each node's last warning.
#[derive(Debug, Default)]
pub(super) struct NetbootWarnings(BTreeMap<NodeName, Instant>);

impl NetbootWarnings {
    /// Warns if the machine has just netbooted unexpectedly.
    pub(super) fn follow(&mut self, status: &Status) {
        let Some(installed) = &status.installed else { return };
        let Some(at) = installed.unexpected_netboot_at else { return };
        let (node, age) = (&status.node, status.updated.duration_since(at));
        if self.is_due(node, age, Instant::now()) {
            warn!(
                %node, times = installed.unexpected_netboots,
                "the machine netboots instead of booting its disk, and is served its disk; look \
                 at its boot order, or run \"hostler bmc {node} bootdev disk --persistent\""
            );
        }
    }

    /// Whether a netboot of this age must be warned of; the warning then counts as given.
    fn is_due(&mut self, node: &NodeName, age: SignedDuration, now: Instant) -> bool {
        let warned_at = self.0.get(node);
        let is_due =
            age < NEW_FOR && warned_at.is_none_or(|at| now.duration_since(*at) >= INTERVAL);
        if is_due {
            self.0.insert(node.clone(), now);
        }
        is_due
    }

    pub(super) fn forget(&mut self, node: &NodeName) {
        self.0.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_in_a_boot_loop_is_warned_of_once_an_hour_and_old_netboots_are_not() {
        let mut warnings = NetbootWarnings::default();
        let node: NodeName = "edge-07".parse().unwrap();
        let (start, new) = (Instant::now(), SignedDuration::from_secs(1));
        let after = |minutes: u64| start + Duration::from_secs(60 * minutes);
        assert!(!warnings.is_due(&node, NEW_FOR, start), "it was warned of before a restart");
        let due = (0..600).filter(|minute| warnings.is_due(&node, new, after(*minute)));
        assert_eq!(due.count(), 10);
        assert!(warnings.is_due(&"edge-08".parse().unwrap(), new, after(600)), "each has its own");
    }
}

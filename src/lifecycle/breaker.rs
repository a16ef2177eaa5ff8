//! The breaker: one mistake, one `git push` or one playbook, must not wipe a site.
//!
//! Kept by the [`super::Fleet`], which asks it in every comparison. It counts reinstalls, not installs, and counts them over a while:
//! a playbook changes thirty files one after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::model::ids::NodeName;

/// Reinstalls that came up within this time are one change. Longer than a playbook needs for thirty files, and shorter than a
/// machine takes to be reinstalled, so that whoever renews a site one machine after the other is not held up.
const WINDOW: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Reinstalls let through lately.
    recent: BTreeMap<NodeName, Timestamp>,
}

impl Breaker {
    /// Whether all of `new`, nodes that are to be reinstalled from now on, may be, where these are deployed.
    pub(super) fn lets_through(
        &mut self,
        now: Timestamp,
        new: &BTreeSet<NodeName>,
        deployed: &BTreeSet<&NodeName>,
    ) -> bool {
        if new.is_empty() {
            return true;
        }
        // A clock that was set back counts as a while, too.
        let window = SignedDuration::try_from(WINDOW).unwrap_or(SignedDuration::MAX);
        self.recent.retain(|_, at| now.duration_since(*at).abs() < window);
        let earlier = self.recent.keys().filter(|node| !new.contains(*node)).count();
        let together = earlier + new.len();
        // One that is being reinstalled counts among the deployed: it was, a moment ago.
        let under_way = self.recent.keys().filter(|node| !deployed.contains(node)).count();
        let few = together == 1 || together * 4 <= deployed.len() + under_way;
        if few {
            self.recent.extend(new.iter().map(|node| (node.clone(), now)));
        }
        few
    }
}

//! The breaker: one mistake, one `git push` or one playbook, must not wipe a site.
//!
//! The [`super::Fleet`] asks it in every comparison. It counts reinstalls, not installs, and counts
//! them over a while: a playbook changes thirty files one after the other. What it has counted is
//! kept in [`super::UnclaimedInstalls`]: an agent that is started again goes on counting.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::model::ids::NodeName;

/// Reinstalls that came up within this time are one change. Longer than a playbook needs for thirty
/// files, and shorter than a machine takes to be reinstalled, so that whoever renews a site one
/// machine after the other is not held up.
const WINDOW: Duration = Duration::from_secs(600);

/// Whether all of `new`, nodes that are to be reinstalled from now on, may be, where these are
/// deployed. If so, what was let through lately with them; `recent` is what was before.
pub(super) fn let_through(
    now: Timestamp,
    recent: &BTreeMap<NodeName, Timestamp>,
    new: &BTreeSet<NodeName>,
    deployed: &BTreeSet<&NodeName>,
) -> Option<BTreeMap<NodeName, Timestamp>> {
    // A clock that was set back counts as a while, too.
    let window = SignedDuration::try_from(WINDOW).unwrap_or(SignedDuration::MAX);
    let mut recent = recent.clone();
    recent.retain(|_, at| now.duration_since(*at).abs() < window);
    let earlier = recent.keys().filter(|node| !new.contains(*node)).count();
    let together = earlier + new.len();
    // A node that is being reinstalled counts among the deployed: it was, a moment ago.
    let under_way = recent.keys().filter(|node| !deployed.contains(node)).count();
    let few = together == 1 || together * 4 <= deployed.len() + under_way;
    few.then(|| {
        recent.extend(new.iter().map(|node| (node.clone(), now)));
        recent
    })
}

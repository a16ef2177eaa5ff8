//! The breaker: one mistake, one `git push` or one playbook, must not WIPE a site.
//!
//! The [`super::Fleet`] asks it in every comparison. It counts reinstalls, not first installs,
//! within a time window, because a playbook changes thirty files one after the other.
//! [`super::UnclaimedInstalls`] keeps the count across restarts of the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::model::ids::NodeName;

/// Reinstalls within this time count as one change. It is longer than a playbook needs for thirty
/// files and shorter than a reinstall, so that renewing a site machine by machine is not held.
const WINDOW: Duration = Duration::from_secs(600);

/// Judges the reinstalls of `new`. Returns the recent reinstalls including them, or `None` to hold
/// them all. `recent` are the earlier reinstalls, `deployed` the installed nodes.
pub(super) fn let_through(
    now: Timestamp,
    recent: &BTreeMap<NodeName, Timestamp>,
    new: &BTreeSet<NodeName>,
    deployed: &BTreeSet<&NodeName>,
) -> Option<BTreeMap<NodeName, Timestamp>> {
    // A clock that was set back far ends the window, too, until it is set right again.
    let window = SignedDuration::try_from(WINDOW).unwrap_or(SignedDuration::MAX);
    let mut recent = recent.clone();
    recent.retain(|_, at| now.duration_since(*at) < window);
    let in_window = recent.iter().filter(|(_, at)| now.duration_since(**at).abs() < window);
    let earlier: Vec<&NodeName> = in_window.map(|(node, _)| node).collect();
    let together = earlier.iter().filter(|node| !new.contains(**node)).count() + new.len();
    // A node that is being reinstalled still counts as deployed.
    let under_way = earlier.iter().filter(|node| !deployed.contains(*node)).count();
    let few = together == 1 || together * 4 <= deployed.len() + under_way;
    few.then(|| {
        recent.extend(new.iter().map(|node| (node.clone(), now)));
        recent
    })
}

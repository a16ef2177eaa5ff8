//! Longest time until a site comes to rest.

use std::time::Duration;

use hostler::model::spec::NodeSpec;

/// Longest time until a site comes to rest after the last fault: operations in progress run into
/// their deadlines, and then every node has a whole series of attempts, as many at a time as the
/// limits allow.
pub(crate) fn settling(spec: &NodeSpec, nodes: usize, at_once: usize) -> Duration {
    let times = &spec.timeouts;
    let attempt = times.ramdisk.max(Duration::from_mins(40))
        + times.imaging
        + 3 * times.completed
        + 16 * times.power
        + 4 * times.first_boot;
    let waves = u32::try_from(nodes.div_ceil(at_once) + 1).unwrap_or(u32::MAX);
    // An hour: the agent asks a BMC that refused only then.
    Duration::from_hours(1) + attempt * 2 + Duration::from_mins(50) * waves
}

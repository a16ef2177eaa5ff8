//! Raises the limit of open files, and derives the number of concurrent polls.
//!
//! Called once at start. It raises the soft limit up to the hard limit, which it must never exceed.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most polls at once: enough for a large site with mostly dead BMCs.
const POLLS_MAX: u64 = 2048;
/// Descriptors for everything else: listeners, TFTP transfers, ramdisks' connections, images.
const RESERVED: u64 = 1024;
/// Fewest polls at once, if descriptors are scarce.
const POLLS_MIN: u64 = 64;

/// Raises the limit and returns the number of polls within it.
pub(super) fn polls_max() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = POLLS_MAX + RESERVED;
    let raised = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let enough = current.is_none_or(|current| current >= raised);
    let set =
        enough || setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).is_ok();
    let open_max = if set {
        current.map_or(wanted, |current| current.max(raised))
    } else {
        current.unwrap_or(wanted)
    };
    let polls = open_max.saturating_sub(RESERVED).clamp(POLLS_MIN, POLLS_MAX);
    usize::try_from(polls).unwrap_or(usize::MAX)
}

//! Raises the limit of open files, and derives the number of BMCs to poll at once.
//!
//! Called once at start. The soft limit is raised as far as the service manager lets it: that is
//! what it is for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most polls at once: enough that a site with more dead BMCs than live ones is still polled all at
/// once.
const POLLS_MAX: u64 = 2048;
/// Descriptors for everything else: listeners, TFTP transfers, ramdisks' connections, images.
const RESERVED: u64 = 1024;
/// Polls at once where descriptors are scarce.
const POLLS_MIN: u64 = 64;

/// Raises the limit and returns the number of polls that fit into it.
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

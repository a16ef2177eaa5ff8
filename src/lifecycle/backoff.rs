//! The pauses before retries.
//!
//! Called by the core. The jitter is derived from the node's name instead of being random: thirty
//! nodes that fail together do not retry together, and a simulation can be replayed.

use std::time::Duration;

use crate::model::{backoff::Backoff, ids::NodeName};

/// The longest pause: after a repair, nobody should have to wait for hours.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// The pause after attempt number `attempt`: `first`, doubled for each attempt before it, plus up
/// to a fifth.
pub(super) fn pause(node: &NodeName, attempt: u32, first: Duration) -> Duration {
    let base = Backoff::doubling(first, PAUSE_MAX).pause_after(attempt);
    base + base / 5 * percent(node, attempt) / 100
}

/// A number from 0 to 100 that differs between nodes.
pub(super) fn percent(node: &NodeName, attempt: u32) -> u32 {
    // FNV-1a over name and attempt.
    let hash = node
        .as_str()
        .bytes()
        .chain(attempt.to_be_bytes())
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash % 101
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_bounded_jitter_up_to_an_hour() {
        let node: NodeName = "edge-07".parse().unwrap();
        let first = Duration::from_secs(60);
        for (attempt, base_s) in [(1, 60), (2, 120), (3, 240), (7, 3600), (u32::MAX, 3600)] {
            let pause = pause(&node, attempt, first).as_secs_f64();
            let base = f64::from(base_s);
            assert!((base..=base * 1.2).contains(&pause), "attempt {attempt}: {pause}");
        }
    }

    #[test]
    fn nodes_that_fail_together_do_not_retry_together() {
        let pauses: std::collections::BTreeSet<Duration> = (0..30)
            .map(|n| pause(&format!("edge-{n}").parse().unwrap(), 1, Duration::from_secs(60)))
            .collect();
        assert!(pauses.len() > 20, "{pauses:?}");
    }
}

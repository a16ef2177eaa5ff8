//! The activity of a connection: its progress, and its deadline.
//!
//! A connection and its response bodies share it. Only bytes that the client takes count, not those
//! that it sends.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// Counts the sent pieces, and holds the connection's deadline.
#[derive(Debug)]
pub(super) struct ConnectionActivity {
    count: AtomicU64,
    began: Instant,
    /// The connection's deadline, in ms since its start.
    deadline_ms: AtomicU64,
}

impl ConnectionActivity {
    /// Starts a connection that may last for `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        let deadline_ms = AtomicU64::new(millis(limit));
        Self { count: AtomicU64::new(0), began: Instant::now(), deadline_ms }
    }

    /// Records progress.
    pub(super) fn note(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves the deadline to `limit` from now, unless it is later anyway.
    pub(super) fn extend(&self, limit: Duration) {
        let deadline = self.began.elapsed().saturating_add(limit);
        self.deadline_ms.fetch_max(millis(deadline), Ordering::Relaxed);
    }

    /// Waits for the deadline.
    pub(super) async fn expired(&self) {
        loop {
            let limit = Duration::from_millis(self.deadline_ms.load(Ordering::Relaxed));
            if self.began.elapsed() >= limit {
                return;
            }
            sleep(limit.saturating_sub(self.began.elapsed())).await;
        }
    }

    /// Waits for a time without progress: at least `time`, and less than twice as long.
    pub(super) async fn stalled(&self, time: Duration) {
        let mut seen = self.count.load(Ordering::Relaxed);
        loop {
            sleep(time).await;
            let now = self.count.load(Ordering::Relaxed);
            if now == seen {
                return;
            }
            seen = now;
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_may_become_as_old_as_the_longest_limit_of_what_it_sends() {
        let second = Duration::from_secs(1);
        let activity = ConnectionActivity::new(30 * second);
        sleep(20 * second).await;
        for limit in [second, 60 * second, 15 * second] {
            activity.extend(limit);
        }
        activity.expired().await;
        assert_eq!(activity.began.elapsed().as_secs(), 80);
    }
}

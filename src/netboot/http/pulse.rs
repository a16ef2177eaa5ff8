//! How a connection is: whether anything moves on it, and how old it may become.
//!
//! Shared by a connection and the bodies it sends. What a client takes counts, never what it says.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// A connection's state of health.
#[derive(Debug)]
pub(super) struct Pulse {
    beats: AtomicU64,
    began: Instant,
    /// When it has to end, in ms since it began.
    end_ms: AtomicU64,
}

impl Pulse {
    /// Of a connection that begins now and may last so long.
    pub(super) fn new(limit: Duration) -> Self {
        let end_ms = AtomicU64::new(millis(limit));
        Self { beats: AtomicU64::new(0), began: Instant::now(), end_ms }
    }

    /// Something has moved.
    pub(super) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// What is sent from now on may take so long, if that is more than is left.
    pub(super) fn may_take(&self, limit: Duration) {
        let end = self.began.elapsed().saturating_add(limit);
        self.end_ms.fetch_max(millis(end), Ordering::Relaxed);
    }

    /// Ends when the connection is as old as it may become.
    pub(super) async fn old_age(&self) {
        loop {
            let limit = Duration::from_millis(self.end_ms.load(Ordering::Relaxed));
            if self.began.elapsed() >= limit {
                return;
            }
            sleep(limit.saturating_sub(self.began.elapsed())).await;
        }
    }

    /// Ends when nothing has moved for the time, and before it has passed twice.
    pub(super) async fn stillness(&self, time: Duration) {
        let mut seen = self.beats.load(Ordering::Relaxed);
        loop {
            sleep(time).await;
            let now = self.beats.load(Ordering::Relaxed);
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
        let pulse = Pulse::new(30 * second);
        sleep(20 * second).await;
        for limit in [second, 60 * second, 15 * second] {
            pulse.may_take(limit);
        }
        pulse.old_age().await;
        assert_eq!(pulse.began.elapsed().as_secs(), 80);
    }
}

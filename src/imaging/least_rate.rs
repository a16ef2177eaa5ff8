//! Whether a disk takes or gives its data so slowly that it keeps a place from others.
//!
//! Called by the passes over a disk, after everything that happens. It knows no clock and no
//! connection, only what it is told. It must never count a time in which the disk was not what
//! limited, nor one without any answer, which is for the stall limit to judge.

use std::time::Duration;

use tokio::time::Instant;

/// What of the time between two answers counts at most.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The least rate that a disk must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeastRate {
    /// In bytes a second; 0: any.
    pub bytes_per_s: u64,
    /// The time over which it is averaged.
    pub over: Duration,
}

impl LeastRate {
    /// Any rate will do.
    pub const ANY: Self = Self { bytes_per_s: 0, over: Duration::from_secs(60) };
}

/// The judge of one pass.
#[derive(Debug)]
pub(super) struct RateWatch {
    least: LeastRate,
    /// What was done when the present window began.
    from_bytes: u64,
    /// For how long the disk has limited since.
    limited: Duration,
    /// When it was last looked at, and whether the disk was what limited from then on.
    seen: Option<(Instant, bool)>,
}

impl RateWatch {
    pub(super) fn new(least: LeastRate) -> Self {
        Self { least, from_bytes: 0, limited: Duration::ZERO, seen: None }
    }

    pub(super) fn least(&self) -> LeastRate {
        self.least
    }

    /// A pass begins, or goes on over a new connection, with so many bytes done.
    pub(super) fn begin(&mut self, done_bytes: u64) {
        *self = Self { from_bytes: done_bytes, ..Self::new(self.least) };
    }

    /// The rate in bytes a second, if it is too low, when so many bytes are done in all and, from now
    /// on until the next time, the disk is or is not what limits.
    pub(super) fn too_slow(&mut self, now: Instant, done_bytes: u64, limits: bool) -> Option<u64> {
        if let Some((seen, true)) = self.seen.replace((now, limits)) {
            self.limited += now.duration_since(seen).min(SILENCE_MAX);
        }
        if self.least.bytes_per_s == 0 || self.limited < self.least.over {
            return None;
        }
        let moved = u128::from(done_bytes.saturating_sub(self.from_bytes));
        let rate = moved * 1000 / self.limited.as_millis().max(1);
        (self.from_bytes, self.limited) = (done_bytes, Duration::ZERO);
        (rate < u128::from(self.least.bytes_per_s)).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const MINUTE: LeastRate = LeastRate { bytes_per_s: MIB, over: Duration::from_secs(60) };

    /// After how many seconds a disk is too slow that answers each `pause_s` with so many bytes.
    fn ends_after(least: LeastRate, pause_s: u64, bytes: u64, limits: bool) -> Option<u64> {
        let (mut watch, began) = (RateWatch::new(least), Instant::now());
        watch.begin(0);
        (0..=100).find_map(|answer| {
            let now = began + Duration::from_secs(answer * pause_s);
            watch.too_slow(now, answer * bytes, limits).map(|_| answer * pause_s)
        })
    }

    #[test]
    fn a_disk_slower_than_the_least_rate_over_a_minute_is_too_slow_and_one_as_quick_is_not() {
        assert_eq!(ends_after(MINUTE, 5, 50 << 10, true), Some(60));
        assert_eq!(ends_after(MINUTE, 5, 5 * MIB - 1, true), Some(60));
        assert_eq!(ends_after(MINUTE, 5, 5 * MIB, true), None);
        assert_eq!(ends_after(LeastRate::ANY, 5, 0, true), None);
    }

    #[test]
    fn a_time_in_which_something_else_limits_is_not_counted() {
        assert_eq!(ends_after(MINUTE, 5, 0, false), None);
        // The disk limits for half of the time.
        let (mut watch, began) = (RateWatch::new(MINUTE), Instant::now());
        watch.begin(0);
        let ended = (0..=200).find(|answer: &u64| {
            let now = began + Duration::from_secs(*answer);
            watch.too_slow(now, 0, answer.is_multiple_of(2)).is_some()
        });
        assert_eq!(ended, Some(119));
    }

    #[test]
    fn a_silence_is_for_the_stall_limit_and_a_quick_disk_may_have_one() {
        let (mut watch, began) = (RateWatch::new(MINUTE), Instant::now());
        watch.begin(0);
        assert_eq!(watch.too_slow(began, 0, true), None);
        let mut now = began + Duration::from_secs(110);
        assert_eq!(watch.too_slow(now, MIB, true), None);
        for s in 1..=200 {
            now += Duration::from_secs(1);
            assert_eq!(watch.too_slow(now, MIB + s * 2 * MIB, true), None);
        }
        // One that answers too seldom all the time is slow.
        assert_eq!(ends_after(MINUTE, 30, MIB, true), Some(180));
    }

    #[test]
    fn a_new_connection_is_judged_anew() {
        let (mut watch, began) = (RateWatch::new(MINUTE), Instant::now());
        for round in 0..5 {
            watch.begin(10 * MIB);
            for s in 0..60 {
                let now = began + Duration::from_secs(100 * round + s);
                assert_eq!(watch.too_slow(now, 10 * MIB, true), None);
            }
        }
    }
}

//! Decides whether a disk is so slow that it keeps a permit from other machines.
//!
//! The passes over a disk call it after every event. It has no clock and no connection; the caller
//! reports both. It must count only time in which the disk was the bottleneck, and all of it, also
//! when the disk answers in bursts or over a new connection.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time without progress that counts as a silence.
const SILENCE_MIN: Duration = Duration::from_secs(10);

/// The least rate that a disk must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeastRate {
    /// Bytes per second; 0 accepts any rate.
    pub bytes_per_s: u64,
    /// Time over which the rate is averaged.
    pub over: Duration,
}

impl LeastRate {
    /// Accepts any rate.
    pub const ANY: Self = Self { bytes_per_s: 0, over: Duration::from_secs(60) };
}

/// A measured rate, and the duration of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeasuredRate {
    /// Bytes per second.
    pub bytes_per_s: u64,
    /// Time in which the disk was the bottleneck.
    pub over: Duration,
}

/// A pass over the disk, over one connection or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Body,
    Compare,
}

/// The rate of one write, window by window.
#[derive(Debug)]
pub(super) struct RateWatch {
    least: LeastRate,
    /// The total duration of silences that may still be ignored.
    forgivable: Duration,
    pass: Option<Pass>,
    window: Window,
    /// The time of the last report, and whether the disk has been the bottleneck since.
    seen: Option<(Instant, bool)>,
    done_bytes: u64,
}

/// The current measurement.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// Bytes done at the measurement's beginning.
    from_bytes: u64,
    /// The time since its beginning in which the disk was the bottleneck.
    limited: Duration,
    /// The current silence: the part of that time since the last byte moved.
    silent: Duration,
    longest_silence: Duration,
}

impl RateWatch {
    /// Makes a watch. It ignores silences, which the stall limit handles, until their total reaches
    /// that limit.
    pub(super) fn new(least: LeastRate, stall: Duration) -> Self {
        let window = Window::default();
        Self { least, forgivable: stall, pass: None, window, seen: None, done_bytes: 0 }
    }

    pub(super) fn least(&self) -> LeastRate {
        self.least
    }

    /// Starts a pass, or resumes it over a new connection, with `done_bytes` done. The time since
    /// the last report counts, and repeated bytes do not count as done.
    pub(super) fn begin(&mut self, now: Instant, pass: Pass, done_bytes: u64) {
        if self.pass.replace(pass) == Some(pass) {
            self.pass_time(now, true);
        } else {
            self.window = Window::from(done_bytes);
            self.seen = None;
        }
        self.done_bytes = done_bytes;
    }

    /// Reports progress; returns the rate if it is too low. `limits` says whether the disk is the
    /// bottleneck until the next report.
    pub(super) fn too_slow(
        &mut self,
        now: Instant,
        done_bytes: u64,
        limits: bool,
    ) -> Option<MeasuredRate> {
        self.pass_time(now, limits);
        if done_bytes != self.done_bytes {
            self.done_bytes = done_bytes;
            self.window.silent = Duration::ZERO;
        }
        let window = self.window;
        if self.least.bytes_per_s == 0 || window.limited < self.least.over {
            return None;
        }
        let moved_bytes = done_bytes.saturating_sub(window.from_bytes);
        if !self.is_enough(moved_bytes, window.limited) {
            let silence = window.longest_silence;
            let quick_beside_it =
                self.is_enough(moved_bytes, window.limited.saturating_sub(silence));
            if silence <= SILENCE_MIN || silence > self.forgivable || !quick_beside_it {
                let bytes_per_s = rate(moved_bytes, window.limited);
                return Some(MeasuredRate { bytes_per_s, over: window.limited });
            }
            if window.silent > SILENCE_MIN {
                // The silence continues: the stall limit decides whether it ends in time.
                return None;
            }
            self.forgivable = self.forgivable.saturating_sub(silence);
        }
        self.window = Window::from(done_bytes);
        None
    }

    fn pass_time(&mut self, now: Instant, limits: bool) {
        if let Some((seen, true)) = self.seen.replace((now, limits)) {
            let passed = now.duration_since(seen);
            let window = &mut self.window;
            window.limited += passed;
            window.silent += passed;
            window.longest_silence = window.longest_silence.max(window.silent);
        }
    }

    fn is_enough(&self, bytes: u64, over: Duration) -> bool {
        u128::from(bytes) * 1000 >= u128::from(self.least.bytes_per_s) * over.as_millis()
    }
}

impl Window {
    fn from(done_bytes: u64) -> Self {
        Self { from_bytes: done_bytes, ..Self::default() }
    }
}

fn rate(bytes: u64, over: Duration) -> u64 {
    u64::try_from(u128::from(bytes) * 1000 / over.as_millis().max(1)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const KIB: u64 = 1 << 10;
    const MINUTE: LeastRate = LeastRate { bytes_per_s: MIB, over: Duration::from_secs(60) };
    const STALL: Duration = Duration::from_secs(120);

    /// A disk that is reported to a [`RateWatch`].
    struct Simulation {
        watch: RateWatch,
        began: Instant,
        now: Instant,
        done_bytes: u64,
    }

    impl Simulation {
        fn new(least: LeastRate) -> Self {
            let now = Instant::now();
            let mut simulation =
                Self { watch: RateWatch::new(least, STALL), began: now, now, done_bytes: 0 };
            assert_eq!(simulation.connect(0, 0), None);
            simulation
        }

        /// Reports a new connection after `after_s`, with `done_bytes` done.
        fn connect(&mut self, after_s: u64, done_bytes: u64) -> Option<MeasuredRate> {
            self.now += Duration::from_secs(after_s);
            self.done_bytes = done_bytes;
            self.watch.begin(self.now, Pass::Body, done_bytes);
            self.watch.too_slow(self.now, done_bytes, true)
        }

        /// Reports an answer after `after_s`, with `bytes` more.
        fn answer(&mut self, after_s: u64, bytes: u64, limits: bool) -> Option<MeasuredRate> {
            self.now += Duration::from_secs(after_s);
            self.done_bytes += bytes;
            self.watch.too_slow(self.now, self.done_bytes, limits)
        }

        /// The seconds until the disk is too slow, and its rate, if `act` repeats.
        fn until(&mut self, mut act: impl FnMut(&mut Self) -> Option<MeasuredRate>) -> End {
            for _ in 0..2000 {
                if let Some(slow) = act(self) {
                    return Some((self.now.duration_since(self.began).as_secs(), slow.bytes_per_s));
                }
            }
            None
        }
    }

    /// Seconds until the disk is too slow, and the bytes per second measured.
    type End = Option<(u64, u64)>;

    fn ends(least: LeastRate, pause_s: u64, bytes: u64, limits: bool) -> End {
        Simulation::new(least).until(|simulation| simulation.answer(pause_s, bytes, limits))
    }

    /// Invariant (fair): A slow disk gives its permit up.
    #[test]
    fn a_disk_slower_than_the_least_rate_over_a_minute_is_too_slow_and_one_as_quick_is_not() {
        assert_eq!(ends(MINUTE, 5, 50 * KIB, true), Some((60, 10 * KIB)));
        assert_eq!(ends(MINUTE, 5, 5 * MIB - 1, true), Some((60, MIB - 1)));
        assert_eq!(ends(MINUTE, 5, 5 * MIB, true), None);
        assert_eq!(ends(LeastRate::ANY, 5, 0, true), None);
    }

    #[test]
    fn a_time_in_which_something_else_limits_is_not_counted() {
        let mut simulation = Simulation::new(MINUTE);
        assert_eq!(simulation.answer(0, 0, false), None);
        assert_eq!(simulation.until(|simulation| simulation.answer(5, 0, false)), None);
        // The disk is the bottleneck half of the time.
        let (mut simulation, mut limits) = (Simulation::new(MINUTE), true);
        let ended = simulation.until(|simulation| {
            limits = !limits;
            simulation.answer(1, KIB, limits)
        });
        assert_eq!(ended.map(|(after_s, _)| after_s), Some(119));
    }

    /// Invariant (fair): A slow disk gives its permit up.
    #[test]
    fn a_disk_that_answers_in_bursts_is_judged_by_all_of_its_time() {
        // Bursts of 8 MiB, each after a silence that counts in full.
        for (pause_s, ends_after_s) in [(9, 63), (11, 66), (20, 60), (30, 60)] {
            let ended = ends(MINUTE, pause_s, 8 * MIB, true);
            assert_eq!(ended, Some((ends_after_s, 8 * MIB * 1000 / (pause_s * 1000))));
        }
        assert_eq!(ends(MINUTE, 5, 8 * MIB, true), None);
    }

    /// Invariant (fair): A slow disk gives its permit up.
    #[test]
    fn a_quick_disk_may_be_silent_for_as_long_as_the_stall_limit_in_all() {
        let quick =
            |simulation: &mut Simulation| (0..70).find_map(|_| simulation.answer(1, 2 * MIB, true));
        let mut simulation = Simulation::new(MINUTE);
        assert_eq!(simulation.answer(110, MIB, true), None);
        assert_eq!(quick(&mut simulation), None);
        let again = simulation.until(|simulation| simulation.answer(110, MIB, true));
        assert_eq!(again.map(|(_, rate)| rate < MIB), Some(true));
        // Two shorter silences are not longer in total, and a third one is.
        let mut simulation = Simulation::new(MINUTE);
        for _ in 0..2 {
            assert_eq!(simulation.answer(58, 0, true), None);
            assert_eq!(simulation.answer(2, 2 * MIB, true), None);
            assert_eq!(quick(&mut simulation), None);
        }
        let mut until = |s| simulation.until(|simulation| simulation.answer(s, 0, true));
        assert!(until(58).is_some());
        // A disk that bursts once a minute soon uses up its silences.
        assert_eq!(ends(MINUTE, 62, 8 * MIB, true).map(|(after_s, _)| after_s), Some(124));
    }

    #[test]
    fn a_silence_that_goes_on_is_for_the_stall_limit_to_judge() {
        let mut simulation = Simulation::new(MINUTE);
        for _ in 0..100 {
            assert_eq!(simulation.answer(1, 0, true), None);
        }
        assert_eq!(simulation.answer(1, MIB, true), None);
    }

    /// Invariant (fair): A slow disk gives its permit up.
    #[test]
    fn new_connections_begin_no_new_minute_and_what_is_done_again_counts_once() {
        // Half a MiB per second, and every fifth second a new connection, which costs a second.
        let mut simulation = Simulation::new(MINUTE);
        let ended = simulation.until(|simulation| {
            let slow = (0..5).find_map(|_| simulation.answer(1, MIB / 2, true));
            slow.or_else(|| simulation.connect(1, simulation.done_bytes))
        });
        assert_eq!(ended.map(|(after_s, _)| after_s), Some(60));
        // Each connection moves many bytes, and nearly all of them have to be repeated.
        let mut simulation = Simulation::new(MINUTE);
        let ended = simulation.until(|simulation| {
            let flushed = simulation.done_bytes;
            let slow = (0..10).find_map(|_| simulation.answer(1, 8 * MIB, true));
            slow.or_else(|| simulation.connect(1, flushed + MIB))
        });
        assert!(ended.is_some_and(|(after_s, rate)| after_s <= 120 && rate < MIB), "{ended:?}");
    }

    #[test]
    fn another_pass_is_judged_anew() {
        let mut simulation = Simulation::new(MINUTE);
        assert!((0..59).all(|_| simulation.answer(1, 0, true).is_none()));
        simulation.watch.begin(simulation.now, Pass::Compare, 0);
        simulation.done_bytes = 0;
        assert!((0..60).all(|_| simulation.answer(1, MIB, true).is_none()));
    }
}

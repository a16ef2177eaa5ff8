//! Decides whether one more connection makes a write faster.
//!
//! The write of a body calls it after every event. It has no clock and no connection; the caller
//! reports both. It must use only measurements in which the network path was the bottleneck.

use std::time::Duration;

use tokio::time::Instant;

/// Most connections. Paths that give one connection only a part of their bandwidth are mostly bonds
/// of two to four links, and every connection costs the target resources.
const CONNECTIONS_MAX: usize = 4;
/// The rate that counts as clearly faster, in tenths of the rate before: more than a path's noise.
const QUICKER_TENTHS: u128 = 12;

/// Durations and bytes of a valid measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScaleUpThresholds {
    /// The unmeasured time after each new connection: congestion windows grow, and the buckets of
    /// policers are full.
    pub(super) settle: Duration,
    /// Shortest measurement after that.
    pub(super) window: Duration,
    /// Fewest bytes of a measurement: commands complete in bursts, so that few bytes give no rate.
    pub(super) window_bytes: u64,
}

impl Default for ScaleUpThresholds {
    /// The defaults add no connection within two seconds, so that small images and fast paths keep
    /// one.
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { settle: second, window: second, window_bytes: 32 << 20 }
    }
}

/// The next change of the pool of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScaleAdvice {
    /// No change for now.
    Stay,
    /// Open one more connection, and report the result.
    OpenOne,
    /// Close the newest connection: it made nothing faster.
    CloseOne,
    /// No change any more.
    Settled,
}

/// The state of one write's decisions.
#[derive(Debug)]
pub(super) struct ScaleUp {
    thresholds: ScaleUpThresholds,
    state: State,
    connections: usize,
    /// The rate with one connection fewer, in bytes per second, once measured.
    before: Option<u128>,
}

#[derive(Debug)]
enum State {
    /// Before the measurement.
    Settling {
        since: Option<Instant>,
    },
    Measuring(Window),
    Opening,
    Settled,
}

#[derive(Debug)]
struct Window {
    from: Instant,
    completed_bytes: u64,
    /// Time of the last observation.
    seen: Instant,
    /// Whether the path has been the bottleneck since.
    limits: bool,
    /// Time in which the path was not the bottleneck.
    idle: Duration,
}

impl ScaleUp {
    pub(super) fn new(thresholds: ScaleUpThresholds) -> Self {
        Self { thresholds, state: State::Settling { since: None }, connections: 1, before: None }
    }

    /// Starts, or starts again with one connection after a break. After a break of several
    /// connections, which may have caused it, the write keeps one.
    pub(super) fn begin(&mut self) {
        let untried = self.connections == 1
            && matches!(self.state, State::Settling { .. } | State::Measuring(_));
        self.state = if untried { State::Settling { since: None } } else { State::Settled };
    }

    /// Reports progress, and returns the next change. `completed_bytes` counts from the write's
    /// beginning; `limits` says whether the path is the bottleneck until the next observation.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        completed_bytes: u64,
        limits: bool,
    ) -> ScaleAdvice {
        match &mut self.state {
            State::Settling { since } => {
                let since = *since.get_or_insert(now);
                if now.duration_since(since) >= self.thresholds.settle {
                    self.state = State::Measuring(Window::new(now, completed_bytes, limits));
                }
                ScaleAdvice::Stay
            }
            State::Measuring(window) => {
                window.observe(now, limits);
                if window.idle > self.thresholds.window / 10 {
                    *window = Window::new(now, completed_bytes, limits);
                }
                let took = now.duration_since(window.from);
                let bytes = completed_bytes.saturating_sub(window.completed_bytes);
                if took < self.thresholds.window || bytes < self.thresholds.window_bytes {
                    return ScaleAdvice::Stay;
                }
                self.judge(u128::from(bytes) * 1_000_000 / took.as_micros().max(1))
            }
            State::Opening => ScaleAdvice::Stay,
            State::Settled => ScaleAdvice::Settled,
        }
    }

    /// Reports that the new connection is open.
    pub(super) fn opened(&mut self) {
        self.connections += 1;
        self.state = State::Settling { since: None };
    }

    /// Reports that the new connection failed.
    pub(super) fn refused(&mut self) {
        self.state = State::Settled;
    }

    fn judge(&mut self, rate: u128) -> ScaleAdvice {
        if self.before.is_some_and(|before| rate * 10 < before * QUICKER_TENTHS) {
            self.state = State::Settled;
            return ScaleAdvice::CloseOne;
        }
        if self.connections == CONNECTIONS_MAX {
            self.state = State::Settled;
            return ScaleAdvice::Settled;
        }
        self.before = Some(rate);
        self.state = State::Opening;
        ScaleAdvice::OpenOne
    }
}

impl Window {
    fn new(now: Instant, completed_bytes: u64, limits: bool) -> Self {
        Self { from: now, completed_bytes, seen: now, limits, idle: Duration::ZERO }
    }

    fn observe(&mut self, now: Instant, limits: bool) {
        if !self.limits {
            self.idle += now.duration_since(self.seen);
        }
        (self.seen, self.limits) = (now, limits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A path that is observed every 10 ms.
    struct Simulation {
        scale_up: ScaleUp,
        now: Instant,
        completed_bytes: u64,
    }

    impl Simulation {
        fn new() -> Self {
            let mut scale_up = ScaleUp::new(ScaleUpThresholds::default());
            scale_up.begin();
            Self { scale_up, now: Instant::now(), completed_bytes: 0 }
        }

        /// The first advice other than `Stay`, and the milliseconds until it.
        fn until(&mut self, limit_ms: u64, mib_s: u64, limits: bool) -> (ScaleAdvice, u64) {
            for ms in (0..=limit_ms).step_by(10) {
                let advice = self.scale_up.observe(self.now, self.completed_bytes, limits);
                if advice != ScaleAdvice::Stay {
                    return (advice, ms);
                }
                self.now += Duration::from_millis(10);
                self.completed_bytes += mib_s * MIB / 100;
            }
            (ScaleAdvice::Stay, limit_ms)
        }
    }

    #[test]
    fn nothing_is_opened_before_two_seconds() {
        assert_eq!(Simulation::new().until(60_000, 100, true), (ScaleAdvice::OpenOne, 2000));
        assert_eq!(Simulation::new().until(1990, 5000, true).0, ScaleAdvice::Stay);
    }

    #[test]
    fn connections_are_added_while_each_makes_it_quicker_and_not_beyond_four() {
        let mut simulation = Simulation::new();
        for mib_s in [100, 200, 300] {
            assert_eq!(simulation.until(9000, mib_s, true), (ScaleAdvice::OpenOne, 2000));
            assert_eq!(
                simulation.until(9000, mib_s, true).0,
                ScaleAdvice::Stay,
                "one is being opened"
            );
            simulation.scale_up.opened();
        }
        assert_eq!(simulation.until(9000, 400, true).0, ScaleAdvice::Settled);
    }

    /// Invariant (disk): A further connection is kept only if it pays, and never leads to another
    /// disk.
    #[test]
    fn a_connection_that_does_not_make_it_clearly_quicker_is_closed_and_none_is_opened_after_it() {
        for (mib_s, advice) in [
            (100, ScaleAdvice::CloseOne),
            (119, ScaleAdvice::CloseOne),
            (121, ScaleAdvice::OpenOne),
        ] {
            let mut simulation = Simulation::new();
            assert_eq!(simulation.until(9000, 100, true).0, ScaleAdvice::OpenOne);
            simulation.scale_up.opened();
            assert_eq!(simulation.until(9000, mib_s, true).0, advice, "{mib_s}");
            if advice == ScaleAdvice::CloseOne {
                assert_eq!(simulation.until(9000, 900, true).0, ScaleAdvice::Settled);
            }
        }
    }

    #[test]
    fn the_first_second_of_a_connection_says_nothing() {
        let mut simulation = Simulation::new();
        assert_eq!(simulation.until(9000, 100, true).0, ScaleAdvice::OpenOne);
        simulation.scale_up.opened();
        assert_eq!(simulation.until(990, 1000, true).0, ScaleAdvice::Stay, "a bucket is full");
        assert_eq!(simulation.until(9000, 100, true).0, ScaleAdvice::CloseOne);
    }

    #[test]
    fn a_window_in_which_something_else_limited_says_nothing() {
        let mut simulation = Simulation::new();
        assert_eq!(simulation.until(60_000, 100, false).0, ScaleAdvice::Stay);
        // The path is the bottleneck half the time, the reader the other half.
        for _ in 0..100 {
            assert_eq!(simulation.until(500, 100, true).0, ScaleAdvice::Stay);
            assert_eq!(simulation.until(500, 100, false).0, ScaleAdvice::Stay);
        }
        // A short drop of the rate changes nothing.
        assert_eq!(simulation.until(500, 100, true).0, ScaleAdvice::Stay);
        assert_eq!(simulation.until(50, 100, false).0, ScaleAdvice::Stay);
        assert_eq!(simulation.until(9000, 100, true).0, ScaleAdvice::OpenOne);
    }

    #[test]
    fn a_slow_path_is_measured_for_longer() {
        let (advice, ms) = Simulation::new().until(60_000, 4, true);
        assert!(advice == ScaleAdvice::OpenOne && (9000..9020).contains(&ms), "{ms}");
    }

    #[test]
    fn one_that_is_refused_is_the_last() {
        let mut simulation = Simulation::new();
        assert_eq!(simulation.until(9000, 100, true).0, ScaleAdvice::OpenOne);
        simulation.scale_up.refused();
        assert_eq!(simulation.until(9000, 100, true).0, ScaleAdvice::Settled);
    }

    #[test]
    fn what_breaks_with_one_connection_begins_anew_and_with_several_stays_with_one() {
        let mut simulation = Simulation::new();
        assert_eq!(simulation.until(1500, 100, true).0, ScaleAdvice::Stay);
        simulation.scale_up.begin();
        assert_eq!(simulation.until(9000, 100, true), (ScaleAdvice::OpenOne, 2000));
        simulation.scale_up.begin();
        assert_eq!(
            simulation.until(9000, 100, true).0,
            ScaleAdvice::Settled,
            "broken while it was opened"
        );

        let mut simulation = Simulation::new();
        assert_eq!(simulation.until(9000, 100, true).0, ScaleAdvice::OpenOne);
        simulation.scale_up.opened();
        simulation.scale_up.begin();
        assert_eq!(simulation.until(9000, 100, true).0, ScaleAdvice::Settled);
    }
}

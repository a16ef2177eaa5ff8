//! Whether one more connection to the disk pays.
//!
//! Called by the writing of a body, after everything that happens. It knows no clock and no connection, only what it is told. It must never
//! learn from a time in which something else than the line was what limited.

use std::time::Duration;

use tokio::time::Instant;

/// Connections at most. Those paths that give one connection only a part of themselves are mostly bonds of two to four links, and every
/// connection takes something of the target.
const CONNECTIONS_MAX: usize = 4;
/// What is clearly quicker, in tenths: the noise of a path is less.
const QUICKER_TENTHS: u128 = 12;

/// How long it takes to believe something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// After each new connection: congestion windows grow, and the buckets of policers are full. It says nothing yet.
    pub(super) settle: Duration,
    /// What is measured after that, at least.
    pub(super) window: Duration,
    /// And at least so many bytes: they land in bursts of what is under way at once, which is no rate.
    pub(super) window_bytes: u64,
}

impl Default for Pace {
    /// Nothing is opened before the second second has passed: small images and fast paths are left alone.
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { settle: second, window: second, window_bytes: 32 << 20 }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Nothing, for now.
    Stay,
    /// One more connection is to be opened, and what came of it is to be told.
    OpenOne,
    /// The newest connection is to be closed: it was not worth it.
    CloseOne,
    /// Nothing any more.
    Settled,
}

/// The judge of one imaging.
#[derive(Debug)]
pub(super) struct Climb {
    pace: Pace,
    state: State,
    connections: usize,
    /// Bytes a second with one connection less, once that is known.
    before: Option<u128>,
}

#[derive(Debug)]
enum State {
    /// Nothing is measured yet.
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
    landed_bytes: u64,
    /// When it was last looked at, and whether the line was what limited from then on.
    seen: Instant,
    limits: bool,
    /// How long it was not.
    idle: Duration,
}

impl Climb {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, state: State::Settling { since: None }, connections: 1, before: None }
    }

    /// The work begins, or begins anew with one connection after it has broken. What broke with several may have broken because of them.
    pub(super) fn begin(&mut self) {
        let untried = self.connections == 1
            && matches!(self.state, State::Settling { .. } | State::Measuring(_));
        self.state = if untried { State::Settling { since: None } } else { State::Settled };
    }

    /// What to do, when so many bytes of data have landed in all and, from now on until the next time, the line is or is not what limits.
    pub(super) fn look(&mut self, now: Instant, landed_bytes: u64, limits: bool) -> Advice {
        match &mut self.state {
            State::Settling { since } => {
                let since = *since.get_or_insert(now);
                if now.duration_since(since) >= self.pace.settle {
                    self.state = State::Measuring(Window::new(now, landed_bytes, limits));
                }
                Advice::Stay
            }
            State::Measuring(window) => {
                window.look(now, limits);
                if window.idle > self.pace.window / 10 {
                    *window = Window::new(now, landed_bytes, limits);
                }
                let took = now.duration_since(window.from);
                let bytes = landed_bytes.saturating_sub(window.landed_bytes);
                if took < self.pace.window || bytes < self.pace.window_bytes {
                    return Advice::Stay;
                }
                self.judge(u128::from(bytes) * 1_000_000 / took.as_micros().max(1))
            }
            State::Opening => Advice::Stay,
            State::Settled => Advice::Settled,
        }
    }

    /// The connection that was asked for is there.
    pub(super) fn opened(&mut self) {
        self.connections += 1;
        self.state = State::Settling { since: None };
    }

    /// It is not to be had.
    pub(super) fn refused(&mut self) {
        self.state = State::Settled;
    }

    fn judge(&mut self, rate: u128) -> Advice {
        if self.before.is_some_and(|before| rate * 10 < before * QUICKER_TENTHS) {
            self.state = State::Settled;
            return Advice::CloseOne;
        }
        if self.connections == CONNECTIONS_MAX {
            self.state = State::Settled;
            return Advice::Settled;
        }
        self.before = Some(rate);
        self.state = State::Opening;
        Advice::OpenOne
    }
}

impl Window {
    fn new(now: Instant, landed_bytes: u64, limits: bool) -> Self {
        Self { from: now, landed_bytes, seen: now, limits, idle: Duration::ZERO }
    }

    fn look(&mut self, now: Instant, limits: bool) {
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

    /// A climb, and the line it looks at every 10 ms.
    struct Told {
        climb: Climb,
        now: Instant,
        landed_bytes: u64,
    }

    impl Told {
        fn new() -> Self {
            let mut climb = Climb::new(Pace::default());
            climb.begin();
            Self { climb, now: Instant::now(), landed_bytes: 0 }
        }

        /// The first advice there is, and after how many milliseconds.
        fn until(&mut self, limit_ms: u64, mib_s: u64, limits: bool) -> (Advice, u64) {
            for ms in (0..=limit_ms).step_by(10) {
                let advice = self.climb.look(self.now, self.landed_bytes, limits);
                if advice != Advice::Stay {
                    return (advice, ms);
                }
                self.now += Duration::from_millis(10);
                self.landed_bytes += mib_s * MIB / 100;
            }
            (Advice::Stay, limit_ms)
        }
    }

    #[test]
    fn nothing_is_opened_before_two_seconds() {
        assert_eq!(Told::new().until(60_000, 100, true), (Advice::OpenOne, 2000));
        assert_eq!(Told::new().until(1990, 5000, true).0, Advice::Stay);
    }

    #[test]
    fn it_climbs_while_each_connection_makes_it_quicker_and_not_beyond_four() {
        let mut told = Told::new();
        for mib_s in [100, 200, 300] {
            assert_eq!(told.until(9000, mib_s, true), (Advice::OpenOne, 2000));
            assert_eq!(told.until(9000, mib_s, true).0, Advice::Stay, "one is being opened");
            told.climb.opened();
        }
        assert_eq!(told.until(9000, 400, true).0, Advice::Settled);
    }

    /// Invariant (disk): A further connection is kept only if it pays, and never leads to another
    /// disk.
    #[test]
    fn a_connection_that_does_not_make_it_clearly_quicker_is_closed_and_none_is_opened_after_it() {
        for (mib_s, advice) in
            [(100, Advice::CloseOne), (119, Advice::CloseOne), (121, Advice::OpenOne)]
        {
            let mut told = Told::new();
            assert_eq!(told.until(9000, 100, true).0, Advice::OpenOne);
            told.climb.opened();
            assert_eq!(told.until(9000, mib_s, true).0, advice, "{mib_s}");
            if advice == Advice::CloseOne {
                assert_eq!(told.until(9000, 900, true).0, Advice::Settled);
            }
        }
    }

    #[test]
    fn the_first_second_of_a_connection_says_nothing() {
        let mut told = Told::new();
        assert_eq!(told.until(9000, 100, true).0, Advice::OpenOne);
        told.climb.opened();
        assert_eq!(told.until(990, 1000, true).0, Advice::Stay, "a bucket is full");
        assert_eq!(told.until(9000, 100, true).0, Advice::CloseOne);
    }

    #[test]
    fn a_window_in_which_something_else_limited_says_nothing() {
        let mut told = Told::new();
        assert_eq!(told.until(60_000, 100, false).0, Advice::Stay);
        // Half the time it is the line, half the time the reader.
        for _ in 0..100 {
            assert_eq!(told.until(500, 100, true).0, Advice::Stay);
            assert_eq!(told.until(500, 100, false).0, Advice::Stay);
        }
        // A hiccup is none.
        assert_eq!(told.until(500, 100, true).0, Advice::Stay);
        assert_eq!(told.until(50, 100, false).0, Advice::Stay);
        assert_eq!(told.until(9000, 100, true).0, Advice::OpenOne);
    }

    #[test]
    fn a_slow_line_is_measured_for_longer() {
        let (advice, ms) = Told::new().until(60_000, 4, true);
        assert!(advice == Advice::OpenOne && (9000..9020).contains(&ms), "{ms}");
    }

    #[test]
    fn one_that_is_refused_is_the_last() {
        let mut told = Told::new();
        assert_eq!(told.until(9000, 100, true).0, Advice::OpenOne);
        told.climb.refused();
        assert_eq!(told.until(9000, 100, true).0, Advice::Settled);
    }

    #[test]
    fn what_breaks_with_one_connection_begins_anew_and_with_several_stays_with_one() {
        let mut told = Told::new();
        assert_eq!(told.until(1500, 100, true).0, Advice::Stay);
        told.climb.begin();
        assert_eq!(told.until(9000, 100, true), (Advice::OpenOne, 2000));
        told.climb.begin();
        assert_eq!(told.until(9000, 100, true).0, Advice::Settled, "broken while it was opened");

        let mut told = Told::new();
        assert_eq!(told.until(9000, 100, true).0, Advice::OpenOne);
        told.climb.opened();
        told.climb.begin();
        assert_eq!(told.until(9000, 100, true).0, Advice::Settled);
    }
}

//! Growing pauses between retries.
//!
//! Used by the core, the adapters and the ramdisk for their retries. It has no clock: the caller
//! waits.

use std::time::Duration;

/// A series of pauses, each longer than the one before, up to a limit.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
    max: Duration,
    growth: Growth,
}

#[derive(Clone, Copy, Debug)]
enum Growth {
    Double,
    Half,
}

impl Backoff {
    /// Pauses that double.
    pub const fn doubling(first: Duration, max: Duration) -> Self {
        Self { next: first, max, growth: Growth::Double }
    }

    /// Pauses that grow by half.
    pub const fn by_half(first: Duration, max: Duration) -> Self {
        Self { next: first, max, growth: Growth::Half }
    }

    /// Returns the pause before the next try. The first pause may exceed the limit.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        let grown = match self.growth {
            Growth::Double => pause.saturating_mul(2),
            Growth::Half => pause.saturating_mul(3) / 2,
        };
        self.next = grown.min(self.max);
        pause
    }

    /// The pause after `failures` in a row, for a caller that counts them: the first one after 1.
    /// None is longer than the limit.
    pub fn pause_after(mut self, failures: u32) -> Duration {
        for _ in 1..failures {
            if self.next_pause() == self.next {
                break;
            }
        }
        self.next.min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_stay_there() {
        let [first, max] = [1000, 4000].map(Duration::from_millis);
        let pauses = |mut backoff: Backoff| [(); 5].map(|()| backoff.next_pause().as_millis());
        assert_eq!(pauses(Backoff::doubling(first, max)), [1000, 2000, 4000, 4000, 4000]);
        assert_eq!(pauses(Backoff::by_half(first, max)), [1000, 1500, 2250, 3375, 4000]);
        let mut endless = Backoff::doubling(Duration::MAX, Duration::MAX);
        assert_eq!([endless.next_pause(), endless.next_pause()], [Duration::MAX; 2]);
    }

    #[test]
    fn counted_failures_have_the_same_pauses() {
        let [first, max] = [1000, 5000].map(Duration::from_millis);
        let pauses = |first, max| {
            let backoff = Backoff::doubling(first, max);
            [0, 1, 2, 3, 4, u32::MAX].map(|failures| backoff.pause_after(failures).as_millis())
        };
        assert_eq!(pauses(first, max), [1000, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(pauses(max, first), [1000; 6]);
        assert_eq!(pauses(Duration::ZERO, max), [0; 6]);
    }
}

//! Polls of the power state outside of an attempt: when the next one is due, and how urgent it is.
//!
//! Kept by each node; `polling.rs` asks for them. A BMC that is silent keeps its permit for
//! [`super::POLL_LIMIT`], is urgent ever more seldom, and goes behind those that answer: nobody may
//! wait for it. A poll is started only when it has its permit, so that nothing counts against it
//! before.

use std::time::Duration;

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

use crate::model::{backoff::Backoff, fault::RetryAdvice};

use super::limits::{POLL_INTERVAL, after};

/// From the first poll that was not answered to the next; doubled after each further one.
const SILENT_INTERVAL_MIN: Duration = Duration::from_secs(15);
/// Silent BMCs are polled at seconds that are multiples of this.
const TOGETHER_S: i64 = 5;
/// The urgency of a poll, the most urgent first: the first number of its place in the queue.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    /// The first attempt waits for it, or an operator does.
    Wanted,
    /// A repeated attempt waits for it.
    Repeated,
    /// Nothing waits for it, and the last poll was answered.
    Routine,
    /// Nothing waits for it, and the last poll was not answered.
    Silent,
}

/// The part of `limit` permits that polls of a class may take, so that no class takes the last one
/// of a more urgent one.
pub(super) fn share(limit: usize, class: u32) -> usize {
    let eighths = match class {
        0 => 8,
        1 | 2 => 6,
        _ => 2,
    };
    (limit * eighths / 8).max(1)
}

/// A node's polls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Polls {
    /// When the next poll is due, unless an attempt waits for it.
    pub(super) next_at: Timestamp,
    /// The pause after a poll that was answered; longer where there are very many nodes.
    pub(super) interval: Duration,
    /// Polls in a row that were not answered.
    pub(super) misses: u32,
    /// The BMC refuses what it is urgent with. It is not sent the same again at each poll, lest it
    /// lock the user out: a poll only finds out whether there is something else to send.
    refused: bool,
    /// An operator has used the BMC, or wants to know.
    pub(super) urgent: bool,
    pub(super) permit: PollPermit,
}

/// The place of a node in the queue of those to be polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollPermit {
    /// It waits for no poll.
    None,
    /// It waits since then, and so may an attempt.
    Waiting { since: Timestamp, for_attempt: bool },
    /// It got its permit in this step.
    Granted,
    /// Its poll is under way.
    Running,
}

impl Polls {
    pub(super) fn new(first_at: Timestamp) -> Self {
        Self {
            next_at: first_at,
            interval: POLL_INTERVAL,
            misses: 0,
            refused: false,
            urgent: false,
            permit: PollPermit::None,
        }
    }

    /// Has the BMC polled now, and forgets how it was before.
    pub(super) fn ask(&mut self, now: Timestamp) {
        (self.next_at, self.misses, self.urgent) = (now, 0, true);
    }

    /// Notes that the BMC has said its power state, to whomever.
    pub(super) fn answered(&mut self, now: Timestamp) {
        (self.misses, self.refused, self.urgent) = (0, false, false);
        self.next_at = after(now, self.pause());
    }

    /// Notes that the BMC did not say it.
    pub(super) fn missed(&mut self, now: Timestamp, advice: RetryAdvice) {
        // To read a file keeps no permit for long.
        let in_a_row = if advice == RetryAdvice::Wait { 0 } else { self.misses };
        self.misses = in_a_row.saturating_add(1);
        self.refused = advice == RetryAdvice::Never;
        self.urgent = false;
        self.next_at = self.due_after(now);
    }

    /// The time of the next poll after one that ended now. Polls of silent BMCs come together: ten
    /// thousand of them for ever, each at a moment of its own, wake this machine for each datagram.
    fn due_after(&self, now: Timestamp) -> Timestamp {
        let at = after(now, self.pause());
        let together = TimestampRound::new()
            .smallest(Unit::Second)
            .increment(TOGETHER_S)
            .mode(RoundMode::Floor);
        let rounded = (self.misses > 0).then(|| at.round(together).ok()).flatten();
        rounded.unwrap_or(at)
    }

    /// The pause until the next poll. That of a silent BMC grows to what lets one that was mended
    /// be seen within a minute and a half on a site of a thousand machines.
    fn pause(&self) -> Duration {
        if self.misses == 0 {
            return self.interval;
        }
        let longest = POLL_INTERVAL.max(self.interval / 3);
        if self.refused {
            return longest;
        }
        Backoff::doubling(SILENT_INTERVAL_MIN, longest).pause_after(self.misses)
    }

    /// A clock that was set back makes no pause longer than its whole length.
    pub(super) fn bound(&mut self, now: Timestamp) {
        self.next_at = self.next_at.min(self.due_after(now));
    }

    pub(super) fn next_at(&self) -> Timestamp {
        self.next_at
    }

    /// Whether it waits for its permit.
    pub(super) fn waits(&self) -> bool {
        matches!(self.permit, PollPermit::Waiting { .. })
    }

    /// Whether an attempt does so, too.
    pub(super) fn keeps_attempt_waiting(&self) -> bool {
        matches!(self.permit, PollPermit::Waiting { for_attempt: true, .. })
    }

    /// Grants the permit that it waits for.
    pub(super) fn grant(&mut self) {
        if self.waits() {
            self.permit = PollPermit::Granted;
        }
    }

    pub(super) fn granted(&self) -> bool {
        self.permit == PollPermit::Granted
    }

    /// Notes that an operation began.
    pub(super) fn began(&mut self, is_poll: bool) {
        self.permit = if is_poll { PollPermit::Running } else { PollPermit::None };
    }
}

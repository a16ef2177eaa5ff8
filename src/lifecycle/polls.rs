//! The schedule of a node's polls outside of an attempt: the next one's time and urgency.
//!
//! Owned by each node; `polling.rs` requests the polls. A silent BMC holds its permit for
//! [`super::POLL_LIMIT`], is polled ever less often, and comes after those that answer: no other
//! node may wait for it. A poll starts only with its permit, so that no wait in the queue counts
//! against the BMC.

use std::time::Duration;

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

use crate::model::{backoff::Backoff, fault::RetryAdvice, ids::NodeName};

use super::{
    backoff,
    limits::{POLL_INTERVAL, after},
};

/// The pause after the first unanswered poll, which doubles with each further one.
const SILENT_INTERVAL_MIN: Duration = Duration::from_secs(15);
/// The longest pause on a site of up to [`SILENT_FEW`] silent BMCs: a repaired one is found soon.
const SILENT_INTERVAL_SOON: Duration = Duration::from_secs(90);
/// The number of silent BMCs that get at least one poll in each [`SILENT_INTERVAL_SOON`].
const SILENT_FEW: u32 = 1350;
/// Polls per second of silent BMCs, of all together, while each has its poll in time.
const SILENT_POLLS_PER_S: u32 = 5;
/// Polls per second of the silent BMCs beyond [`SILENT_FEW`].
const MORE_SILENT_POLLS_PER_S: u32 = 4;
/// Polls per second of BMCs that have not answered one poll: a missing password file may concern
/// all nodes.
const ONCE_SILENT_POLLS_PER_S: u32 = 50;
/// Polls of silent BMCs are aligned to multiples of so many seconds.
const TOGETHER_S: i64 = 5;
/// The same for pauses of [`LONG_PAUSE`] and more, which only sites of thousands of machines have.
const TOGETHER_LONG_S: i64 = 30;
const LONG_PAUSE: Duration = Duration::from_secs(300);

/// The urgency of a poll, the most urgent first, which is the first number of its place in the
/// queue.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    /// A first attempt or an operator waits for the poll.
    Wanted,
    /// A repeated attempt waits for the poll.
    Repeated,
    /// Nothing waits for the poll, and the BMC answered the last one.
    Routine,
    /// Nothing waits for the poll, and the BMC did not answer the last one.
    Silent,
}

/// The number of permits, of `limit`, that polls of a class may hold, so that a less urgent class
/// leaves some for a more urgent one.
pub(super) fn share(limit: usize, class: u32) -> usize {
    let eighths = match class {
        0 => 8,
        1 | 2 => 6,
        _ => 2,
    };
    (limit * eighths / 8).max(1)
}

/// The state of a node's polls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Polls {
    /// When the next poll is due, unless an attempt waits for it.
    pub(super) next_at: Timestamp,
    /// The pause after an answered poll, which grows with the number of nodes.
    pub(super) interval: Duration,
    /// The site's number of silent BMCs, with which their pauses grow.
    pub(super) silent: u32,
    /// Unanswered polls in a row.
    pub(super) misses: u32,
    /// The node's share of the longest pause when that begins, so that thousands of BMCs that fell
    /// silent together are not polled together.
    share_percent: u32,
    /// Whether the BMC rejected its login. Polls then do not repeat that login, which could lock
    /// the user out, but check whether the credentials have changed.
    refused: bool,
    /// An operator used the BMC, or waits for the power state.
    pub(super) urgent: bool,
    pub(super) permit: PollPermit,
}

/// The state of a node's permit for a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollPermit {
    /// The node wants no poll.
    None,
    /// The node waits for its permit since this time, perhaps with an attempt.
    Waiting { since: Timestamp, for_attempt: bool },
    /// The node got its permit in this step.
    Granted,
    /// The poll is under way.
    Running,
}

impl Polls {
    pub(super) fn new(node: &NodeName, first_at: Timestamp) -> Self {
        Self {
            next_at: first_at,
            interval: POLL_INTERVAL,
            silent: 0,
            misses: 0,
            share_percent: backoff::percent(node, 0),
            refused: false,
            urgent: false,
            permit: PollPermit::None,
        }
    }

    /// Requests a poll at once, whatever the BMC's history.
    pub(super) fn ask(&mut self, now: Timestamp) {
        (self.next_at, self.misses, self.urgent) = (now, 0, true);
    }

    /// Notes that the BMC reported its power state, by a poll or another command.
    pub(super) fn answered(&mut self, now: Timestamp) {
        (self.misses, self.refused, self.urgent) = (0, false, false);
        self.next_at = after(now, self.pause());
    }

    /// Notes a failed poll or command.
    pub(super) fn missed(&mut self, now: Timestamp, advice: RetryAdvice) {
        // A missing file holds the permit only briefly.
        let in_a_row = if advice == RetryAdvice::Wait { 0 } else { self.misses };
        self.misses = in_a_row.saturating_add(1);
        self.refused = advice == RetryAdvice::Never;
        self.urgent = false;
        self.next_at = self.due_after(now);
    }

    /// The time of the next poll after one that ends now. Polls of silent BMCs are aligned, so that
    /// ten thousand of them do not wake this machine for each datagram.
    fn due_after(&self, now: Timestamp) -> Timestamp {
        let pause = self.pause();
        let at = after(now, pause);
        let together = TimestampRound::new()
            .smallest(Unit::Second)
            .increment(if pause < LONG_PAUSE { TOGETHER_S } else { TOGETHER_LONG_S })
            .mode(RoundMode::Floor);
        let rounded = (self.misses > 0).then(|| at.round(together).ok()).flatten();
        rounded.unwrap_or(at)
    }

    /// The pause until the next poll. For a silent BMC, it grows up to a limit that grows with the
    /// number of silent BMCs.
    fn pause(&self) -> Duration {
        if self.misses == 0 {
            return self.interval;
        }
        let longest = longest_pause(self.silent);
        let first = SILENT_INTERVAL_MIN.max(seconds(self.silent / ONCE_SILENT_POLLS_PER_S));
        match self.misses {
            _ if self.refused => longest,
            0..=1 => first,
            2 if longest > SILENT_INTERVAL_SOON => {
                first + longest.saturating_sub(first) * self.share_percent / 100
            }
            _ if longest > SILENT_INTERVAL_SOON => longest,
            misses => Backoff::doubling(first, longest).pause_after(misses),
        }
    }

    /// Bounds the pause to its full length after the clock was set back.
    pub(super) fn bound(&mut self, now: Timestamp) {
        self.next_at = self.next_at.min(self.due_after(now));
    }

    /// Whether the BMC did not answer its last poll.
    pub(super) fn is_silent(&self) -> bool {
        self.misses > 0
    }

    pub(super) fn next_at(&self) -> Timestamp {
        self.next_at
    }

    /// Whether a poll waits for its permit.
    pub(super) fn waits(&self) -> bool {
        matches!(self.permit, PollPermit::Waiting { .. })
    }

    /// Whether an attempt waits for the poll, too.
    pub(super) fn keeps_attempt_waiting(&self) -> bool {
        matches!(self.permit, PollPermit::Waiting { for_attempt: true, .. })
    }

    /// Grants the permit to a waiting poll.
    pub(super) fn grant(&mut self) {
        if self.waits() {
            self.permit = PollPermit::Granted;
        }
    }

    pub(super) fn granted(&self) -> bool {
        self.permit == PollPermit::Granted
    }

    /// Whether the operation under way is a poll.
    pub(super) fn runs(&self) -> bool {
        self.permit == PollPermit::Running
    }

    /// Notes the start of an operation.
    pub(super) fn began(&mut self, is_poll: bool) {
        self.permit = if is_poll { PollPermit::Running } else { PollPermit::None };
    }
}

/// The longest pause between two polls of a silent BMC on a site with so many of them. A repaired
/// one is found within a minute and a half among up to [`SILENT_FEW`]; more of them cost no more
/// polls.
fn longest_pause(silent: u32) -> Duration {
    let pause = seconds(silent / SILENT_POLLS_PER_S).clamp(POLL_INTERVAL, SILENT_INTERVAL_SOON);
    pause + seconds(silent.saturating_sub(SILENT_FEW) / MORE_SILENT_POLLS_PER_S)
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

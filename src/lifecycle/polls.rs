//! Polls of the power state outside of an attempt: when the next one is due, and who goes first.
//!
//! Kept by each [`Node`], and by the [`super::Fleet`] in a line of its own. A BMC that is silent keeps its place
//! for [`POLL_LIMIT`], is asked ever more seldom, and goes behind those that answer: nobody may wait for it. A poll
//! is started only when it has its place, so that nothing counts against it before.

use std::time::Duration;

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

use crate::model::{fault::RetryAdvice, spec::BmcDriver};

use super::{event::Permit, node::Node, permits::Place, state::State, wait::after};

/// How long a BMC may take to say its power state outside of an attempt. A slow one takes a second or two, also
/// when a datagram is lost.
pub const POLL_LIMIT: Duration = Duration::from_secs(15);

/// How often a node without an attempt is polled: BMCs are fragile, and a minute is soon enough for drift.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// From the first poll that was not answered to the next; doubled after each further one.
const SILENT_INTERVAL_MIN: Duration = Duration::from_secs(15);
/// Silent BMCs are polled at seconds that are multiples of this.
const TOGETHER_S: i64 = 5;
/// Programs that poll at the same time: each is a process.
pub(super) const PROGRAM_POLLS_MAX: usize = 64;

/// Why a node is polled, the most urgent first: the first number of its place in the line.
#[derive(Clone, Copy, Debug)]
enum Class {
    /// Its first attempt waits for it, or an operator does.
    Wanted,
    /// A repeated attempt does.
    Repeated,
    /// To see whether anything has changed.
    Routine,
    /// The same, where the last poll was not answered.
    Silent,
}

/// How many of `limit` places those of a class may take, so that no class takes the last one of a more urgent one.
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
    /// When the next one is due, unless an attempt waits for it.
    next_at: Timestamp,
    /// From one to the next of a BMC that answers; longer where there are very many nodes.
    pub(super) interval: Duration,
    /// Polls in a row that were not answered.
    misses: u32,
    /// The BMC refuses what it is asked with. It is not sent the same again at each poll, lest it
    /// lock the user out: a poll only finds out whether there is something else to send.
    refused: bool,
    /// An operator has used the BMC, or wants to know.
    asked: bool,
    permit: PollPermit,
}

/// Where a node is in the line of those to be polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PollPermit {
    /// Nowhere.
    None,
    /// Since when it waits, and whether an attempt does.
    Waiting { since: Timestamp, for_attempt: bool },
    /// Its turn has come in this step.
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
            asked: false,
            permit: PollPermit::None,
        }
    }

    /// The next one is due now, and whatever the BMC was like before is forgotten.
    pub(super) fn ask(&mut self, now: Timestamp) {
        (self.next_at, self.misses, self.asked) = (now, 0, true);
    }

    /// The BMC has said its power state, to whomever.
    pub(super) fn answered(&mut self, now: Timestamp) {
        (self.misses, self.refused, self.asked) = (0, false, false);
        self.next_at = after(now, self.pause());
    }

    /// It did not.
    pub(super) fn missed(&mut self, now: Timestamp, advice: RetryAdvice) {
        // To look for a file keeps no place for long.
        let in_a_row = if advice == RetryAdvice::Wait { 0 } else { self.misses };
        self.misses = in_a_row.saturating_add(1);
        self.refused = advice == RetryAdvice::Never;
        self.asked = false;
        self.next_at = self.due_after(now);
    }

    /// When the next one is due after one that ended now. Those of silent BMCs come together: ten
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

    /// From one to the next. That of a silent BMC grows to what lets one that was mended be seen within a minute and
    /// a half on a site of a thousand machines.
    fn pause(&self) -> Duration {
        let Some(doublings) = self.misses.checked_sub(1) else { return self.interval };
        let longest = POLL_INTERVAL.max(self.interval / 3);
        if self.refused {
            return longest;
        }
        SILENT_INTERVAL_MIN.saturating_mul(1 << doublings.min(16)).min(longest)
    }

    /// A clock that was set back makes no pause longer than its whole length.
    pub(super) fn bound(&mut self, now: Timestamp) {
        self.next_at = self.next_at.min(self.due_after(now));
    }

    pub(super) fn next_at(&self) -> Timestamp {
        self.next_at
    }

    /// Whether it waits for its turn.
    pub(super) fn waits(&self) -> bool {
        matches!(self.permit, PollPermit::Waiting { .. })
    }

    /// Whether an attempt does so, too.
    pub(super) fn keeps_attempt_waiting(&self) -> bool {
        matches!(self.permit, PollPermit::Waiting { for_attempt: true, .. })
    }

    /// Its turn has come.
    pub(super) fn grant(&mut self) {
        if self.waits() {
            self.permit = PollPermit::Granted;
        }
    }

    pub(super) fn granted(&self) -> bool {
        self.permit == PollPermit::Granted
    }

    /// An operation began.
    pub(super) fn began(&mut self, is_poll: bool) {
        self.permit = if is_poll { PollPermit::Running } else { PollPermit::None };
    }
}

impl Node {
    /// Whether its BMC is to be asked for the power state now.
    pub(super) fn wants_poll(&self, now: Timestamp) -> bool {
        let is_due = self.polls.next_at <= now;
        self.observes() && (is_due || self.waits_for_preflight(now))
    }

    /// Whether an attempt could begin, were the power state known.
    pub(super) fn waits_for_preflight(&self, now: Timestamp) -> bool {
        self.record.state == State::Idle
            && self.may_start()
            && self.record.not_before.is_none_or(|at| at <= now)
            && self.in_line_since.is_none()
    }

    /// Gets in line if the BMC is to be asked, and out of it if not.
    pub(super) fn line_up_for_poll(&mut self, now: Timestamp) {
        let waits = self.running.is_none() && !self.unread && self.wants_poll(now);
        let for_attempt = self.waits_for_preflight(now);
        self.polls.permit = match self.polls.permit {
            PollPermit::Running if self.running.is_some() => PollPermit::Running,
            _ if !waits => PollPermit::None,
            PollPermit::Waiting { since, .. } => PollPermit::Waiting { since, for_attempt },
            _ => PollPermit::Waiting { since: now, for_attempt },
        };
    }

    /// Its place in the line, if it waits for its turn to be polled.
    pub(super) fn waits_to_poll(&self) -> Option<(Permit, Place)> {
        let PollPermit::Waiting { since, for_attempt } = self.polls.permit else { return None };
        let class = match (for_attempt, self.polls.misses) {
            _ if self.polls.asked => Class::Wanted,
            (true, _) if self.record.attempt == 0 => Class::Wanted,
            (true, _) => Class::Repeated,
            (false, 0) => Class::Routine,
            (false, _) => Class::Silent,
        };
        Some((self.poll_permit()?, (class as u32, since)))
    }

    /// The turn that a poll under way takes.
    pub(super) fn holds_poll(&self) -> Option<Permit> {
        if self.polls.permit == PollPermit::Running { self.poll_permit() } else { None }
    }

    fn poll_permit(&self) -> Option<Permit> {
        Some(match self.bmc()?.driver {
            BmcDriver::Ipmi => Permit::Poll,
            BmcDriver::Ipmitool | BmcDriver::Program => Permit::ProgramPoll,
        })
    }
}

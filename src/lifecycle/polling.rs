//! A node's wish for a poll of its BMC, its place in the queue for one, and what the BMC reported.
//!
//! Called by `settle.rs`, by the [`super::Fleet`], and with each result of the BMC. The state of a
//! node's polls is in `polls.rs`. A poll must never start without its permit.

use jiff::Timestamp;

use crate::model::{
    fault::{Fault, RetryAdvice},
    power::PowerState,
    spec::BmcDriver,
    status::Power,
};

use super::{
    event::{Permit, PermitPlace},
    node::Node,
    polls::{Class, PollPermit},
    state::State,
};

impl Node {
    /// Whether the node wants a poll now.
    pub(super) fn wants_poll(&self, now: Timestamp) -> bool {
        let is_due = self.polls.next_at <= now;
        self.observes() && (is_due || self.waits_for_preflight(now))
    }

    /// Whether only the power state is missing for an attempt.
    pub(super) fn waits_for_preflight(&self, now: Timestamp) -> bool {
        self.record.state == State::Idle
            && self.may_start()
            && self.record.not_before.is_none_or(|at| at <= now)
            && self.queued_since.is_none()
    }

    /// Queues the node for a poll exactly while it wants one and none runs.
    pub(super) fn queue_for_poll(&mut self, now: Timestamp) {
        let waits = self.running.is_none() && !self.unread && self.wants_poll(now);
        let for_attempt = self.waits_for_preflight(now);
        let permit = self.polls.permit;
        let since = if let PollPermit::Waiting { since, .. } = permit { since } else { now };
        self.polls.permit = if permit == PollPermit::Running && self.running.is_some() {
            PollPermit::Running
        } else if waits {
            PollPermit::Waiting { since, for_attempt }
        } else {
            PollPermit::None
        };
    }

    /// The permit for a poll that the node waits for, with its place in the queue.
    pub(super) fn waits_to_poll(&self) -> Option<(Permit, PermitPlace)> {
        let PollPermit::Waiting { since, for_attempt } = self.polls.permit else { return None };
        let class = match (for_attempt, self.polls.misses) {
            _ if self.polls.urgent => Class::Wanted,
            (true, _) if self.record.attempt == 0 => Class::Wanted,
            (true, _) => Class::Repeated,
            (false, 0) => Class::Routine,
            (false, _) => Class::Silent,
        };
        Some((self.poll_permit()?, (class as u32, since)))
    }

    /// The permit of the poll under way.
    pub(super) fn holds_poll(&self) -> Option<Permit> {
        if self.polls.permit == PollPermit::Running { self.poll_permit() } else { None }
    }

    fn poll_permit(&self) -> Option<Permit> {
        Some(match self.bmc()?.driver {
            BmcDriver::Ipmi => Permit::Poll,
            BmcDriver::Ipmitool | BmcDriver::Program => Permit::ProgramPoll,
        })
    }

    /// Notes the power state that the BMC reported.
    pub(super) fn see_power(&mut self, now: Timestamp, observed: PowerState) {
        self.power = Some(Power { observed, observed_at: now });
        if self.bmc_trouble.take().is_some_and(|trouble| trouble.retry == RetryAdvice::Wait) {
            self.clear_missing_file();
        }
        self.polls.answered(now);
    }

    /// Notes a failed command of the BMC.
    pub(super) fn miss_power(&mut self, now: Timestamp, trouble: Fault) {
        self.polls.missed(now, trouble.retry);
        self.bmc_trouble = Some(Box::new(trouble));
    }
}

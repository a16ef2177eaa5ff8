//! Waits for files that are missing on the agent's own machine: a password file, the deploy
//! ramdisk, a program.
//!
//! Called by `attempt.rs` for faults with [`RetryAdvice::Wait`]. Such a fault is not the machine's,
//! so that it must never use up an attempt or fail a node.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{
    backoff::Backoff,
    fault::{Fault, RetryAdvice},
    status::LastError,
};

use super::{
    event::Action,
    limits::after,
    node::Node,
    state::{Purpose, State},
    transitions::Cause,
};

/// The pause before the first retry, which doubles with each further one in a row.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// The longest pause, within which the node goes on once the file exists.
const PAUSE_MAX: Duration = Duration::from_secs(40);

impl Node {
    /// Makes the node wait for a missing file. In every state, it keeps its attempts.
    pub(super) fn wait_for_missing_file(
        &mut self,
        now: Timestamp,
        fault: Fault,
        actions: &mut Vec<Action>,
    ) {
        self.missing_in_a_row = self.missing_in_a_row.saturating_add(1);
        let pause = Backoff::doubling(PAUSE_MIN, PAUSE_MAX).pause_after(self.missing_in_a_row);
        let until = after(now, pause);
        let attempt = self.record.attempt;
        let last_error = || LastError { at: now, attempt, fault: fault.clone() };
        match &self.record.state {
            State::Idle => {
                if self.waits_for_preflight(now) {
                    self.record.last_error = Some(last_error());
                    self.record.not_before = Some(until);
                }
                self.miss_power(now, fault);
            }
            State::Held { .. } | State::Failed => self.miss_power(now, fault),
            // No missing file extends a first boot because of a poll.
            State::Booting { .. } if self.polls.runs() => self.miss_power(now, fault),
            // Nothing has been done to the machine yet.
            State::Preparing { .. } => {
                self.record.last_error = Some(last_error());
                self.enter(now, Cause::FileMissing);
                self.record.not_before = Some(until);
                self.queued_since = None;
            }
            State::CleaningUp { .. } => {
                self.record.deadline = None;
                self.record.not_before = Some(until);
                self.bmc_trouble = Some(Box::new(fault));
            }
            State::SettingPower { .. } | State::Restarting { .. } | State::Booting { .. } => {
                self.record.deadline =
                    self.limit().map(|limit| after(now, limit.saturating_add(pause)));
                self.record.not_before = Some(until);
                self.bmc_trouble = Some(Box::new(fault));
            }
            State::PoweringOn { .. }
            | State::WaitingRamdisk { .. }
            | State::Imaging { .. }
            | State::Switching { .. }
            | State::WaitingCompleted { .. } => {
                self.record.last_error = Some(last_error());
                self.record.attempt = attempt.saturating_sub(1);
                self.abandon(now, Purpose::Retry, actions);
            }
        }
    }

    /// Notes that no file is missing any more.
    pub(super) fn clear_missing_file(&mut self) {
        self.missing_in_a_row = 0;
        self.record.last_error.take_if(|error| error.fault.retry == RetryAdvice::Wait);
    }

    /// The fault of the missing file, if the node waits for one.
    pub(super) fn missing_file(&self) -> Option<&Fault> {
        let fault = self.record.last_error.as_ref().map(|error| &error.fault);
        fault.filter(|fault| fault.retry == RetryAdvice::Wait)
    }
}

//! The waits of a node: limits, reasons, wake-ups, and the handling of clock changes.
//!
//! Called by `settle.rs` and `node.rs` in each step. It ends waits; `attempt.rs` decides what
//! follows. No wait may lack a limit.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::model::spec::Timeouts;

use super::{
    backoff,
    event::Action,
    first_boot::OVERDUE_WAIT,
    late_disks::SETTLING_WAIT,
    limits::{CANCEL_PATIENCE, POWER_TRIES_MAX, RESTART_TRIES_MAX, after, power_limit},
    node::Node,
    state::{FirstBoot, State},
};

impl Node {
    /// When the next [`super::Event::Tick`] is due, with the reason.
    pub fn next_wake(&self) -> Option<(Timestamp, &'static str)> {
        if self.unread {
            return self.deadline();
        }
        let work = match (&self.record.state, self.record.not_before, self.running) {
            (State::Idle, Some(at), None)
                if self.may_start()
                    && self.queued_since.is_none()
                    && !self.polls.keeps_attempt_waiting() =>
            {
                Some((at, "the next attempt"))
            }
            (State::SettingPower { .. }, Some(at), None) => {
                Some((at, "the next try to switch the power"))
            }
            (State::Booting { boot }, _, None) => {
                self.probe_at(*boot).map(|at| (at, "the next look whether its own system is up"))
            }
            (State::Restarting { .. }, Some(at), None) => Some((at, "the next try to restart")),
            (State::CleaningUp { .. }, Some(at), None) => Some((at, "the next try to clean up")),
            _ => None,
        };
        let poll = match self.running {
            // A permit is granted without a tick.
            None if self.polls.waits() => None,
            None if self.observes() => Some((self.polls.next_at(), "a poll of the power state")),
            Some(running) if self.has_patience() => {
                Some((running.patience_until, "the BMC's answer"))
            }
            None | Some(_) => None,
        };
        let netboot = self.netboot_wake().filter(|_| self.running.is_none());
        let netboot = netboot.map(|at| (at, "the next try to verify kernel and ramdisk"));
        [self.deadline(), work, poll, netboot].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// The deadline of the present state, with the reason.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        let reason = match &self.record.state {
            State::Idle | State::Held { .. } | State::Failed => return None,
            State::SettingPower { .. } => "the machine to be switched on or off",
            State::Preparing { .. } => "the image to be verified",
            State::PoweringOn { .. } if self.waits_for_operator() => {
                "somebody to have the machine boot from the network"
            }
            State::PoweringOn { .. } => "the machine to be switched on",
            State::WaitingRamdisk { .. } if self.missing_disk.is_some() => {
                "its root device to appear"
            }
            State::WaitingRamdisk { .. } => "the deploy ramdisk to export its disk",
            State::Imaging { granted: false, .. } => "its turn to be written",
            State::Imaging { .. } => "the disk to be written",
            State::Switching { .. } => "the ramdisk to hear that it may let go",
            State::WaitingCompleted { .. } => "the ramdisk's completed notice",
            State::Restarting { .. } | State::Booting { boot: FirstBoot::Restarting } => {
                "the machine to restart"
            }
            State::Booting { .. } => "its own system to show that it is up",
            State::CleaningUp { .. } if self.running.is_none() && self.ramdisk_cleans_up() => {
                "the deploy ramdisk to hear that the attempt is over"
            }
            State::CleaningUp { .. } => "the operation under way to stop",
        };
        let missing = self.missing_disk().map(|missing| missing.until);
        self.record.deadline.map(|at| (missing.map_or(at, |until| until.min(at)), reason))
    }

    /// The limit of the present state; for a clean-up, of one try.
    pub(super) fn limit(&self) -> Option<Duration> {
        let timeouts = &self.record.spec.as_ref()?.timeouts;
        match &self.record.state {
            State::Idle | State::Held { .. } | State::Failed => None,
            State::Preparing { .. } | State::Imaging { .. } => Some(timeouts.imaging),
            State::WaitingRamdisk { .. } => Some(timeouts.ramdisk),
            // Comparing the disk may take as long as writing it.
            State::WaitingCompleted { attempt, .. } if !attempt.verify.is_empty() => {
                Some(timeouts.completed.saturating_add(timeouts.imaging))
            }
            State::Switching { .. } | State::WaitingCompleted { .. } => Some(timeouts.completed),
            State::PoweringOn { attempt } if attempt.power_control().waits_for_operator() => {
                Some(timeouts.power)
            }
            State::CleaningUp { .. } if self.ramdisk_cleans_up() => Some(CANCEL_PATIENCE),
            State::CleaningUp { .. } => Some(power_limit(&self.timeouts_of_bmc(timeouts))),
            State::PoweringOn { .. } => Some(power_limit(timeouts)),
            State::SettingPower { .. } => Some(self.limit_of_tries(timeouts, POWER_TRIES_MAX)),
            State::Restarting { .. } | State::Booting { boot: FirstBoot::Restarting } => {
                Some(self.limit_of_tries(timeouts, RESTART_TRIES_MAX))
            }
            State::Booting { boot: FirstBoot::Waiting } => Some(timeouts.first_boot),
            State::Booting { boot: FirstBoot::Overdue } => Some(OVERDUE_WAIT),
        }
    }

    /// The limit of several tries of the BMC, with the pauses between them.
    fn limit_of_tries(&self, timeouts: &Timeouts, tries_max: u32) -> Duration {
        let pauses: Duration = (1..tries_max).map(|tries| self.pause_after(tries)).sum();
        power_limit(timeouts).saturating_mul(tries_max).saturating_add(pauses)
    }

    /// Applies a spec's other timeouts to the present wait, from its beginning. `limit_before` was
    /// its limit.
    pub(super) fn shift_deadline(&mut self, limit_before: Option<Duration>) {
        if matches!(self.record.state, State::CleaningUp { .. }) {
            return;
        }
        if let (Some(deadline), Some(before), Some(limit)) =
            (self.record.deadline, limit_before, self.limit())
        {
            let before = SignedDuration::try_from(before).unwrap_or(SignedDuration::MAX);
            let began = deadline.checked_sub(before).unwrap_or(Timestamp::MIN);
            self.record.deadline = Some(after(began, limit));
        }
    }

    /// Bounds every wait to its full length after the clock was set back, and every phase's
    /// beginning to now.
    pub(super) fn bound_waits(&mut self, now: Timestamp) {
        let (limit, pause) = (self.limit(), self.whole_pause());
        let bound = |at: &mut Timestamp, limit| *at = (*at).min(after(now, limit));
        if let (Some(deadline), Some(limit)) = (&mut self.record.deadline, limit) {
            bound(deadline, limit);
        }
        if let Some(not_before) = &mut self.record.not_before {
            bound(not_before, pause);
        }
        self.record.since = self.record.since.min(now);
        if let Some(forced_at) = &mut self.record.power_forced_at {
            bound(forced_at, Duration::ZERO);
        }
        self.polls.bound(now);
        self.netboot.bound(now);
        if let (Some(missing), Some(spec)) = (&mut self.missing_disk, &self.record.spec) {
            bound(&mut missing.until, spec.timeouts.root_device.max(SETTLING_WAIT));
        }
        if let Some(running) = &mut self.running {
            bound(&mut running.patience_until, running.patience);
        }
    }

    /// Whether the operation under way is interrupted when it takes too long: that of a node at
    /// rest, and each poll. Every other ends with the deadline of its state.
    fn has_patience(&self) -> bool {
        self.record.state.at_rest() || self.awaits_system() && self.polls.runs()
    }

    /// The longest pause before the state's operation.
    fn whole_pause(&self) -> Duration {
        match (&self.record.state, &self.record.spec) {
            (State::Idle, Some(spec)) => {
                backoff::pause(&self.name, self.record.attempt, spec.retry.backoff)
            }
            _ => self.pause_after(self.record.tries),
        }
    }

    /// Ends waits that have reached their limit.
    pub(super) fn expire(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if let Some(fault) = self.missed_disk(now) {
            self.fail(now, fault, actions);
        } else if !self.record.state.at_rest()
            && self.record.deadline.is_some_and(|deadline| deadline <= now)
        {
            if !self.miss_manual_deadline(now, actions) {
                let is_switching = matches!(self.record.state, State::Switching { .. });
                if is_switching && !self.ramdisk().confirms_completion() {
                    self.stop_releasing(now, actions);
                } else {
                    self.miss_deadline(now, actions);
                }
            }
        } else if self.has_patience()
            && let Some(running) = &mut self.running
            && running.patience_until <= now
        {
            running.patience_until = after(now, CANCEL_PATIENCE);
            self.interrupt(actions);
        }
    }
}

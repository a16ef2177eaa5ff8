//! Machines without a BMC: an operator switches the machine on, and its deploy ramdisk restarts it
//! or switches it off.
//!
//! Called by `settle.rs`, `wait.rs` and `callback.rs`. Pressing the power button is the consent: a
//! machine that boots the deploy menu proves an operator's presence. No operation here may need a
//! BMC, and no wait may depend on what only a BMC reports.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{
    callback::Then,
    consent,
    fault::{Fault, Step},
    power::PowerState,
    spec::{Bmc, Timeouts},
};

use super::{
    event::Action,
    node::Node,
    power_control::PowerControl,
    state::{Attempt, Purpose, State},
    text::plain,
    transitions::Cause,
};

/// The limit of a BMC that the spec no longer names: the default of `timeouts.power`.
const BMC_LIMIT: Duration = Duration::from_secs(120);

impl Node {
    /// The BMC of the attempt's machine, or else of the spec's.
    pub(super) fn bmc(&self) -> Option<&Bmc> {
        match self.record.state.attempt() {
            Some(attempt) => attempt.bmc.as_deref(),
            None => self.record.spec.as_ref()?.bmc.as_deref(),
        }
    }

    /// The timeouts for a clean-up by the attempt's BMC. The spec's own may be an operator's by
    /// now, a week.
    pub(super) fn timeouts_of_bmc(&self, timeouts: &Timeouts) -> Timeouts {
        let is_named = self.power_control().can_switch();
        let power = if is_named { timeouts.power } else { timeouts.power.min(BMC_LIMIT) };
        Timeouts { power, ..*timeouts }
    }

    /// Queues the node for an attempt without a poll, and never holds it for being on: the power
    /// state is unknown.
    pub(super) fn advance_manual_power(&mut self, now: Timestamp) {
        if self.power_control().can_switch() || self.running.is_some() || self.unread {
            return;
        }
        self.release_powered_on(now);
        if self.queued_since.is_none() {
            self.queue_for_attempt(now, PowerState::Off);
        }
    }

    /// Ends the wait for an operator, because the machine fetched its boot menu or its ramdisk
    /// calls.
    pub(super) fn note_manual_power_on(&mut self, now: Timestamp) {
        if self.waits_for_operator() {
            self.enter(now, Cause::SeenBooting);
        }
    }

    /// The ramdisk's last act once the disk is written.
    pub(super) fn then(&self, attempt: &Attempt) -> Then {
        match (attempt.power_control(), self.power_after_install()) {
            (PowerControl::Bmc, _) => Then::Wait,
            (PowerControl::Manual, PowerState::On) => Then::Reboot,
            (PowerControl::Manual, PowerState::Off) => Then::PowerOff,
        }
    }

    /// Whether only the ramdisk can switch off the machine that is being cleaned up.
    pub(super) fn ramdisk_cleans_up(&self) -> bool {
        let State::CleaningUp { attempt: Some(attempt), .. } = &self.record.state else {
            return false;
        };
        attempt.power_control().restarts_itself()
    }

    /// Ends the clean-up, because the ramdisk was told to switch its machine off.
    pub(super) fn note_manual_cleanup_done(&mut self, now: Timestamp) {
        if let State::CleaningUp { purpose, .. } = self.record.state
            && self.running.is_none()
            && self.ramdisk_cleans_up()
        {
            self.conclude(now, purpose);
        }
    }

    /// Ends a wait for an operator or for the ramdisk at its deadline; returns whether it was one.
    pub(super) fn miss_manual_deadline(
        &mut self,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) -> bool {
        if self.waits_for_operator() {
            self.fail(now, not_switched_on(), actions);
            return true;
        }
        let State::CleaningUp { purpose, .. } = self.record.state else { return false };
        let has_no_call = self.running.is_none() && self.ramdisk_cleans_up();
        if has_no_call {
            self.end_without_call(now, purpose);
        }
        has_no_call
    }

    /// Whether the attempt waits for an operator to netboot the machine.
    pub(super) fn waits_for_operator(&self) -> bool {
        let State::PoweringOn { attempt } = &self.record.state else { return false };
        attempt.power_control().waits_for_operator()
    }

    /// Ends a clean-up whose ramdisk did not call. Its key is useless from now on.
    fn end_without_call(&mut self, now: Timestamp, purpose: Purpose) {
        if let (Some(cause), Purpose::Retry | Purpose::GiveUp) =
            (&mut self.record.last_error, purpose)
        {
            let message = &mut cause.fault.message;
            *message = plain(&format!(
                "{message}; its deploy ramdisk has not heard of that, so switch the machine off \
                 if it is still on"
            ));
        }
        self.conclude(now, purpose);
    }

    /// The message while the node waits for an operator or for the ramdisk.
    pub(super) fn manual_power_message(&self) -> Option<String> {
        if self.unread {
            return None;
        }
        if self.waits_for_operator() {
            return Some(self.what_to_do().to_owned());
        }
        let State::CleaningUp { purpose, .. } = &self.record.state else { return None };
        let failed = *purpose != Purpose::StartOver;
        let error = self.record.last_error.as_ref().filter(|_| failed);
        let after =
            error.map_or_else(String::new, |error| format!(" after: {}", error.fault.message));
        let waits = "waiting for the deploy ramdisk to hear that it is to switch its machine off";
        self.ramdisk_cleans_up().then(|| format!("{waits}{after}"))
    }

    /// The advice for the operator.
    pub(super) const fn what_to_do(&self) -> &'static str {
        if self.record.installed.is_some() { consent::NETBOOT_INSTALLED } else { consent::NETBOOT }
    }
}

fn not_switched_on() -> Fault {
    Fault::passing(
        Step::PowerOn,
        "NotSwitchedOn",
        "the machine did not boot from the network in time: nobody switched it on or restarted \
         it, or it booted from something else",
        "switch it on or restart it as the message says, which lets hostler WIPE it, and look at \
         its boot order; or raise timeouts.power",
    )
}

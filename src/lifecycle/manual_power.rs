//! Machines without a BMC: an operator switches the machine on, and its own deploy ramdisk restarts
//! it or switches it off.
//!
//! Called by `settle.rs`, `wait.rs` and `callback.rs` wherever a BMC would be asked. The hand on
//! the power button is the consent: that the machine boots the deploy menu says that somebody is
//! there. No operation may need a BMC, and nothing may be waited for that only a BMC could tell.

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

/// The time that a BMC may take whose spec does not name it any more: as long as one may by
/// default.
const BMC_LIMIT: Duration = Duration::from_secs(120);

impl Node {
    /// The BMC of the machine that the present state is about.
    pub(super) fn bmc(&self) -> Option<&Bmc> {
        match self.record.state.attempt() {
            Some(attempt) => attempt.bmc.as_deref(),
            None => self.record.spec.as_ref()?.bmc.as_deref(),
        }
    }

    /// The timeouts for cleaning up by the BMC that an attempt was begun with. A spec that names
    /// none any more has the timeout of an operator.
    pub(super) fn timeouts_of_bmc(&self, timeouts: &Timeouts) -> Timeouts {
        let is_named = self.power_control().can_switch();
        let power = if is_named { timeouts.power } else { timeouts.power.min(BMC_LIMIT) };
        Timeouts { power, ..*timeouts }
    }

    /// Does what a poll leads to where there is a BMC: nobody knows whether the machine is on, so
    /// that is no reason to hold it.
    pub(super) fn advance_manual_power(&mut self, now: Timestamp) {
        if self.power_control().can_switch() || self.running.is_some() || self.unread {
            return;
        }
        self.release_powered_on(now);
        if self.queued_since.is_none() {
            self.queue_for_attempt(now, PowerState::Off);
        }
    }

    /// The machine has fetched its boot menu, or its ramdisk calls: somebody was there.
    pub(super) fn note_manual_power_on(&mut self, now: Timestamp) {
        if self.waits_for_operator() {
            self.enter(now, Cause::SeenBooting);
        }
    }

    /// The way in which the ramdisk is to leave its machine once the disk is written.
    pub(super) fn then(&self, attempt: &Attempt) -> Then {
        match (attempt.power_control(), self.power_after_install()) {
            (PowerControl::Bmc, _) => Then::Wait,
            (PowerControl::Manual, PowerState::On) => Then::Reboot,
            (PowerControl::Manual, PowerState::Off) => Then::PowerOff,
        }
    }

    /// Whether what is being cleaned up can only be told to switch itself off.
    pub(super) fn ramdisk_cleans_up(&self) -> bool {
        let State::CleaningUp { attempt: Some(attempt), .. } = &self.record.state else {
            return false;
        };
        attempt.power_control().restarts_itself()
    }

    /// The ramdisk hears that the attempt is over, and switches its machine off.
    pub(super) fn note_manual_cleanup_done(&mut self, now: Timestamp) {
        if let State::CleaningUp { purpose, .. } = self.record.state
            && self.running.is_none()
            && self.ramdisk_cleans_up()
        {
            self.conclude(now, purpose);
        }
    }

    /// Ends a wait for what only an operator or the ramdisk could do. Whether this was one.
    pub(super) fn miss_manual_deadline(
        &mut self,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) -> bool {
        if self.waits_for_operator() {
            self.fail(now, nobody_came(), actions);
            return true;
        }
        let State::CleaningUp { purpose, .. } = self.record.state else { return false };
        let is_unheard = self.running.is_none() && self.ramdisk_cleans_up();
        if is_unheard {
            self.end_unheard(now, purpose);
        }
        is_unheard
    }

    /// Whether the attempt waits until an operator has the machine boot from the network.
    pub(super) fn waits_for_operator(&self) -> bool {
        let State::PoweringOn { attempt } = &self.record.state else { return false };
        attempt.power_control().waits_for_operator()
    }

    /// The ramdisk did not ask: whatever has become of its machine, the key it has is of no use any
    /// more.
    fn end_unheard(&mut self, now: Timestamp, purpose: Purpose) {
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

    /// The message while only an operator or the ramdisk can go on.
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

    /// The act that an operator is asked for.
    pub(super) const fn what_to_do(&self) -> &'static str {
        if self.record.installed.is_some() { consent::NETBOOT_INSTALLED } else { consent::NETBOOT }
    }
}

fn nobody_came() -> Fault {
    Fault::passing(
        Step::PowerOn,
        "NotSwitchedOn",
        "the machine did not boot from the network in time: nobody switched it on or restarted \
         it, or it booted from something else",
        "switch it on or restart it as the message says, which lets hostler WIPE it, and look at \
         its boot order; or raise timeouts.power",
    )
}

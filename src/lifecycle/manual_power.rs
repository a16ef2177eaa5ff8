//! A machine without a BMC: an operator switches it on, and its own deploy ramdisk restarts it or switches it off.
//!
//! Called by `node.rs`, `attempt.rs` and `callback.rs` wherever a BMC would be asked. The hand on the power button is the consent: that the
//! machine boots the deploy menu says that somebody is there. No operation may need a BMC, and nothing may be waited for that only a BMC
//! could tell.

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
    report::plain,
    state::{Attempt, Hold, Purpose, State},
};

/// What a BMC may take whose spec does not say it any more: as long as one may by default.
const BMC_LIMIT: Duration = Duration::from_secs(120);

impl Node {
    /// Whether the spec names no BMC.
    pub(super) fn powered_manually(&self) -> bool {
        self.record.spec.as_ref().is_some_and(|spec| spec.bmc.is_none())
    }

    /// The BMC of the machine that the present state is about.
    pub(super) fn bmc(&self) -> Option<&Bmc> {
        match self.record.state.attempt() {
            Some(attempt) => attempt.bmc.as_deref(),
            None => self.record.spec.as_ref()?.bmc.as_deref(),
        }
    }

    /// How long the BMC that an attempt was begun with may take to clean up. A spec that names none any more says how long an operator may.
    pub(super) fn timeouts_of_bmc(&self, timeouts: &Timeouts) -> Timeouts {
        let power =
            if self.powered_manually() { timeouts.power.min(BMC_LIMIT) } else { timeouts.power };
        Timeouts { power, ..*timeouts }
    }

    /// What a look at the power state leads to where there is a BMC: nobody knows whether the machine is on, so that is no reason to hold it.
    pub(super) fn advance_manual_power(&mut self, now: Timestamp) {
        if !self.powered_manually() || self.running.is_some() || self.unread {
            return;
        }
        if matches!(self.record.state, State::Held { reason: Hold::PoweredOn, .. }) {
            self.enter(now, State::Idle);
        }
        if self.in_line_since.is_none() {
            self.line_up(now, PowerState::Off);
        }
    }

    /// The machine has fetched its boot menu, or its ramdisk calls: somebody was there.
    pub(super) fn note_manual_power_on(&mut self, now: Timestamp) {
        if let State::PoweringOn { attempt } = &self.record.state
            && attempt.bmc.is_none()
        {
            let attempt = attempt.clone();
            self.enter(now, State::WaitingRamdisk { attempt });
        }
    }

    /// How the ramdisk is to leave its machine once the disk is written.
    pub(super) fn then(&self, attempt: &Attempt) -> Then {
        match (&attempt.bmc, self.power_after_install()) {
            (Some(_), _) => Then::Wait,
            (None, PowerState::On) => Then::Reboot,
            (None, PowerState::Off) => Then::PowerOff,
        }
    }

    /// Whether what is being cleaned up can only be told to switch itself off.
    pub(super) fn cleans_up_manually(&self) -> bool {
        matches!(self.record.state, State::CleaningUp { attempt: Some(_), .. })
            && self.bmc().is_none()
    }

    /// The ramdisk hears that the attempt is over, and switches its machine off.
    pub(super) fn note_manual_cleanup_done(&mut self, now: Timestamp) {
        if let State::CleaningUp { purpose, .. } = self.record.state
            && self.running.is_none()
            && self.cleans_up_manually()
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
        match &self.record.state {
            State::PoweringOn { attempt } if attempt.bmc.is_none() => {
                self.fail(now, nobody_came(), actions);
                true
            }
            State::CleaningUp { purpose, .. }
                if self.running.is_none() && self.cleans_up_manually() =>
            {
                let purpose = *purpose;
                self.end_unheard(now, purpose);
                true
            }
            _ => false,
        }
    }

    /// The ramdisk did not ask: whatever has become of its machine, the key it has is of no use any more.
    fn end_unheard(&mut self, now: Timestamp, purpose: Purpose) {
        if let (Some(cause), Purpose::Retry | Purpose::GiveUp) =
            (&mut self.record.last_error, purpose)
        {
            let message = &mut cause.fault.message;
            *message = plain(&format!(
                "{message}; its deploy ramdisk has not heard of that, so switch the machine off if it is still on"
            ));
        }
        self.conclude(now, purpose);
    }

    /// What people are told while only an operator or the ramdisk can go on.
    pub(super) fn manual_power_message(&self) -> Option<String> {
        match &self.record.state {
            _ if self.unread => None,
            State::PoweringOn { attempt } if attempt.bmc.is_none() => {
                Some(self.what_to_do().to_owned())
            }
            State::CleaningUp { purpose, .. } if self.cleans_up_manually() => {
                let failed = *purpose != Purpose::StartOver;
                let error = self.record.last_error.as_ref().filter(|_| failed);
                let after = error
                    .map_or_else(String::new, |error| format!(" after: {}", error.fault.message));
                Some(format!(
                    "waiting for the deploy ramdisk to hear that it is to switch its machine off{after}"
                ))
            }
            _ => None,
        }
    }

    /// What somebody is to do.
    pub(super) const fn what_to_do(&self) -> &'static str {
        if self.record.installed.is_some() { consent::NETBOOT_INSTALLED } else { consent::NETBOOT }
    }
}

impl Attempt {
    /// Whether it ends by itself: there is no BMC, and no ramdisk that could be told.
    pub(super) fn is_over_without_bmc(&self) -> bool {
        self.bmc.is_none() && self.peer.is_none()
    }
}

fn nobody_came() -> Fault {
    Fault::passing(
        Step::PowerOn,
        "NotSwitchedOn",
        "the machine did not boot from the network in time: nobody switched it on or restarted it, or it booted from something else",
        "switch it on or restart it as the message says, which lets hostler WIPE it, and look at its boot order; or raise timeouts.power",
    )
}

//! Inside an attempt: what the end of an operation leads to, what a missed deadline means, and how an attempt is given up.

use jiff::Timestamp;

use crate::model::{
    boot::{BootStage, Fetch},
    fault::{Fault, RetryAdvice, Step},
    power::PowerState,
    status::{Installed, LastError, LastSeen},
};

use super::{
    backoff,
    event::{Action, Outcome},
    node::{CANCEL_PATIENCE, Node, OPERATION_SLACK, after},
    state::{Attempt, Purpose, State},
};

/// How often a failing clean-up is repeated before the machine is left as it is, with a message.
const CLEANUP_TRIES_MAX: u32 = 8;
/// The pause after the first failed clean-up.
const CLEANUP_PAUSE: std::time::Duration = std::time::Duration::from_secs(10);

impl Node {
    /// The running operation ended by itself.
    pub(super) fn finish(
        &mut self,
        now: Timestamp,
        outcome: Result<Outcome, Fault>,
        actions: &mut Vec<Action>,
    ) {
        match outcome {
            Ok(outcome) => self.advance(now, outcome, actions),
            Err(fault) => self.stumble(now, fault, actions),
        }
    }

    fn advance(&mut self, now: Timestamp, outcome: Outcome, actions: &mut Vec<Action>) {
        let Some(timeouts) = self.record.spec.as_ref().map(|spec| spec.timeouts) else { return };
        let power_deadline = after(now, timeouts.power.saturating_mul(3) + OPERATION_SLACK);
        let state = std::mem::replace(&mut self.record.state, State::Failed);
        self.record.state = match (state, outcome) {
            (
                state @ (State::Idle { .. } | State::Held { .. } | State::Failed),
                Outcome::Power(observed),
            ) => {
                self.record.state = state;
                self.see_power(now, observed);
                return self.consider(now, observed);
            }
            (State::Preparing { .. }, Outcome::Prepared { image_bytes, key }) => {
                State::PoweringOn {
                    attempt: Attempt { key, image_bytes, peer: None, disk: None },
                    deadline: power_deadline,
                }
            }
            (State::PoweringOn { attempt, .. }, Outcome::PoweredOn) => {
                self.see_power(now, PowerState::On);
                State::WaitingRamdisk { attempt, deadline: after(now, timeouts.ramdisk) }
            }
            (State::Imaging { attempt, disk, .. }, Outcome::Imaged) => {
                State::Switching { attempt, disk, deadline: after(now, timeouts.completed) }
            }
            (State::Restarting { disk, .. }, Outcome::Restarted) => {
                self.see_power(now, PowerState::On);
                self.record.last_error = None;
                self.record.consented = false;
                let wanted = self.record.spec.as_ref().zip(self.wanted.clone());
                self.record.installed = wanted.map(|(spec, digest)| Installed {
                    digest,
                    image: spec.image.checksum.clone(),
                    disk,
                    at: now,
                    redeploy: spec.redeploy.clone(),
                });
                State::Idle { not_before: None }
            }
            (State::CleaningUp { purpose, .. }, Outcome::CleanedUp) => {
                self.see_power(now, PowerState::Off);
                return self.conclude(now, purpose, actions);
            }
            // An answer to a question that was not asked: the agent's mistake, and no reason to move.
            (state, _) => state,
        };
    }

    /// The BMC said whether the machine is on: begin an attempt, hold it, or let things be.
    fn consider(&mut self, now: Timestamp, observed: PowerState) {
        if matches!(self.record.state, State::Held { .. }) && observed == PowerState::Off {
            self.record.state = State::Idle { not_before: None };
        }
        let State::Idle { not_before } = self.record.state else { return };
        if !self.may_start() || not_before.is_some_and(|at| at > now) {
            return;
        }
        let Some(spec) = self.record.spec.clone() else { return };
        // A reinstall is wanted only after `redeploy` was changed, and that is consent.
        let consent = self.record.consented || self.record.installed.is_some();
        if observed == PowerState::On && !consent {
            self.record.state = State::Held { redeploy: spec.redeploy.clone() };
            return;
        }
        self.record.consented = true;
        self.record.attempt += 1;
        self.record.durations.clear();
        self.record.last_seen = LastSeen::default();
        self.refused = 0;
        self.refused_reason = None;
        self.record.state = State::Preparing { deadline: after(now, spec.timeouts.imaging) };
    }

    /// The running operation failed.
    fn stumble(&mut self, now: Timestamp, fault: Fault, actions: &mut Vec<Action>) {
        match &mut self.record.state {
            State::Idle { not_before } => {
                let was_preflight = not_before.is_none_or(|at| at <= now);
                self.miss_power(now, fault.clone());
                if was_preflight && self.may_start() {
                    self.record.attempt += 1;
                    self.fail(now, fault, actions);
                }
            }
            State::Held { .. } | State::Failed => self.miss_power(now, fault),
            State::CleaningUp { purpose, tries, not_before, .. } => {
                *tries += 1;
                *not_before = Some(after(now, backoff::pause(&self.name, *tries, CLEANUP_PAUSE)));
                let (tries, purpose) = (*tries, *purpose);
                self.bmc_trouble = Some(fault.clone());
                if tries >= CLEANUP_TRIES_MAX {
                    self.tell_left_on(now, purpose, fault);
                    // An attempt that cannot be cleaned up must not be followed by another.
                    self.conclude(
                        now,
                        if purpose == Purpose::Forget { purpose } else { Purpose::GiveUp },
                        actions,
                    );
                }
            }
            State::Preparing { .. }
            | State::PoweringOn { .. }
            | State::WaitingRamdisk { .. }
            | State::Imaging { .. }
            | State::Switching { .. }
            | State::WaitingCompleted { .. }
            | State::Restarting { .. } => self.fail(now, fault, actions),
        }
    }

    /// The machine may be on and stay so: somebody must know.
    fn tell_left_on(&mut self, now: Timestamp, purpose: Purpose, fault: Fault) {
        match (&mut self.record.last_error, purpose) {
            (Some(error), Purpose::Retry | Purpose::GiveUp) => {
                let trouble =
                    format!("; then the machine could not be switched off: {}", fault.message);
                error.fault.message.push_str(&trouble);
            }
            (last_error, _) => {
                *last_error = Some(LastError { at: now, attempt: self.record.attempt, fault });
            }
        }
    }

    /// The attempt failed: say why, put things back, and try again or give up.
    pub(super) fn fail(&mut self, now: Timestamp, fault: Fault, actions: &mut Vec<Action>) {
        let attempts = self.record.spec.as_ref().map_or(1, |spec| spec.retry.attempts);
        let again = fault.retry == RetryAdvice::Backoff && self.record.attempt < attempts;
        self.record.last_error = Some(LastError { at: now, attempt: self.record.attempt, fault });
        self.abandon(now, if again { Purpose::Retry } else { Purpose::GiveUp }, actions);
    }

    /// Leaves whatever is under way for `purpose`: at once if nothing was touched, else through a clean-up.
    pub(super) fn abandon(&mut self, now: Timestamp, purpose: Purpose, actions: &mut Vec<Action>) {
        if let State::CleaningUp { purpose: present, .. } = &mut self.record.state {
            *present = purpose;
            return;
        }
        self.cancel(actions);
        if self.record.state.at_rest() {
            return self.conclude(now, purpose, actions);
        }
        let attempt = self.record.state.attempt().cloned();
        let deadline = after(now, CANCEL_PATIENCE);
        self.record.state =
            State::CleaningUp { attempt, purpose, tries: 0, not_before: None, deadline };
    }

    /// Nothing is under way any more.
    pub(super) fn conclude(&mut self, now: Timestamp, purpose: Purpose, actions: &mut Vec<Action>) {
        self.record.state = match purpose {
            Purpose::Retry => {
                let first =
                    self.record.spec.as_ref().map_or(CLEANUP_PAUSE, |spec| spec.retry.backoff);
                State::Idle {
                    not_before: Some(after(
                        now,
                        backoff::pause(&self.name, self.record.attempt, first),
                    )),
                }
            }
            Purpose::GiveUp => State::Failed,
            Purpose::StartOver => {
                self.record.attempt = 0;
                State::Idle { not_before: None }
            }
            Purpose::Forget => {
                actions.push(Action::Forget);
                State::Idle { not_before: None }
            }
        };
    }

    pub(super) fn miss_deadline(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let fault = match &mut self.record.state {
            State::Idle { .. } | State::Held { .. } | State::Failed => return,
            State::CleaningUp { deadline, .. } => {
                // Nothing may start before the operation has reported: tell it again.
                *deadline = after(now, CANCEL_PATIENCE);
                return self.cancel(actions);
            }
            State::Preparing { .. } => Fault::passing(
                Step::Image,
                "ImageTimeout",
                "the image was not verified in time",
                "look at the disk the image lies on, or raise timeouts.imaging",
            ),
            State::PoweringOn { .. } => Fault::passing(
                Step::PowerOn,
                "PowerTimeout",
                "the machine was not switched on in time",
                "look at the BMC, or raise timeouts.power",
            ),
            State::WaitingRamdisk { attempt, .. } => {
                ramdisk_timeout(attempt, &self.record.last_seen)
            }
            State::Imaging { .. } => Fault::passing(
                Step::Imaging,
                "ImagingTimeout",
                "the disk was not written in time",
                "look at the network between hostler and the machine, or raise timeouts.imaging",
            ),
            State::Switching { .. } => Fault::passing(
                Step::Completed,
                "ReleaseNotHeard",
                "the disk is written, but the ramdisk never asked whether it may let go",
                "look at the machine's console",
            ),
            State::WaitingCompleted { .. } => Fault::passing(
                Step::Completed,
                "CompletedTimeout",
                "the disk is written, but the ramdisk's completed notice did not come in time",
                "look at the machine's console, or raise timeouts.completed",
            ),
            State::Restarting { .. } => Fault::passing(
                Step::Restart,
                "RestartTimeout",
                "the machine was not restarted in time",
                "look at the BMC, or raise timeouts.power",
            ),
        };
        self.fail(now, fault, actions);
    }

    /// The machine was seen fetching a boot file. Evidence for people; it moves nothing.
    pub(super) fn take_evidence(&mut self, now: Timestamp, fetch: Fetch) {
        let seen = &mut self.record.last_seen;
        seen.address = Some(fetch.peer);
        if fetch.complete && seen.fetched.is_none_or(|furthest| furthest <= fetch.stage) {
            seen.fetched = Some(fetch.stage);
            seen.fetched_path = Some(fetch.path);
            seen.fetched_at = Some(now);
        }
    }
}

/// How far the machine came before it fell silent, and what to look at.
fn ramdisk_timeout(attempt: &Attempt, seen: &LastSeen) -> Fault {
    let (message, hint) = match (&attempt.peer, &attempt.disk, seen.fetched) {
        (Some(peer), Some(disk), _) => (
            format!(
                "the deploy ramdisk at {peer} was told to export {} and did not in time",
                disk.name
            ),
            "look at the machine's console",
        ),
        (Some(peer), None, _) => (
            format!("the deploy ramdisk at {peer} called but did not report its disks in time"),
            "look at the machine's console",
        ),
        (None, _, Some(BootStage::Ramdisk)) => (
            "the machine fetched the deploy ramdisk but it never called back".to_owned(),
            "look at the machine's console: no driver for its network card, no DHCP lease, or the callback port is not reachable",
        ),
        (None, _, Some(BootStage::Kernel)) => (
            "the machine fetched the deploy kernel but not the whole deploy ramdisk".to_owned(),
            "too little memory, or a network that loses packets; or raise timeouts.ramdisk",
        ),
        (None, _, Some(BootStage::Menu)) => (
            "the machine fetched its boot menu but not the whole deploy kernel".to_owned(),
            "a network that loses packets, or a boot loader that cannot read the kernel",
        ),
        (None, _, Some(BootStage::Loader)) => (
            "the machine fetched a boot loader but not its boot menu".to_owned(),
            "the boot loader does not fit the firmware, or it netbooted from a card that is not in boot.mac",
        ),
        (None, _, None) => (
            "the machine was switched on but never fetched anything over TFTP".to_owned(),
            "look whether it netboots at all: boot order, cable, VLAN, DHCP's next-server and boot file, boot.mac, boot.firmware",
        ),
    };
    Fault::passing(Step::Ramdisk, "RamdiskTimeout", message, hint)
}

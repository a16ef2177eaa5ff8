//! Inside an attempt: what the end of an operation leads to, what a missed deadline means, and how an attempt is given up.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{
    disk::Disk,
    fault::{Fault, RetryAdvice, Step},
    machine::Machine,
    power::PowerState,
    spec::NodeSpec,
    status::{Installed, LastError, LastSeen},
};

use super::{
    backoff,
    boot_evidence::ramdisk_timeout,
    event::{Action, Outcome, Stages},
    netboot_files::{NetbootUpdate, root_unknown},
    node::Node,
    power::POWER_TRIES_MAX,
    report::plain,
    state::{Attempt, Hold, PreparedImage, Purpose, State},
    wait::{CANCEL_PATIENCE, after},
};

/// How often a failing clean-up is repeated before the machine is left as it is, with a message.
const CLEANUP_TRIES_MAX: u32 = 8;
/// How often the restart is tried: the disk is good, and a BMC's hiccup is no reason to write it again.
pub(super) const RESTART_TRIES_MAX: u32 = 4;
/// The pause after the first failed try of either.
const TRY_PAUSE: Duration = Duration::from_secs(10);
/// A repetition this late is no longer the one that was consented to: the agent was not running, or not allowed to, and meanwhile a
/// person may have taken the machine.
const CONSENT_LAPSES_AFTER: Duration = Duration::from_secs(3600);

impl Node {
    /// The running operation ended by itself.
    pub(super) fn finish(
        &mut self,
        now: Timestamp,
        outcome: Result<Outcome, Fault>,
        actions: &mut Vec<Action>,
    ) {
        match outcome.and_then(|outcome| self.check_root(outcome)) {
            Ok(outcome) => self.advance(now, outcome),
            Err(fault) => self.stumble(now, fault, actions),
        }
    }

    /// A machine that is to boot its own kernel from the network has to be told where its root file system is.
    fn check_root(&self, outcome: Outcome) -> Result<Outcome, Fault> {
        let netboot = self.record.spec.as_ref().and_then(|spec| spec.image.netboot.as_ref());
        match (&outcome, netboot) {
            (Outcome::Prepared { image, .. }, Some(netboot))
                if netboot.command_line(image.root().as_deref()).is_none() =>
            {
                Err(root_unknown())
            }
            _ => Ok(outcome),
        }
    }

    fn advance(&mut self, now: Timestamp, outcome: Outcome) {
        let Some(spec) = self.record.spec.clone() else { return };
        match (&self.record.state, outcome) {
            (State::Idle | State::Held { .. } | State::Failed, Outcome::Power(observed)) => {
                self.see_power(now, observed);
                self.consider(now, observed);
            }
            (
                State::SettingPower { wanted },
                Outcome::PowerSet(reached) | Outcome::Restarted(reached),
            ) if *wanted == reached => self.power_set(now, reached),
            (
                State::Preparing { ready: None },
                Outcome::Prepared { image, key, system_guid, stages },
            ) => {
                self.note_stages(&stages);
                self.miss_nothing();
                let attempt = Attempt {
                    key,
                    image,
                    verify: Vec::new(),
                    peer: None,
                    ramdisk_fetched_by: Vec::new(),
                    disk: None,
                    system_guid,
                    bmc: spec.bmc.clone(),
                };
                self.prepared(now, attempt);
            }
            (State::Preparing { ready: Some(attempt) }, Outcome::Power(observed)) => {
                let attempt = attempt.clone();
                self.see_power(now, observed);
                if self.may_wipe(observed) {
                    self.record.consented = true;
                    self.enter(now, State::PoweringOn { attempt });
                } else {
                    // Large images take a while: somebody has switched it on meanwhile.
                    self.hold(now, &spec);
                }
            }
            (State::PoweringOn { attempt }, Outcome::PoweredOn) => {
                let attempt = attempt.clone();
                self.see_power(now, PowerState::On);
                self.enter(now, State::WaitingRamdisk { attempt });
            }
            (
                State::Imaging { attempt, disk, .. },
                Outcome::Imaged { verify, disk_bytes, root_partuuid, stages },
            ) => {
                let mut attempt = Attempt { verify, ..attempt.clone() };
                attempt.image.root_partuuid = root_partuuid;
                let disk = Disk { size: disk_bytes, ..disk.clone() };
                self.note_stages(&stages);
                self.enter(now, State::Switching { attempt, disk });
            }
            (State::Switching { .. }, Outcome::Released) => self.take_for_completed(now),
            (State::Restarting { attempt, disk }, Outcome::Restarted(unclaimed)) => {
                let (image, disk) = (attempt.image.clone(), disk.clone());
                self.see_power(now, unclaimed);
                self.succeed(now, image, disk);
            }
            (State::CleaningUp { attempt, purpose }, Outcome::CleanedUp) => {
                // After a change of bmc.address it was another machine that was switched off.
                let bmc = attempt.as_ref().map(Attempt::bmc_address);
                self.cleaned_up(now, *purpose, bmc == Some(spec.bmc_address()));
            }
            // An answer to a question that was not asked: the agent's mistake, and no reason to move.
            _ => {}
        }
    }

    /// Nothing of the attempt is left, and the machine is off; is it the one that the spec names?
    fn cleaned_up(&mut self, now: Timestamp, purpose: Purpose, is_named: bool) {
        if is_named {
            self.see_power(now, PowerState::Off);
            self.needs_no_restart();
        }
        // Off by its other BMC: what it does next is for who uses that.
        self.record.awaits_restart = false;
        self.conclude(now, purpose);
    }

    /// Everything is ready for the machine to be switched on, or to be asked once more whether it is off.
    fn prepared(&mut self, now: Timestamp, attempt: Attempt) {
        if self.powered_manually() {
            self.record.consented = true;
            self.enter(now, State::PoweringOn { attempt });
        } else {
            self.record.state = State::Preparing { ready: Some(attempt) };
        }
    }

    /// The stages of an operation are shown beside the phases.
    pub(super) fn note_stages(&mut self, stages: &Stages) {
        for (stage, took) in stages {
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.record.durations.insert(format!("{}_ms", stage.as_str()), took_ms);
        }
    }

    /// The disk is written and let go: from now on it is known what is installed, and only the
    /// restart is left to do.
    pub(super) fn begin_restart(&mut self, now: Timestamp, attempt: Attempt, disk: Disk) {
        self.note_installed(now, attempt.image.clone(), disk.clone());
        self.record.awaits_restart = true;
        self.enter(now, State::Restarting { attempt, disk });
    }

    /// The machine was restarted into its own system, or left off as its spec wants it; without a BMC it does that itself.
    pub(super) fn succeed(&mut self, now: Timestamp, image: PreparedImage, disk: Disk) {
        self.record.last_error = None;
        self.record.consented = false;
        if !std::mem::take(&mut self.record.awaits_restart) {
            self.note_installed(now, image, disk);
        }
        self.enter(now, State::Idle);
        // The spec may have been changed in the last moment.
        self.record.power_ordered = self.power_differs();
    }

    /// The BMC did not restart the machine. Its disk is good all the same, and is not written again.
    fn restart_failed(&mut self, now: Timestamp, mut fault: Fault) {
        if let State::Restarting { attempt, disk } = &self.record.state
            && !self.record.awaits_restart
        {
            // On record since before it was noted when the restart began.
            let (image, disk) = (attempt.image.clone(), disk.clone());
            self.note_installed(now, image, disk);
            self.record.awaits_restart = true;
        }
        self.record.consented = false;
        self.record.power_ordered = false;
        let then = format!("run hostler retry {}, which restarts the machine", self.name);
        fault.hint = format!("{}; then {then}", fault.hint).into();
        self.miss_power(now, fault.clone());
        self.record.last_error = Some(LastError { at: now, attempt: self.record.attempt, fault });
        self.enter(now, State::Idle);
    }

    fn note_installed(&mut self, now: Timestamp, image: PreparedImage, disk: Disk) {
        let wanted = self.record.spec.as_ref().zip(self.wanted.clone());
        self.netboot = NetbootUpdate::default();
        self.record.installed = wanted.map(|(spec, digest)| Installed {
            digest,
            image: image.digest,
            disk,
            at: now,
            written_digest: self.written.clone(),
            root_uuid: image.root_uuid,
            root_partuuid: image.root_partuuid,
            netboot: image.netboot,
            redeploy: spec.redeploy.clone(),
            machine: Some(Machine::named_by(spec)),
        });
    }

    /// The BMC said whether the machine is on: get in line for an attempt, hold it, or let things be.
    fn consider(&mut self, now: Timestamp, observed: PowerState) {
        if matches!(self.record.state, State::Held { reason: Hold::PoweredOn, .. })
            && observed == PowerState::Off
        {
            self.enter(now, State::Idle);
        }
        self.consider_power(now, observed);
        self.line_up(now, observed);
    }

    /// Gets in line for an attempt, or holds, if there is to be one.
    pub(super) fn line_up(&mut self, now: Timestamp, observed: PowerState) {
        let not_before = self.record.not_before;
        if self.record.state != State::Idle
            || !self.may_start()
            || not_before.is_some_and(|at| at > now)
        {
            return;
        }
        let Some(spec) = self.record.spec.clone() else { return };
        if not_before.is_some_and(|at| after(at, CONSENT_LAPSES_AFTER) < now) {
            self.record.consented = false;
        }
        if !self.may_wipe(observed) {
            return self.hold(now, &spec);
        }
        self.in_line_since.get_or_insert(now);
    }

    /// The attempt begins.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.record.attempt = self.record.attempt.saturating_add(1);
        self.record.durations.clear();
        self.record.last_seen = LastSeen::default();
        self.refused = 0;
        self.refused_reason = None;
        self.missing_disk = None;
        self.enter(now, State::Preparing { ready: None });
    }

    /// Whether a machine in this power state may be wiped. A reinstall is wanted only after `redeploy` was changed, and that is consent.
    pub(super) fn may_wipe(&self, observed: PowerState) -> bool {
        let is_strangers = observed == PowerState::On || self.record.record_lost;
        !is_strangers || self.record.consented || self.record.installed.is_some()
    }

    fn hold(&mut self, now: Timestamp, spec: &NodeSpec) {
        let redeploy = spec.redeploy.clone();
        let reason = if self.is_lost() { Hold::RecordLost } else { Hold::PoweredOn };
        self.enter(now, State::Held { redeploy, reason });
    }

    /// The running operation failed.
    fn stumble(&mut self, now: Timestamp, fault: Fault, actions: &mut Vec<Action>) {
        if fault.retry == RetryAdvice::Wait {
            return self.wait_for_missing(now, fault, actions);
        }
        let may_pass = fault.retry == RetryAdvice::Backoff;
        match &self.record.state {
            State::Idle => {
                let was_preflight = self.record.not_before.is_none_or(|at| at <= now);
                self.miss_power(now, fault.clone());
                if was_preflight && self.may_start() {
                    self.record.attempt = self.record.attempt.saturating_add(1);
                    self.fail(now, fault, actions);
                }
            }
            State::Held { .. } | State::Failed => self.miss_power(now, fault),
            State::SettingPower { .. } if may_pass && self.may_try_again(POWER_TRIES_MAX) => {
                self.pause(now, fault);
            }
            State::SettingPower { .. } => self.power_not_set(now, fault),
            State::Restarting { .. } if may_pass && self.may_try_again(RESTART_TRIES_MAX) => {
                self.pause(now, fault);
            }
            State::CleaningUp { .. } if may_pass && self.may_try_again(CLEANUP_TRIES_MAX) => {
                self.pause(now, fault);
                self.record.deadline = None;
            }
            State::CleaningUp { purpose, .. } => {
                let purpose = *purpose;
                self.leave_behind(now, purpose, fault);
            }
            State::Preparing { .. }
            | State::PoweringOn { .. }
            | State::WaitingRamdisk { .. }
            | State::Imaging { .. }
            | State::Switching { .. }
            | State::WaitingCompleted { .. } => self.fail(now, fault, actions),
            State::Restarting { .. } => self.restart_failed(now, fault),
        }
    }

    fn may_try_again(&self, tries_max: u32) -> bool {
        self.record.tries.saturating_add(1) < tries_max
    }

    /// The present state's work is tried again, after a pause.
    fn pause(&mut self, now: Timestamp, fault: Fault) {
        self.record.tries += 1;
        self.record.not_before = Some(after(now, self.pause_after(self.record.tries)));
        self.bmc_trouble = Some(fault);
    }

    /// The pause after a state's work has failed so many times.
    pub(super) fn pause_after(&self, tries: u32) -> Duration {
        backoff::pause(&self.name, tries, TRY_PAUSE)
    }

    /// The machine cannot be switched off: it stays as it is. An attempt that cannot be cleaned up must not be followed by another.
    fn leave_behind(&mut self, now: Timestamp, purpose: Purpose, fault: Fault) {
        self.bmc_trouble = Some(fault.clone());
        match &mut self.record.last_error {
            Some(cause) if matches!(purpose, Purpose::Retry | Purpose::GiveUp) => {
                let message = &mut cause.fault.message;
                *message = plain(&format!(
                    "{message}; then the machine could not be switched off: {}",
                    fault.message
                ));
            }
            last_error => {
                let attempt = self.record.attempt;
                *last_error = Some(LastError { at: now, attempt, fault });
            }
        }
        self.conclude(now, Purpose::GiveUp);
    }

    /// The attempt failed: say why, put things back, and try again or give up.
    pub(super) fn fail(&mut self, now: Timestamp, fault: Fault, actions: &mut Vec<Action>) {
        let fault = self.as_far_as_believed(fault);
        let attempts = self.record.spec.as_ref().map_or(1, |spec| spec.retry.attempts);
        let again = fault.retry == RetryAdvice::Backoff && self.record.attempt < attempts;
        self.record.last_error = Some(LastError { at: now, attempt: self.record.attempt, fault });
        self.abandon(now, if again { Purpose::Retry } else { Purpose::GiveUp }, actions);
    }

    /// What a ramdisk says or offers ends the attempts for good only if it was seen coming up: anybody
    /// on the deploy network can read a boot menu, and show its key.
    fn as_far_as_believed(&self, fault: Fault) -> Fault {
        let rests_on_ramdisk =
            matches!(fault.step, Step::Ramdisk | Step::Imaging | Step::Completed);
        let peer = self.record.state.attempt().and_then(|attempt| {
            let peer = attempt.peer?;
            (attempt.ramdisk_fetched_by != [peer]).then_some(peer)
        });
        match peer {
            Some(peer) if rests_on_ramdisk && fault.retry == RetryAdvice::Never => {
                let hint = format!(
                    "{}; another attempt is made, because {peer}, which said this, was not seen \
                     fetching the deploy ramdisk, or not alone",
                    fault.hint
                );
                Fault { retry: RetryAdvice::Backoff, hint: hint.into(), ..fault }
            }
            _ => fault,
        }
    }

    /// Leaves whatever is under way for `purpose`: at once if that is nothing, else through a clean-up.
    pub(super) fn abandon(&mut self, now: Timestamp, purpose: Purpose, actions: &mut Vec<Action>) {
        if let State::CleaningUp { purpose: present, .. } = &mut self.record.state {
            *present = purpose;
            return;
        }
        if self.record.state.at_rest() {
            return self.conclude(now, purpose);
        }
        self.cancel(actions);
        let attempt = self.record.state.attempt().cloned();
        self.enter(now, State::CleaningUp { attempt, purpose });
        let waits = self.running.is_some() || self.cleans_up_manually();
        self.record.deadline = waits.then(|| after(now, CANCEL_PATIENCE));
    }

    /// Nothing is under way any more.
    pub(super) fn conclude(&mut self, now: Timestamp, purpose: Purpose) {
        // Consent is for one series of attempts.
        self.record.consented &= purpose == Purpose::Retry;
        match purpose {
            Purpose::Retry => {
                let first = self.record.spec.as_ref().map_or(TRY_PAUSE, |spec| spec.retry.backoff);
                let pause = backoff::pause(&self.name, self.record.attempt, first);
                self.enter(now, State::Idle);
                self.record.not_before = Some(after(now, pause));
                // One that has to pause is not ready to go, even if its turn should come.
                self.in_line_since = None;
            }
            Purpose::GiveUp => self.enter(now, State::Failed),
            Purpose::StartOver => self.start_afresh(now),
        }
    }

    /// Tells the operation under way to stop, after its state was given up for one at rest.
    fn stop_at_rest(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if let Some(running) = &mut self.running {
            running.patience_until = after(now, CANCEL_PATIENCE);
        }
        self.cancel(actions);
    }

    pub(super) fn miss_deadline(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let fault = match &self.record.state {
            State::Idle | State::Held { .. } | State::Failed => return,
            State::SettingPower { wanted } => {
                let message = format!("the machine was not switched {} in time", wanted.as_str());
                let hint = "look at the BMC, or raise timeouts.power";
                let fault = Fault::passing(Step::Power, "PowerTimeout", message, hint);
                self.power_not_set(now, fault);
                return self.stop_at_rest(now, actions);
            }
            State::CleaningUp { .. } => {
                // Nothing may start before the operation has reported: tell it again.
                self.record.deadline = Some(after(now, CANCEL_PATIENCE));
                return self.interrupt(actions);
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
            State::WaitingRamdisk { attempt } => {
                let mut fault = ramdisk_timeout(attempt, &self.record.last_seen);
                if let Some(reason) = &self.refused_reason {
                    fault.message.push_str("; the last refused call: ");
                    fault.message.push_str(reason);
                }
                fault
            }
            State::Imaging { granted: false, .. } => Fault::passing(
                Step::Imaging,
                "NoTurn",
                "other disks were being written all the time",
                "look why they take so long, or raise limits.imaging or timeouts.imaging",
            ),
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
                "look at the machine's console, or raise timeouts.completed; with image.verify = \"node\", or timeouts.imaging",
            ),
            State::Restarting { .. } => {
                let message = "the machine was not restarted in time";
                let hint = "look at the BMC, or raise timeouts.power";
                let fault = Fault::passing(Step::Restart, "RestartTimeout", message, hint);
                self.restart_failed(now, fault);
                return self.stop_at_rest(now, actions);
            }
        };
        self.fail(now, fault, actions);
    }
}

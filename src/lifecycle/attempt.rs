//! The course of an attempt: what the end of an operation leads to, what a missed deadline means,
//! and how an attempt is given up.
//!
//! Called by `node.rs`, `callback.rs` and `settle.rs`. It judges what has happened;
//! `transitions.rs` says which state follows.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{
    boot::BootStage,
    disk::Disk,
    fault::{Fault, RetryAdvice, Step},
    machine::Machine,
    power::PowerState,
    spec::BmcAddress,
    status::{Installed, LastError, LastSeen},
};

use super::{
    backoff,
    boot_evidence::ramdisk_timeout,
    event::{Action, Outcome, Stages},
    first_boot::booted,
    limits::{CANCEL_PATIENCE, CLEANUP_TRIES_MAX, POWER_TRIES_MAX, RESTART_TRIES_MAX, after},
    netboot_files::{NetbootUpdate, root_unknown},
    node::Node,
    ramdisk_log::{READ_ITS_LOG, RamdiskLogs},
    state::{Attempt, FirstBoot, PreparedImage, Purpose, State},
    text::plain,
    transitions::Cause,
};

/// The pause after the first failed try of a restart or a clean-up.
const TRY_PAUSE: Duration = Duration::from_secs(10);
/// A repetition this late is no longer the one that was consented to: the agent was not running, or
/// not allowed to, and meanwhile a operator may have taken the machine.
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
            Err(fault) => self.on_failure(now, fault, actions),
        }
    }

    /// A machine that is to boot its own kernel from the network has to be told where its root file
    /// system is.
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
        let state = &self.record.state;
        match outcome {
            Outcome::Power(observed) if state.at_rest() => {
                self.see_power(now, observed);
                self.consider(now, observed);
            }
            Outcome::Power(observed) if matches!(state, State::Preparing { ready: Some(_) }) => {
                self.see_power(now, observed);
                if self.may_wipe(observed) {
                    self.enter(now, Cause::PowerConfirmed);
                } else {
                    // Large images take a while: somebody has switched it on meanwhile.
                    self.hold(now, &spec);
                }
            }
            Outcome::PowerSet(reached) | Outcome::Restarted(reached)
                if *state == (State::SettingPower { wanted: reached }) =>
            {
                self.power_set(now, reached);
            }
            Outcome::Prepared { image, key, system_guid, stages }
                if matches!(state, State::Preparing { ready: None }) =>
            {
                self.note_stages(&stages);
                self.miss_nothing();
                let bmc = spec.bmc.clone();
                let attempt = Attempt::new(key, image, system_guid, bmc);
                self.enter(now, Cause::ImageVerified(attempt));
            }
            Outcome::PoweredOn if matches!(state, State::PoweringOn { .. }) => {
                self.see_power(now, PowerState::On);
                self.enter(now, Cause::PoweredOn);
            }
            Outcome::Imaged { verify, disk_bytes, root_partuuid, stages }
                if matches!(state, State::Imaging { granted: true, .. }) =>
            {
                self.note_stages(&stages);
                self.enter(now, Cause::Written { verify, disk_bytes, root_partuuid });
            }
            Outcome::Released if matches!(state, State::Switching { .. }) => self.let_go(now),
            Outcome::Restarted(left_in) if matches!(state, State::Restarting { .. }) => {
                self.restarted(now, left_in);
            }
            Outcome::Restarted(PowerState::On)
                if *state == (State::Booting { boot: FirstBoot::Restarting }) =>
            {
                self.boot_restarted(now);
            }
            Outcome::PortAnswered { address, ssh_banner }
                if matches!(state, State::Booting { .. }) =>
            {
                self.boot_seen(now, address, ssh_banner.as_deref());
            }
            Outcome::CleanedUp => self.cleaned_up(now, spec.bmc_address()),
            // An answer to a question that was not asked: the agent's mistake, and no reason to
            // move.
            Outcome::Power(_)
            | Outcome::PowerSet(_)
            | Outcome::Restarted(_)
            | Outcome::Prepared { .. }
            | Outcome::PoweredOn
            | Outcome::Imaged { .. }
            | Outcome::Released
            | Outcome::PortAnswered { .. }
            | Outcome::NetbootFiles(_) => {}
        }
    }

    /// The BMC has restarted the machine, or left it off as its spec wants it.
    fn restarted(&mut self, now: Timestamp, left_in: PowerState) {
        self.see_power(now, left_in);
        self.note_written(now);
        self.record.awaits_restart = false;
        self.succeed(now, Cause::Restarted);
    }

    /// Nothing of the attempt is left, and a machine is off: the one that the spec names?
    fn cleaned_up(&mut self, now: Timestamp, named: Option<&BmcAddress>) {
        let State::CleaningUp { attempt, purpose } = &self.record.state else { return };
        let purpose = *purpose;
        // After a change of bmc.address it was another machine.
        if attempt.as_ref().map(Attempt::bmc_address) == Some(named) {
            self.see_power(now, PowerState::Off);
            self.needs_no_restart();
        }
        // Off by its other BMC: what it does next is for who uses that.
        self.record.awaits_restart = false;
        self.conclude(now, purpose);
    }

    /// The stages of an operation are shown beside the phases.
    pub(super) fn note_stages(&mut self, stages: &Stages) {
        for (stage, took) in stages {
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.record.durations.insert(format!("{}_ms", stage.as_str()), took_ms);
        }
    }

    /// The disk is written and flushed, and the session with its target has ended: from now on it
    /// is known what is installed. Only the restart is left to do, unless the ramdisk does that
    /// itself.
    pub(super) fn let_go(&mut self, now: Timestamp) {
        let (State::Switching { attempt, disk } | State::WaitingCompleted { attempt, disk }) =
            &self.record.state
        else {
            return;
        };
        let restarts_itself = attempt.power_control().restarts_itself();
        let (attempt, disk) = (attempt.clone(), disk.clone());
        self.note_installed(now, attempt, disk);
        self.record.awaits_restart = !restarts_itself;
        if restarts_itself {
            self.succeed(now, Cause::LetGo);
        } else {
            self.enter(now, Cause::LetGo);
        }
    }

    /// The machine was restarted into its own system, or left off as its spec wants it.
    fn succeed(&mut self, now: Timestamp, cause: Cause) {
        self.record.last_error = None;
        self.enter(now, cause);
        // The spec may have been changed in the last moment.
        self.record.power_ordered = self.power_differs();
    }

    /// The BMC did not restart the machine. Its disk is good all the same, and is not written
    /// again.
    fn restart_failed(&mut self, now: Timestamp, mut fault: Fault) {
        self.note_written(now);
        self.record.awaits_restart = true;
        self.record.power_ordered = false;
        let then = format!("run hostler retry {}, which restarts the machine", self.name);
        fault.hint = format!("{}; then {then}", fault.hint).into();
        self.miss_power(now, fault.clone());
        self.record.last_error = Some(LastError { at: now, attempt: self.record.attempt, fault });
        self.enter(now, Cause::NotRestarted);
    }

    /// Notes what is installed where the record is of a version that did so only after the restart.
    fn note_written(&mut self, now: Timestamp) {
        if let State::Restarting { attempt, disk } = &self.record.state
            && !self.record.awaits_restart
        {
            let (attempt, disk) = (attempt.clone(), disk.clone());
            self.note_installed(now, attempt, disk);
        }
    }

    fn note_installed(&mut self, now: Timestamp, attempt: Attempt, disk: Disk) {
        let wanted = self.record.spec.as_ref().zip(self.wanted.clone());
        let PreparedImage { digest: image, root_uuid, root_partuuid, netboot, .. } = attempt.image;
        self.netboot = NetbootUpdate::default();
        self.boot_trouble = None;
        self.record.restarted_again = false;
        self.record.installed = wanted.map(|(spec, digest)| {
            let mut installed = Installed {
                digest,
                image,
                disk,
                at: now,
                booted: None,
                booted_at: None,
                address: attempt.peer,
                written_digest: self.written.clone(),
                root_uuid,
                root_partuuid,
                netboot,
                redeploy: spec.redeploy.clone(),
                machine: Some(Machine::named_by(spec)),
                system: None,
            };
            installed.booted = Some(booted(spec, &installed));
            installed
        });
    }

    /// Considers the power state that the BMC reported: wait for a permit, hold the node, or let
    /// things be.
    fn consider(&mut self, now: Timestamp, observed: PowerState) {
        if observed == PowerState::Off {
            self.release_powered_on(now);
        }
        self.consider_power(now, observed);
        self.queue_for_attempt(now, observed);
    }

    /// Queues the node for an attempt, or holds it, if there is to be one.
    pub(super) fn queue_for_attempt(&mut self, now: Timestamp, observed: PowerState) {
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
        self.queued_since.get_or_insert(now);
    }

    /// The attempt begins.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.record.durations.clear();
        self.record.last_seen = LastSeen::default();
        self.refused = 0;
        self.refused_reason = None;
        self.missing_disk = None;
        self.ramdisk_logs = RamdiskLogs::default();
        self.enter(now, Cause::AttemptGranted);
    }

    /// The running operation failed.
    fn on_failure(&mut self, now: Timestamp, fault: Fault, actions: &mut Vec<Action>) {
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
            State::Restarting { .. } | State::Booting { boot: FirstBoot::Restarting }
                if may_pass && self.may_try_again(RESTART_TRIES_MAX) =>
            {
                self.pause(now, fault);
            }
            State::CleaningUp { .. } if may_pass && self.may_try_again(CLEANUP_TRIES_MAX) => {
                self.pause(now, fault);
                self.record.deadline = None;
            }
            State::CleaningUp { purpose, .. } => {
                let purpose = *purpose;
                self.end_uncleaned(now, purpose, fault);
            }
            State::Booting { boot: FirstBoot::Restarting } => self.boot_not_restarted(now, &fault),
            State::Booting { .. } => self.boot_probe_failed(now, fault),
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

    /// The machine cannot be switched off: it stays as it is. An attempt that cannot be cleaned up
    /// must not be followed by another.
    fn end_uncleaned(&mut self, now: Timestamp, purpose: Purpose, fault: Fault) {
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

    /// Lets a fault end the attempts for good only if the ramdisk that it rests on was seen coming
    /// up: anybody on the deploy network can read a boot menu, and show its key.
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

    /// Leaves whatever is under way for `purpose`: at once if that is nothing, else through a
    /// clean-up.
    pub(super) fn abandon(&mut self, now: Timestamp, purpose: Purpose, actions: &mut Vec<Action>) {
        if matches!(self.record.state, State::CleaningUp { .. }) {
            return self.enter(now, Cause::Abandoned(purpose));
        }
        if self.record.state.at_rest() {
            return self.conclude(now, purpose);
        }
        self.cancel(actions);
        self.enter(now, Cause::Abandoned(purpose));
        let waits = self.running.is_some() || self.ramdisk_cleans_up();
        self.record.deadline = waits.then(|| after(now, CANCEL_PATIENCE));
    }

    /// Nothing is under way any more.
    pub(super) fn conclude(&mut self, now: Timestamp, purpose: Purpose) {
        self.enter(now, Cause::Ended(purpose));
        if purpose == Purpose::Retry {
            let first = self.record.spec.as_ref().map_or(TRY_PAUSE, |spec| spec.retry.backoff);
            let pause = backoff::pause(&self.name, self.record.attempt, first);
            self.record.not_before = Some(after(now, pause));
            // A node that has to pause is not ready to go, even if its permit should come.
            self.queued_since = None;
        }
    }

    /// Tells the operation under way to stop, after its state was given up for one at rest.
    pub(super) fn stop_at_rest(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if let Some(running) = &mut self.running {
            running.patience_until = after(now, CANCEL_PATIENCE);
        }
        self.cancel(actions);
    }

    pub(super) fn miss_deadline(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let fault = match &self.record.state {
            State::Idle | State::Held { .. } | State::Failed => return,
            State::Booting { .. } => return self.miss_boot(now, actions),
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
                READ_ITS_LOG,
            ),
            State::WaitingCompleted { .. } => Fault::passing(
                Step::Completed,
                "CompletedTimeout",
                "the disk is written, but the ramdisk's completed notice did not come in time",
                "look at the machine's console, or raise timeouts.completed; with image.verify = \
                 \"node\", or timeouts.imaging",
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

    /// The agent was gone. A machine in the middle of its boot files has lost its server: pxelinux
    /// asks on for two minutes and then stands for five, GRUB asks again after half a minute or
    /// more. So it is switched off and on, in the same attempt.
    pub(super) fn boot_again_if_cut_off(&mut self, now: Timestamp) {
        use BootStage::{Kernel, Loader, Menu};
        self.give_boot_time_if_cut_off(now);
        if let State::WaitingRamdisk { attempt } = &self.record.state
            && attempt.peer.is_none()
            && attempt.power_control().can_switch()
            && matches!(self.record.last_seen.fetched, Some(Loader | Menu | Kernel))
        {
            self.enter(now, Cause::CutOff);
            self.record.last_seen = LastSeen::default();
        }
    }
}

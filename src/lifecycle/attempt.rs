//! The course of an attempt: the ends of operations, missed deadlines, failures and retries.
//!
//! Called by `node.rs`, `callback.rs` and `settle.rs`. It judges events; `transitions.rs` has the
//! next states. It must never start an operation itself: `Node::drive` does.

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
    ramdisk_log::READ_ITS_LOG,
    state::{Attempt, FirstBoot, PreparedImage, Purpose, RamdiskLogs, State},
    text::plain,
    transitions::Cause,
};

/// The pause after the first failed try of a restart or a clean-up.
const TRY_PAUSE: Duration = Duration::from_secs(10);
/// Consent lapses if a repeated attempt is this late: the agent was stopped or blocked, and
/// meanwhile an operator may have taken the machine.
const CONSENT_LAPSES_AFTER: Duration = Duration::from_secs(3600);

impl Node {
    /// Takes the result of the running operation.
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

    /// Refuses an image for network boot if its kernel would not know its root file system.
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
            // A first boot goes on whatever the power state is.
            Outcome::Power(observed) if self.awaits_system() => self.see_power(now, observed),
            Outcome::Power(observed) if matches!(state, State::Preparing { ready: Some(_) }) => {
                self.see_power(now, observed);
                if self.may_wipe(observed) {
                    self.enter(now, Cause::PowerConfirmed);
                } else {
                    // Somebody has switched the machine on while a large image was prepared.
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
                self.clear_missing_file();
                let bmc = spec.bmc.clone();
                let attempt = Attempt::new(key, image, system_guid, bmc);
                self.enter(now, Cause::ImageVerified(Box::new(attempt)));
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
            // An outcome that the state does not wait for is the agent's mistake and changes
            // nothing.
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

    /// The BMC has restarted the machine, or has left it off as the spec wants.
    fn restarted(&mut self, now: Timestamp, left_in: PowerState) {
        self.see_power(now, left_in);
        self.note_written(now);
        if left_in == PowerState::On {
            self.note_own_boot(now);
        }
        self.record.awaits_restart = false;
        self.succeed(now, Cause::Restarted);
    }

    /// Ends a clean-up: the attempt's machine is off, which may not be the spec's by now.
    fn cleaned_up(&mut self, now: Timestamp, named: Option<&BmcAddress>) {
        let State::CleaningUp { attempt, purpose } = &self.record.state else { return };
        let purpose = *purpose;
        // After a change of bmc.address, the attempt's machine may be another one.
        if attempt.as_deref().map(Attempt::bmc_address) == Some(named) {
            self.see_power(now, PowerState::Off);
            self.needs_no_restart();
        }
        // The other BMC's machine is no longer this node's.
        self.record.awaits_restart = false;
        self.conclude(now, purpose);
    }

    /// Records the durations of an operation's stages beside those of the phases.
    pub(super) fn note_stages(&mut self, stages: &Stages) {
        for (stage, took) in stages {
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.record.durations.insert(format!("{}_ms", stage.as_str()), took_ms);
        }
    }

    /// Records the installation: the disk is written and flushed, and the session with its target
    /// has ended. Only the restart is left, unless the ramdisk restarts the machine itself.
    pub(super) fn let_go(&mut self, now: Timestamp) {
        let (State::Switching { attempt, disk } | State::WaitingCompleted { attempt, disk }) =
            &self.record.state
        else {
            return;
        };
        let restarts_itself = attempt.power_control().restarts_itself();
        let (attempt, disk) = (attempt.clone(), disk.clone());
        self.note_installed(now, *attempt, *disk);
        self.record.awaits_restart = !restarts_itself;
        if restarts_itself {
            self.succeed(now, Cause::LetGo);
        } else {
            self.enter(now, Cause::LetGo);
        }
    }

    /// Ends the attempt with success: the machine was restarted, or left off as its spec wants.
    fn succeed(&mut self, now: Timestamp, cause: Cause) {
        self.record.last_error = None;
        self.enter(now, cause);
        // The spec may have changed in the last moment.
        self.record.power_ordered = self.power_differs();
    }

    /// Ends the attempt although the BMC did not restart the machine: the disk is good and is not
    /// written again.
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

    /// Records the installation for a record of an earlier version, which did so only after the
    /// restart.
    fn note_written(&mut self, now: Timestamp) {
        if let State::Restarting { attempt, disk } = &self.record.state
            && !self.record.awaits_restart
        {
            let (attempt, disk) = (attempt.clone(), disk.clone());
            self.note_installed(now, *attempt, *disk);
        }
    }

    fn note_installed(&mut self, now: Timestamp, attempt: Attempt, disk: Disk) {
        let wanted = self.record.spec.as_ref().zip(self.wanted.clone());
        let PreparedImage { digest: image, root_uuid, root_partuuid, netboot, boot_token, .. } =
            attempt.image;
        let has_token = boot_token.is_some();
        self.record.boot_token = boot_token;
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
                unexpected_netboots: 0,
                unexpected_netboot_at: None,
                address: attempt.peer,
                written_digest: self.written.clone(),
                root_uuid,
                root_partuuid,
                netboot,
                redeploy: spec.redeploy.clone(),
                machine: Some(Machine::named_by(spec)),
                system: None,
            };
            installed.booted = Some(booted(spec, &installed, has_token));
            installed
        });
    }

    /// Considers the reported power state: the node queues for a permit, is held, or does nothing.
    fn consider(&mut self, now: Timestamp, observed: PowerState) {
        if observed == PowerState::Off {
            self.release_powered_on(now);
        }
        self.consider_power(now, observed);
        self.queue_for_attempt(now, observed);
    }

    /// Queues or holds the node if its spec wants an attempt.
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

    /// Begins the attempt.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.record.durations.clear();
        self.record.last_seen = LastSeen::default();
        self.refused = 0;
        self.refused_reason = None;
        self.missing_disk = None;
        self.ramdisk_logs = RamdiskLogs::default();
        self.enter(now, Cause::AttemptGranted);
    }

    /// Handles the failure of the running operation: a retry, a pause or the end of the attempt.
    fn on_failure(&mut self, now: Timestamp, fault: Fault, actions: &mut Vec<Action>) {
        if fault.retry == RetryAdvice::Wait {
            return self.wait_for_missing_file(now, fault, actions);
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
            State::Booting { .. } if self.polls.runs() => self.miss_power(now, fault),
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

    /// Retries the present state's operation after a pause.
    fn pause(&mut self, now: Timestamp, fault: Fault) {
        self.record.tries += 1;
        self.record.not_before = Some(after(now, self.pause_after(self.record.tries)));
        self.bmc_trouble = Some(Box::new(fault));
    }

    /// The pause after so many failures of a state's operation.
    pub(super) fn pause_after(&self, tries: u32) -> Duration {
        backoff::pause(&self.name, tries, TRY_PAUSE)
    }

    /// Gives up a clean-up whose machine cannot be switched off. No attempt may follow it.
    fn end_uncleaned(&mut self, now: Timestamp, purpose: Purpose, fault: Fault) {
        self.bmc_trouble = Some(Box::new(fault.clone()));
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

    /// Ends the attempt with a fault: cleans up, and then retries or gives up.
    pub(super) fn fail(&mut self, now: Timestamp, fault: Fault, actions: &mut Vec<Action>) {
        let fault = self.weaken_if_unproven(fault);
        let attempts = self.record.spec.as_ref().map_or(1, |spec| spec.retry.attempts);
        let again = fault.retry == RetryAdvice::Backoff && self.record.attempt < attempts;
        self.record.last_error = Some(LastError { at: now, attempt: self.record.attempt, fault });
        self.abandon(now, if again { Purpose::Retry } else { Purpose::GiveUp }, actions);
    }

    /// Turns a lasting fault into a passing one unless the ramdisk that reported it was seen to
    /// netboot: anybody on the deploy network can read a boot menu and use its key.
    fn weaken_if_unproven(&self, fault: Fault) -> Fault {
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

    /// Abandons whatever is under way for `purpose`: at once if that is nothing, else through a
    /// clean-up.
    pub(super) fn abandon(&mut self, now: Timestamp, purpose: Purpose, actions: &mut Vec<Action>) {
        if matches!(self.record.state, State::CleaningUp { .. }) {
            return self.enter(now, Cause::Abandoned(purpose));
        }
        if self.record.state.at_rest() {
            return self.conclude(now, purpose);
        }
        self.cancel(actions);
        if matches!(self.record.state, State::PoweringOn { .. }) && !self.has_begun() {
            self.enter(now, Cause::NeverBegun(purpose));
        } else {
            self.enter(now, Cause::Abandoned(purpose));
        }
        let waits = self.running.is_some() || self.ramdisk_cleans_up();
        self.record.deadline = waits.then(|| after(now, CANCEL_PATIENCE));
    }

    /// Ends an attempt of which nothing is under way any more.
    pub(super) fn conclude(&mut self, now: Timestamp, purpose: Purpose) {
        self.enter(now, Cause::Ended(purpose));
        if purpose == Purpose::Retry {
            let first = self.record.spec.as_ref().map_or(TRY_PAUSE, |spec| spec.retry.backoff);
            let pause = backoff::pause(&self.name, self.record.attempt, first);
            self.record.not_before = Some(after(now, pause));
            // A node in a pause must not take a permit.
            self.queued_since = None;
        }
    }

    /// Cancels the running operation after the node came to rest.
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
                // Nothing may start before the operation has reported: cancel it again.
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
            State::WaitingCompleted { attempt, .. } => self.completed_timeout(now, &attempt.verify),
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

    /// Restarts a machine whose netboot a stop of the agent interrupted, in the same attempt. By
    /// itself, pxelinux retries for two minutes and then pauses for five; GRUB retries after half a
    /// minute or more.
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

//! A node's phase, message and status.

use jiff::Timestamp;

use crate::model::{
    callback::Then,
    consent,
    disk::Disk,
    fault::Fault,
    machine::{Machine, MachineChange},
    power::PowerState,
    spec::Goal,
    status::{Booted, Condition, Installed, LastSeen, Phase, RECORD_LOST, STATUS_VERSION, Status},
};

use super::{
    boot_evidence,
    limits::{POWER_TRIES_MAX, RESTART_TRIES_MAX},
    node::Node,
    state::{Attempt, FirstBoot, Hold, Purpose, State},
    text::plain,
};

impl Node {
    /// The phase of the node.
    pub fn phase(&self) -> Phase {
        match &self.record.state {
            State::Idle | State::Held { .. } | State::Failed | State::SettingPower { .. } => {
                self.phase_at_rest()
            }
            State::Preparing { .. } => Phase::Preparing,
            State::PoweringOn { .. } => Phase::PoweringOn,
            State::WaitingRamdisk { .. } => Phase::WaitingRamdisk,
            State::Imaging { .. } => Phase::Imaging,
            State::Switching { .. } => Phase::Switching,
            State::WaitingCompleted { .. } => Phase::WaitingCompleted,
            State::Restarting { .. } => Phase::Restarting,
            State::Booting { .. } => Phase::Booting,
            State::CleaningUp { .. } => Phase::Pending,
        }
    }

    fn phase_at_rest(&self) -> Phase {
        let Some(spec) = self.record.spec.as_ref().filter(|_| !self.clash) else {
            return Phase::Invalid;
        };
        match (&self.record.state, spec.goal) {
            (_, Goal::Unmanaged) => Phase::Unmanaged,
            _ if spec.paused => Phase::Paused,
            _ if self.held_for().is_some() => Phase::Held,
            (_, Goal::Available) => Phase::Available,
            _ if self.owes_restart() || self.boot_missed() => Phase::Failed,
            _ if self.awaits_boot() => Phase::Booting,
            _ if !self.wants_install() => Phase::Deployed,
            (State::Failed, Goal::Deployed) => Phase::Failed,
            (_, Goal::Deployed) => Phase::Pending,
        }
    }

    /// The content of the node's status file.
    pub fn status(&self, now: Timestamp) -> Status {
        let record = &self.record;
        let spec_digest = self.wanted.clone();
        let installed_digest = record.installed.as_ref().map(|installed| installed.digest.clone());
        let phase = self.phase();
        let deadline = self.deadline();
        Status {
            version: STATUS_VERSION,
            node: self.name.clone(),
            phase,
            ready: self.is_ready(phase),
            message: self.message(),
            spec_valid: self.problems.is_empty() && record.spec.is_some(),
            spec_digest,
            installed_digest,
            since: record.since,
            deadline: deadline.map(|(at, _)| at),
            deadline_reason: deadline.map(|(_, reason)| reason.to_owned()),
            attempt: record.attempt,
            next_attempt_at: record.not_before.filter(|_| {
                record.state == State::Idle && self.may_start() && self.queued_since.is_none()
            }),
            updated: now,
            progress: self.progress.or(self.comparison.map(|comparison| comparison.progress)),
            machine: record.spec.as_deref().map(Machine::named_by),
            power: self.power,
            installed: record.installed.clone().map(with_booted),
            last_error: record.last_error.clone(),
            last_seen: self.last_seen(),
            durations: record.durations.clone(),
            problems: self.problems.clone(),
            conditions: self.conditions(),
            history: record.history.clone(),
        }
    }

    /// Whether the machine is as its spec wants, as far as known.
    fn is_ready(&self, phase: Phase) -> bool {
        let is_kept_off = self.is_off() || !self.power_control().can_switch();
        let is_served = !self.drifted() && self.netboot_trouble().is_none();
        self.problems.is_empty()
            && (phase == Phase::Deployed && is_served || phase == Phase::Available && is_kept_off)
    }

    fn last_seen(&self) -> Option<LastSeen> {
        let seen = LastSeen {
            refused: self.refused,
            refused_reason: self.refused_reason.clone(),
            ..self.record.last_seen.clone()
        };
        (seen != LastSeen::default()).then_some(seen)
    }

    /// The message: the node's activity, or the operator's next step.
    pub(super) fn message(&self) -> String {
        plain(&self.manual_power_message().unwrap_or_else(|| self.sentence()))
    }

    fn message_waiting(&self, attempt: &Attempt) -> String {
        if let Some(missing) = self.missing_disk() {
            return format!("waiting for the root device: {}", missing.fault.message);
        }
        match (&attempt.disk, self.record.last_seen.fetched) {
            (Some(disk), _) => format!("the deploy ramdisk is exporting {disk}"),
            (None, Some(stage)) => {
                format!("the machine is booting: it fetched its {}", stage.as_str())
            }
            (None, None) => {
                let instead = boot_evidence::instead(&self.record.last_seen);
                let instead = instead.map(|text| format!("; {text}")).unwrap_or_default();
                format!("the machine is on; waiting for it to netboot{instead}")
            }
        }
    }

    fn sentence(&self) -> String {
        let at_rest = self.record.state.at_rest() || self.unread;
        if let Some(problem) = self.problems.first().filter(|_| at_rest) {
            let more = self.problems.len() - 1;
            let rest = match more {
                0 => String::new(),
                1 => " (and 1 more problem)".to_owned(),
                more => format!(" (and {more} more problems)"),
            };
            let force = if self.record.spec.is_some() && !self.clash {
                "; the last good spec stays effective and nothing starts"
            } else {
                ""
            };
            return format!("{problem}{rest}{force}");
        }
        if let Some(reason) = self.blocked.as_ref().filter(|_| at_rest) {
            return format!("holding still: {reason}");
        }
        let last_error = || {
            self.record.last_error.as_ref().map_or("unknown", |error| error.fault.message.as_str())
        };
        match &self.record.state {
            State::Idle | State::Held { .. } | State::Failed => self.message_at_rest(last_error()),
            State::SettingPower { wanted } => {
                let again = self.again(POWER_TRIES_MAX);
                format!("switching the machine {}{again}", wanted.as_str())
            }
            State::Preparing { ready: None } => {
                "fetching, verifying and unpacking the image".to_owned()
            }
            State::Preparing { ready: Some(_) } => {
                "the image is verified; asking the BMC for the power state once more".to_owned()
            }
            State::PoweringOn { .. } => {
                "setting the boot device to network and switching the machine on".to_owned()
            }
            State::WaitingRamdisk { attempt } => self.message_waiting(attempt),
            State::Imaging { attempt, disk, granted, .. } => {
                message_imaging(attempt, disk, *granted)
            }
            State::Switching { attempt, .. } | State::WaitingCompleted { attempt, .. } => {
                self.message_released(attempt)
            }
            State::Restarting { .. } => {
                let again = self.again(RESTART_TRIES_MAX);
                match self.power_after_install() {
                    PowerState::On => {
                        format!("the BMC restarts the machine into its own system{again}")
                    }
                    PowerState::Off => format!("the BMC switches the machine off{again}"),
                }
            }
            State::Booting { boot } => self.boot_message(*boot),
            State::CleaningUp { attempt: None, .. } => "stopping the attempt".to_owned(),
            State::CleaningUp { purpose: Purpose::StartOver, .. } if self.gone => {
                "the spec is gone: switching the machine off and forgetting it".to_owned()
            }
            State::CleaningUp { purpose: Purpose::StartOver, .. } => {
                "starting over: stopping the attempt and switching the machine off".to_owned()
            }
            State::CleaningUp { purpose: Purpose::Retry | Purpose::GiveUp, .. } => {
                format!("switching the machine off after: {}", last_error())
            }
        }
    }

    /// The message while the ramdisk finishes after the disk is written.
    fn message_released(&self, attempt: &Attempt) -> String {
        let is_released = matches!(self.record.state, State::WaitingCompleted { .. });
        let message = match (is_released, attempt.verify.is_empty()) {
            (false, true) => "written; no boot file leads to the deploy ramdisk any more",
            (false, false) => {
                "written, and to be verified by the ramdisk; no boot file leads to it any more"
            }
            (true, true) => "waiting for the ramdisk to stop its target and say completed",
            (true, false) => {
                "waiting for the ramdisk to stop its target, compare its disk with the image and \
                 say completed"
            }
        };
        let then = match self.then(attempt) {
            Then::Reboot if is_released => "; then it restarts its machine",
            Then::PowerOff if is_released => "; then it switches its machine off",
            Then::Wait | Then::Reboot | Then::PowerOff => "",
        };
        format!("{message}{then}")
    }

    /// The suffix of the message from the second try of the BMC on.
    pub(super) fn again(&self, tries_max: u32) -> String {
        let tries = self.record.tries;
        self.bmc_trouble.as_ref().filter(|_| tries > 0).map_or_else(String::new, |trouble| {
            format!("; try {} of {tries_max} after: {}", tries.saturating_add(1), trouble.message)
        })
    }

    fn message_at_rest(&self, last_error: &str) -> String {
        let is = self.power.map_or("", |power| power.observed.as_str());
        let wanted = self.wanted_power().map_or("", PowerState::as_str);
        let differs = self.power_differs();
        match self.phase_at_rest() {
            Phase::Held => self.message_held(),
            Phase::Failed if self.owes_restart() => format!(
                "installed, but the machine was not restarted, and its disk is not written again \
                 for that: {last_error}"
            ),
            Phase::Failed if self.boot_missed() => format!("installed, but {last_error}"),
            Phase::Booting => self.boot_message(FirstBoot::Waiting),
            Phase::Failed => format!("gave up after attempt {}: {last_error}", self.record.attempt),
            Phase::Deployed => self.message_deployed() + &self.message_changed_machine(),
            Phase::Available if differs && self.bmc_trouble.is_none() => {
                format!("the machine is {is}, and its spec wants it {wanted}")
            }
            Phase::Available if !self.power_control().can_switch() => {
                "nothing is served to it; there is no BMC to switch it off".to_owned()
            }
            Phase::Available => match (&self.bmc_trouble, self.power) {
                (Some(trouble), _) => {
                    let why = &trouble.message;
                    format!("nothing is served to it; its power is not known: {why}")
                }
                (None, None) => "nothing is served to it; its power is not known yet".to_owned(),
                (None, Some(_)) => "kept off; nothing is served to it".to_owned(),
            },
            Phase::Paused => "paused by its spec".to_owned(),
            Phase::Unmanaged => "observed only".to_owned(),
            Phase::Pending if self.queued_since.is_some() => {
                "waiting for its turn: as many machines as limits.waiting allows are being \
                 brought up"
                    .to_owned()
            }
            Phase::Pending if self.record.not_before.is_some() && self.missing_file().is_some() => {
                format!("waiting for what is missing: {last_error}")
            }
            Phase::Pending if self.record.not_before.is_some() => {
                format!("will try again after: {last_error}")
            }
            Phase::Pending if !self.power_control().can_switch() => "about to begin".to_owned(),
            Phase::Pending => "asking the BMC for the power state".to_owned(),
            Phase::Invalid
            | Phase::Preparing
            | Phase::PoweringOn
            | Phase::WaitingRamdisk
            | Phase::Imaging
            | Phase::Switching
            | Phase::WaitingCompleted
            | Phase::Restarting => "the spec cannot be used".to_owned(),
        }
    }

    fn message_deployed(&self) -> String {
        let is = self.power.map_or("", |power| power.observed.as_str());
        let wanted = self.wanted_power().map_or("", PowerState::as_str);
        if let Some(message) = self.netboot_message() {
            message
        } else if self.drifted() {
            let way = consent::CHANGE_REDEPLOY;
            format!(
                "installed, but the spec now wants something else; nothing is done until you {way}"
            )
        } else if !self.power_control().can_switch() {
            self.message_unseen().to_owned()
        } else if let Some(trouble) = &self.bmc_trouble {
            format!("installed; its power is not known: {}", trouble.message)
        } else if self.power_differs() {
            format!("installed; the machine is {is}, and its spec wants it {wanted}")
        } else if self.was_seen_up() {
            "installed, and its system came up".to_owned()
        } else {
            "installed".to_owned()
        }
    }

    fn was_seen_up(&self) -> bool {
        let booted = self.record.installed.as_ref().and_then(|installed| installed.booted);
        booted == Some(Booted::Up)
    }

    /// The machine at the installation, if the spec's differs now.
    fn changed_machine(&self) -> Option<&Machine> {
        let machine = self.record.installed.as_ref()?.machine.as_ref()?;
        let spec = self.record.spec.as_ref()?;
        (machine.change_to(spec) != MachineChange::None).then_some(machine)
    }

    fn message_changed_machine(&self) -> String {
        let machine = self.changed_machine();
        machine.map_or_else(String::new, |machine| {
            format!("; when it was installed, it was {machine}")
        })
    }

    /// The message of an installed machine without a BMC.
    fn message_unseen(&self) -> &'static str {
        if self.was_seen_up() {
            return "installed, and its system came up";
        }
        match self.power_after_install() {
            PowerState::On => {
                "installed; without a BMC nobody has seen whether the machine came up"
            }
            PowerState::Off => {
                "installed; without a BMC nobody has seen whether the machine switched itself off"
            }
        }
    }

    /// The message of a held node: the reason, and the operator's choices.
    fn message_held(&self) -> String {
        let spec = self.record.spec.as_deref();
        let available = spec.is_some_and(|spec| spec.goal == Goal::Available);
        let machine = spec.map_or_else(String::new, |spec| Machine::named_by(spec).to_string());
        let (approve, redeploy) = (consent::approve(&self.name), consent::CHANGE_REDEPLOY);
        let (off, all) = (consent::SWITCH_OFF, consent::APPROVE_ALL);
        match self.held_for() {
            Some(Hold::TooManyChanges) => format!(
                "too many machines were to be reinstalled at once, which may be a mistake: {all}; \
                 or {approve}; or take the change back"
            ),
            Some(Hold::RecordLost) => format!(
                "the machine ({machine}) may be installed: hostler's record of it was lost or \
                 damaged, \
                 or is another agent's, or its spec came to name it piece by piece; {approve}; or \
                 {redeploy}"
            ),
            Some(Hold::PoweredOn) | None if available => {
                let ways = consent::keep_off(&self.name);
                format!("the machine ({machine}) is on, and hostler does not know it: {ways}")
            }
            Some(Hold::PoweredOn) | None => format!(
                "the machine ({machine}) is on, and nobody has consented to WIPE it: {approve}; \
                 or {redeploy}; or {off}"
            ),
        }
    }

    pub(super) fn drifted(&self) -> bool {
        self.record
            .installed
            .as_ref()
            .is_some_and(|installed| Some(&installed.digest) != self.wanted.as_ref())
    }

    fn conditions(&self) -> Vec<Condition> {
        let condition = |kind: &str, holds: bool, reason: &str, message: String| Condition {
            kind: kind.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message,
        };
        let mut conditions = Vec::new();
        if let Some(reason) = self.held_for() {
            conditions.push(condition("Held", true, reason.as_str(), String::new()));
        }
        // Shown in every phase, because a later agent without the state directory holds the node by
        // it.
        if self.record.is_disk_unknown() {
            let message = "nobody knows what is on the disk; it is not written without consent";
            conditions.push(condition("InstalledKnown", false, RECORD_LOST, message.to_owned()));
        }
        if self.record.installed.is_some() {
            let drifted = self.drifted();
            let reason = match drifted {
                true if self.only_netboot_differs() => "NetbootChanged",
                true => "SpecChanged",
                false => "AsWanted",
            };
            conditions.push(condition("Drifted", drifted, reason, String::new()));
        }
        if let (Some(machine), Some(spec)) = (self.changed_machine(), &self.record.spec) {
            let same_bmc = machine.bmc.as_ref() == spec.bmc_address();
            let reason = if same_bmc { "OtherMacs" } else { "OtherBmc" };
            let message = format!("installed as {machine}, and is {} now", Machine::named_by(spec));
            conditions.push(condition("MachineChanged", true, reason, message));
        }
        if let Some(installed) = &self.record.installed {
            let is_other = |disk: &&Disk| !disk.is_same(&installed.disk);
            for disk in self.record.other_disks.iter().filter(is_other) {
                let message = format!(
                    "{disk} still holds what was installed on it before, and its file systems may \
                     have the UUIDs and labels of those in \
                     use: take it out, or have it WIPED"
                );
                conditions.push(condition("OldDiskInstalled", true, "RootDeviceMoved", message));
            }
        }
        if let Some(Fault { code, message, .. }) = self.netboot_trouble() {
            conditions.push(condition("NetbootVerified", false, code, message.clone()));
        }
        if self.waits_for_operator() {
            let message = self.what_to_do().to_owned();
            conditions.push(condition("WaitingForPerson", true, "NetworkBoot", message));
        }
        if let Some(trouble) = &self.bmc_trouble {
            conditions.push(condition(
                "BmcReachable",
                false,
                &trouble.code,
                trouble.message.clone(),
            ));
        }
        if let (Some(_), Some(power)) = (self.wanted_power(), self.power) {
            let reason = if power.observed == PowerState::On { "On" } else { "Off" };
            conditions.push(condition(
                "PowerAsWanted",
                !self.power_differs(),
                reason,
                String::new(),
            ));
        }
        conditions
    }
}

/// The installation for the status. An earlier version, without `booted`, did not check it.
fn with_booted(mut installed: Installed) -> Installed {
    installed.booted.get_or_insert(Booted::Unchecked);
    installed
}

/// The message while imaging. A disk that no ramdisk has reported has only a name.
fn message_imaging(attempt: &Attempt, disk: &Disk, granted: bool) -> String {
    let disk = attempt.disk.as_ref().map_or_else(|| disk.name.clone(), ToString::to_string);
    if granted {
        format!("writing the image to {disk}")
    } else {
        format!("the machine exports {disk} and waits for its turn to be written")
    }
}

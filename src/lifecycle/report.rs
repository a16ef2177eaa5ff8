//! What people are told about a node: its phase, its message, its status.

use jiff::Timestamp;

use crate::model::{
    fault::Fault,
    power::PowerState,
    spec::{Goal, WantedPower},
    status::{Condition, LastSeen, Phase, STATUS_VERSION, Status},
};

use super::{
    attempt::RESTART_TRIES_MAX,
    node::Node,
    state::{Hold, Purpose, State},
};

/// Longest text shown, in characters: parts of it come from machines.
const TEXT_CHARS_MAX: usize = 1000;

impl Node {
    /// Where the node stands, in the words of the status file.
    pub fn phase(&self) -> Phase {
        match &self.record.state {
            State::Idle | State::Held { .. } | State::Failed => self.phase_at_rest(),
            State::Preparing { .. } => Phase::Preparing,
            State::PoweringOn { .. } => Phase::PoweringOn,
            State::WaitingRamdisk { .. } => Phase::WaitingRamdisk,
            State::Imaging { .. } => Phase::Imaging,
            State::Switching { .. } => Phase::Switching,
            State::WaitingCompleted { .. } => Phase::WaitingCompleted,
            State::Restarting { .. } => Phase::Restarting,
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
            _ if !self.wants_install() => Phase::Deployed,
            (State::Failed, Goal::Deployed) => Phase::Failed,
            (State::Held { .. }, Goal::Deployed) => Phase::Held,
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
            ready: phase == Phase::Deployed
                && self.problems.is_empty()
                && installed_digest == spec_digest,
            message: self.message(),
            spec_valid: self.problems.is_empty() && record.spec.is_some(),
            spec_digest,
            installed_digest,
            since: record.since,
            deadline: deadline.map(|(at, _)| at),
            deadline_reason: deadline.map(|(_, reason)| reason.to_owned()),
            attempt: record.attempt,
            next_attempt_at: record
                .not_before
                .filter(|_| record.state == State::Idle && self.may_start()),
            updated: now,
            progress: self.progress,
            power: self.power,
            installed: record.installed.clone(),
            last_error: record.last_error.clone(),
            last_seen: self.last_seen(),
            durations: record.durations.clone(),
            problems: self.problems.clone(),
            conditions: self.conditions(),
            history: record.history.clone(),
        }
    }

    fn last_seen(&self) -> Option<LastSeen> {
        let seen = LastSeen {
            refused: self.refused,
            refused_reason: self.refused_reason.clone(),
            ..self.record.last_seen.clone()
        };
        (seen != LastSeen::default()).then_some(seen)
    }

    /// One sentence: what is going on, or what somebody should do.
    pub(super) fn message(&self) -> String {
        plain(&self.sentence())
    }

    fn sentence(&self) -> String {
        let at_rest = self.record.state.at_rest() || self.unread;
        if let Some(problem) = self.problems.first().filter(|_| at_rest) {
            let more = self.problems.len() - 1;
            let rest =
                if more == 0 { String::new() } else { format!(" (and {more} more problems)") };
            let force = if self.record.spec.is_some() && !self.clash {
                "; the last good spec stays in force and nothing starts"
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
            State::Preparing { ready: None } => "verifying the image's checksum".to_owned(),
            State::Preparing { ready: Some(_) } => {
                "the image is verified; asking the BMC for the power state once more".to_owned()
            }
            State::PoweringOn { .. } => {
                "setting the boot device to network and switching the machine on".to_owned()
            }
            State::WaitingRamdisk { attempt } => {
                match (&attempt.disk, self.record.last_seen.fetched) {
                    (Some(disk), _) => format!("the deploy ramdisk is exporting {disk}"),
                    (None, Some(stage)) => {
                        format!("the machine is booting: it fetched its {}", stage.as_str())
                    }
                    (None, None) => "the machine is on; waiting for it to netboot".to_owned(),
                }
            }
            State::Imaging { disk, .. } => format!("writing the image to {disk}"),
            State::Switching { .. } => {
                "written and verified; boot files are back to the local disk".to_owned()
            }
            State::WaitingCompleted { .. } => {
                "waiting for the ramdisk to stop its target and say completed".to_owned()
            }
            State::Restarting { .. } => {
                let again = match &self.bmc_trouble {
                    Some(trouble) if self.record.tries > 0 => {
                        format!(
                            "; try {} of {RESTART_TRIES_MAX} after: {}",
                            self.record.tries.saturating_add(1),
                            trouble.message
                        )
                    }
                    _ => String::new(),
                };
                format!("the BMC restarts the machine into its own system{again}")
            }
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

    fn message_at_rest(&self, last_error: &str) -> String {
        let off = self.power.is_some_and(|power| power.observed == PowerState::Off);
        match (self.phase_at_rest(), &self.record.state) {
            (Phase::Held, State::Held { reason: Hold::RecordLost, .. }) => {
                "hostler's record of this machine was damaged, so it may be installed: change `redeploy` in its spec to let hostler wipe \
                 it"
                .to_owned()
            }
            (Phase::Held, _) => {
                "the machine is on and nobody has consented to wipe it: switch it off, or change `redeploy` in its spec, to let hostler \
                 do so"
                .to_owned()
            }
            (Phase::Failed, _) => {
                format!("gave up after attempt {}: {last_error}", self.record.attempt)
            }
            (Phase::Deployed, _) if self.drifted() => {
                "installed, but the spec now wants something else; change `redeploy` to let hostler wipe and reinstall".to_owned()
            }
            (Phase::Deployed, _) if off && self.wants_power() => {
                "installed; the machine is off, and its spec wants it on".to_owned()
            }
            (Phase::Deployed, _) => "installed".to_owned(),
            (Phase::Paused, _) => "paused by its spec".to_owned(),
            (Phase::Unmanaged, _) => "observed only".to_owned(),
            (Phase::Pending, _) if self.record.not_before.is_some() => {
                format!("will try again after: {last_error}")
            }
            (Phase::Pending, _) => "asking the BMC for the power state".to_owned(),
            _ => "the spec cannot be used".to_owned(),
        }
    }

    fn wants_power(&self) -> bool {
        self.record.spec.as_ref().is_some_and(|spec| spec.power == WantedPower::On)
    }

    fn drifted(&self) -> bool {
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
        if let (Phase::Held, State::Held { reason, .. }) = (self.phase(), &self.record.state) {
            let reason = match reason {
                Hold::PoweredOn => "PoweredOn",
                Hold::RecordLost => "RecordLost",
            };
            conditions.push(condition("Held", true, reason, String::new()));
        }
        if self.record.installed.is_some() {
            let drifted = self.drifted();
            let reason = if drifted { "SpecChanged" } else { "AsWanted" };
            conditions.push(condition("Drifted", drifted, reason, String::new()));
        }
        if let Some(trouble) = &self.bmc_trouble {
            conditions.push(condition(
                "BmcReachable",
                false,
                &trouble.code,
                trouble.message.clone(),
            ));
        }
        if let (Phase::Deployed, true, Some(power)) = (self.phase(), self.wants_power(), self.power)
        {
            let on = power.observed == PowerState::On;
            conditions.push(condition(
                "PowerAsWanted",
                on,
                if on { "On" } else { "Off" },
                String::new(),
            ));
        }
        conditions
    }
}

/// A text from outside as it may be shown and kept: bounded, and without what steers a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
}

/// A fault from outside, with such a text.
pub(super) fn plain_fault(fault: Fault) -> Fault {
    Fault { message: plain(&fault.message), ..fault }
}

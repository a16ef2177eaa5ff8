//! Judging a ramdisk's calls: who may say what, and when.
//!
//! A call is believed only with the attempt's key, from the address that first showed it, in a phase that expects it. Everything
//! else is refused in the same way, whatever was wrong.

use std::net::IpAddr;

use jiff::Timestamp;

use crate::model::{
    callback::{Call, Completed, DeployInfo, DeployState, Lookup, LookupReply, Reply},
    fault::{Fault, Step},
    secret::AttemptKey,
    size::show_bytes,
};

use super::{
    event::Action,
    node::{Node, OPERATION_SLACK, after},
    state::{State, Target},
};

/// How often the ramdisk asks what to do: the answer to each question is held back while there is no news.
const POLL_AFTER_S: u32 = 2;
/// Longest text taken over from a ramdisk, in characters.
const ERROR_CHARS_MAX: usize = 500;

impl Node {
    pub(super) fn judge(
        &mut self,
        now: Timestamp,
        peer: IpAddr,
        key: &AttemptKey,
        call: Call,
        actions: &mut Vec<Action>,
    ) -> Reply {
        let name = call.name();
        match self.admit(peer, key).and_then(|()| self.answer(now, peer, call, actions)) {
            Ok(reply) => {
                let seen = &mut self.record.last_seen;
                seen.address = Some(peer);
                if name != "deploy_state" {
                    seen.callback = Some(name.to_owned());
                    seen.callback_at = Some(now);
                }
                reply
            }
            Err(reason) => {
                self.refused = self.refused.saturating_add(1);
                self.refused_reason = Some(format!("{name} from {peer}: {reason}"));
                Reply::Refused
            }
        }
    }

    /// Whether the caller is this attempt's ramdisk. The first address that shows the key is bound to it.
    fn admit(&mut self, peer: IpAddr, key: &AttemptKey) -> Result<(), &'static str> {
        let attempt = self.record.state.attempt_mut().ok_or("no attempt is under way")?;
        if *key != attempt.key {
            return Err("wrong key");
        }
        if *attempt.peer.get_or_insert(peer) == peer {
            Ok(())
        } else {
            Err("another address than the one that used the key first")
        }
    }

    fn answer(
        &mut self,
        now: Timestamp,
        peer: IpAddr,
        call: Call,
        actions: &mut Vec<Action>,
    ) -> Result<Reply, &'static str> {
        match call {
            Call::Lookup(lookup) => self.lookup(now, &lookup, actions),
            Call::PassDeployInfo(info) => self.pass_deploy_info(now, peer, info, actions),
            Call::DeployState => Ok(Reply::State(self.deploy_state(now))),
            Call::Completed(completed) => self.completed(now, &completed, actions),
        }
    }

    fn lookup(
        &mut self,
        now: Timestamp,
        lookup: &Lookup,
        actions: &mut Vec<Action>,
    ) -> Result<Reply, &'static str> {
        // The machine may be quicker than its BMC: the ramdisk can call while `powering-on` still polls.
        let (State::WaitingRamdisk { attempt, .. } | State::PoweringOn { attempt, .. }) =
            &mut self.record.state
        else {
            return Err("no lookup is expected in this phase");
        };
        let Some(spec) = &self.record.spec else { return Err("the spec is gone") };
        match spec.root_device.choose(&lookup.disks) {
            Ok(disk) if disk.size < attempt.image_bytes => {
                let message = format!(
                    "the root device {disk} is smaller than the image, which has {}",
                    show_bytes(attempt.image_bytes)
                );
                let hint = "choose a larger disk with [root_device] or a smaller image";
                self.fail(
                    now,
                    Fault::lasting(Step::Ramdisk, "DiskTooSmall", message.clone(), hint),
                    actions,
                );
                Ok(Reply::Failed(message))
            }
            Ok(disk) => {
                attempt.disk = Some(disk.clone());
                Ok(Reply::Lookup(LookupReply {
                    disk: disk.name.clone(),
                    iqn: self.iqn(),
                    poll_after: POLL_AFTER_S,
                }))
            }
            Err(none) => {
                let message = none.to_string();
                let hint = "give [root_device] hints that match exactly one of these disks";
                self.fail(
                    now,
                    Fault::lasting(Step::Ramdisk, "NoRootDevice", message.clone(), hint),
                    actions,
                );
                Ok(Reply::Failed(message))
            }
        }
    }

    /// The target name this node's disk is exported under.
    fn iqn(&self) -> String {
        format!("iqn.2026-11.hostler:{}", self.name)
    }

    fn pass_deploy_info(
        &mut self,
        now: Timestamp,
        peer: IpAddr,
        info: DeployInfo,
        actions: &mut Vec<Action>,
    ) -> Result<Reply, &'static str> {
        if !info.error.is_empty() {
            return Ok(self.ramdisk_failed(now, &info.error, actions));
        }
        let expected_iqn = self.iqn();
        let timeouts =
            self.record.spec.as_ref().map(|spec| spec.timeouts).ok_or("the spec is gone")?;
        match &self.record.state {
            State::PoweringOn { attempt, .. } | State::WaitingRamdisk { attempt, .. } => {
                let disk = attempt.disk.clone().ok_or("no disk was asked for before")?;
                if info.address.is_some_and(|address| address != peer) {
                    return Err("the target's address is not the caller's own");
                }
                if info.iqn != expected_iqn {
                    return Err("not the target name that was asked for");
                }
                let chap_password = info
                    .chap_password
                    .filter(|secret| !secret.expose().is_empty())
                    .ok_or("the target has no CHAP secret")?;
                let target = Target {
                    address: peer,
                    port: info.port,
                    lun: info.lun,
                    iqn: info.iqn,
                    chap_username: info.chap_username,
                    chap_password,
                };
                // From here on the disk's old contents are gone.
                self.record.installed = None;
                let deadline = after(now, timeouts.imaging);
                self.record.state =
                    State::Imaging { attempt: attempt.clone(), disk, target, deadline };
                Ok(Reply::Accepted)
            }
            // The first answer was lost: the same again is the same.
            State::Imaging { target, .. }
                if info.chap_password.as_ref() == Some(&target.chap_password) =>
            {
                Ok(Reply::Accepted)
            }
            _ => Err("no target is expected in this phase"),
        }
    }

    fn deploy_state(&mut self, now: Timestamp) -> DeployState {
        match &self.record.state {
            State::PoweringOn { .. } | State::WaitingRamdisk { .. } | State::Imaging { .. } => {
                DeployState::Imaging
            }
            State::Switching { attempt, disk, .. } => {
                let completed = self
                    .record
                    .spec
                    .as_ref()
                    .map(|spec| spec.timeouts.completed)
                    .unwrap_or_default();
                let (attempt, disk) = (attempt.clone(), disk.clone());
                self.record.state =
                    State::WaitingCompleted { attempt, disk, deadline: after(now, completed) };
                DeployState::Release
            }
            State::WaitingCompleted { .. } | State::Restarting { .. } => DeployState::Release,
            State::Idle { .. }
            | State::Held { .. }
            | State::Failed
            | State::Preparing { .. }
            | State::CleaningUp { .. } => DeployState::Abort,
        }
    }

    fn completed(
        &mut self,
        now: Timestamp,
        completed: &Completed,
        actions: &mut Vec<Action>,
    ) -> Result<Reply, &'static str> {
        if !completed.error.is_empty() {
            return Ok(self.ramdisk_failed(now, &completed.error, actions));
        }
        match &self.record.state {
            // It may overtake the answer that released it.
            State::Switching { attempt, disk, .. }
            | State::WaitingCompleted { attempt, disk, .. } => {
                let power =
                    self.record.spec.as_ref().map(|spec| spec.timeouts.power).unwrap_or_default();
                let deadline = after(now, power.saturating_mul(3) + OPERATION_SLACK);
                self.record.state =
                    State::Restarting { attempt: attempt.clone(), disk: disk.clone(), deadline };
                Ok(Reply::Accepted)
            }
            State::Restarting { .. } => Ok(Reply::Accepted),
            _ => Err("no completed notice is expected in this phase"),
        }
    }

    /// The ramdisk says that it cannot go on.
    fn ramdisk_failed(&mut self, now: Timestamp, error: &str, actions: &mut Vec<Action>) -> Reply {
        if !matches!(self.record.state, State::CleaningUp { .. } | State::Restarting { .. }) {
            let words: String =
                error.chars().filter(|c| !c.is_control()).take(ERROR_CHARS_MAX).collect();
            let message = format!("the deploy ramdisk failed: {words}");
            self.fail(
                now,
                Fault::passing(
                    Step::Ramdisk,
                    "RamdiskFailed",
                    message,
                    "look at the machine's console",
                ),
                actions,
            );
        }
        Reply::Accepted
    }
}

//! Invariants of attempts: one touches only the machine it began with, and only that machine's root
//! disk.

use hostler::{
    lifecycle::{DiskSize, Menu, Operation, Record, State, Target},
    model::{
        callback::{DeployState, DeployStateReply, Reply},
        ids::NodeName,
        power::PowerState,
        spec::{DeployRamdisk, NodeSpec, WantedPower},
    },
};

use crate::{
    names::state_name,
    world::{IMAGE_BYTES, Site},
};

impl Site {
    /// Judges an operation of an attempt by the machine's true state.
    pub(crate) fn judge_means(&mut self, node: &NodeName, operation: &Operation, spec: &NodeSpec) {
        let record = self.records.get(node);
        // Other invariants judge other restarts.
        let restarts = record.is_some_and(|r| matches!(r.state, State::Restarting { .. }));
        match operation {
            Operation::Image { target, size, .. } => self.judge_target(node, target, *size, spec),
            Operation::Restart { wanted } if restarts => {
                let off = spec.power == WantedPower::Off;
                if (*wanted == PowerState::Off) != off {
                    let what = format!("left {}, and {:?} is wanted", wanted.as_str(), spec.power);
                    self.broken("never_switches_unasked", Some(node), what);
                }
            }
            Operation::CleanUp => {
                let abandoned = self.ledger(node).abandoned.clone();
                if abandoned.as_ref() != Some(&spec.machine()) {
                    let what =
                        format!("{:?} is cleaned up, and {abandoned:?} was begun", spec.machine());
                    self.broken("never_switches_unasked", Some(node), what);
                }
                if !matches!(
                    self.menus.get(node),
                    Some((Menu::LocalDisk | Menu::Network { .. }, _))
                ) {
                    let what = "cleaned up without a menu that boots the disk".to_owned();
                    self.broken("menu_only_for_the_present_attempt", Some(node), what);
                }
            }
            _ => {}
        }
    }

    /// Requires that the target is the one that the attempt's ramdisk exports, with the known size.
    fn judge_target(&mut self, node: &NodeName, target: &Target, size: DiskSize, spec: &NodeSpec) {
        let record = self.records.get(node);
        let key = record.and_then(|record| record.state.attempt()).map(|attempt| &attempt.key);
        let machine = key.and_then(|key| self.booted_with(key));
        let wanted = match spec.boot.ramdisk {
            DeployRamdisk::Hostler => machine.map(|m| DiskSize::Exactly(m.platters[0].disk.size)),
            DeployRamdisk::Ironic => Some(DiskSize::AtLeast(IMAGE_BYTES)),
        };
        if machine.map(|machine| machine.ip) != Some(target.address) || wanted != Some(size) {
            let what = format!("{size:?} at {}, and it has {wanted:?}", target.address);
            self.broken("never_writes_the_wrong_machine", Some(node), what);
        }
        if self.records.get(node).is_some_and(|record| record.installed.is_some()) {
            let what = "a disk that is written is said to be whole".to_owned();
            self.broken("installed_is_true", Some(node), what);
        }
    }

    /// Requires that a ramdisk that must compare its disk has done so before the restart.
    pub(crate) fn judge_comparison(&mut self, node: &NodeName, record: &Record) {
        let before = self.decided(node).filter(|before| before.spec.is_some());
        let restarts = matches!(record.state, State::Restarting { .. });
        let Some(attempt) = before.and_then(|before| before.state.attempt()) else { return };
        if restarts && !attempt.verify.is_empty() && !self.has_compared(&attempt.key) {
            let what = "restarted into a disk that nobody has compared".to_owned();
            self.broken("half_written_never_boots", Some(node), what);
        }
    }

    /// Judges an answer to a ramdisk: the ramdisk of the present attempt may release the disk only
    /// when the menu boots that disk. One of an earlier attempt may hear late that it could.
    pub(crate) fn judge_reply(&mut self, ramdisk: usize, reply: &Reply) {
        let released = DeployState::Release;
        if !matches!(reply, Reply::State(DeployStateReply { state, .. }) if *state == released) {
            return;
        }
        let node = self.ramdisks[ramdisk].node.clone();
        let record = self.records.get(&node);
        let attempt = record.and_then(|record| record.state.attempt());
        if attempt.is_none_or(|attempt| attempt.key != self.ramdisks[ramdisk].key) {
            return;
        }
        let written = record.is_some_and(|record| {
            !matches!(
                record.state,
                State::Preparing { .. }
                    | State::PoweringOn { .. }
                    | State::WaitingRamdisk { .. }
                    | State::Imaging { .. }
            )
        });
        let local =
            matches!(self.menus.get(&node), Some((Menu::LocalDisk | Menu::Network { .. }, _)));
        if !written || !local {
            let what = format!("released in {:?}", record.map(state_name));
            self.broken("menu_only_for_the_present_attempt", Some(&node), what);
        }
    }
}

//! Attempts with Ironic's ramdisk, where they go another way. It does not ask which disk to export,
//! so that its calls begin with the target; the agent calls it when it may let go of its disk; and
//! it never says completed.
//!
//! Called by `callback.rs`, `node.rs` and `attempt.rs`. Nothing here may weaken what is asked of
//! hostler's own ramdisk.

use jiff::Timestamp;

use crate::model::{
    callback::Reply,
    disk::{Comparison, Disk, RootDeviceHints},
    spec::DeployRamdisk,
};

use super::{
    event::{Action, DiskSize},
    node::Node,
    state::{Attempt, State},
};

impl DeployRamdisk {
    /// Whether it asks which disk to export, and so reports which disks there are.
    pub(super) const fn asks_which_disk(self) -> bool {
        match self {
            Self::Hostler => true,
            Self::Ironic => false,
        }
    }

    /// Whether it asks if it may let go of the written disk, and then says completed. One that does
    /// not is called by the agent, and what it does then is taken for done.
    pub(super) const fn confirms_completion(self) -> bool {
        match self {
            Self::Hostler => true,
            Self::Ironic => false,
        }
    }
}

impl Node {
    /// The ramdisk that the node's machine is given. A spec that changes it ends the attempt, so
    /// that it is also the one that runs.
    pub(super) fn ramdisk(&self) -> DeployRamdisk {
        self.record.spec.as_ref().map(|spec| spec.boot.ramdisk).unwrap_or_default()
    }

    /// The disk behind a target that is offered: the one that the ramdisk was asked to export, or,
    /// of Ironic's, the one that it was to look for.
    pub(super) fn chosen_disk(&self, attempt: &Attempt) -> Option<Disk> {
        match &self.record.spec {
            Some(spec) if !self.ramdisk().asks_which_disk() => Some(hinted(&spec.root_device)),
            _ => attempt.disk.as_deref().cloned(),
        }
    }

    /// Judges the end of a boot loader's installation. Ironic's ramdisk is never asked for that
    /// here; one that was asked by somebody else may say how it went.
    pub(super) fn ironic_bootloader(
        &mut self,
        now: Timestamp,
        error: &str,
        actions: &mut Vec<Action>,
    ) -> Result<Reply, &'static str> {
        let is_switching = matches!(self.record.state, State::Switching { .. });
        let is_restarting = matches!(self.record.state, State::Restarting { .. });
        if error.is_empty() && (is_switching || is_restarting) {
            Ok(Reply::Accepted)
        } else if is_switching {
            Ok(self.ramdisk_failed(now, error, actions))
        } else {
            Err("no boot loader was to be installed in this phase")
        }
    }

    /// Stops calling a ramdisk that does not answer, because it has gone or because the agent was
    /// killed between calling it and knowing: that is no failure.
    pub(super) fn stop_telling(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.cancel(actions);
        self.let_go(now);
    }

    /// The disk's size, as far as it is known before the target says it.
    pub(super) fn disk_size(&self, attempt: &Attempt, disk: &Disk) -> DiskSize {
        if attempt.disk.is_some() {
            return DiskSize::Exactly(disk.size);
        }
        let hint = self.record.spec.as_ref().and_then(|spec| spec.root_device.size);
        match hint {
            Some(size) if size.comparison == Comparison::Equal => DiskSize::Exactly(size.bytes),
            _ => DiskSize::AtLeast(attempt.image.disk_bytes),
        }
    }
}

fn hinted(hints: &RootDeviceHints) -> Disk {
    let name = hints.name.as_ref().map_or("the disk", |name| name.trim_start_matches("/dev/"));
    Disk {
        name: name.to_owned(),
        serial: hints.serial.clone(),
        wwn: hints.wwn.clone(),
        model: hints.model.clone(),
        vendor: hints.vendor.clone(),
        ..Disk::default()
    }
}

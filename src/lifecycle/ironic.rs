//! Where an attempt with Ironic's ramdisk goes another way. It does not ask which disk to export, so that its calls begin with the
//! target; it hears that it may let go on a port of its own; and it never says completed.
//!
//! Called by `callback.rs`, `node.rs` and `attempt.rs`. Nothing here may weaken what is asked of hostler's own ramdisk.

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

impl Node {
    /// Whose ramdisk the node's machine is given. A spec that changes it ends the attempt, so that it is also the one that runs.
    pub(super) fn ramdisk(&self) -> DeployRamdisk {
        self.record.spec.as_ref().map(|spec| spec.boot.ramdisk).unwrap_or_default()
    }

    pub(super) fn has_ironics_ramdisk(&self) -> bool {
        self.ramdisk() == DeployRamdisk::Ironic
    }

    /// The disk behind a target that is offered: the one the ramdisk was told to export, or, of Ironic's, what it was told to look for.
    pub(super) fn chosen_disk(&self, attempt: &Attempt) -> Option<Disk> {
        match &self.record.spec {
            Some(spec) if self.has_ironics_ramdisk() => Some(hinted(&spec.root_device)),
            _ => attempt.disk.as_deref().cloned(),
        }
    }

    /// It is never told to install a boot loader; one that was told so by somebody else may say how that went.
    pub(super) fn ironic_bootloader(
        &mut self,
        now: Timestamp,
        error: &str,
        actions: &mut Vec<Action>,
    ) -> Result<Reply, &'static str> {
        match &self.record.state {
            State::Switching { .. } | State::Restarting { .. } if error.is_empty() => {
                Ok(Reply::Accepted)
            }
            State::Switching { .. } => Ok(self.ramdisk_failed(now, error, actions)),
            _ => Err("no boot loader was to be installed in this phase"),
        }
    }

    /// One that cannot be told, because it has gone or because the agent was killed between telling it and knowing, is no failure.
    pub(super) fn stop_telling(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.cancel(actions);
        self.take_for_completed(now);
    }

    /// The disk is written and flushed, and the session with its target has ended: what the ramdisk still does changes nothing on it. It
    /// restarts its machine by itself, which is all there is without a BMC.
    pub(super) fn take_for_completed(&mut self, now: Timestamp) {
        if let State::Switching { attempt, disk } = &self.record.state {
            let (attempt, disk) = (attempt.clone(), disk.clone());
            if attempt.bmc.is_none() {
                self.succeed(now, attempt.image, disk);
            } else {
                self.begin_restart(now, attempt, disk);
            }
        }
    }

    /// What is known of the disk's size before the target says it.
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

//! The differences of attempts with Ironic's ramdisk. It makes no lookup, so that its first call
//! offers the target; the agent calls it to release its disk; and it sends no completed notice.
//!
//! Called by `callback.rs`, `node.rs` and `attempt.rs`. Nothing here may weaken the checks of
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
    /// Whether the ramdisk makes a lookup, which reports its disks.
    pub(super) const fn makes_lookup(self) -> bool {
        match self {
            Self::Hostler => true,
            Self::Ironic => false,
        }
    }

    /// Whether the ramdisk polls until it may release its disk, and then sends a completed notice.
    /// The agent calls any other ramdisk, and takes its release for done.
    pub(super) const fn confirms_completion(self) -> bool {
        match self {
            Self::Hostler => true,
            Self::Ironic => false,
        }
    }
}

impl Node {
    /// The spec's ramdisk, which is also the one that runs, because changing it ends the attempt.
    pub(super) fn ramdisk(&self) -> DeployRamdisk {
        self.record.spec.as_ref().map(|spec| spec.boot.ramdisk).unwrap_or_default()
    }

    /// The disk of an offered target: the one of the lookup, or for Ironic's ramdisk the hinted
    /// one.
    pub(super) fn chosen_disk(&self, attempt: &Attempt) -> Option<Disk> {
        match &self.record.spec {
            Some(spec) if !self.ramdisk().makes_lookup() => Some(hinted(&spec.root_device)),
            _ => attempt.disk.as_deref().cloned(),
        }
    }

    /// Judges a report about a boot loader's installation. hostler never orders one; somebody else
    /// may have.
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

    /// Stops calling a ramdisk that does not answer. This is no failure: it may have been released
    /// just before the agent was killed.
    pub(super) fn stop_releasing(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.cancel(actions);
        self.let_go(now);
    }

    /// The expected size of the target.
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

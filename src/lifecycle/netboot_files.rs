//! The kernel and ramdisk of an installed machine that boots over the network, and the boot menu
//! that names them.
//!
//! Called by `node.rs`; `netboot_update.rs` changes the files. A kernel that cannot find its root
//! file system must never be served.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{
    fault::{Fault, Step},
    netboot::{Netboot, NetbootFiles},
    spec::NodeSpec,
    status::Installed,
};

use super::{event::Menu, limits::after, state::Record};

/// The pause after the first failure. The files are on a local disk, so that a retry costs little.
pub(super) const PAUSE: Duration = Duration::from_secs(5);
/// The longest pause, which an operator who provides a missing file has to wait.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(300);

/// The state of network boot files that is not on record and can be determined again.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NetbootUpdate {
    /// A served file is missing from the cache or has decayed there.
    pub(super) lost: bool,
    pub(super) tries: u32,
    pub(super) not_before: Option<Timestamp>,
    /// The fault of the last try.
    pub(super) trouble: Option<Box<Fault>>,
}

impl NetbootUpdate {
    /// Resets the retries, because the obstacle may be gone.
    pub(super) fn start_afresh(&mut self) {
        *self = Self { lost: self.lost, ..Self::default() };
    }

    /// Bounds the pause to its full length after the clock was set back.
    pub(super) fn bound(&mut self, now: Timestamp) {
        if let Some(at) = &mut self.not_before {
            *at = (*at).min(after(now, PAUSE_MAX));
        }
    }
}

/// The fault of a kernel that would not know its root file system.
pub(super) fn root_unknown() -> Fault {
    Fault::lasting(
        Step::Image,
        "RootUnknown",
        "boot.after is \"network\", and nothing tells the kernel where its root file system is: \
         image.kernel_args has no root=, and the \
         image is not one file system whose UUID could be given",
        "write root=… into image.kernel_args, for example root=LABEL=root or root=/dev/sda2",
    )
}

/// The menu of an installed machine: its own kernel only with a known root file system.
pub(super) fn installed_menu(files: Option<&NetbootFiles>, root: Option<&str>) -> Menu {
    let served = files.and_then(|files| Some((files, files.command_line(root)?)));
    match served {
        Some((files, command_line)) => Menu::Network { files: files.files(), command_line },
        None => Menu::LocalDisk,
    }
}

/// Converts a record of an earlier version, which served the spec's files unverified.
pub(super) fn upgrade_record(record: &mut Record) {
    let Some(spec) = record.spec.clone() else { return };
    if let Some(installed) = &mut record.installed {
        upgrade_identity(&spec, installed);
    }
    if let Some(attempt) = record.state.attempt_mut()
        && attempt.image.netboot.is_none()
    {
        attempt.image.netboot = spec.image.netboot.as_deref().map(Netboot::unverified);
    }
}

/// Converts an earlier version's identity of the same spec to this version's, so that an upgrade
/// causes no drift.
pub(super) fn upgrade_identity(spec: &NodeSpec, installed: &mut Installed) {
    if installed.written_digest.is_some() {
        return;
    }
    let identity = spec.identity();
    if [&spec.digest_v1(), &identity.digest].contains(&&installed.digest) {
        installed.digest = identity.digest;
        installed.written_digest = Some(identity.written);
        installed.netboot = spec.image.netboot.as_deref().map(Netboot::unverified);
    }
}

//! The kernel and ramdisk that an installed machine boots over the network: what is remembered of
//! them, and the boot menu that names them.
//!
//! Called by `node.rs`; what changes them is in `netboot_update.rs`. A kernel that would look for
//! its root file system in vain must never be served.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{
    fault::{Fault, Step},
    netboot::{Netboot, NetbootFiles},
    spec::NodeSpec,
    status::Installed,
};

use super::{event::Menu, limits::after, state::Record};

/// The pause after the first failure. The files lie on a disk here: looking again costs little.
pub(super) const PAUSE: Duration = Duration::from_secs(5);
/// No pause is longer: who puts a missing file in place does not want to wait.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(300);

/// The kernel and ramdisk of an installed machine, as far as they are not on record. All of it may
/// be found out again.
#[derive(Clone, Debug, Default)]
pub(super) struct NetbootUpdate {
    /// A file that is served was not in the cache, or had decayed there.
    pub(super) lost: bool,
    pub(super) tries: u32,
    pub(super) not_before: Option<Timestamp>,
    /// The fault of the last try.
    pub(super) trouble: Option<Fault>,
}

impl NetbootUpdate {
    /// Tries again at once: the obstacle may be gone.
    pub(super) fn start_afresh(&mut self) {
        *self = Self { lost: self.lost, ..Self::default() };
    }

    /// A clock that was set back makes no pause longer than its whole length.
    pub(super) fn bound(&mut self, now: Timestamp) {
        if let Some(at) = &mut self.not_before {
            *at = (*at).min(after(now, PAUSE_MAX));
        }
    }
}

/// Without a root file system's place nothing would boot.
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

/// The menu of a machine whose disk is written. A kernel that would look for its root file system
/// in vain is not served.
pub(super) fn own_menu(files: Option<&NetbootFiles>, root: Option<&str>) -> Menu {
    let served = files.and_then(|files| Some((files, files.command_line(root)?)));
    match served {
        Some((files, command_line)) => Menu::Network { files: files.files(), command_line },
        None => Menu::LocalDisk,
    }
}

/// A record of the version before, which served the files that the spec named and had looked at
/// none.
pub(super) fn carry_over_record(record: &mut Record) {
    let Some(spec) = record.spec.clone() else { return };
    if let Some(installed) = &mut record.installed {
        carry_over(&spec, installed);
    }
    if let Some(attempt) = record.state.attempt_mut()
        && attempt.image.netboot.is_none()
    {
        attempt.image.netboot = spec.image.netboot.as_deref().map(Netboot::unverified);
    }
}

/// An identity of the version before becomes this version's, if it is that of the same spec: an
/// upgrade is no drift.
pub(super) fn carry_over(spec: &NodeSpec, installed: &mut Installed) {
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

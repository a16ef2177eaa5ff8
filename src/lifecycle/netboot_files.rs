//! What an installed machine boots over the network: which kernel and ramdisk it is served, and when those
//! that its spec wants take their place.
//!
//! Called by `node.rs`. An installed machine is served what its record says, from the cache, whatever its spec
//! says meanwhile. If nothing but kernel, ramdisk or kernel arguments differs, the files are verified and kept,
//! and then the record names them: no disk and no power is touched for that. Until then, and for as long as
//! they cannot be had, the machine is served what it was installed with. It must never serve a file that
//! was not verified, except to a machine that was installed by a version that verified none.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{
    fault::{Fault, Step},
    netboot::{Netboot, NetbootFiles},
    spec::{Goal, NodeSpec},
    status::Installed,
};

use super::{
    backoff,
    event::{Menu, Operation},
    node::Node,
    state::Record,
    wait::after,
};

/// The pause after the first failure. The files lie on a disk here: looking again costs little.
const PAUSE: Duration = Duration::from_secs(5);
/// No pause is longer: who puts a missing file in place does not want to wait.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// How it stands with the kernel and the ramdisk of an installed machine. Whatever is not on record may be
/// found out again.
#[derive(Clone, Debug, Default)]
pub(super) struct NetbootUpdate {
    /// A file that is served was not in the cache, or had decayed there.
    lost: bool,
    tries: u32,
    not_before: Option<Timestamp>,
    /// Why the last try failed.
    trouble: Option<Fault>,
}

impl NetbootUpdate {
    /// What was in the way may be gone.
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

impl Node {
    /// Whether nothing but what the machine boots over the network differs from what its spec wants.
    pub(super) fn only_netboot_differs(&self) -> bool {
        self.drifted() && self.disk_is_as_wanted()
    }

    fn disk_is_as_wanted(&self) -> bool {
        let written = self.record.installed.as_ref().map(|it| it.written_digest.as_ref());
        written.is_some() && written == Some(self.written.as_ref())
    }

    /// The work there is to be done for what the machine boots over the network.
    pub(super) fn netboot_operation(&self) -> Option<Operation> {
        let installed = self.record.installed.as_ref()?;
        let spec = self.record.spec.as_ref().filter(|spec| spec.goal == Goal::Deployed)?;
        let (has, wants) = (installed.netboot.as_ref(), spec.image.netboot.as_ref());
        let can_be = self.record.state.at_rest()
            && !self.stands_still()
            && !self.wants_install()
            && (has.is_some() || wants.is_some());
        let unverified = has.is_some_and(|files| !files.is_verified());
        (can_be && (self.only_netboot_differs() || unverified || self.netboot.lost)).then(|| {
            let renew = self.disk_is_as_wanted();
            Operation::NetbootFiles { served: installed.netboot.clone(), renew }
        })
    }

    /// Whether the machine is served something else than its spec wants, and is going to be served that, or
    /// something that it is to be served is not there.
    pub fn netboot_is_outdated(&self) -> bool {
        self.netboot_operation().is_some()
    }

    /// The same, if it is time for it.
    pub(super) fn netboot_operation_at(&self, now: Timestamp) -> Option<Operation> {
        let due = self.netboot.not_before.is_none_or(|at| at <= now);
        // What is seen of the machine first decides whether it is to be installed.
        let polls_first = self.wants_poll(now) || self.in_line_since.is_some();
        self.netboot_operation().filter(|_| due && !polls_first)
    }

    /// When that is, if nothing else has to come first.
    pub(super) fn netboot_wake(&self) -> Option<Timestamp> {
        let waits = self.polls.waits() || self.in_line_since.is_some();
        self.netboot.not_before.filter(|_| !waits && self.netboot_operation().is_some())
    }

    /// A file that the machine asked for could not be served.
    pub(super) fn note_netboot_lost(&mut self) {
        if self.record.installed.as_ref().is_some_and(|installed| installed.netboot.is_some()) {
            self.netboot.lost = true;
        }
    }

    /// The files are in the cache. If they are what the spec wants, they are served from now on.
    pub(super) fn take_netboot_files(&mut self, now: Timestamp, files: Option<NetbootFiles>) {
        let as_wanted = self.disk_is_as_wanted();
        let Some(installed) = &mut self.record.installed else { return };
        let Some(spec) = &self.record.spec else { return };
        let wanted = match (&files, &spec.image.netboot) {
            (Some(files), Some(netboot)) => files.are_of(netboot),
            (None, None) => true,
            _ => false,
        };
        let tells_root = files
            .as_ref()
            .is_none_or(|files| files.command_line(installed.root().as_deref()).is_some());
        if as_wanted && wanted && !tells_root {
            return self.miss_netboot_files(now, root_unknown());
        }
        if as_wanted && wanted {
            installed.netboot = files;
            if let Some(digest) = &self.wanted {
                installed.digest = digest.clone();
            }
        } else if let (Some(files), Some(before)) = (&files, &installed.netboot)
            && files.are_verified_of(before)
        {
            installed.netboot = Some(files.clone());
        } else {
            // The spec was changed meanwhile.
            return;
        }
        self.netboot = NetbootUpdate::default();
    }

    /// They are not: the machine is served what it was served before.
    pub(super) fn miss_netboot_files(&mut self, now: Timestamp, fault: Fault) {
        let tries = self.netboot.tries.saturating_add(1);
        let pause = backoff::pause(&self.name, tries, PAUSE).min(PAUSE_MAX);
        self.netboot.tries = tries;
        self.netboot.not_before = Some(after(now, pause));
        self.netboot.trouble = Some(fault);
    }

    /// Why a file that is wanted cannot be served, as long as it is wanted.
    pub(super) fn netboot_trouble(&self) -> Option<&Fault> {
        self.netboot.trouble.as_ref().filter(|_| self.netboot_operation().is_some())
    }

    /// What to say of an installed machine that boots other files than its spec wants, or none.
    pub(super) fn netboot_message(&self) -> Option<String> {
        let operation = self.netboot_operation()?;
        let trouble = self.netboot_trouble().map(|fault| fault.message.as_str());
        match (operation, trouble) {
            (Operation::NetbootFiles { renew: true, .. }, None) if self.drifted() => Some(
                "installed; kernel, ramdisk or kernel arguments were changed: verifying the files, and serving those from before until then".to_owned(),
            ),
            (Operation::NetbootFiles { renew: true, .. }, Some(trouble)) if self.drifted() => {
                Some(format!("installed, and served its kernel and ramdisk from before: {trouble}"))
            }
            (_, Some(trouble)) => {
                Some(format!("installed; its kernel and ramdisk cannot be verified: {trouble}"))
            }
            _ => None,
        }
    }
}

/// Without a root file system's place nothing would boot.
pub(super) fn root_unknown() -> Fault {
    Fault::lasting(
        Step::Image,
        "RootUnknown",
        "boot.after is \"network\", and nothing tells the kernel where its root file system is: image.kernel_args has no root=, and the \
         image is not one file system whose UUID could be given",
        "write root=… into image.kernel_args, for example root=LABEL=root or root=/dev/sda2",
    )
}

/// The menu of a machine whose disk is written. A kernel that would look for its root file system in vain is
/// not served.
pub(super) fn own_menu(files: Option<&NetbootFiles>, root: Option<&str>) -> Menu {
    let served = files.and_then(|files| Some((files, files.command_line(root)?)));
    match served {
        Some((files, command_line)) => Menu::Network { files: files.files(), command_line },
        None => Menu::LocalDisk,
    }
}

/// A record of the version before, which served the files that the spec named and had looked at none.
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

/// An identity of the version before becomes this version's, if it is that of the same spec: an upgrade is no
/// drift.
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

//! Renewal of the files that an installed machine boots over the network, when its spec wants
//! another kernel or ramdisk, or other kernel arguments.
//!
//! Called by `node.rs` and `settle.rs`. An installed machine is served what its record says, from
//! the cache, whatever its spec says meanwhile. If nothing but kernel, ramdisk or kernel arguments
//! differs, the files are verified and kept, and then the record names them: no disk and no power
//! is touched for that. Until then, and for as long as they cannot be had, the machine is served
//! what it was installed with. It must never be served a file that was not verified, unless it was
//! installed by a version that verified none.

use jiff::Timestamp;

use crate::model::{fault::Fault, netboot::NetbootFiles, spec::Goal};

use super::{
    backoff,
    event::Operation,
    limits::after,
    netboot_files::{NetbootUpdate, PAUSE, PAUSE_MAX, root_unknown},
    node::Node,
};

impl Node {
    /// Whether nothing but what the machine boots over the network differs from what its spec
    /// wants.
    pub(super) fn only_netboot_differs(&self) -> bool {
        self.drifted() && self.disk_is_as_wanted()
    }

    fn disk_is_as_wanted(&self) -> bool {
        let written = self.record.installed.as_ref().map(|it| it.written_digest.as_ref());
        written.is_some() && written == Some(self.written.as_ref())
    }

    /// The operation that the files of the machine need.
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

    /// Whether the machine is served something else than its spec wants, and is going to be served
    /// that, or something that it is to be served is not there.
    pub fn netboot_is_outdated(&self) -> bool {
        self.netboot_operation().is_some()
    }

    /// The operation that the files need now.
    pub(super) fn netboot_operation_at(&self, now: Timestamp) -> Option<Operation> {
        let due = self.netboot.not_before.is_none_or(|at| at <= now);
        // The poll comes first: it decides whether the machine is to be installed.
        let polls_first = self.wants_poll(now) || self.queued_since.is_some();
        self.netboot_operation().filter(|_| due && !polls_first)
    }

    /// When that is, if nothing else has to come first.
    pub(super) fn netboot_wake(&self) -> Option<Timestamp> {
        let waits = self.polls.waits() || self.queued_since.is_some();
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

    /// Notes that the files cannot be had: the machine is served what it was served before.
    pub(super) fn miss_netboot_files(&mut self, now: Timestamp, fault: Fault) {
        let tries = self.netboot.tries.saturating_add(1);
        let pause = backoff::pause(&self.name, tries, PAUSE).min(PAUSE_MAX);
        self.netboot.tries = tries;
        self.netboot.not_before = Some(after(now, pause));
        self.netboot.trouble = Some(fault);
    }

    /// The fault that keeps a wanted file from being served.
    pub(super) fn netboot_trouble(&self) -> Option<&Fault> {
        self.netboot.trouble.as_ref().filter(|_| self.netboot_operation().is_some())
    }

    /// The message about an installed machine that boots other files than its spec wants, if it
    /// does.
    pub(super) fn netboot_message(&self) -> Option<String> {
        let operation = self.netboot_operation()?;
        let trouble = self.netboot_trouble().map(|fault| fault.message.as_str());
        match (operation, trouble) {
            (Operation::NetbootFiles { renew: true, .. }, None) if self.drifted() => Some(
                "installed; kernel, ramdisk or kernel arguments were changed: verifying the \
                 files, and serving those from before until then"
                    .to_owned(),
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

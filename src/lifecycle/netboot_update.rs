//! Updates of an installed machine's network boot: another kernel or ramdisk, or other kernel
//! arguments.
//!
//! Called by `node.rs` and `settle.rs`. An installed machine is served the files in its record,
//! from the cache. If its spec differs in kernel, ramdisk or kernel arguments only, the agent
//! verifies and caches the new files, and then the record names them: neither disk nor power
//! changes. Until then, the machine is served its old files. A machine must never be served an
//! unverified file, unless an earlier version that verified none installed it.

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
    /// Whether the machine differs from its spec in its network boot only.
    pub(super) fn only_netboot_differs(&self) -> bool {
        self.drifted() && self.disk_matches_spec()
    }

    fn disk_matches_spec(&self) -> bool {
        let written = self.record.installed.as_ref().map(|it| it.written_digest.as_ref());
        written.is_some() && written == Some(self.written.as_ref())
    }

    /// The operation that the files need.
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
            let renew = self.disk_matches_spec();
            Operation::NetbootFiles { served: installed.netboot.clone(), renew }
        })
    }

    /// Whether an update or repair of the machine's network boot is due.
    pub fn netboot_is_outdated(&self) -> bool {
        self.netboot_operation().is_some()
    }

    /// The operation that the files need, if its pause is over.
    pub(super) fn netboot_operation_at(&self, now: Timestamp) -> Option<Operation> {
        let due = self.netboot.not_before.is_none_or(|at| at <= now);
        // The poll comes first, because it decides about an installation.
        let polls_first = self.wants_poll(now) || self.queued_since.is_some();
        self.netboot_operation().filter(|_| due && !polls_first)
    }

    /// The end of the files' pause, if nothing else comes first.
    pub(super) fn netboot_wake(&self) -> Option<Timestamp> {
        let waits = self.polls.waits() || self.queued_since.is_some();
        self.netboot.not_before.filter(|_| !waits && self.netboot_operation().is_some())
    }

    /// Notes that a file of the machine could not be served.
    pub(super) fn note_netboot_lost(&mut self) {
        if self.record.installed.as_ref().is_some_and(|installed| installed.netboot.is_some()) {
            self.netboot.lost = true;
        }
    }

    /// Takes the verified files; the machine is served them if they are the spec's.
    pub(super) fn take_netboot_files(&mut self, now: Timestamp, files: Option<NetbootFiles>) {
        let as_wanted = self.disk_matches_spec();
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
            // The spec has changed meanwhile.
            return;
        }
        self.netboot = NetbootUpdate::default();
    }

    /// Notes that the files cannot be verified; the machine is served its old ones.
    pub(super) fn miss_netboot_files(&mut self, now: Timestamp, fault: Fault) {
        let tries = self.netboot.tries.saturating_add(1);
        let pause = backoff::pause(&self.name, tries, PAUSE).min(PAUSE_MAX);
        self.netboot.tries = tries;
        self.netboot.not_before = Some(after(now, pause));
        self.netboot.trouble = Some(Box::new(fault));
    }

    /// The fault that prevents the update or repair.
    pub(super) fn netboot_trouble(&self) -> Option<&Fault> {
        self.netboot.trouble.as_deref().filter(|_| self.netboot_operation().is_some())
    }

    /// The message about a due update or repair.
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

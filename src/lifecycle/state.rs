//! A node's state and record: everything that the core keeps across a crash.
//!
//! Changed by [`super::Node`] only. Everything that is not in the [`Record`] must be safe to lose.

use std::{collections::BTreeMap, net::IpAddr, ops::Not, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{
    callback::DiskRange,
    disk::Disk,
    ids::{Digest, NodeName},
    machine::Machine,
    netboot::{self, NetbootFiles},
    power::PowerState,
    secret::{AttemptKey, BootToken, Secret},
    spec::{Bmc, BmcAddress, NodeSpec},
    status::{HistoryEntry, Installed, LastError, LastSeen, Phase},
    system_guid::SystemGuid,
};

/// The durable state of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each may hold beside any other, in any state")]
pub struct Record {
    /// The last good spec.
    pub spec: Option<Arc<NodeSpec>>,
    pub state: State,
    /// The end of the present state. A state at rest has none, nor has a clean-up between two
    /// tries.
    pub deadline: Option<Timestamp>,
    /// The end of the pause before the state's operation.
    pub not_before: Option<Timestamp>,
    /// Failures of the state's operation so far.
    pub tries: u32,
    /// The phase in the status.
    pub phase: Phase,
    /// The beginning of the phase.
    pub since: Timestamp,
    /// Attempts made for the present spec; 0 before the first.
    pub attempt: u32,
    /// Whether the disk may be WIPED even if the machine is on: an operator consented, or the first
    /// attempt of the series began with consent. Consent ends with the series, and with every
    /// change of the wanted installation or of the machine.
    pub consented: bool,
    /// Whether the breaker holds the node, because too many reinstalls would begin at once.
    pub too_many_changes: bool,
    /// Whether the disk's content is unknown, because a record of the machine was lost: without
    /// consent, the disk is not WIPED, even if the machine is off. Cleared when the disk is written
    /// or its content is known again.
    pub record_lost: bool,
    /// Whether a changed spec or an operator ordered the spec's power state.
    pub power_ordered: bool,
    /// The time of the last switching by an order or correction.
    pub power_forced_at: Option<Timestamp>,
    /// Whether the machine was not restarted since its disk was written, so that it may still run
    /// the deploy ramdisk. `installed` is set by then.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub awaits_restart: bool,
    /// Whether the BMC has restarted the machine after a missed first boot, which happens once for
    /// an installation.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub restarted_again: bool,
    /// The time at which hostler last had the BMC switch the installed machine on, until that boot
    /// is over: its netboot is not unexpected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switched_on_at: Option<Timestamp>,
    /// The token by which the installed system says that it is up. It stays for a call that is
    /// repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_token: Option<BootToken>,
    /// The installation that hostler put on the disk.
    pub installed: Option<Installed>,
    /// Former root devices that were still in the machine at its last lookup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_disks: Vec<Disk>,
    /// The last failure since the last success.
    pub last_error: Option<LastError>,
    /// The evidence of the machine's boot in the last attempt.
    pub last_seen: LastSeen,
    /// The duration of each phase of the last attempt, in milliseconds.
    pub durations: BTreeMap<String, u64>,
    /// The last phase changes, oldest first.
    pub history: Vec<HistoryEntry>,
}

/// Each node's record. Boxed, because a map's leaves are half empty and a record is large: ten
/// thousand of them would leave megabytes behind.
pub type Records = BTreeMap<NodeName, Box<Record>>;

impl Record {
    /// Makes the record of a node never seen before.
    pub fn new(now: Timestamp) -> Self {
        Self {
            spec: None,
            state: State::Idle,
            deadline: None,
            not_before: None,
            tries: 0,
            phase: Phase::Invalid,
            since: now,
            attempt: 0,
            consented: false,
            too_many_changes: false,
            record_lost: false,
            power_ordered: false,
            power_forced_at: None,
            awaits_restart: false,
            restarted_again: false,
            switched_on_at: None,
            boot_token: None,
            installed: None,
            other_disks: Vec::new(),
            last_error: None,
            last_seen: LastSeen::default(),
            durations: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// Whether the record has no installation, but a phase that needs one.
    pub fn contradicts_itself(&self) -> bool {
        let last = self.history.last().map(|entry| entry.phase);
        self.installed.is_none()
            && !self.is_disk_unknown()
            && (self.phase == Phase::Deployed || last == Some(Phase::Deployed))
    }

    /// The latest time in the history or of the installation.
    pub fn newest(&self) -> Timestamp {
        // The clock may have been set back since: the newest is not always the last.
        let installed = self.installed.iter().map(|installed| installed.at);
        installed.chain(self.history.iter().map(|entry| entry.at)).fold(self.since, Timestamp::max)
    }

    /// Whether a loss of the record must be noticed. A node that never acted would come to the same
    /// state again without its record.
    pub(super) fn must_be_missed(&self) -> bool {
        !self.state.at_rest() || self.installed.is_some() || self.is_disk_unknown()
    }

    /// Makes the record of a node whose record was lost: its disk is not WIPED without consent.
    pub fn distrusted(now: Timestamp) -> Self {
        Self { record_lost: true, ..Self::new(now) }
    }

    /// Sets the machine's installation from another source. `None`: unknown.
    pub(super) fn know(&mut self, installed: Option<Installed>) {
        // No further restart, because the number of restarts is unknown.
        (self.awaits_restart, self.restarted_again, self.boot_token) = (false, true, None);
        self.switched_on_at = None;
        self.record_lost = installed.is_none();
        self.installed = installed;
    }

    /// Clears the installation, because the disk is being written.
    pub(super) fn know_nothing_installed(&mut self) {
        (self.awaits_restart, self.record_lost, self.installed) = (false, false, None);
        (self.boot_token, self.switched_on_at) = (None, None);
    }

    /// The BMCs of the installation's and of the spec's machine.
    pub(super) fn bmcs(&self) -> impl Iterator<Item = &BmcAddress> {
        let installed = self.installed.as_ref().and_then(|known| known.machine.as_ref());
        let spec = self.spec.as_ref().and_then(|spec| spec.bmc_address());
        [installed.and_then(|machine| machine.bmc.as_ref()), spec].into_iter().flatten()
    }

    /// Adds the spec's machine to an installation of an earlier version, which did not record it.
    pub(super) fn note_machine(&mut self) {
        if let (Some(installed), Some(spec)) = (&mut self.installed, &self.spec) {
            installed.machine.get_or_insert_with(|| Machine::named_by(spec));
        }
    }
}

/// The state of a node. Only the states of an attempt have one. Their content is boxed, because
/// most nodes of a large site are at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum State {
    /// No attempt is under way. The machine is installed, or its spec wants no installation, or the
    /// node waits: for a poll, for the end of a pause, for its permit, or for consent because too
    /// many nodes were changed at once.
    Idle,
    /// The node waits for an operator's consent.
    Held {
        /// The spec's `redeploy` at the beginning of the hold: only a later change is consent.
        redeploy: Option<String>,
        reason: Hold,
    },
    /// The attempts are used up, or another one would not help. The node waits for a changed spec
    /// or for `hostler retry`.
    Failed,
    /// The BMC brings an installed machine into its spec's power state, or restarts it if that
    /// failed after the installation.
    SettingPower { wanted: PowerState },
    /// The agent fetches, verifies and unpacks the image. Then it polls the BMC once more, because
    /// a large image takes a while.
    Preparing {
        /// The attempt, once the image is verified.
        ready: Option<Box<Attempt>>,
    },
    /// The BMC netboots the machine, or the node waits for an operator who does. From here until
    /// the disk is written, the boot menu leads to the deploy ramdisk.
    PoweringOn { attempt: Box<Attempt> },
    /// The machine boots the deploy ramdisk, which reports its disks, learns which one to export,
    /// and exports it.
    WaitingRamdisk { attempt: Box<Attempt> },
    /// The exported disk waits for its permit; then the agent writes it. From then on, its old
    /// content is gone.
    Imaging {
        attempt: Box<Attempt>,
        /// The chosen disk.
        disk: Box<Disk>,
        /// The ramdisk's target.
        target: Box<Target>,
        /// Whether the node has its permit to write.
        granted: bool,
    },
    /// The disk is written, and the boot menu is that of the installed system again. The ramdisk
    /// does not know yet that it must release the disk.
    Switching {
        attempt: Box<Attempt>,
        /// The written disk.
        disk: Box<Disk>,
    },
    /// The ramdisk stops its target, compares the disk with the image if it must, and sends its
    /// completed notice.
    WaitingCompleted {
        attempt: Box<Attempt>,
        /// The written disk.
        disk: Box<Disk>,
    },
    /// The BMC restarts the machine into the installed system, or leaves it off. A failure here
    /// never writes the disk again.
    Restarting {
        attempt: Box<Attempt>,
        /// The written disk.
        disk: Box<Disk>,
    },
    /// The machine boots its installed system, which must show that it is up. A failure here never
    /// writes the disk, and never switches the machine except for one restart by the BMC.
    Booting { boot: FirstBoot },
    /// The attempt is over. The running operation stops, and then the BMC or the ramdisk switches
    /// the machine off. The phase is `pending`.
    CleaningUp {
        /// `None`: the machine was not touched yet, and stays so.
        attempt: Option<Box<Attempt>>,
        purpose: Purpose,
    },
}

/// The progress of a first boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstBoot {
    /// The system has its full time.
    Waiting,
    /// The deadline passed while the agent was stopped, so that the system has a little longer.
    Overdue,
    /// The BMC restarts the machine, because its system did not come up.
    Restarting,
}

/// The reason why an operator must consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// The machine is on, so that somebody may use it. Switching it off is consent.
    PoweredOn,
    /// The record was lost, so that the machine may be installed. Switching it off is no consent.
    RecordLost,
    /// Too many reinstalls would begin at once, which may be a mistake.
    TooManyChanges,
}

impl Hold {
    pub(super) const ALL: [Self; 3] = [Self::PoweredOn, Self::RecordLost, Self::TooManyChanges];

    /// The reason of the condition `Held`.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::PoweredOn => "PoweredOn",
            Self::RecordLost => "RecordLost",
            Self::TooManyChanges => "TooManyChanges",
        }
    }
}

/// The reason for a clean-up, which decides about the next state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// The attempt failed and may be repeated.
    Retry,
    /// The attempt failed and is not repeated.
    GiveUp,
    /// The spec wants something else now, or is gone.
    StartOver,
}

/// An attempt, from the verified image on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The secret by which the ramdisk proves that this attempt booted it.
    pub key: AttemptKey,
    pub image: PreparedImage,
    /// The ranges of the written disk that the ramdisk must compare.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<DiskRange>,
    /// The first address that used the key; no other may use it.
    pub peer: Option<IpAddr>,
    /// The addresses that fetched the whole deploy ramdisk, two at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ramdisk_fetched_by: Vec<IpAddr>,
    /// The disk that the lookup's reply named.
    pub disk: Option<Box<Disk>>,
    /// The machine's UUID from its BMC, if the spec requires that the ramdisk's machine has the
    /// same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_guid: Option<SystemGuid>,
    /// The BMC at the beginning of the attempt, which the clean-up uses even if the spec names
    /// another one now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc: Option<Box<Bmc>>,
}

/// A verified image in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedImage {
    /// The digest of the published file.
    pub digest: Digest,
    /// The size of the smallest disk for the whole layout, in bytes.
    pub disk_bytes: u64,
    /// The UUID of the file system, for a partition image.
    pub root_uuid: Option<String>,
    /// The UUID of the root partition, once the disk is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_partuuid: Option<String>,
    /// The kernel and ramdisk of the installed machine, if it boots over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netboot: Option<NetbootFiles>,
    /// The token for its config drive, if its system is to call once it is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_token: Option<BootToken>,
}

/// The iSCSI target that the ramdisk offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The machine's address.
    pub address: IpAddr,
    /// TCP port.
    pub port: u16,
    /// Logical unit.
    pub lun: u8,
    /// Target name.
    pub iqn: String,
    /// CHAP user; empty without a secret.
    pub chap_username: String,
    /// CHAP secret; `None`: the target requires none, and `boot.require_chap` allows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_password: Option<Secret>,
    /// Whether the ramdisk knows digests with a salt.
    #[serde(default, skip_serializing_if = "is_false")]
    pub knows_salt: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl State {
    /// The attempt of this state.
    pub fn attempt(&self) -> Option<&Attempt> {
        match self {
            Self::Idle
            | Self::Held { .. }
            | Self::Failed
            | Self::SettingPower { .. }
            | Self::Preparing { .. }
            | Self::Booting { .. } => None,
            Self::PoweringOn { attempt, .. }
            | Self::WaitingRamdisk { attempt, .. }
            | Self::Imaging { attempt, .. }
            | Self::Switching { attempt, .. }
            | Self::WaitingCompleted { attempt, .. }
            | Self::Restarting { attempt, .. } => Some(attempt),
            Self::CleaningUp { attempt, .. } => attempt.as_deref(),
        }
    }

    pub(super) fn attempt_mut(&mut self) -> Option<&mut Attempt> {
        match self {
            Self::Idle
            | Self::Held { .. }
            | Self::Failed
            | Self::SettingPower { .. }
            | Self::Preparing { .. }
            | Self::Booting { .. } => None,
            Self::PoweringOn { attempt, .. }
            | Self::WaitingRamdisk { attempt, .. }
            | Self::Imaging { attempt, .. }
            | Self::Switching { attempt, .. }
            | Self::WaitingCompleted { attempt, .. }
            | Self::Restarting { attempt, .. } => Some(attempt),
            Self::CleaningUp { attempt, .. } => attempt.as_deref_mut(),
        }
    }

    /// Whether nothing is under way, so that the node polls the power state.
    pub fn at_rest(&self) -> bool {
        matches!(self, Self::Idle | Self::Held { .. } | Self::Failed)
    }
}

impl PreparedImage {
    /// The value of `root=` for the kernel command line.
    pub(super) fn root(&self) -> Option<String> {
        netboot::root(self.root_partuuid.as_deref(), self.root_uuid.as_deref())
    }
}

impl Attempt {
    /// Makes an attempt after its preparation.
    pub(super) fn new(
        key: AttemptKey,
        image: PreparedImage,
        system_guid: Option<SystemGuid>,
        bmc: Option<Box<Bmc>>,
    ) -> Self {
        let (verify, ramdisk_fetched_by) = (Vec::new(), Vec::new());
        Self { key, image, verify, peer: None, ramdisk_fetched_by, disk: None, system_guid, bmc }
    }

    /// The address of the attempt's BMC, if it has one.
    pub(super) fn bmc_address(&self) -> Option<&BmcAddress> {
        self.bmc.as_ref().map(|bmc| &bmc.address)
    }
}

/// The attempt of a node whose logs are taken, and how many came.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RamdiskLogs {
    pub(super) count: u32,
    /// The last attempt, once it is over.
    pub(super) ended: Option<Box<EndedAttempt>>,
}

/// The attempt that is over, and its ramdisk.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct EndedAttempt {
    pub(super) number: u32,
    pub(super) key: AttemptKey,
    pub(super) peer: Option<IpAddr>,
}

impl RamdiskLogs {
    /// Takes note of an attempt that is over.
    pub(super) fn note_end(&mut self, number: u32, key: AttemptKey, peer: Option<IpAddr>) {
        self.ended = Some(Box::new(EndedAttempt { number, key, peer }));
    }
}

//! A node's state and record: all that the core remembers of it across a crash.
//!
//! Changed by [`super::Node`] only. Whatever is not in the [`Record`] must be safe to lose.

use std::{collections::BTreeMap, net::IpAddr, ops::Not, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{
    callback::DiskRange,
    disk::Disk,
    ids::Digest,
    machine::Machine,
    netboot::{self, NetbootFiles},
    power::PowerState,
    secret::{AttemptKey, Secret},
    spec::{Bmc, BmcAddress, NodeSpec},
    status::{HistoryEntry, Installed, LastError, LastSeen, Phase},
    system_guid::SystemGuid,
};

/// Everything about one node that outlives the agent's process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each may hold beside any other, in any state")]
pub struct Record {
    /// The last good spec.
    pub spec: Option<Arc<NodeSpec>>,
    pub state: State,
    /// The time at which the state is given up. A state at rest has none, nor has a clean-up
    /// between two tries.
    pub deadline: Option<Timestamp>,
    /// The time before which the state's work does not start.
    pub not_before: Option<Timestamp>,
    /// Failures of the state's work so far.
    pub tries: u32,
    /// The phase that is shown.
    pub phase: Phase,
    /// The time at which that phase began.
    pub since: Timestamp,
    /// Attempts made for the present spec; 0 before the first.
    pub attempt: u32,
    /// Whether the disk may be wiped even if the machine is on: an operator consented to just this,
    /// or a series of attempts was begun with consent. Consent ends with the series, and with every
    /// change of what is wanted or of which machine is meant.
    pub consented: bool,
    /// Whether the breaker holds the node, because too many nodes were to be reinstalled at once.
    pub too_many_changes: bool,
    /// Whether nobody knows what is on the disk, because a record of the machine was damaged:
    /// without consent nothing happens to it, even if the machine is off. It ends when the disk is
    /// written, or when its content is known again.
    pub record_lost: bool,
    /// Whether the machine is to be brought into the power state that its spec wants, because the
    /// spec was changed to want it, or an operator said so.
    pub power_ordered: bool,
    /// The time at which it was last switched because it was not as wanted.
    pub power_forced_at: Option<Timestamp>,
    /// Whether the machine was not restarted since its disk was written: it may still run the
    /// deploy ramdisk. What is installed is known by then, whatever becomes of the restart.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub awaits_restart: bool,
    /// Whether the BMC was asked to restart the machine once more, because its own system did not
    /// show that it was up. It is not asked a second time for one installation.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub restarted_again: bool,
    /// The installation that hostler put on the disk.
    pub installed: Option<Installed>,
    /// Disks that were in the machine at its last lookup and hold what hostler installed on them
    /// before, while another one was the root device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_disks: Vec<Disk>,
    /// The last failure since the last success.
    pub last_error: Option<LastError>,
    /// The evidence of the last attempt.
    pub last_seen: LastSeen,
    /// Milliseconds each phase of the last attempt took.
    pub durations: BTreeMap<String, u64>,
    /// The last phase changes, oldest first.
    pub history: Vec<HistoryEntry>,
}

impl Record {
    /// The record of a node never seen before.
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
            installed: None,
            other_disks: Vec::new(),
            last_error: None,
            last_seen: LastSeen::default(),
            durations: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// Whether the record says that nothing is installed, and elsewhere that the machine is.
    pub fn contradicts_itself(&self) -> bool {
        let last = self.history.last().map(|entry| entry.phase);
        self.installed.is_none()
            && !self.is_disk_unknown()
            && (self.phase == Phase::Deployed || last == Some(Phase::Deployed))
    }

    /// The time of the last change that is shown, or of the installation if that is newer.
    pub fn newest(&self) -> Timestamp {
        // The clock may have been set back since: the newest is not always the last.
        let installed = self.installed.iter().map(|installed| installed.at);
        installed.chain(self.history.iter().map(|entry| entry.at)).fold(self.since, Timestamp::max)
    }

    /// Whether a loss of the record must be noticed: something was done to the machine, or its disk
    /// is known or unknown. A node that only waits would come to the same point again.
    pub(super) fn must_be_missed(&self) -> bool {
        !self.state.at_rest() || self.installed.is_some() || self.is_disk_unknown()
    }

    /// The record of a node whose record was damaged. Whatever is on the machine's disk, nothing
    /// happens to it without consent.
    pub fn distrusted(now: Timestamp) -> Self {
        Self { record_lost: true, ..Self::new(now) }
    }

    /// Takes over what is known of the machine's disk from elsewhere. `None`: nobody knows.
    pub(super) fn know(&mut self, installed: Option<Installed>) {
        // Nobody knows any more how often it was restarted, so that it is not.
        (self.awaits_restart, self.restarted_again) = (false, true);
        self.record_lost = installed.is_none();
        self.installed = installed;
    }

    /// The disk is being written: what was on it is gone, whatever it was.
    pub(super) fn know_nothing_installed(&mut self) {
        (self.awaits_restart, self.record_lost, self.installed) = (false, false, None);
    }

    /// The BMCs of its machine: of what is installed, and of its spec.
    pub(super) fn bmcs(&self) -> impl Iterator<Item = &BmcAddress> {
        let installed = self.installed.as_ref().and_then(|known| known.machine.as_ref());
        let spec = self.spec.as_ref().and_then(|spec| spec.bmc_address());
        [installed.and_then(|machine| machine.bmc.as_ref()), spec].into_iter().flatten()
    }

    /// Records that were written before machines were noted speak of the machine that their spec
    /// names.
    pub(super) fn note_machine(&mut self) {
        if let (Some(installed), Some(spec)) = (&mut self.installed, &self.spec) {
            installed.machine.get_or_insert_with(|| Machine::named_by(spec));
        }
    }
}

/// The state of a node. The states of an attempt carry it; nothing else does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum State {
    /// No attempt is under way. The machine is installed, or its spec wants nothing of it, or the
    /// node waits: for a poll, for the end of a pause, for its permit, or for consent because too
    /// many nodes were changed at once.
    Idle,
    /// An operator must consent before anything is done to the machine.
    Held {
        /// `redeploy` as it was when the hold was shown: only a change after that is consent.
        redeploy: Option<String>,
        reason: Hold,
    },
    /// The attempts are used up, or another one would be of no use. It stays so until the spec is
    /// changed or an operator says `hostler retry`.
    Failed,
    /// The BMC brings an installed machine into the power state that its spec wants, or restarts it
    /// if that failed after the installation.
    SettingPower { wanted: PowerState },
    /// The image is fetched, verified and unpacked. Then the BMC is asked once more whether the
    /// machine is on, because a large image takes a while.
    Preparing {
        /// The attempt, once the image is verified.
        ready: Option<Attempt>,
    },
    /// The BMC has the machine boot from the network, or an operator is awaited who does. From here
    /// until the disk is written, the boot menu leads to the deploy ramdisk.
    PoweringOn { attempt: Attempt },
    /// The machine boots the deploy ramdisk, which reports its disks, hears which one to export,
    /// and exports it.
    WaitingRamdisk { attempt: Attempt },
    /// The exported disk waits for its turn, and then is written. From then on its old contents are
    /// gone.
    Imaging {
        attempt: Attempt,
        /// The chosen disk.
        disk: Disk,
        /// Where the ramdisk exports it.
        target: Target,
        /// Whether its turn has come to write.
        granted: bool,
    },
    /// The disk is written, and the boot files are those of the installed system again. The ramdisk
    /// has not yet heard that it may let go of the disk.
    Switching {
        attempt: Attempt,
        /// The written disk.
        disk: Disk,
    },
    /// The ramdisk stops its target, compares the disk with the image if it was told to, and says
    /// completed.
    WaitingCompleted {
        attempt: Attempt,
        /// The written disk.
        disk: Disk,
    },
    /// The BMC restarts the machine into the installed system, or leaves it off. Whatever becomes
    /// of that, the disk is not written again.
    Restarting {
        attempt: Attempt,
        /// The written disk.
        disk: Disk,
    },
    /// The machine boots its own system, which has yet to show that it is up. Whatever becomes of
    /// that, the disk stays as it is, and so does the power, but for one restart by the BMC.
    Booting { boot: FirstBoot },
    /// The attempt is over. The operation under way is stopped, and then the machine is switched
    /// off, by its BMC or by its ramdisk. Shows as `pending`.
    CleaningUp {
        /// `None`: the machine was not touched yet, so that nothing is to be done to it.
        attempt: Option<Attempt>,
        purpose: Purpose,
    },
}

/// How far a first boot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstBoot {
    /// Its system has its time.
    Waiting,
    /// The agent was gone when that time was up, so that its system has a little longer.
    Overdue,
    /// The BMC restarts it, because its system did not come up.
    Restarting,
}

/// The reason why an operator must consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// The machine is on: it is somebody's. Switching it off is consent.
    PoweredOn,
    /// The record was damaged: the machine may be installed, so being off is no consent.
    RecordLost,
    /// Too many nodes were to be reinstalled at once, so that it may be a mistake.
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

/// The reason for a clean-up, which decides what comes then.
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

/// One deploy attempt, from power on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The secret by which the ramdisk proves that it was booted for this attempt.
    pub key: AttemptKey,
    pub image: PreparedImage,
    /// The ranges of the written disk that the ramdisk is to compare.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<DiskRange>,
    /// The first address that showed the key; no other may use it.
    pub peer: Option<IpAddr>,
    /// The addresses that fetched the whole deploy ramdisk, two at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ramdisk_fetched_by: Vec<IpAddr>,
    /// The disk that the ramdisk was asked to export.
    pub disk: Option<Box<Disk>>,
    /// The machine's UUID as its BMC has it: no other machine's ramdisk is accepted. `None`: the
    /// spec does not ask for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_guid: Option<SystemGuid>,
    /// The BMC it was begun with: should the spec name another one now, this is the one to clean up
    /// by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc: Option<Box<Bmc>>,
}

/// An image that is in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedImage {
    /// The digest of the file as published.
    pub digest: Digest,
    /// The smallest disk that takes it, with everything that is written beside it, in bytes.
    pub disk_bytes: u64,
    /// The UUID of its file system, if it is one.
    pub root_uuid: Option<String>,
    /// The UUID of the partition that it is in, known once the disk is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_partuuid: Option<String>,
    /// The kernel and ramdisk that the machine is served once it is installed, if it boots over the
    /// network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netboot: Option<NetbootFiles>,
}

/// An iSCSI target, as the ramdisk offers it.
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
    /// CHAP secret; `None`: the target asks nobody for one, and `boot.require_chap` allows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_password: Option<Secret>,
}

impl State {
    /// The attempt this state belongs to.
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
            Self::CleaningUp { attempt, .. } => attempt.as_ref(),
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
            Self::CleaningUp { attempt, .. } => attempt.as_mut(),
        }
    }

    /// Whether nothing is under way: the states in which a spec may be taken up or the power
    /// observed.
    pub fn at_rest(&self) -> bool {
        matches!(self, Self::Idle | Self::Held { .. } | Self::Failed)
    }
}

impl PreparedImage {
    /// The root file system, as a kernel's command line names it.
    pub(super) fn root(&self) -> Option<String> {
        netboot::root(self.root_partuuid.as_deref(), self.root_uuid.as_deref())
    }
}

impl Attempt {
    /// An attempt of which nothing is known yet but what it was prepared with.
    pub(super) fn new(
        key: AttemptKey,
        image: PreparedImage,
        system_guid: Option<SystemGuid>,
        bmc: Option<Box<Bmc>>,
    ) -> Self {
        let (verify, ramdisk_fetched_by) = (Vec::new(), Vec::new());
        Self { key, image, verify, peer: None, ramdisk_fetched_by, disk: None, system_guid, bmc }
    }

    /// The address of the BMC that the attempt was begun with, if there was one.
    pub(super) fn bmc_address(&self) -> Option<&BmcAddress> {
        self.bmc.as_ref().map(|bmc| &bmc.address)
    }
}

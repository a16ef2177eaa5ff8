//! What the core remembers of a node, in memory and on disk.
//!
//! Changed by [`super::Node`] only. [`Record`] is what survives a crash; whatever is not in it must be safe to lose.

use std::{collections::BTreeMap, net::IpAddr, ops::Not, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{
    boot::BootStage,
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
    /// Where the node stands.
    pub state: State,
    /// When the state is given up. Only a state at rest and a clean-up between two tries have none.
    pub deadline: Option<Timestamp>,
    /// The state's work does not start before.
    pub not_before: Option<Timestamp>,
    /// How often the state's work failed.
    pub tries: u32,
    /// The phase last shown, and since when.
    pub phase: Phase,
    /// When that phase began.
    pub since: Timestamp,
    /// Attempts made for the present want; 0 before the first.
    pub attempt: u32,
    /// Whether the disk may be wiped even if the machine is on: somebody consented to just this, or a series of attempts was begun
    /// with consent. It ends with the series, and with every change of what is wanted or of which machine is meant.
    pub consented: bool,
    /// Whether the disk is not written until somebody consents, because too many nodes were to be reinstalled at once.
    pub too_many_changes: bool,
    /// Whether a record of the machine was damaged, and nothing is known of its disk since: without consent nothing happens to that, even
    /// if the machine is off. It ends when the disk is written, or when somebody knows what is on it.
    pub record_lost: bool,
    /// Whether the machine is to be brought to the power state its spec wants: the spec was changed to want it, or somebody said so.
    pub power_ordered: bool,
    /// When it was last switched because it was not as wanted.
    pub power_forced_at: Option<Timestamp>,
    /// Whether the machine was not restarted since its disk was written: it may still run the deploy
    /// ramdisk. What is installed is known by then, whatever becomes of the restart.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub awaits_restart: bool,
    /// What is on the disk, as far as hostler put it there.
    pub installed: Option<Installed>,
    /// Disks that were in the machine at its last lookup and hold what hostler installed on them before, while another one was the root
    /// device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_disks: Vec<Disk>,
    /// The last failure since the last success.
    pub last_error: Option<LastError>,
    /// What the machine was seen to do in the last attempt.
    pub last_seen: LastSeen,
    /// Milliseconds each phase of the last attempt took.
    pub durations: BTreeMap<String, u64>,
    /// The last phase changes, oldest first.
    pub history: Vec<HistoryEntry>,
}

impl Record {
    /// Of a node never seen before.
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
            installed: None,
            other_disks: Vec::new(),
            last_error: None,
            last_seen: LastSeen::default(),
            durations: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// Whether it says that nothing is installed, and elsewhere that the machine is.
    pub fn contradicts_itself(&self) -> bool {
        let last = self.history.last().map(|entry| entry.phase);
        self.installed.is_none()
            && !self.record_lost
            && (self.phase == Phase::Deployed || last == Some(Phase::Deployed))
    }

    /// When it was last changed in a way that people are shown, or the machine installed.
    pub fn newest(&self) -> Timestamp {
        // The clock may have been set back since: the newest is not always the last.
        let installed = self.installed.iter().map(|installed| installed.at);
        installed.chain(self.history.iter().map(|entry| entry.at)).fold(self.since, Timestamp::max)
    }

    /// Whether it must be missed should it be gone: something was done to the machine, or is known or
    /// doubted of its disk. A node that only waits would come to the same point again.
    pub(super) fn must_be_missed(&self) -> bool {
        !self.state.at_rest() || self.installed.is_some() || self.record_lost
    }

    /// Of a node whose record was damaged. Whatever is on its machine's disk, nothing happens to it without consent.
    pub fn distrusted(now: Timestamp) -> Self {
        Self { record_lost: true, ..Self::new(now) }
    }

    /// What is on the machine's disk is known from elsewhere, or known to be unknown.
    pub(super) fn know(&mut self, installed: Option<Installed>) {
        self.awaits_restart = false;
        self.record_lost = installed.is_none();
        self.installed = installed;
    }

    /// The BMCs of its machine: of what is installed, and of its spec.
    pub(super) fn bmcs(&self) -> impl Iterator<Item = &BmcAddress> {
        let installed = self.installed.as_ref().and_then(|known| known.machine.as_ref());
        let spec = self.spec.as_ref().and_then(|spec| spec.bmc_address());
        [installed.and_then(|machine| machine.bmc.as_ref()), spec].into_iter().flatten()
    }

    /// Records that were written before machines were noted speak of the machine that their spec names.
    pub(super) fn note_machine(&mut self) {
        if let (Some(installed), Some(spec)) = (&mut self.installed, &self.spec) {
            installed.machine.get_or_insert_with(|| Machine::named_by(spec));
        }
    }

    /// The agent was gone. A machine in the middle of its boot files has lost its server: pxelinux asks on for two minutes and then
    /// stands for five, GRUB asks again after half a minute or more. So it is switched off and on, in the same attempt.
    pub(super) fn boot_again_if_cut_off(&mut self) {
        use BootStage::{Kernel, Loader, Menu};
        if let State::WaitingRamdisk { attempt } = &self.state
            && attempt.peer.is_none()
            && attempt.bmc.is_some()
            && matches!(self.last_seen.fetched, Some(Loader | Menu | Kernel))
        {
            self.state = State::PoweringOn { attempt: attempt.clone() };
            self.last_seen = LastSeen::default();
        }
    }
}

/// Where a node stands. The states of an attempt carry it; nothing else does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum State {
    /// No attempt: installed, or waiting to start one.
    Idle,
    /// An operator must consent.
    Held {
        /// `redeploy` as it was when the hold was shown: only a change after that is consent.
        redeploy: Option<String>,
        /// Why.
        reason: Hold,
    },
    /// Given up.
    Failed,
    /// The machine is brought to the power state that the spec wants.
    SettingPower {
        /// Which.
        wanted: PowerState,
    },
    /// The image is being verified, and then the power state looked at once more.
    Preparing {
        /// What the attempt will be, once the image is verified.
        ready: Option<Attempt>,
    },
    /// The machine is being switched on.
    PoweringOn {
        /// The attempt.
        attempt: Attempt,
    },
    /// The machine boots the ramdisk, asks which disk to export, and exports it.
    WaitingRamdisk {
        /// The attempt.
        attempt: Attempt,
    },
    /// The disk is being written.
    Imaging {
        /// The attempt.
        attempt: Attempt,
        /// The chosen disk.
        disk: Disk,
        /// Its target.
        target: Target,
        /// Whether its turn has come to write.
        granted: bool,
    },
    /// Boot files are local again; the ramdisk has not yet heard that it may let go.
    Switching {
        /// The attempt.
        attempt: Attempt,
        /// The written disk.
        disk: Disk,
    },
    /// The ramdisk stops its target.
    WaitingCompleted {
        /// The attempt.
        attempt: Attempt,
        /// The written disk.
        disk: Disk,
    },
    /// The BMC restarts the machine.
    Restarting {
        /// The attempt.
        attempt: Attempt,
        /// The written disk.
        disk: Disk,
    },
    /// Putting things back.
    CleaningUp {
        /// The attempt, so that its ramdisk can be told to stop; none if it was not begun.
        attempt: Option<Attempt>,
        /// What comes then.
        purpose: Purpose,
    },
}

/// Why an operator must consent.
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

/// Why a node is cleaned up, and so what comes then.
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
    /// What the ramdisk proves itself with.
    pub key: AttemptKey,
    /// The image.
    pub image: PreparedImage,
    /// What the ramdisk is to compare the written disk with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<DiskRange>,
    /// The first address that showed the key; no other may use it.
    pub peer: Option<IpAddr>,
    /// The addresses that fetched the whole deploy ramdisk, two at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ramdisk_fetched_by: Vec<IpAddr>,
    /// The disk the ramdisk was told to export.
    pub disk: Option<Box<Disk>>,
    /// What the BMC says is the machine's UUID: no other machine's ramdisk is believed. `None`: that was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_guid: Option<SystemGuid>,
    /// The BMC it was begun with: should the spec name another one now, this is the one to clean up by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc: Option<Box<Bmc>>,
}

/// What is known of an image that is in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedImage {
    /// The digest of the file as published.
    pub digest: Digest,
    /// The smallest disk that takes it, with everything that is written beside it, in bytes.
    pub disk_bytes: u64,
    /// UUID of its file system, if it is one.
    pub root_uuid: Option<String>,
    /// The same for the partition it is in, known once the disk is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_partuuid: Option<String>,
    /// What the machine is served once it is installed, if it boots over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netboot: Option<NetbootFiles>,
}

/// Where the disk is to be reached.
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
            | Self::Preparing { .. } => None,
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
            | Self::Preparing { .. } => None,
            Self::PoweringOn { attempt, .. }
            | Self::WaitingRamdisk { attempt, .. }
            | Self::Imaging { attempt, .. }
            | Self::Switching { attempt, .. }
            | Self::WaitingCompleted { attempt, .. }
            | Self::Restarting { attempt, .. } => Some(attempt),
            Self::CleaningUp { attempt, .. } => attempt.as_mut(),
        }
    }

    /// Whether nothing is under way: the states in which a spec may be taken up or the power observed.
    pub fn at_rest(&self) -> bool {
        matches!(self, Self::Idle | Self::Held { .. } | Self::Failed)
    }
}

impl PreparedImage {
    /// Where its root file system is, for a kernel's command line.
    pub(super) fn root(&self) -> Option<String> {
        netboot::root(self.root_partuuid.as_deref(), self.root_uuid.as_deref())
    }
}

impl Attempt {
    /// Where the BMC it was begun with answers, if there was one.
    pub(super) fn bmc_address(&self) -> Option<&BmcAddress> {
        self.bmc.as_ref().map(|bmc| &bmc.address)
    }
}

//! A node's status for its administrator: the content of `<name>.status.toml`.
//!
//! The core makes it, the status file subsystem writes it, the CLI and scripts read it. It must
//! never hold a secret. Flat keys come first, so that a one-line `grep` works.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    boot::BootStage,
    disk::Disk,
    fault::Fault,
    ids::{Digest, MacAddr, NodeName},
    machine::Machine,
    netboot::{self, NetbootFiles},
    power::PowerState,
    problem::Problem,
};

/// The version of the status format. It changes only with a change that breaks readers. Version 1
/// had the key `phase` in entries of the history, and no checksum.
pub const STATUS_VERSION: u32 = 2;

/// The phase of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The spec is invalid and nothing was ever started under this name, or two specs clash.
    Invalid,
    /// Waiting for an operator's consent.
    Held,
    /// Waiting for the next attempt.
    Pending,
    /// Verifying the image.
    Preparing,
    /// Setting the boot device and switching the machine on.
    PoweringOn,
    /// The machine is booting the deploy ramdisk.
    WaitingRamdisk,
    /// Writing the disk.
    Imaging,
    /// Setting the local disk as boot device, and telling the ramdisk to release its target.
    Switching,
    /// Waiting for the ramdisk's Completed notice.
    WaitingCompleted,
    /// The BMC restarts the machine into its own system.
    Restarting,
    /// The installed system boots and must show that it is up.
    Booting,
    /// The machine is installed.
    Deployed,
    /// Failed until the spec changes or an operator retries.
    Failed,
    /// Kept powered off.
    Available,
    /// Observed only.
    Unmanaged,
    /// Paused by its spec.
    Paused,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 16] = [
        Self::Invalid,
        Self::Held,
        Self::Pending,
        Self::Preparing,
        Self::PoweringOn,
        Self::WaitingRamdisk,
        Self::Imaging,
        Self::Switching,
        Self::WaitingCompleted,
        Self::Restarting,
        Self::Booting,
        Self::Deployed,
        Self::Failed,
        Self::Available,
        Self::Unmanaged,
        Self::Paused,
    ];

    /// Whether the phase is a part of an attempt, for the durations of attempts.
    pub const fn is_busy(self) -> bool {
        match self {
            Self::Preparing
            | Self::PoweringOn
            | Self::WaitingRamdisk
            | Self::Imaging
            | Self::Switching
            | Self::WaitingCompleted
            | Self::Restarting
            | Self::Booting => true,
            Self::Invalid
            | Self::Held
            | Self::Pending
            | Self::Deployed
            | Self::Failed
            | Self::Available
            | Self::Unmanaged
            | Self::Paused => false,
        }
    }

    /// The phase's name in files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Held => "held",
            Self::Pending => "pending",
            Self::Preparing => "preparing",
            Self::PoweringOn => "powering-on",
            Self::WaitingRamdisk => "waiting-ramdisk",
            Self::Imaging => "imaging",
            Self::Switching => "switching",
            Self::WaitingCompleted => "waiting-completed",
            Self::Restarting => "restarting",
            Self::Booting => "booting",
            Self::Deployed => "deployed",
            Self::Failed => "failed",
            Self::Available => "available",
            Self::Unmanaged => "unmanaged",
            Self::Paused => "paused",
        }
    }
}

/// One node's status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The format's version, [`STATUS_VERSION`].
    pub version: u32,
    /// The node.
    pub node: NodeName,
    /// The node's phase.
    pub phase: Phase,
    /// Whether the machine is installed as its spec wants and nothing is left to do.
    pub ready: bool,
    /// One sentence: the node's activity, or the operator's next step.
    pub message: String,
    /// Whether the present spec file is valid.
    pub spec_valid: bool,
    /// The identity of the effective spec's installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_digest: Option<Digest>,
    /// The identity of the present installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed_digest: Option<Digest>,
    /// When this phase began.
    pub since: Timestamp,
    /// The deadline of this phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// The wait that the deadline ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_reason: Option<String>,
    /// The number of the present or last attempt, from 1; 0 before the first.
    pub attempt: u32,
    /// When the next attempt starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// The time of the last write of this file.
    pub updated: Timestamp,
    /// The progress of the present fetch, write or comparison.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The machine that the effective spec names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// The last observed power state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<Power>,
    /// The installation on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<Installed>,
    /// The last failure, until a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    /// The last evidence of the machine's boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<LastSeen>,
    /// The duration of each phase of this attempt, in milliseconds: `imaging_ms = 9871`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub durations: BTreeMap<String, u64>,
    /// The problems of the spec file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// Conditions in the Kubernetes conventions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The last phase changes, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryEntry>,
}

/// `[progress]`: the progress of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The present stage.
    pub stage: ImagingStage,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Mean rate since the stage began, in bytes a second.
    pub rate_bytes: u64,
    /// The remaining time at this rate, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_s: Option<u64>,
}

impl Progress {
    /// Whole percents done, 0 to 100.
    pub fn percent(&self) -> u64 {
        if self.total_bytes == 0 {
            0
        } else {
            u64::try_from(u128::from(self.done_bytes) * 100 / u128::from(self.total_bytes))
                .unwrap_or(100)
                .min(100)
        }
    }
}

/// The stages of an attempt that have progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImagingStage {
    /// Fetching and hashing the published image.
    Fetch,
    /// Unpacking it into the cache.
    Decode,
    /// Writing the disk.
    Write,
    /// Reading the disk back.
    Verify,
}

impl ImagingStage {
    /// The stage's name in files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Decode => "decode",
            Self::Write => "write",
            Self::Verify => "verify",
        }
    }
}

/// `[power]`: the observed power state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Power {
    /// The BMC's last answer.
    pub observed: PowerState,
    /// The time of that answer.
    pub observed_at: Timestamp,
}

/// `[installed]`: the installation on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The identity of the installation.
    pub digest: Digest,
    /// Digest of the image.
    pub image: Digest,
    /// The written disk.
    pub disk: Disk,
    /// When the machine restarted into the installed system.
    pub at: Timestamp,
    /// Whether the installed system has shown that it is up. `None`: an earlier version installed
    /// it without a check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<Booted>,
    /// When the installed system showed that it is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted_at: Option<Timestamp>,
    /// How often the machine netbooted since the installation, although its boot device is its disk
    /// and hostler had not restarted it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unexpected_netboots: u32,
    /// The last of these netboots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unexpected_netboot_at: Option<Timestamp>,
    /// The deploy ramdisk's address, which the installed system may have, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The identity of the disk's content: `digest` without the network boot files. `None`: an
    /// earlier version of hostler, with another identity, installed the machine, and its spec has
    /// not been read since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_digest: Option<Digest>,
    /// The UUID of the root file system, if hostler made the partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_uuid: Option<String>,
    /// The UUID of the root partition, for `PARTUUID=`. `None`: an earlier version of hostler,
    /// which did not record it, made the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_partuuid: Option<String>,
    /// The kernel and ramdisk of a machine that boots over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netboot: Option<NetbootFiles>,
    /// The spec's `redeploy` at the installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redeploy: Option<String>,
    /// The spec's machine at the installation. `None`: an earlier version of hostler did not record
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// The first sign of the installed system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<InstalledSystem>,
}

/// Whether an installed system has shown that it is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Booted {
    /// No check: the spec has no `[boot_check]`, or wants the machine off.
    Unchecked,
    /// The first boot is under way.
    Waiting,
    /// The first boot missed its deadline.
    Missed,
    /// The installed system is up.
    Up,
}

/// `[installed.system]`: the untrusted answer of an installed system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledSystem {
    /// The answering address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The banner of its SSH server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_banner: Option<String>,
    /// Its host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// cloud-init's id of the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Its SSH host keys, each as its kind and its fingerprint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_host_keys: Vec<String>,
}

impl Installed {
    /// Returns the value of `root=` for the kernel command line.
    pub fn root(&self) -> Option<String> {
        netboot::root(self.root_partuuid.as_deref(), self.root_uuid.as_deref())
    }
}

/// `[last_error]`: the last failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// The time of the failure.
    pub at: Timestamp,
    /// The failed attempt's number.
    pub attempt: u32,
    /// The fault.
    #[serde(flatten)]
    pub fault: Fault,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// `[last_seen]`: evidence of the machine's boot in this attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSeen {
    /// The latest stage of the boot files fetched in this attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<BootStage>,
    /// The name of that file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_path: Option<String>,
    /// The time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_at: Option<Timestamp>,
    /// A boot file that a machine requested instead and that the loaders do not include.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_loader: Option<String>,
    /// How often the machine requested that file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_loader_times: u32,
    /// The address of that machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_loader_from: Option<IpAddr>,
    /// Network interfaces of no spec that requested a boot menu instead, at most four.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_macs: Vec<MacAddr>,
    /// The machine's last address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The last accepted callback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<String>,
    /// The time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_at: Option<Timestamp>,
    /// The number of disks that could be written, as the deploy ramdisk reported them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<u32>,
    /// The machine's first netboot after its restart into the installed system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netbooted_at: Option<Timestamp>,
    /// Callbacks refused in this attempt.
    #[serde(default)]
    pub refused: u32,
    /// The reason for the last refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_reason: Option<String>,
}

/// The reason of conditions while the content of the machine's disk is unknown.
pub const RECORD_LOST: &str = "RecordLost";

impl Status {
    /// Whether the content of the machine's disk was unknown when this was written.
    pub fn is_record_lost(&self) -> bool {
        self.conditions.iter().any(|one| one.reason == RECORD_LOST)
    }
}

/// One entry of `[[conditions]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// `Ready`, `SpecValid`, `Drifted`, `PowerAsWanted` …
    #[serde(rename = "type")]
    pub kind: String,
    /// `True` or `False`.
    pub status: String,
    /// A CamelCase reason.
    pub reason: String,
    /// A sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// One entry of `[[history]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The time.
    pub at: Timestamp,
    /// The entered phase. The key is not `phase`, so that `grep '^phase'` finds the present phase
    /// only.
    #[serde(rename = "entered")]
    pub phase: Phase,
    /// The reason, for a reader.
    pub message: String,
}

//! The state of one node for its administrator: the content of `<name>.status.toml`.
//!
//! Made by the core from its state, written by the status file subsystem, read by the CLI and by
//! scripts. It holds no secret. Flat keys come first so that a one-line `grep` works.

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

/// The version of the status format; it changes only when a reader would have to. In version 1 an
/// entry of the history had its phase as `phase`, and there was no checksum.
pub const STATUS_VERSION: u32 = 2;

/// Where a node stands. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The spec cannot be used and nothing was ever started under this name, or two specs clash.
    Invalid,
    /// Waiting for an operator's consent.
    Held,
    /// Waiting to start, or to start again.
    Pending,
    /// Verifying the image.
    Preparing,
    /// Setting the boot device and switching the machine on.
    PoweringOn,
    /// The machine is booting the deploy ramdisk.
    WaitingRamdisk,
    /// Writing the disk.
    Imaging,
    /// Boot files to the local disk; the ramdisk is told to let go.
    Switching,
    /// Waiting for the ramdisk's Completed notice.
    WaitingCompleted,
    /// The BMC restarts the machine into its own system.
    Restarting,
    /// Its own system boots, and has yet to show that it is up.
    Booting,
    /// The machine is installed.
    Deployed,
    /// Given up until the spec changes or an operator says retry.
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

    /// Whether the phase is a part of an attempt, and so of interest for how long attempts take.
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

    /// The phase as it stands in files.
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
    /// [`STATUS_VERSION`].
    pub version: u32,
    /// The node.
    pub node: NodeName,
    /// Where it stands.
    pub phase: Phase,
    /// Installed as the spec wants and nothing left to do.
    pub ready: bool,
    /// One sentence: what is going on, or what somebody should do.
    pub message: String,
    /// Whether the spec file is usable as it is now.
    pub spec_valid: bool,
    /// Identity of what the spec in force wants installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_digest: Option<Digest>,
    /// Identity of what is installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed_digest: Option<Digest>,
    /// When this phase began.
    pub since: Timestamp,
    /// When this phase will be given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// The step that the deadline ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_reason: Option<String>,
    /// The attempt under way or last made, from 1; 0 before the first.
    pub attempt: u32,
    /// When the next attempt starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// When this file was written.
    pub updated: Timestamp,
    /// The write under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The machine that the effective spec names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// Power, as wanted and as seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<Power>,
    /// The installation on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<Installed>,
    /// The last failure; it stays until a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    /// The last things the machine was seen to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<LastSeen>,
    /// Milliseconds each phase of this attempt took: `imaging_ms = 9871`.
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

/// `[progress]`
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
    /// How long the rest takes at this rate, in seconds.
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

/// The stages that have progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImagingStage {
    /// Getting the image as published, and hashing it.
    Fetch,
    /// Unpacking it into the cache.
    Decode,
    /// Writing the disk.
    Write,
    /// Reading the disk back.
    Verify,
}

impl ImagingStage {
    /// The stage as it stands in files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Decode => "decode",
            Self::Write => "write",
            Self::Verify => "verify",
        }
    }
}

/// `[power]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Power {
    /// The BMC's last answer.
    pub observed: PowerState,
    /// The time of that answer.
    pub observed_at: Timestamp,
}

/// `[installed]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Identity of what was installed.
    pub digest: Digest,
    /// Digest of the image.
    pub image: Digest,
    /// The disk it was written to.
    pub disk: Disk,
    /// When the machine was restarted into it.
    pub at: Timestamp,
    /// Whether its system has shown that it is up. `None`, of a version that did not ask: it was
    /// not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<Booted>,
    /// When it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted_at: Option<Timestamp>,
    /// The address that the deploy ramdisk had, where its system may answer, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Identity of what was written to the disk: `digest` without what it boots over the network.
    /// `None`: a version of hostler installed it that had another identity, and its spec has not
    /// been seen since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_digest: Option<Digest>,
    /// UUID of its root file system, where hostler made the partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_uuid: Option<String>,
    /// The same for the partition it is in, as `PARTUUID=` has it. `None`: a version of hostler
    /// made it that did not write that down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_partuuid: Option<String>,
    /// The kernel and ramdisk that it is served, if it boots over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netboot: Option<NetbootFiles>,
    /// The `redeploy` value it was installed under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redeploy: Option<String>,
    /// The machine as its spec named it when it was installed. `None`: hostler did not write that
    /// down yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// The system as it showed itself when it was up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<InstalledSystem>,
}

/// Whether an installed system has shown that it is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Booted {
    /// Nobody asked: its spec has no `[boot_check]`, or wants the machine off.
    Unchecked,
    /// It has time to do so.
    Waiting,
    /// It has not done so in time.
    Missed,
    /// It has.
    Up,
}

/// `[installed.system]`: what an installed system showed of itself. Untrusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledSystem {
    /// Where it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The banner of its SSH server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_banner: Option<String>,
}

impl Installed {
    /// Where its root file system is, for a kernel's command line.
    pub fn root(&self) -> Option<String> {
        netboot::root(self.root_partuuid.as_deref(), self.root_uuid.as_deref())
    }
}

/// `[last_error]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// The time of the failure.
    pub at: Timestamp,
    /// In which attempt.
    pub attempt: u32,
    /// The fault.
    #[serde(flatten)]
    pub fault: Fault,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// `[last_seen]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSeen {
    /// The furthest boot file fetched in this attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<BootStage>,
    /// Its TFTP name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_path: Option<String>,
    /// The time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_at: Option<Timestamp>,
    /// A boot file that a machine asked for instead, and that is not among the loaders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_loader: Option<String>,
    /// How often it did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_loader_times: u32,
    /// From where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_loader_from: Option<IpAddr>,
    /// Network interfaces that asked for a boot menu instead, and that no spec names, at most four.
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
    /// When the machine netbooted after it was restarted into its own system, at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netbooted_at: Option<Timestamp>,
    /// Callbacks refused in this attempt.
    #[serde(default)]
    pub refused: u32,
    /// Why the last one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_reason: Option<String>,
}

/// The reason of a condition in every phase: nobody knows what is on the machine's disk.
pub const RECORD_LOST: &str = "RecordLost";

impl Status {
    /// Whether nobody knew what is on the machine's disk when this was written.
    pub fn is_record_lost(&self) -> bool {
        self.conditions.iter().any(|one| one.reason == RECORD_LOST)
    }
}

/// One of `[[conditions]]`.
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

/// One of `[[history]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The time.
    pub at: Timestamp,
    /// The phase entered. `grep '^phase'` is to find the present one only.
    #[serde(rename = "entered")]
    pub phase: Phase,
    /// The reason, for a person.
    pub message: String,
}

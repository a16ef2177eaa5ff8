//! The interface of the core: events, actions and operations.
//!
//! The agent's driver makes events and performs actions; [`super::Node::step`] takes events and
//! returns actions.

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::model::{
    boot::Fetch,
    boot_report::BootReport,
    callback::{Call, DiskRange, RamdiskLog, Reply},
    fault::Fault,
    ids::{Digest, OpId},
    netboot::{BootFile, NetbootFiles},
    power::PowerState,
    problem::Problem,
    secret::{AttemptKey, BootToken},
    spec::NodeSpec,
    status::{ImagingStage, Progress},
    system_guid::SystemGuid,
};

use super::state::{PreparedImage, Target};

/// Something that happened to one node.
#[derive(Clone, Debug)]
pub enum Event {
    /// The node's spec is valid.
    Spec(Arc<NodeSpec>),
    /// The spec is valid, and would reinstall the machine together with too many others: the disk
    /// is not written until an operator consents.
    MassChange(Arc<NodeSpec>),
    /// The spec is invalid: the last good one stays effective, and nothing starts.
    SpecProblems(Vec<Problem>),
    /// The spec names a machine that another spec names, too: hostler touches neither.
    SpecClash(Vec<Problem>),
    /// The spec is gone: forget the node.
    SpecGone,
    /// The spec directory cannot be read, or is empty: nothing starts.
    DirectoryLost(String),
    /// The running operation ended.
    Done { op: OpId, outcome: Result<Outcome, Fault> },
    /// The running operation made progress.
    Progress { op: OpId, progress: Progress },
    /// A ramdisk calls.
    Callback {
        /// The number of the request, for [`Action::Reply`].
        request: u64,
        /// The caller's address.
        peer: IpAddr,
        /// The caller's key.
        key: AttemptKey,
        call: Call,
    },
    /// An installed system calls, because it is up.
    BootCalled {
        /// The number that the reply is given back with.
        request: u64,
        /// The caller's address.
        peer: IpAddr,
        /// The token that the caller shows.
        token: BootToken,
        report: BootReport,
    },
    /// The machine fetched a boot file.
    Fetched(Fetch),
    /// Time passed.
    Tick,
    /// The node gets a permit.
    Granted(Permit),
    /// A kernel or ramdisk of the installed machine is missing from the cache or has decayed there.
    NetbootLost,
    /// Somebody used the node's BMC, so that the known power state may be wrong.
    PowerMayHaveChanged,
    /// An operator consents that a held node goes on.
    Approve,
    /// An operator retries a failed node, ends a node's pause, or orders the power state of the
    /// spec.
    Retry,
}

impl Event {
    /// The number of the reply that somebody waits for.
    pub fn request(&self) -> Option<u64> {
        match self {
            Self::Callback { request, .. } | Self::BootCalled { request, .. } => Some(*request),
            Self::Spec(_)
            | Self::MassChange(_)
            | Self::SpecProblems(_)
            | Self::SpecClash(_)
            | Self::SpecGone
            | Self::DirectoryLost(_)
            | Self::Done { .. }
            | Self::Progress { .. }
            | Self::Fetched(_)
            | Self::Tick
            | Self::Granted(_)
            | Self::NetbootLost
            | Self::PowerMayHaveChanged
            | Self::Approve
            | Self::Retry => None,
        }
    }

    /// Whether the event is about the node's spec.
    pub(super) fn is_about_spec(&self) -> bool {
        match self {
            Self::Spec(_)
            | Self::MassChange(_)
            | Self::SpecProblems(_)
            | Self::SpecClash(_)
            | Self::SpecGone => true,
            Self::DirectoryLost(_)
            | Self::Done { .. }
            | Self::Progress { .. }
            | Self::Callback { .. }
            | Self::BootCalled { .. }
            | Self::Fetched(_)
            | Self::Tick
            | Self::Granted(_)
            | Self::NetbootLost
            | Self::PowerMayHaveChanged
            | Self::Approve
            | Self::Retry => false,
        }
    }
}

/// A limited activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permit {
    /// Bringing the machine up for imaging.
    Attempt,
    /// Writing the disk.
    Imaging,
    /// Polling the BMC by a socket.
    Poll,
    /// Polling the BMC by a program's process.
    ProgramPoll,
}

/// A node's place in the queue for a permit: its attempt's number or the class of its poll, and the
/// time since which it waits.
pub(super) type PermitPlace = (u32, Timestamp);

/// The result of a successful operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// [`Operation::PollPower`] or [`Operation::ConfirmPower`]: the BMC's power state.
    Power(PowerState),
    /// [`Operation::Prepare`]: the image is verified and in the cache.
    Prepared {
        image: PreparedImage,
        /// A fresh random key for the attempt.
        key: AttemptKey,
        /// The machine's UUID from its BMC, if the ramdisk's must match.
        system_guid: Option<SystemGuid>,
        stages: Stages,
    },
    /// [`Operation::PowerOn`]: the machine is on.
    PoweredOn,
    /// [`Operation::Image`]: the disk is written, flushed and, if the spec wants that, verified by
    /// the agent; the session has ended.
    Imaged {
        /// The ranges that the ramdisk must compare; empty if it need not.
        verify: Vec<DiskRange>,
        /// The disk's size, in bytes.
        disk_bytes: u64,
        /// The `PARTUUID=` of the root partition, if hostler made it.
        root_partuuid: Option<String>,
        stages: Stages,
    },
    /// [`Operation::Release`]: the ramdisk was told to release its disk.
    Released,
    /// [`Operation::Restart`]: the machine was off, and is in this state now.
    Restarted(PowerState),
    /// [`Operation::ProbePort`]: the port answers.
    PortAnswered {
        /// The answering address.
        address: IpAddr,
        /// The banner of an SSH server.
        ssh_banner: Option<String>,
    },
    /// [`Operation::SetPower`]: the machine is in this state.
    PowerSet(PowerState),
    /// [`Operation::CleanUp`]: the boot device is the disk, and the machine is off.
    CleanedUp,
    /// [`Operation::NetbootFiles`]: these files are verified and in the cache. `None`: the spec
    /// wants none.
    NetbootFiles(Option<NetbootFiles>),
}

/// The duration of each stage of an operation.
pub type Stages = Vec<(ImagingStage, Duration)>;

impl Operation {
    /// Whether the operation needs a BMC.
    pub const fn needs_bmc(&self) -> bool {
        match self {
            Self::PollPower
            | Self::ConfirmPower
            | Self::PowerOn
            | Self::Restart { .. }
            | Self::SetPower(_)
            | Self::CleanUp => true,
            Self::Prepare
            | Self::Image { .. }
            | Self::Release(_)
            | Self::ProbePort { .. }
            | Self::NetbootFiles { .. } => false,
        }
    }
}

/// A request of the core, for the [`super::Effects`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start an operation, and in any case report its end as [`Event::Done`] with this id.
    Start {
        op: OpId,
        operation: Operation,
        /// The effective spec, with the BMC for this operation.
        spec: Arc<NodeSpec>,
    },
    /// Stop the operation, which must still report its end once it has really stopped.
    Cancel(OpId),
    /// Answer a callback.
    Reply { request: u64, reply: Reply },
    /// Keep a deploy ramdisk's log beside the status file, and replace the last one.
    KeepLog(Box<ReceivedLog>),
    /// Remove the node's record, status file and boot menu.
    Forget,
}

/// An accepted log of a deploy ramdisk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedLog {
    /// The attempt's number.
    pub attempt: u32,
    /// The ramdisk's address.
    pub peer: IpAddr,
    /// The attempt's key, which is replaced in the file.
    pub key: AttemptKey,
    pub log: RamdiskLog,
}

/// Work outside of the core. Every operation is idempotent: after a crash, the core starts it
/// again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Ask the BMC for the power state, outside of an attempt. The limit is [`super::POLL_LIMIT`],
    /// so that silent BMCs do not keep permits for long.
    PollPower,
    /// Ask the BMC for the power state once more, in an attempt, before the machine is switched on.
    /// The limit is that of the attempt's other BMC commands.
    ConfirmPower,
    /// Fetch, verify and unpack the image.
    Prepare,
    /// Switch the machine off if it is on, set the boot device to network for one boot, and switch
    /// it on.
    PowerOn,
    /// Log in to the target and write the image.
    Image {
        image: Digest,
        target: Box<Target>,
        /// The size by which a wrong target is noticed.
        size: DiskSize,
        /// The token for the config drive.
        boot_token: Option<BootToken>,
    },
    /// Tell Ironic's ramdisk at this address that its disk is written, and retry until it listens.
    Release(IpAddr),
    /// Switch the machine off, set the installed system's boot device persistently, and switch it
    /// on or leave it off.
    Restart { wanted: PowerState },
    /// Probe a port of the installed system for a while.
    ProbePort { address: String, port: u16 },
    /// Switch the machine on, from the installed system's boot device, or shut it down.
    SetPower(PowerState),
    /// Set the boot device to disk persistently, and switch the machine off.
    CleanUp,
    /// Verify the kernel and ramdisk of an installed machine and put them into the cache.
    NetbootFiles {
        /// The files that the machine is served now, which must stay available if anything fails.
        served: Option<NetbootFiles>,
        /// Whether the spec's files replace them.
        renew: bool,
    },
}

/// The expected size of a target, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSize {
    /// The size that the ramdisk reported or the spec has.
    Exactly(u64),
    /// The size of the image, if the disk's size is unknown.
    AtLeast(u64),
}

/// The boot menu that a machine is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Menu {
    /// No menu: the node's NICs are unknown, or hostler must not boot the machine.
    Unknown,
    /// The local disk.
    LocalDisk,
    /// The installed system's own kernel and ramdisk.
    Network {
        /// The kernel and the ramdisk.
        files: [BootFile; 2],
        /// The kernel's command line.
        command_line: String,
    },
    /// The deploy ramdisk, with this attempt's key.
    Deploy(AttemptKey),
}

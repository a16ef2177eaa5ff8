//! The interface of the core: events come in, actions go out, and an operation is a piece of work
//! outside.
//!
//! The agent's driver makes events and performs actions; [`super::Node::step`] does the reverse.

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::model::{
    boot::Fetch,
    callback::{Call, DiskRange, RamdiskLog, Reply},
    fault::Fault,
    ids::{Digest, OpId},
    netboot::{BootFile, NetbootFiles},
    power::PowerState,
    problem::Problem,
    secret::AttemptKey,
    spec::NodeSpec,
    status::{ImagingStage, Progress},
    system_guid::SystemGuid,
};

use super::state::{PreparedImage, Target};

/// Something that happened to one node.
#[derive(Clone, Debug)]
pub enum Event {
    /// The node's spec is there and usable.
    Spec(Arc<NodeSpec>),
    /// The spec is usable, and was changed together with too many others: the disk is not written
    /// until an operator consents.
    MassChange(Arc<NodeSpec>),
    /// The spec is not usable: the last good one stays effective, and nothing starts.
    SpecProblems(Vec<Problem>),
    /// The spec names a machine that another spec names too: neither is touched.
    SpecClash(Vec<Problem>),
    /// The spec is gone: forget the node.
    SpecGone,
    /// The spec directory cannot be read, or is empty: hold everything.
    DirectoryLost(String),
    /// The running operation ended.
    Done { op: OpId, outcome: Result<Outcome, Fault> },
    /// The running operation moved on.
    Progress { op: OpId, progress: Progress },
    /// A ramdisk calls.
    Callback {
        /// The number that the reply is given back with.
        request: u64,
        /// The caller's address.
        peer: IpAddr,
        /// The key that the caller shows.
        key: AttemptKey,
        call: Call,
    },
    /// The machine fetched a boot file.
    Fetched(Fetch),
    /// Time passed.
    Tick,
    /// The node may do something that only so many may do at once.
    Granted(Permit),
    /// A kernel or ramdisk that the installed machine asked for could not be served: it is not in
    /// the cache, or has decayed there.
    NetbootLost,
    /// Somebody used the node's BMC: the machine may be on or off by now.
    PowerMayHaveChanged,
    /// An operator lets a held node go on.
    Approve,
    /// An operator wants a failed node tried again, a waiting one at once, or the power as the spec
    /// says.
    Retry,
}

impl Event {
    /// Whether the event is about the node's spec file.
    pub(super) fn tells_of_spec(&self) -> bool {
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

/// An activity that only so many nodes may have at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permit {
    /// Having the machine brought up to be written.
    Attempt,
    /// Having the disk written.
    Imaging,
    /// Having the BMC polled, which takes a socket.
    Poll,
    /// Having the BMC polled by a program, which takes a process.
    ProgramPoll,
}

/// The code of an operation's end that was called off before it began.
pub(super) const NEVER_STARTED: &str = "NeverStarted";

/// A node's place in the line for a permit: its attempt, or the class of its poll, and since when
/// it waits.
pub(super) type PermitPlace = (u32, Timestamp);

/// The result of an operation that ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// [`Operation::PollPower`] or [`Operation::ConfirmPower`]: what the BMC said.
    Power(PowerState),
    /// [`Operation::Prepare`]: the image is here and verified.
    Prepared {
        image: PreparedImage,
        /// A fresh random key for the attempt.
        key: AttemptKey,
        /// The machine's UUID as its BMC has it, if the ramdisk is to run on that machine only.
        system_guid: Option<SystemGuid>,
        stages: Stages,
    },
    /// [`Operation::PowerOn`]: the machine is on.
    PoweredOn,
    /// [`Operation::Image`]: written, flushed, verified by the agent if the spec wants that, and
    /// logged out.
    Imaged {
        /// The ranges that the ramdisk is to compare with its disk; none where that is not its
        /// part.
        verify: Vec<DiskRange>,
        /// The disk's size, in bytes.
        disk_bytes: u64,
        /// The `PARTUUID=` of the root partition, if hostler made it.
        root_partuuid: Option<String>,
        stages: Stages,
    },
    /// [`Operation::Release`]: the ramdisk was told.
    Released,
    /// [`Operation::Restart`]: the machine was off, and is as it was to be left.
    Restarted(PowerState),
    /// [`Operation::ProbePort`]: the port answers.
    PortAnswered {
        /// The address that answered.
        address: IpAddr,
        /// The banner, where it is SSH's.
        ssh_banner: Option<String>,
    },
    /// [`Operation::SetPower`]: the machine is in this state.
    PowerSet(PowerState),
    /// [`Operation::CleanUp`]: boot device disk, machine off.
    CleanedUp,
    /// [`Operation::NetbootFiles`]: these are verified and in the cache. `None`: the spec wants
    /// none.
    NetbootFiles(Option<NetbootFiles>),
}

/// The time that each stage of an operation took.
pub type Stages = Vec<(ImagingStage, Duration)>;

impl Operation {
    /// Whether the operation is done by a BMC.
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

/// A request of the core to its surroundings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start an operation, and report its end as [`Event::Done`] with this id, whatever happens.
    Start {
        op: OpId,
        operation: Operation,
        /// The effective spec, with the BMC that the operation is to use.
        spec: Arc<NodeSpec>,
    },
    /// Stop the operation. It must still report, and only when it has really stopped.
    Cancel(OpId),
    /// Answer a callback.
    Reply { request: u64, reply: Reply },
    /// Keep a deploy ramdisk's log beside the status file, in place of the one before.
    KeepLog(Box<ReceivedLog>),
    /// Remove the node's record, status file and boot menu.
    Forget,
}

/// A deploy ramdisk's log that was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedLog {
    /// The number of its attempt.
    pub attempt: u32,
    /// The ramdisk's address.
    pub peer: IpAddr,
    /// The attempt's key, to be made unreadable.
    pub key: AttemptKey,
    pub log: RamdiskLog,
}

/// A piece of work outside the core. Each is idempotent: after a crash it is simply started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Ask the BMC for the power state, outside of an attempt. It gets [`super::POLL_LIMIT`] at
    /// most: so many are asked that silent ones must not keep places for long.
    PollPower,
    /// Ask it once more before the machine is switched on, in an attempt; with the time that each
    /// of its commands gets.
    ConfirmPower,
    /// Get the image, verify its checksum, unpack it.
    Prepare,
    /// Switch the machine off if it is on, set the boot device to network for one boot, and switch
    /// it on.
    PowerOn,
    /// Log in to the target and write the image.
    Image {
        image: Digest,
        target: Box<Target>,
        /// The size that tells the target from that of another disk.
        size: DiskSize,
    },
    /// Tell Ironic's ramdisk at this address that its disk is written, for as long as it takes.
    Release(IpAddr),
    /// Switch the machine off, set the boot device of the installed system for good, and switch it
    /// on or leave it off.
    Restart { wanted: PowerState },
    /// Ask for a while whether something answers at this port of the installed system.
    ProbePort { address: String, port: u16 },
    /// Switch the machine on, from the boot device of the installed system, or shut it down.
    SetPower(PowerState),
    /// Set the boot device to disk for good, and switch the machine off.
    CleanUp,
    /// See that the kernel and ramdisk of an installed machine are in the cache, verified.
    NetbootFiles {
        /// The files that the machine is served now; they are to be had whatever else fails.
        served: Option<NetbootFiles>,
        /// Whether the files that the spec wants are to replace them.
        renew: bool,
    },
}

/// The size by which a target is told from that of another disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSize {
    /// The size that the ramdisk reported, or that the spec names.
    Exactly(u64),
    /// The size of what is to be written, where nobody has said more.
    AtLeast(u64),
}

/// The boot menu that a machine is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Menu {
    /// No menu: the node's NICs are unknown, or the machine is not hostler's to boot.
    Unknown,
    /// The local disk.
    LocalDisk,
    /// The installed system's own kernel and ramdisk.
    Network {
        /// The kernel, and the ramdisk.
        files: [BootFile; 2],
        /// The kernel's command line.
        command_line: String,
    },
    /// The deploy ramdisk, with this attempt's key.
    Deploy(AttemptKey),
}

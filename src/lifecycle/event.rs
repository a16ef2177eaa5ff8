//! What the core is told and what it asks for.
//!
//! Made by the agent's driver; consumed by [`super::Node::step`], and the other way round.

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::model::{
    boot::Fetch,
    callback::{Call, DiskRange, Reply},
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
    /// Its spec is there and usable.
    Spec(Arc<NodeSpec>),
    /// Its spec is there and usable, and was changed together with too many others: its disk is not written until somebody consents.
    MassChange(Arc<NodeSpec>),
    /// Its spec is there and not usable: the last good one stays in force, and nothing starts.
    SpecProblems(Vec<Problem>),
    /// Its spec claims what another claims too: neither is touched.
    SpecClash(Vec<Problem>),
    /// Its spec is gone: forget the node.
    SpecGone,
    /// The spec directory cannot be read, or is empty: hold everything.
    DirectoryLost(String),
    /// The running operation ended.
    Done {
        /// Which.
        op: OpId,
        /// How.
        outcome: Result<Outcome, Fault>,
    },
    /// The running operation moved on.
    Progress {
        /// Which.
        op: OpId,
        /// How far it is.
        progress: Progress,
    },
    /// A ramdisk calls.
    Callback {
        /// Goes back with the reply.
        request: u64,
        /// Where it calls from.
        peer: IpAddr,
        /// The key it shows.
        key: AttemptKey,
        /// What it says.
        call: Call,
    },
    /// The machine fetched a boot file.
    Fetched(Fetch),
    /// Time passed.
    Tick,
    /// Its turn has come.
    Granted(Permit),
    /// A kernel or ramdisk that the installed machine asked for could not be served: it is not in the cache, or has decayed there.
    NetbootLost,
    /// Somebody used the node's BMC: its machine may be on or off by now.
    PowerMayHaveChanged,
    /// An operator lets a held node go on.
    Approve,
    /// An operator wants a failed node tried again, a waiting one at once, or the power as the spec says.
    Retry,
}

impl Event {
    /// Whether it says what has become of the node's spec file.
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

/// What only so many nodes may do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permit {
    /// Have their machine brought up to be written.
    Attempt,
    /// Write their disk.
    Imaging,
    /// Have their BMC polled: each takes a socket.
    Poll,
    /// Have their BMC polled by a program: each takes a process.
    ProgramPoll,
}

/// How an operation ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// [`Operation::PollPower`] or [`Operation::ConfirmPower`]: what the BMC said.
    Power(PowerState),
    /// [`Operation::Prepare`]: the image is here and verified.
    Prepared {
        /// What is to be known of it.
        image: PreparedImage,
        /// A fresh random key for the attempt.
        key: AttemptKey,
        /// What the BMC says is the machine's UUID, if the ramdisk is to run on that machine only.
        system_guid: Option<SystemGuid>,
        /// What it took.
        stages: Stages,
    },
    /// [`Operation::PowerOn`]: the machine is on.
    PoweredOn,
    /// [`Operation::Image`]: written, flushed, verified if the spec wants that of us, and logged out.
    Imaged {
        /// What the ramdisk is to compare its disk with, if that is its part.
        verify: Vec<DiskRange>,
        /// The disk's size, in bytes.
        disk_bytes: u64,
        /// What `PARTUUID=` calls the root partition, if hostler has made it.
        root_partuuid: Option<String>,
        /// What it took.
        stages: Stages,
    },
    /// [`Operation::Release`]: the ramdisk was told.
    Released,
    /// [`Operation::Restart`]: the machine was off, and is as it was to be left.
    Restarted(PowerState),
    /// [`Operation::SetPower`]: the machine is in this state.
    PowerSet(PowerState),
    /// [`Operation::CleanUp`]: boot device disk, machine off.
    CleanedUp,
    /// [`Operation::NetbootFiles`]: these are verified and in the cache. `None`: the spec wants none.
    NetbootFiles(Option<NetbootFiles>),
}

/// How long each stage of an operation took.
pub type Stages = Vec<(ImagingStage, Duration)>;

impl Operation {
    /// Whether it is a BMC's work.
    pub const fn needs_bmc(&self) -> bool {
        match self {
            Self::PollPower
            | Self::ConfirmPower
            | Self::PowerOn
            | Self::Restart { .. }
            | Self::SetPower(_)
            | Self::CleanUp => true,
            Self::Prepare | Self::Image { .. } | Self::Release(_) | Self::NetbootFiles { .. } => {
                false
            }
        }
    }
}

/// What the core wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start this; report its end as [`Event::Done`] with this id, whatever happens.
    Start {
        /// The id to report with.
        op: OpId,
        /// What to do.
        operation: Operation,
        /// For which spec.
        spec: Arc<NodeSpec>,
    },
    /// Stop the operation. It must still report, and only when it has really stopped.
    Cancel(OpId),
    /// Answer a callback.
    Reply {
        /// Which.
        request: u64,
        /// What.
        reply: Reply,
    },
    /// Remove the node's record, status file and boot menu.
    Forget,
}

/// A piece of work outside the core. Each is idempotent: after a crash it is simply started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Ask the BMC for the power state, outside of an attempt. It gets [`super::POLL_LIMIT`] at most: so many
    /// are asked that silent ones must not keep places for long.
    PollPower,
    /// Ask it once more before the machine is switched on, in an attempt; with the time that each of its
    /// commands gets.
    ConfirmPower,
    /// Get the image, verify its checksum, unpack it.
    Prepare,
    /// Off if it is on; boot device network for one boot; on.
    PowerOn,
    /// Log in to the target and write the image.
    Image {
        /// Which image.
        image: Digest,
        /// Where.
        target: Box<Target>,
        /// What size the target's disk must have.
        size: DiskSize,
    },
    /// Tell Ironic's ramdisk at this address that its disk is written, for as long as it takes.
    Release(IpAddr),
    /// Off; the boot device of the installed system for good; then on, or left off.
    Restart {
        /// How to leave it.
        leave: PowerState,
    },
    /// On, from the boot device of the installed system, or shut down.
    SetPower(PowerState),
    /// Boot device disk for good; off.
    CleanUp,
    /// See that the kernel and ramdisk of an installed machine are in the cache, verified.
    NetbootFiles {
        /// What the machine is served now: it is to be had whatever else fails.
        served: Option<NetbootFiles>,
        /// Whether what the spec wants is to take its place.
        renew: bool,
    },
}

/// How a target is told from that of another disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSize {
    /// As the ramdisk reported, or the spec says.
    Exactly(u64),
    /// Nobody has said more than what is to be on it.
    AtLeast(u64),
}

/// What the node's boot menu must be now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Menu {
    /// None: the node's NICs are unknown.
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

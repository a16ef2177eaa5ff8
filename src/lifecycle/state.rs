//! What the core remembers of a node, in memory and on disk.
//!
//! Changed by [`super::Node`] only. [`Record`] is what survives a crash; whatever is not in it must be safe to lose.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{
    disk::Disk,
    secret::{AttemptKey, Secret},
    spec::NodeSpec,
    status::{HistoryEntry, Installed, LastError, LastSeen, Phase},
};

/// Everything about one node that outlives the agent's process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The last good spec.
    pub spec: Option<Arc<NodeSpec>>,
    /// Where the node stands.
    pub state: State,
    /// The phase last shown, and since when.
    pub phase: Phase,
    /// When that phase began.
    pub since: Timestamp,
    /// Attempts made for the present want; 0 before the first.
    pub attempt: u32,
    /// Whether the present want may wipe the disk even if the machine is on: an attempt was begun with consent.
    pub consented: bool,
    /// What is on the disk, as far as hostler put it there.
    pub installed: Option<Installed>,
    /// The last failure since the last success.
    pub last_error: Option<LastError>,
    /// What the machine was seen to do in the last attempt.
    pub last_seen: LastSeen,
    /// Milliseconds each phase of the last attempt took.
    pub durations: BTreeMap<String, u64>,
    /// The last phase changes, oldest first.
    pub history: Vec<HistoryEntry>,
}

/// Where a node stands. The states of an attempt carry it; nothing else does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum State {
    /// No attempt: installed, or waiting to start one.
    Idle {
        /// Nothing starts before.
        not_before: Option<Timestamp>,
    },
    /// A person must consent.
    Held {
        /// `redeploy` as it was when the hold was shown: only a change after that is consent.
        redeploy: Option<String>,
    },
    /// Given up.
    Failed,
    /// The image is being verified.
    Preparing {
        /// When to give up.
        deadline: Timestamp,
    },
    /// The machine is being switched on.
    PoweringOn {
        /// The attempt.
        attempt: Attempt,
        /// When to give up.
        deadline: Timestamp,
    },
    /// The machine boots the ramdisk, asks which disk to export, and exports it.
    WaitingRamdisk {
        /// The attempt.
        attempt: Attempt,
        /// When to give up.
        deadline: Timestamp,
    },
    /// The disk is being written.
    Imaging {
        /// The attempt.
        attempt: Attempt,
        /// The chosen disk.
        disk: Disk,
        /// Its target.
        target: Target,
        /// When to give up.
        deadline: Timestamp,
    },
    /// Boot files are local again; the ramdisk has not yet heard that it may let go.
    Switching {
        /// The attempt.
        attempt: Attempt,
        /// The written disk.
        disk: Disk,
        /// When to give up.
        deadline: Timestamp,
    },
    /// The ramdisk stops its target.
    WaitingCompleted {
        /// The attempt.
        attempt: Attempt,
        /// The written disk.
        disk: Disk,
        /// When to give up.
        deadline: Timestamp,
    },
    /// The BMC restarts the machine.
    Restarting {
        /// The attempt.
        attempt: Attempt,
        /// The written disk.
        disk: Disk,
        /// When to give up.
        deadline: Timestamp,
    },
    /// Putting things back.
    CleaningUp {
        /// The attempt, so that its ramdisk can be told to stop; none if it was not begun.
        attempt: Option<Attempt>,
        /// What comes then.
        purpose: Purpose,
        /// How often the clean-up itself failed.
        tries: u32,
        /// Nothing starts before.
        not_before: Option<Timestamp>,
        /// When the operation under way is told again to stop, or given up.
        deadline: Timestamp,
    },
}

/// Why a node is cleaned up, and so what comes then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// The attempt failed and may be repeated.
    Retry,
    /// The attempt failed and is not repeated.
    GiveUp,
    /// The spec wants something else now.
    StartOver,
    /// The spec is gone.
    Forget,
}

/// One deploy attempt, from power on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What the ramdisk proves itself with.
    pub key: AttemptKey,
    /// The image's size in bytes.
    pub image_bytes: u64,
    /// The first address that showed the key; no other may use it.
    pub peer: Option<IpAddr>,
    /// The disk the ramdisk was told to export.
    pub disk: Option<Disk>,
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
    /// CHAP user.
    pub chap_username: String,
    /// CHAP secret.
    pub chap_password: Secret,
}

impl State {
    /// The attempt this state belongs to.
    pub fn attempt(&self) -> Option<&Attempt> {
        match self {
            Self::Idle { .. } | Self::Held { .. } | Self::Failed | Self::Preparing { .. } => None,
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
            Self::Idle { .. } | Self::Held { .. } | Self::Failed | Self::Preparing { .. } => None,
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
        matches!(self, Self::Idle { .. } | Self::Held { .. } | Self::Failed)
    }
}

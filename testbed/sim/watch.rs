//! The rules' memory of the site and of the core.
//!
//! The `invariants` write it, and the site keeps it. It judges nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hostler::{
    lifecycle::Record,
    model::{
        ids::{NodeName, OpId},
        secret::AttemptKey,
        spec::{MachineId, NodeSpec, Timeouts},
    },
};
use jiff::Timestamp;

use crate::{
    ledger::{Ledger, LetThrough},
    names::state_name,
};

/// A broken rule.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) node: Option<NodeName>,
    pub(crate) step: u64,
    pub(crate) what: String,
    /// The last events before, if there is a trace.
    pub(crate) timeline: Vec<String>,
}

/// The memory of the rules.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) violations: Vec<Violation>,
    /// The rules' knowledge of each node. It follows what the core decides, which has no effect
    /// before its record is saved.
    pub(crate) ledgers: BTreeMap<NodeName, Ledger>,
    /// The agent's ledgers after a crash: those of its last saved records.
    pub(crate) durable: BTreeMap<NodeName, Ledger>,
    /// The last decided record of each node, whether or not it could be saved.
    pub(crate) decided: BTreeMap<NodeName, Record>,
    /// The ledgers of machines whose spec went away, while the agent lives.
    pub(crate) unclaimed: BTreeMap<MachineId, Ledger>,
    /// Those ledgers after a crash.
    pub(crate) unclaimed_kept: BTreeMap<MachineId, Ledger>,
    /// Whether the state directory was lost once, so that any newly named machine may be installed.
    pub(crate) is_incomplete: bool,
    /// Nodes without a record whose status file names a disk that was written since.
    pub(crate) outdated: BTreeSet<NodeName>,
    /// Updates of a scan that the core has not received yet.
    pub(crate) updates: BTreeMap<NodeName, Update>,
    /// Nodes whose specs the core has received since its start: before that, they do not go on.
    pub(crate) informed: BTreeSet<NodeName>,
    /// Records that are damaged at the agent's start.
    pub(crate) garbled: BTreeSet<NodeName>,
    pub(crate) running: BTreeMap<NodeName, OpId>,
    pub(crate) touched: BTreeSet<NodeName>,
    pub(crate) waits: BTreeMap<NodeName, Wait>,
    pub(crate) shares: BTreeMap<NodeName, Share>,
    pub(crate) queue: BTreeMap<NodeName, QueuePlace>,
    /// The keys of each node's served menus, the last one last.
    pub(crate) keys: BTreeMap<NodeName, Vec<ServedKey>>,
    /// Reinstalls that began without an operator's consent, with the time when they came up.
    pub(crate) let_through: Vec<LetThrough>,
}

/// A scan's update of one node.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    Spec(Arc<NodeSpec>),
    Clash,
    Broken,
    Gone,
}

/// A wait in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) state: &'static str,
    pub(crate) attempt: u32,
    pub(crate) tries: u32,
    pub(crate) key: Option<String>,
    pub(crate) timeouts: Option<Timeouts>,
    pub(crate) deadline: Option<Timestamp>,
}

impl Wait {
    pub(crate) fn of(record: &Record) -> Self {
        Self {
            state: state_name(record),
            attempt: record.attempt,
            tries: record.tries,
            key: record.state.attempt().map(|attempt| attempt.key.expose().to_owned()),
            timeouts: record.spec.as_ref().map(|spec| spec.timeouts),
            deadline: record.deadline,
        }
    }
}

/// An attempt's key that a menu had.
#[derive(Clone, Debug)]
pub(crate) struct ServedKey {
    pub(crate) key: AttemptKey,
    pub(crate) attempt: u32,
    /// The logs that the agent has kept since its start.
    pub(crate) logs: u32,
    /// Whether the node's next attempt has begun.
    pub(crate) is_over: bool,
}

/// An activity with a concurrency limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    Attempt,
    Imaging,
}

/// A place in the queue for a permit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueuePlace {
    pub(crate) attempt: u32,
    pub(crate) since: Timestamp,
}

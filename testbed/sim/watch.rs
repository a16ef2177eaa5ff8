//! The memory of the rules: what they noted of the site and of the core.
//!
//! Written by `invariants`, kept by the site. It judges nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hostler::{
    lifecycle::Record,
    model::{
        ids::{NodeName, OpId},
        spec::{MachineId, NodeSpec, Timeouts},
    },
};
use jiff::Timestamp;

use crate::{
    ledger::{Ledger, LetThrough},
    names::state_name,
};

/// A rule that was broken.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) node: Option<NodeName>,
    pub(crate) step: u64,
    pub(crate) what: String,
    /// The last that happened before, if it was traced.
    pub(crate) timeline: Vec<String>,
}

/// The memory of the rules.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) violations: Vec<Violation>,
    /// The consent that operators gave, for each node.
    pub(crate) ledgers: BTreeMap<NodeName, Ledger>,
    /// The ledgers as the agent would know them after a crash: as its records were last saved.
    pub(crate) durable: BTreeMap<NodeName, Ledger>,
    /// Records that could not be saved.
    pub(crate) unsaved: BTreeMap<NodeName, Record>,
    /// The ledgers of machines whose spec went away, while the agent lives.
    pub(crate) unclaimed: BTreeMap<MachineId, Ledger>,
    /// Those ledgers as they would be found after a crash.
    pub(crate) unclaimed_kept: BTreeMap<MachineId, Ledger>,
    /// The state directory was lost once: any machine that is named for the first time may be
    /// installed.
    pub(crate) is_incomplete: bool,
    /// Nodes without a record whose status file tells of a disk that was written since.
    pub(crate) outdated: BTreeSet<NodeName>,
    /// Update of a scan that the core has not received yet.
    pub(crate) updates: BTreeMap<NodeName, Update>,
    /// Nodes that the core has been told of since it started: before, nothing goes on.
    pub(crate) informed: BTreeSet<NodeName>,
    /// Records that are damaged when the agent starts.
    pub(crate) garbled: BTreeSet<NodeName>,
    pub(crate) running: BTreeMap<NodeName, OpId>,
    pub(crate) touched: BTreeSet<NodeName>,
    pub(crate) waits: BTreeMap<NodeName, Wait>,
    /// The installation for whose first boot each machine was restarted last.
    pub(crate) restarted_again: BTreeMap<NodeName, Timestamp>,
    pub(crate) shares: BTreeMap<NodeName, Share>,
    pub(crate) queue: BTreeMap<NodeName, QueuePlace>,
    /// Reinstalls that were begun without a word of consent, with when they came up.
    pub(crate) let_through: Vec<LetThrough>,
}

/// The update of a scan about one node.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    Spec(Arc<NodeSpec>),
    Clash,
    Broken,
    Gone,
}

/// A wait under way.
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

/// An activity that only so many nodes may have at once.
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

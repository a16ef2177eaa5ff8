//! The wake-ups of all nodes in the order of time, so that only due nodes cost anything.
//!
//! Owned by the [`super::Fleet`], which updates a node's wake-up after each of its steps. It must
//! never hold two wake-ups of one node.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::model::ids::NodeName;

#[derive(Debug, Default)]
pub(super) struct WakeUps {
    by_time: BTreeSet<(Timestamp, NodeName)>,
    by_node: BTreeMap<NodeName, Timestamp>,
}

impl WakeUps {
    /// Sets or removes the node's wake-up.
    pub(super) fn put(&mut self, node: &NodeName, at: Option<Timestamp>) {
        if self.by_node.get(node).copied() == at {
            return;
        }
        if let Some(before) = self.by_node.remove(node) {
            self.by_time.remove(&(before, node.clone()));
        }
        if let Some(at) = at {
            self.by_node.insert(node.clone(), at);
            self.by_time.insert((at, node.clone()));
        }
    }

    /// The nodes that are due, earliest first.
    pub(super) fn due(&self, now: Timestamp) -> Vec<NodeName> {
        self.by_time.iter().take_while(|(at, _)| *at <= now).map(|(_, node)| node.clone()).collect()
    }

    /// The earliest wake-up.
    pub(super) fn next(&self) -> Option<(Timestamp, &NodeName)> {
        self.by_time.first().map(|(at, node)| (*at, node))
    }
}

//! The order in which nodes want to be woken, so that ten thousand nodes cost no more than the one
//! that is due.
//!
//! Kept by the [`super::Fleet`], which notes a node's wish after each of its steps. It must never
//! hold two wishes of one node.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::model::ids::NodeName;

#[derive(Debug, Default)]
pub(super) struct WakeUps {
    by_time: BTreeSet<(Timestamp, NodeName)>,
    by_node: BTreeMap<NodeName, Timestamp>,
}

impl WakeUps {
    /// The node wants to be woken then, or not at all.
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

    /// The nodes whose time has come, earliest first.
    pub(super) fn due(&self, now: Timestamp) -> Vec<NodeName> {
        self.by_time.iter().take_while(|(at, _)| *at <= now).map(|(_, node)| node.clone()).collect()
    }

    /// The earliest of all.
    pub(super) fn next(&self) -> Option<(Timestamp, &NodeName)> {
        self.by_time.first().map(|(at, node)| (*at, node))
    }
}

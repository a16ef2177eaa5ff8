//! All nodes of the site: brings the spec directory and the nodes together, and events to their node.
//!
//! Owned by the agent's driver. One node's events never touch another node.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use crate::model::{
    ids::NodeName,
    problem::Problem,
    spec::{BmcAddress, NodeSpec},
    status::Installed,
};

use super::{
    event::{Action, Event},
    node::Node,
    state::{Hold, Record, State},
};

/// What one scan of the spec directory found for each name.
pub type Specs = BTreeMap<NodeName, Result<Arc<NodeSpec>, Vec<Problem>>>;

/// Forgotten installations that are remembered: more than a site has, and small enough for any memory.
const LEFT_MAX: usize = 10_000;

/// Every node the agent knows.
#[derive(Debug, Default)]
pub struct Fleet {
    nodes: BTreeMap<NodeName, Node>,
    /// What is installed on machines whose spec went away, by their BMC; `None`: a record was lost, and nobody knows. A spec file that
    /// is renamed, or comes back, finds it so: nothing is ever wiped because a file went away.
    left: BTreeMap<BmcAddress, Option<Installed>>,
}

impl Fleet {
    /// The fleet as it was recorded.
    pub fn resume(records: BTreeMap<NodeName, Record>, now: Timestamp) -> Self {
        let nodes = records
            .into_iter()
            .map(|(name, record)| (name.clone(), Node::resume(name, record, now)))
            .collect();
        Self { nodes, left: BTreeMap::new() }
    }

    /// A node by its name.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The names of all nodes, in order.
    pub fn names(&self) -> Vec<NodeName> {
        self.nodes.keys().cloned().collect()
    }

    /// What a scan means for each node. An empty directory is never "all nodes were deleted": while nodes are known, it holds them.
    pub fn compare(
        &self,
        specs: Specs,
        clashes: &BTreeMap<NodeName, Vec<Problem>>,
    ) -> Vec<(NodeName, Event)> {
        if specs.is_empty() {
            return self.hold("the spec directory is empty; hostler does not take that for an order to forget its nodes");
        }
        let gone = self
            .nodes
            .keys()
            .filter(|name| !specs.contains_key(*name))
            .map(|name| (name.clone(), Event::SpecGone));
        let mut events: Vec<_> = gone.collect();
        events.extend(specs.into_iter().map(|(name, spec)| {
            let event = match (clashes.get(&name), spec) {
                (Some(clash), _) => Event::SpecClash(clash.clone()),
                (None, Ok(spec)) => Event::Spec(spec),
                (None, Err(problems)) => Event::SpecProblems(problems),
            };
            (name, event)
        }));
        events
    }

    /// Nothing may start until the directory is there again.
    pub fn hold(&self, reason: &str) -> Vec<(NodeName, Event)> {
        self.nodes
            .keys()
            .map(|name| (name.clone(), Event::DirectoryLost(reason.to_owned())))
            .collect()
    }

    /// Brings one event to its node, which is made if a spec speaks of it for the first time. `None`: no such node.
    pub fn step(&mut self, now: Timestamp, name: &NodeName, event: Event) -> Option<Vec<Action>> {
        if !self.nodes.contains_key(name) {
            if !matches!(event, Event::Spec(_) | Event::SpecProblems(_) | Event::SpecClash(_)) {
                return None;
            }
            self.nodes.insert(name.clone(), Node::new(name.clone(), now));
        }
        let node = self.nodes.get_mut(name)?;
        if let Event::Spec(spec) = &event
            && node.record.spec.is_none()
        {
            match self.left.remove(&spec.bmc.address) {
                Some(None) => node.record = Record::distrusted(now),
                Some(installed) => node.record.installed = installed,
                None => {}
            }
        }
        let actions = node.step(now, event);
        if actions.contains(&Action::Forget) {
            self.forget(name);
        }
        Some(actions)
    }

    fn forget(&mut self, name: &NodeName) {
        let Some(Record { spec: Some(spec), installed, state, .. }) =
            self.nodes.remove(name).map(|node| node.record)
        else {
            return;
        };
        let unknown = matches!(state, State::Held { reason: Hold::RecordLost, .. });
        if installed.is_some() || unknown {
            self.left.insert(spec.bmc.address.clone(), installed);
        }
        if self.left.len() > LEFT_MAX {
            self.left.pop_first();
        }
    }

    /// The nodes that go on under a spec which a scan did not find: they still have their machine and their cards.
    pub fn leaving<'a>(&'a self, found: &'a Specs) -> impl Iterator<Item = &'a Arc<NodeSpec>> {
        self.nodes
            .iter()
            .filter(|(name, node)| {
                let busy = node.running.is_some() || !node.record.state.at_rest();
                busy && !found.contains_key(*name)
            })
            .filter_map(|(_, node)| node.record.spec.as_ref())
    }

    /// The nodes that want an [`Event::Tick`] by now.
    pub fn due(&self, now: Timestamp) -> Vec<NodeName> {
        let due = |node: &Node| node.next_wake().is_some_and(|(at, _)| at <= now);
        self.nodes.iter().filter(|(_, node)| due(node)).map(|(name, _)| name.clone()).collect()
    }

    /// The next node that wants an [`Event::Tick`], and when.
    pub fn next_wake(&self) -> Option<(Timestamp, NodeName)> {
        self.nodes.iter().filter_map(|(name, node)| Some((node.next_wake()?.0, name.clone()))).min()
    }
}

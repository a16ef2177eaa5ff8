//! All nodes of the site: brings the spec directory and the nodes together, and events to their node.
//!
//! Owned by the [`super::Carrier`]. One node's events never touch another node; what they share, turns and the breaker, is decided
//! here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::model::{
    ids::NodeName,
    problem::Problem,
    spec::{BmcAddress, NodeSpec},
    status::Installed,
};

use super::{
    agenda::Agenda,
    breaker::Breaker,
    event::{Action, Event, Turn},
    node::{Node, OBSERVATION_INTERVAL, wants_reinstall},
    state::{Hold, Record, State},
    turns::Turns,
    wait::after,
};

/// What one scan of the spec directory found for each name.
pub type Specs = BTreeMap<NodeName, Result<Arc<NodeSpec>, Vec<Problem>>>;

/// Forgotten installations that are remembered: more than a site has, and small enough for any memory.
const LEFT_MAX: usize = 10_000;
/// Looks at power states in a second, of all nodes together: each costs its BMC and this machine some work, for ever.
const LOOKS_PER_S: u32 = 5;

/// What the administrator of the site allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Machines being brought up to be written at the same time, at least 1.
    pub attempts_max: usize,
    /// Disks being written at the same time, at least 1.
    pub imagings_max: usize,
    /// Whether many reinstalls at once need consent.
    pub breaker: bool,
    /// Whether the power of an installed machine is brought back to what its spec wants.
    pub enforce_power: bool,
}

/// Every node the agent knows.
#[derive(Debug)]
pub struct Fleet {
    policy: Policy,
    nodes: BTreeMap<NodeName, Node>,
    agenda: Agenda,
    turns: Turns,
    breaker: Breaker,
    /// What is installed on machines whose spec went away, by their BMC; `None`: a record was lost, and nobody knows. A spec file that
    /// is renamed, or comes back, finds it so: nothing is ever wiped because a file went away.
    left: BTreeMap<BmcAddress, Option<Installed>>,
    /// What the status files say is installed on machines whose record is lost.
    witnessed: BTreeMap<NodeName, Installed>,
}

impl Fleet {
    /// The fleet as it was recorded. `witnessed` is what the status files say is installed, for nodes that have no record any more, or
    /// one that was damaged.
    pub fn resume(
        policy: Policy,
        records: BTreeMap<NodeName, Record>,
        witnessed: BTreeMap<NodeName, Installed>,
        now: Timestamp,
    ) -> Self {
        let mut fleet = Self {
            policy,
            nodes: BTreeMap::new(),
            agenda: Agenda::default(),
            turns: Turns::new(policy.attempts_max, policy.imagings_max),
            breaker: Breaker::default(),
            left: BTreeMap::new(),
            witnessed,
        };
        let first_looks = (0..).map(|n| after(now, Duration::from_secs(1) / LOOKS_PER_S * n));
        for ((name, record), first_look) in records.into_iter().zip(first_looks) {
            let mut node = Node::resume(name.clone(), record, policy, now);
            node.next_observation = first_look;
            fleet.nodes.insert(name.clone(), node);
            fleet.write_down(&name);
        }
        fleet
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
    /// A change that would reinstall too many machines is told as such.
    pub fn compare(
        &mut self,
        now: Timestamp,
        specs: Specs,
        clashes: &BTreeMap<NodeName, Vec<Problem>>,
    ) -> Vec<(NodeName, Event)> {
        if specs.is_empty() {
            return self.hold("the spec directory is empty; hostler does not take that for an order to forget its nodes");
        }
        let reinstalls: Vec<NodeName> = specs
            .iter()
            .filter(|(name, spec)| {
                let spec = spec.as_ref().ok().filter(|_| !clashes.contains_key(*name));
                spec.is_some_and(|spec| self.newly_reinstalls(name, spec))
            })
            .map(|(name, _)| name.clone())
            .collect();
        let deployed = self.nodes.values().filter(|node| node.record.installed.is_some()).count();
        let too_many =
            self.policy.breaker && !self.breaker.lets_through(now, &reinstalls, deployed);
        let gone = self
            .nodes
            .keys()
            .filter(|name| !specs.contains_key(*name))
            .map(|name| (name.clone(), Event::SpecGone));
        let mut events: Vec<_> = gone.collect();
        events.extend(specs.into_iter().map(|(name, spec)| {
            let event = match (clashes.get(&name), spec) {
                (Some(clash), _) => Event::SpecClash(clash.clone()),
                (None, Ok(spec)) if too_many && reinstalls.contains(&name) => {
                    Event::MassChange(spec)
                }
                (None, Ok(spec)) => Event::Spec(spec),
                (None, Err(problems)) => Event::SpecProblems(problems),
            };
            (name, event)
        }));
        events
    }

    /// Whether this spec, and not the one before it, would have an installed machine wiped.
    fn newly_reinstalls(&self, name: &NodeName, spec: &NodeSpec) -> bool {
        let node = self.nodes.get(name);
        let installed = match node {
            Some(node) if node.record.spec.is_some() => node.record.installed.as_ref(),
            // Under a new name: of a node that is forgotten, or will be by the same scan.
            _ => self.left.get(&spec.bmc.address).and_then(Option::as_ref).or_else(|| {
                let address = Some(&spec.bmc.address);
                let mut before = self.nodes.values().filter(|node| {
                    node.record.spec.as_ref().map(|spec| &spec.bmc.address) == address
                });
                before.find_map(|node| node.record.installed.as_ref())
            }),
        };
        let is_change = node.is_none_or(|node| {
            // One that is held for too many changes is judged again whenever the change would end the hold.
            let held = node.record.too_many_changes;
            !node.wants_install() || held && node.wanted.as_ref() != Some(&spec.digest())
        });
        is_change && installed.is_some_and(|installed| wants_reinstall(spec, installed))
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
            if !event.tells_of_spec() || matches!(event, Event::SpecGone) {
                return None;
            }
            let mut node = Node::new(name.clone(), self.policy, now);
            self.believe_witness(&mut node);
            self.nodes.insert(name.clone(), node);
        }
        if let Event::Spec(spec) | Event::MassChange(spec) = &event {
            self.remember(now, name, spec);
        }
        let interval = self.look_interval();
        let node = self.nodes.get_mut(name)?;
        node.look_interval = interval;
        let actions = node.step(now, event);
        if actions.contains(&Action::Forget) {
            self.forget(name);
        }
        self.write_down(name);
        Some(actions)
    }

    /// The next node whose turn has come; it must be told at once.
    pub fn next_turn(&self) -> Option<(NodeName, Turn)> {
        self.turns.next()
    }

    /// What a status file says of a node without a spec is kept and shown from the first moment: the file is written anew at once.
    fn believe_witness(&self, node: &mut Node) {
        if node.record.spec.is_none()
            && let Some(installed) = self.witnessed.get(&node.name)
        {
            node.record.installed = Some(installed.clone());
        }
    }

    /// What is known of a machine whose node has its first spec: it may have had another name, or a record that was lost.
    fn remember(&mut self, now: Timestamp, name: &NodeName, spec: &NodeSpec) {
        let Some(node) = self.nodes.get_mut(name).filter(|node| node.record.spec.is_none()) else {
            return;
        };
        let kept = node.record.installed.take();
        let witnessed = self.witnessed.remove(name).or(kept);
        match self.left.remove(&spec.bmc.address) {
            Some(None) => node.record = Record::distrusted(now),
            Some(installed) => {
                node.record.installed = installed;
                return;
            }
            None => {}
        }
        let Some(mut installed) = witnessed else { return };
        if installed.digest == spec.digest() {
            node.record.state = State::Idle;
        } else {
            // A `redeploy` that was there already is no consent: it may be years old.
            installed.redeploy.clone_from(&spec.redeploy);
        }
        node.record.installed = Some(installed);
    }

    /// Keeps in step with a node: when it wants to be woken, what it holds, what it waits for.
    fn write_down(&mut self, name: &NodeName) {
        let node = self.nodes.get(name);
        self.agenda.put(name, node.and_then(|node| Some(node.next_wake()?.0)));
        let (holds, waits) = node.map_or((None, None), |node| (node.holds(), node.waits_for()));
        self.turns.put(name, holds, waits);
    }

    fn look_interval(&self) -> Duration {
        let nodes = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        OBSERVATION_INTERVAL.max(Duration::from_secs(u64::from(nodes / LOOKS_PER_S)))
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
        self.agenda.due(now)
    }

    /// When the next node wants an [`Event::Tick`].
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.agenda.next().map(|(at, _)| at)
    }
}

//! The fleet: all nodes of the site. It compares the spec directory with the nodes and passes
//! events to them.
//!
//! Owned by the [`super::Executor`]. It decides everything that nodes share: permits, the breaker
//! and unclaimed installations. One node's events must never touch another node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use crate::model::{
    ids::{Digest, NodeName},
    machine::{Machine, MachineChange},
    netboot::NetbootFiles,
    problem::Problem,
    spec::{BmcAddress, NodeSpec},
};

use super::{
    breaker::let_through,
    event::{Action, Event, Permit},
    limits::{POLL_INTERVAL, Policy, after},
    node::{Node, wants_reinstall},
    permits::ConcurrencyLimits,
    polls::Polls,
    state::{Record, Records, State},
    unclaimed::{Known, UnclaimedInstalls},
    wake_ups::WakeUps,
};

/// The result of one scan of the spec directory: a spec or its problems for each name.
pub type Specs = BTreeMap<NodeName, Result<Arc<NodeSpec>, Vec<Problem>>>;

/// Polls of power states per second, of all nodes together: each is permanent load on a BMC and on
/// this machine.
const POLLS_PER_S: u32 = 5;
/// First polls per second of new nodes: operators wait for their status.
const FIRST_POLLS_PER_S: u32 = 50;

/// All nodes, with everything that they share.
#[derive(Debug)]
pub struct Fleet {
    policy: Policy,
    /// Boxed, because a map's leaves are half empty and a node is large.
    nodes: BTreeMap<NodeName, Box<Node>>,
    wake_ups: WakeUps,
    /// Nodes at rest whose last poll failed: silence, a refused login, or a missing file.
    silent: BTreeSet<NodeName>,
    permits: ConcurrencyLimits,
    /// Permits of the last durable records of nodes whose present record cannot be written: after a
    /// crash they would go on with these permits, so that nobody else may get them.
    held_on_record: BTreeMap<NodeName, Permit>,
    /// When the next new node is polled.
    first_poll: Timestamp,
    unclaimed: UnclaimedInstalls,
    /// The latest time of any event.
    latest: Timestamp,
    /// Nodes whose spec names the BMC of an installed machine by another name or address.
    aliased: BTreeSet<NodeName>,
}

impl Fleet {
    /// Makes the fleet from its records and the site file. `recovered` has the installations in the
    /// status files of nodes whose record is missing or damaged.
    pub fn resume(
        policy: Policy,
        records: Records,
        mut unclaimed: UnclaimedInstalls,
        recovered: BTreeMap<NodeName, Known>,
        now: Timestamp,
    ) -> Self {
        unclaimed.recover_from_status(recovered);
        unclaimed.miss(&records);
        let mut fleet = Self {
            policy,
            nodes: BTreeMap::new(),
            wake_ups: WakeUps::default(),
            silent: BTreeSet::new(),
            permits: ConcurrencyLimits::new(&policy),
            first_poll: now,
            held_on_record: BTreeMap::new(),
            unclaimed,
            latest: now,
            aliased: BTreeSet::new(),
        };
        let first_polls = (0..).map(|n| after(now, Duration::from_secs(1) / POLLS_PER_S * n));
        for ((name, record), first_poll) in records.into_iter().zip(first_polls) {
            let mut node = Node::resume(name.clone(), record, policy, now);
            node.polls = Polls::new(&name, first_poll);
            fleet.nodes.insert(name.clone(), Box::new(node));
            fleet.adopt(now, &name);
            fleet.update_indexes(&name);
        }
        fleet
    }

    /// Returns a node by its name.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name).map(Box::as_ref)
    }

    /// The last good spec of each node that has one.
    pub fn specs(&self) -> impl Iterator<Item = &Arc<NodeSpec>> {
        self.nodes.values().filter_map(|node| node.spec())
    }

    /// The names of all nodes, in order.
    pub fn names(&self) -> Vec<NodeName> {
        self.nodes.keys().cloned().collect()
    }

    /// Turns a scan into an event for each node. An empty directory never means that all nodes are
    /// deleted: it stops them. A change that would reinstall too many machines becomes an
    /// [`Event::MassChange`].
    pub fn compare(
        &mut self,
        now: Timestamp,
        specs: Specs,
        clashes: &BTreeMap<NodeName, Vec<Problem>>,
    ) -> Vec<(NodeName, Event)> {
        if specs.is_empty() {
            return self.hold(
                "the spec directory is empty; hostler does not take that for an order to forget \
                 its nodes: put a spec there, with state = \"unmanaged\" where a machine is to be \
                 left alone",
            );
        }
        self.note_departures(&specs);
        let reinstalls: BTreeSet<NodeName> = specs
            .iter()
            .filter(|(name, spec)| {
                let spec = spec.as_ref().ok().filter(|_| !clashes.contains_key(*name));
                spec.is_some_and(|spec| self.newly_reinstalls(name, spec))
            })
            .map(|(name, _)| name.clone())
            .collect();
        // Nodes that the same change removes do not count as deployed.
        let deployed = self
            .nodes
            .iter()
            .filter(|(name, node)| node.record.installed.is_some() && specs.contains_key(*name));
        let deployed = deployed.map(|(name, _)| name).collect();
        let too_many = if reinstalls.is_empty() || !self.policy.breaker {
            false
        } else if let Some(counted) =
            let_through(now, self.unclaimed.reinstalls(), &reinstalls, &deployed)
        {
            self.unclaimed.count_reinstalls(counted);
            false
        } else {
            true
        };
        let gone = self
            .nodes
            .keys()
            .filter(|name| !specs.contains_key(*name))
            .map(|name| (name.clone(), Event::SpecGone));
        let mut events: Vec<_> = gone.collect();
        // After the clock was set back, every node must bound its waits again.
        let is_set_back = now < self.latest;
        self.latest = now;
        let is_update = |(name, spec): &(NodeName, Result<Arc<NodeSpec>, _>)| {
            let node = self.nodes.get(name).filter(|_| !is_set_back);
            let known = node.zip(spec.as_ref().ok()).is_some_and(|(node, spec)| node.knows(spec));
            !known || too_many || clashes.contains_key(name)
        };
        events.extend(specs.into_iter().filter(is_update).map(|(name, spec)| {
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

    /// Whether this spec, unlike the one before it, would WIPE an installed machine. A spec that
    /// names another machine never does.
    fn newly_reinstalls(&self, name: &NodeName, spec: &NodeSpec) -> bool {
        let Some(node) = self.nodes.get(name) else { return false };
        let (Some(old), Some(installed)) = (node.spec(), &node.record.installed) else {
            return false;
        };
        // A node that the breaker holds is judged again if the change would end the hold.
        let held = node.record.is_held_by_breaker() && node.wanted.as_ref() != Some(&spec.digest());
        let is_change = old.paused || held || !node.wants_install();
        let same_machine = old.machine_change(spec) == MachineChange::None;
        same_machine && is_change && wants_reinstall(spec, installed) && !spec.paused
    }

    /// Remembers the installations of machines that their specs no longer name, before another spec
    /// names them.
    fn note_departures(&mut self, specs: &Specs) {
        for (name, node) in &self.nodes {
            let Some(old) = node.spec() else { continue };
            let stays = match specs.get(name) {
                Some(Ok(spec)) => Arc::ptr_eq(spec, old) || node.keeps_installation(spec),
                Some(Err(_)) => true,
                None => false,
            };
            if !stays {
                self.unclaimed.remember(name, &node.record);
            }
            // Many departures at once are one write of the site file.
            if !specs.contains_key(name) && node.is_at_rest() {
                self.unclaimed.unlist(name);
            }
        }
    }

    /// Makes an event for each node that stops it until the directory can be read again.
    pub fn hold(&self, reason: &str) -> Vec<(NodeName, Event)> {
        self.nodes
            .keys()
            .map(|name| (name.clone(), Event::DirectoryLost(reason.to_owned())))
            .collect()
    }

    /// Passes an event to its node, which is made for its first spec. `None`: no such node.
    pub fn step(&mut self, now: Timestamp, name: &NodeName, event: Event) -> Option<Vec<Action>> {
        if !self.nodes.contains_key(name) {
            if !event.is_about_spec() || matches!(event, Event::SpecGone) {
                return None;
            }
            let mut node = Node::new(name.clone(), self.policy, now);
            node.polls = Polls::new(name, self.first_poll.max(now));
            let pause = Duration::from_secs(1) / FIRST_POLLS_PER_S;
            self.first_poll = after(self.first_poll.max(now), pause);
            self.nodes.insert(name.clone(), Box::new(node));
        }
        self.latest = self.latest.max(now);
        self.adopt(now, name);
        if let Event::Spec(spec) | Event::MassChange(spec) = &event {
            self.recall(now, name, spec);
        }
        let (interval, silent) = (self.poll_interval(), self.silent.len());
        let node = self.nodes.get_mut(name)?;
        node.polls.interval = interval;
        node.polls.silent = u32::try_from(silent).unwrap_or(u32::MAX);
        let was_written = matches!(node.record.state, State::Imaging { .. });
        let actions = node.step(now, event);
        if let (State::Imaging { .. }, Some(spec), false) =
            (&node.record.state, &node.record.spec, was_written)
        {
            self.unclaimed.written(spec);
        }
        if actions.contains(&Action::Forget) {
            self.forget(name);
        }
        self.update_indexes(name);
        Some(actions)
    }

    /// The next node that may get a permit, which must be granted at once.
    pub fn next_permit(&self) -> Option<(NodeName, Permit)> {
        self.permits.next()
    }

    /// Moves the known installation of a node without a spec into its record.
    fn adopt(&mut self, now: Timestamp, name: &NodeName) {
        let Some(node) = self.nodes.get_mut(name).filter(|node| node.record.spec.is_none()) else {
            return;
        };
        match self.unclaimed.node(name).filter(|_| node.record.installed.is_none()).cloned() {
            Some(None) if !node.record.is_disk_unknown() => *node.record = Record::distrusted(now),
            Some(Some(installed)) => node.record.know(Some(installed)),
            Some(None) | None => {}
        }
    }

    /// Finds the known installation of a machine that is new to this node: it may have belonged to
    /// another node.
    fn recall(&mut self, now: Timestamp, name: &NodeName, spec: &NodeSpec) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let incomplete = self.unclaimed.is_incomplete() || self.aliased.contains(name);
        if let Some(old) = node.spec() {
            let change = old.machine_change(spec);
            if change != MachineChange::None {
                let doubted = incomplete && change == MachineChange::Whole;
                let known = self.unclaimed.machine(spec);
                node.moved_here = known.or_else(|| doubted.then_some(None)).map(Box::new);
            }
            return;
        }
        self.unclaimed.found(name);
        // The status file has the machine, which may differ from the spec's by now.
        let reported =
            node.record.installed.as_ref().and_then(|reported| reported.machine.as_ref());
        let change = reported.map(|machine| machine.change_to(spec));
        let is_new = node.record.installed.is_none() || change == Some(MachineChange::Whole);
        let doubted = incomplete && is_new;
        let known = self.unclaimed.machine(spec).or_else(|| doubted.then_some(None));
        match (change, known) {
            (Some(MachineChange::None | MachineChange::Part), _) | (None, None) => {}
            (_, Some(None)) => *node.record = Record::distrusted(now),
            (_, Some(installed)) => node.record.know(installed),
            // The record that knew more is lost.
            (Some(MachineChange::Whole), None) => node.record.know(None),
        }
        if let Some(installed) = &mut node.record.installed {
            // The present `redeploy` is no consent, because it may be years old.
            installed.redeploy.clone_from(&spec.redeploy);
            installed.machine.get_or_insert_with(|| Machine::named_by(spec));
        }
    }

    /// Updates the node's wake-up, its place among the silent ones, and the permits that it holds
    /// and waits for.
    fn update_indexes(&mut self, name: &NodeName) {
        let node = self.nodes.get(name).map(Box::as_ref);
        self.wake_ups.put(name, node.and_then(|node| Some(node.next_wake()?.0)));
        if !node.is_some_and(|node| node.observes() && node.polls.is_silent()) {
            self.silent.remove(name);
        } else if !self.silent.contains(name) {
            self.silent.insert(name.clone());
        }
        let holds = node.and_then(|node| node.record.state.holds());
        let polls = node.and_then(Node::holds_poll);
        let on_record = self.held_on_record.get(name).copied();
        let waits = [node.and_then(Node::waits_for), node.and_then(Node::waits_to_poll)];
        self.permits.put(name, [holds, polls, on_record], waits);
    }

    /// Notes that a node's record cannot be written, so that the durable one is `stays`.
    pub(super) fn not_recorded(&mut self, name: &NodeName, stays: Option<&Record>) {
        if let Some(node) = self.nodes.get_mut(name)
            && node.on_record.is_none()
        {
            let stays = stays.map_or(State::Idle, |record| record.state.clone());
            node.on_record = Some(Box::new(stays));
        }
        if let Some(permit) = stays.and_then(|record| record.state.holds()) {
            self.held_on_record.insert(name.clone(), permit);
            self.update_indexes(name);
        }
    }

    /// Notes that a node's record is durable again.
    pub(super) fn recorded(&mut self, name: &NodeName) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.on_record = None;
        }
        if self.held_on_record.remove(name).is_some() {
            self.update_indexes(name);
        }
    }

    fn poll_interval(&self) -> Duration {
        let nodes = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        POLL_INTERVAL.max(Duration::from_secs(u64::from(nodes / POLLS_PER_S)))
    }

    fn forget(&mut self, name: &NodeName) {
        if let Some(node) = self.nodes.remove(name) {
            let Node { record, .. } = *node;
            self.unclaimed.remember(name, &record);
            self.unclaimed.unlist(name);
        }
    }

    /// The content of the site file.
    pub fn unclaimed(&self) -> &UnclaimedInstalls {
        &self.unclaimed
    }

    /// Sets whether a machine that a spec names for the first time may be installed already.
    pub(super) fn set_incomplete(&mut self, incomplete: bool) {
        self.unclaimed.set_incomplete(incomplete);
    }

    /// The BMCs of machines that are or may be installed.
    pub fn bmcs_of_installed(&self) -> impl Iterator<Item = &BmcAddress> {
        let records = self.nodes.values().map(|node| &node.record);
        let records =
            records.filter(|record| record.installed.is_some() || record.is_disk_unknown());
        records.flat_map(|record| record.bmcs()).chain(self.unclaimed.bmcs())
    }

    /// Sets the nodes whose spec names the BMC of an installed machine by another name or address.
    /// A machine that they name for the first time may be installed already.
    pub(super) fn note_aliased(&mut self, aliased: BTreeSet<NodeName>) {
        self.aliased = aliased;
    }

    /// Whether the breaker counts the node's reinstall.
    pub(super) fn is_counted(&self, name: &NodeName) -> bool {
        self.unclaimed.reinstalls().contains_key(name)
    }

    /// Whether the site file must list the node and does not.
    pub(super) fn is_unlisted(&self, name: &NodeName) -> bool {
        self.nodes.get(name).filter(|node| !(node.gone && node.is_at_rest())).is_some_and(|node| {
            let machine = node.spec().map(|spec| spec.machine());
            node.record.must_be_missed() && !self.unclaimed.lists(name, machine.as_ref())
        })
    }

    /// Lists all nodes with a durable record, so that a lost record is noticed. Returns the newly
    /// listed nodes. `unsaved` tells the nodes without an up-to-date record.
    pub(super) fn list_nodes(&mut self, unsaved: impl Fn(&NodeName) -> bool) -> Vec<NodeName> {
        let machine = |node: &Node| node.spec().map(|spec| spec.machine());
        let saved = self.nodes.iter().filter(|(name, node)| !node.gone && !unsaved(name));
        self.unclaimed.list(saved.map(|(name, node)| (name, machine(node))))
    }

    /// Takes nodes off the list again, because the site file cannot be written.
    pub(super) fn unlist_nodes(&mut self, names: &[NodeName]) {
        for name in names {
            self.unclaimed.unlist(name);
        }
    }

    /// Returns the effective specs after a scan: the valid ones; the last good ones of broken
    /// files; those of busy nodes without a spec; and for each node that changes its machine while
    /// it is busy, one more with the old machine.
    pub fn effective_specs(&self, found: &Specs) -> Vec<Arc<NodeSpec>> {
        let last_good = |name| self.nodes.get(name)?.record.spec.clone();
        let kept = found.iter().filter_map(|(name, spec)| match spec {
            Ok(spec) => Some(Arc::clone(spec)),
            Err(_) => last_good(name),
        });
        let leaving = self.nodes.iter().filter(|(name, node)| {
            let busy = node.running.is_some() || !node.record.state.at_rest();
            busy && !found.contains_key(*name)
        });
        let leaving = leaving.filter_map(|(_, node)| node.record.spec.clone());
        let moving = self.nodes.values().filter_map(|node| node.spec_of_busy_machine());
        kept.chain(leaving).chain(moving).collect()
    }

    /// The kernels and ramdisks that machines are or will be served.
    pub fn netboot_digests(&self) -> BTreeSet<Digest> {
        let mut digests = BTreeSet::new();
        let mut add = |files: Option<&NetbootFiles>| {
            let files = files.into_iter();
            digests.extend(
                files
                    .flat_map(|files| [&files.kernel_digest, &files.ramdisk_digest])
                    .flatten()
                    .cloned(),
            );
        };
        for record in self.nodes.values().map(|node| &node.record) {
            add(record.installed.as_ref().and_then(|installed| installed.netboot.as_ref()));
            add(record.state.attempt().and_then(|attempt| attempt.image.netboot.as_ref()));
        }
        for installed in self.unclaimed.installed() {
            add(installed.netboot.as_ref());
        }
        digests
    }

    /// The nodes that are due for an [`Event::Tick`].
    pub fn due(&self, now: Timestamp) -> Vec<NodeName> {
        self.wake_ups.due(now)
    }

    /// When the next node is due for an [`Event::Tick`].
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.wake_ups.next().map(|(at, _)| at)
    }
}

//! The write-ahead rule: a node's record is durable before its boot menu is served, and the boot
//! menu is served before anything is done. So no crash can do harm. While a record cannot be
//! written, the node's actions wait.
//!
//! Owned by the agent's driver, which brings events and the time and is the [`Effects`]; the
//! simulation of a whole site is another. No action may get out before the record that announces it
//! is durable.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

use crate::model::{
    callback::Reply,
    fault::{Fault, Step},
    ids::{NodeName, OpId},
    machine::MachineChange,
    problem::Problem,
    spec::NodeSpec,
    status::Status,
};

use super::{
    event::{Action, Event, NEVER_STARTED, Operation},
    fleet::{Fleet, Specs},
    node::Node,
    state::Record,
    unclaimed::UnclaimedInstalls,
};

/// The surroundings that the core acts on. No method may block for long.
pub trait Effects {
    /// Makes a node's record durable before it returns. The error is shown to the operator.
    fn save(&mut self, node: &NodeName, record: &Record) -> Result<(), String>;
    /// Makes durable what is known beside the records, before it returns. The error is shown to the
    /// operator.
    fn keep(&mut self, unclaimed: &UnclaimedInstalls) -> Result<(), String>;
    /// Serves the node's boot menu.
    fn serve(&mut self, node: &Node);
    /// Starts an operation; its end comes back as [`Event::Done`].
    fn start(&mut self, node: &NodeName, op: OpId, operation: Operation, spec: Arc<NodeSpec>);
    /// Tells an operation to stop.
    fn cancel(&mut self, node: &NodeName, op: OpId);
    /// Answers a callback.
    fn reply(&mut self, request: u64, reply: Reply);
    /// Tells the waiting ramdisks that a node's state has changed.
    fn wake_ramdisks(&mut self);
    /// Shows the status of a node.
    fn show(&mut self, status: Status);
    /// Logs that a node has entered this phase.
    fn log_phase(&mut self, status: &Status);
    /// Removes a forgotten node's boot menu, status file and record.
    fn forget(&mut self, node: &NodeName);
}

/// The fleet, and what of its decisions still waits for a record to be written.
#[derive(Debug)]
pub struct Executor {
    fleet: Fleet,
    /// Nodes whose record could not be written, with the actions that wait for it.
    unsaved: BTreeMap<NodeName, Vec<Action>>,
    /// The changes of [`Fleet::left`] that are durable.
    kept: u64,
}

impl Executor {
    /// An executor for this fleet.
    pub fn new(fleet: Fleet) -> Self {
        Self { fleet, unsaved: BTreeMap::new(), kept: 0 }
    }

    /// The fleet, to look at.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Whether a record waits to be written: [`Executor::tick`] tries again.
    pub fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// Whether this node's record waits to be written.
    pub fn is_unsaved(&self, name: &NodeName) -> bool {
        self.unsaved.contains_key(name)
    }

    /// Serves every node's boot menu, as after a start. Where it stands is shown once the
    /// directory has been read: until then the last agent's word is as good.
    pub fn present(&mut self, effects: &mut impl Effects) {
        for name in self.fleet.names() {
            let Some(node) = self.fleet.node(&name) else { continue };
            // Knowledge that only a status file has must be on record before that file is written
            // anew.
            if node.spec().is_none() && effects.save(&name, node.record()).is_err() {
                self.unsaved.insert(name, Vec::new());
                continue;
            }
            effects.serve(node);
        }
    }

    /// Brings one event to one node, and executes all that follows from it, for others too.
    pub fn step(
        &mut self,
        now: Timestamp,
        name: &NodeName,
        event: Event,
        effects: &mut impl Effects,
    ) {
        self.step_all(now, [(name.clone(), event)], effects);
    }

    /// Brings one event each to many nodes. That their records would be missed is written once for
    /// all of them.
    pub fn step_all(
        &mut self,
        now: Timestamp,
        events: impl IntoIterator<Item = (NodeName, Event)>,
        effects: &mut impl Effects,
    ) {
        let mut decided = Vec::new();
        for (name, event) in events {
            decided.extend(self.decide(now, name, event, effects));
        }
        self.execute(now, decided, effects);
        self.grant_permits(now, effects);
    }

    fn grant_permits(&mut self, now: Timestamp, effects: &mut impl Effects) {
        while let Some((name, permit)) = self.fleet.next_permit() {
            let decided = self.decide(now, name, Event::Granted(permit), effects);
            self.execute(now, decided.into_iter().collect(), effects);
        }
    }

    /// Turns a scan of the spec directory into an event for each node, to be brought to it by
    /// [`Executor::step`].
    pub fn compare(
        &mut self,
        now: Timestamp,
        specs: Specs,
        clashes: &BTreeMap<NodeName, Vec<Problem>>,
    ) -> Vec<(NodeName, Event)> {
        self.fleet.compare(now, specs, clashes)
    }

    /// These nodes' specs name the BMC of an installed machine in other words than it is known by,
    /// as far as names can be resolved.
    pub fn note_aliased(&mut self, aliased: BTreeSet<NodeName>) {
        self.fleet.note_aliased(aliased);
    }

    /// Machines that specs name from now on are new again, although something that was known of
    /// machines was lost. Answers whether they were not.
    pub fn approve_new_machines(&mut self, effects: &mut impl Effects) -> Result<bool, String> {
        if !self.fleet.unclaimed().is_incomplete() {
            return Ok(false);
        }
        self.fleet.set_incomplete(false);
        let kept = self.keep_unclaimed(effects);
        self.fleet.set_incomplete(kept.is_err());
        kept.map(|()| true)
    }

    /// Brings every node whose time has come its tick, and tries to write records that could not be
    /// written.
    pub fn tick(&mut self, now: Timestamp, effects: &mut impl Effects) {
        let unsaved = self.unsaved.keys().cloned().collect::<Vec<_>>();
        for name in unsaved.into_iter().chain(self.fleet.due(now)) {
            if self.fleet.node(&name).is_some() {
                self.step(now, &name, Event::Tick, effects);
            } else {
                let decided = self.record(now, name, None, Vec::new(), effects);
                self.execute(now, decided.into_iter().collect(), effects);
                self.grant_permits(now, effects);
            }
        }
    }

    /// Has the core decide, and records that. `None`: nothing is left to execute.
    fn decide(
        &mut self,
        now: Timestamp,
        name: NodeName,
        event: Event,
        effects: &mut impl Effects,
    ) -> Option<Decided> {
        let request = event.request();
        let before = self.fleet.node(&name).map(|node| node.record().clone());
        match (self.fleet.step(now, &name, event), request) {
            (Some(actions), _) => self.record(now, name, before, actions, effects),
            // No such node: its caller learns as little as one with a wrong key.
            (None, Some(request)) => {
                effects.reply(request, Reply::Refused);
                None
            }
            (None, None) => None,
        }
    }

    /// Makes the record durable, if it can be.
    fn record(
        &mut self,
        now: Timestamp,
        name: NodeName,
        before: Option<Record>,
        actions: Vec<Action>,
        effects: &mut impl Effects,
    ) -> Option<Decided> {
        let unsaved = self.unsaved.remove(&name);
        let is_retry = unsaved.is_some();
        let mut waiting = unsaved.unwrap_or_default();
        waiting.extend(actions);
        let kept = self.keep_unclaimed(effects);
        let Some(node) = self.fleet.node(&name) else {
            let before = before.filter(|_| !is_retry);
            self.forget(&name, before.as_ref(), waiting, kept.is_ok(), effects);
            return None;
        };
        let unstarted = call_off(node, &mut waiting);
        let record = node.record();
        if before.as_ref().map(|before| before.phase) != Some(record.phase) {
            effects.log_phase(&node.status(now));
        }
        // Only a node that turns to another machine has left one behind. And a reinstall is counted
        // before it begins.
        let spec_before = before.as_ref().and_then(|before| before.spec.as_ref());
        let same_machine = spec_before
            .zip(record.spec.as_ref())
            .is_some_and(|(before, spec)| before.machine_change(spec) == MachineChange::None);
        let needs_kept = is_retry || !same_machine || self.fleet.is_counted(&name);
        let saved = if is_retry || before.as_ref() != Some(record) {
            kept.or_else(|error| if needs_kept { Err(error) } else { Ok(()) })
                .and_then(|()| effects.save(&name, record))
        } else {
            Ok(())
        };
        if saved.is_err() {
            self.unsaved.insert(name.clone(), Vec::new());
        }
        Some(Decided { name, before, waiting, saved, is_retry, unstarted })
    }

    /// Executes what was decided, once it is durable; the rest waits.
    fn execute(&mut self, now: Timestamp, decided: Vec<Decided>, effects: &mut impl Effects) {
        let listed = self.list(&decided, effects);
        for mut one in decided {
            let unstarted = one.unstarted.map(|op| (one.name.clone(), op));
            if self.fleet.is_unlisted(&one.name) {
                one.saved = one.saved.and_then(|()| listed.clone());
            }
            if let Err(error) = &one.saved {
                let error = error.clone();
                self.put_off(now, one, &error, effects);
            } else {
                self.act(now, one, effects);
            }
            // The operation was called off while it waited for its record: it never starts, and so
            // has stopped.
            if let Some((name, op)) = unstarted {
                let event = Event::Done { op, outcome: Err(never_started()) };
                let decided = self.decide(now, name, event, effects);
                self.execute(now, decided.into_iter().collect(), effects);
            }
        }
    }

    /// Serves the boot menu, and only then does what the core asked for.
    fn act(&mut self, now: Timestamp, decided: Decided, effects: &mut impl Effects) {
        let Decided { name, before, waiting, is_retry, .. } = decided;
        let Some(node) = self.fleet.node(&name) else { return };
        effects.serve(node);
        if is_retry || before.map(|before| before.state).as_ref() != Some(&node.record().state) {
            effects.wake_ramdisks();
        }
        for action in waiting {
            match action {
                Action::Start { op, operation, spec } => effects.start(&name, op, operation, spec),
                Action::Cancel(op) => effects.cancel(&name, op),
                Action::Reply { request, reply } => effects.reply(request, reply),
                Action::Forget => {}
            }
        }
        effects.show(node.status(now));
        if is_retry {
            self.fleet.recorded(&name);
        }
    }

    /// Puts off what is not durable until [`Self::tick`].
    fn put_off(
        &mut self,
        now: Timestamp,
        decided: Decided,
        error: &str,
        effects: &mut impl Effects,
    ) {
        let Decided { name, before, mut waiting, is_retry, .. } = decided;
        if let Some(node) = self.fleet.node(&name) {
            let mut status = node.status(now);
            status.message = format!("{error}; nothing is started until it can be written");
            status.ready = false;
            effects.show(status);
        }
        // A refusal announces nothing, and anybody can ask for as many as they like.
        for action in waiting.extract_if(.., |action| is_refusal(action)) {
            if let Action::Reply { request, reply } = action {
                effects.reply(request, reply);
            }
        }
        self.fleet.not_recorded(&name, before.as_ref().filter(|_| !is_retry));
        self.unsaved.entry(name).or_default().extend(waiting);
    }

    /// The node is gone, and nothing of it runs any more; callers still want their answer. Its
    /// record stays until what it leaves behind is kept.
    fn forget(
        &mut self,
        name: &NodeName,
        before: Option<&Record>,
        waiting: Vec<Action>,
        kept: bool,
        effects: &mut impl Effects,
    ) {
        for action in waiting {
            if let Action::Reply { request, reply } = action {
                effects.reply(request, reply);
            }
        }
        if kept {
            effects.forget(name);
            self.fleet.recorded(name);
        } else {
            self.unsaved.insert(name.clone(), Vec::new());
            self.fleet.not_recorded(name, before);
        }
    }

    /// Before anything is done to its machine, a node's record is one that would be missed. All
    /// others that are durable by now become so with it.
    fn list(&mut self, decided: &[Decided], effects: &mut impl Effects) -> Result<(), String> {
        let is_unlisted = |one: &Decided| one.saved.is_ok() && self.fleet.is_unlisted(&one.name);
        if !decided.iter().any(is_unlisted) {
            return Ok(());
        }
        let unsaved = &self.unsaved;
        let newly = self.fleet.list_nodes(|other| unsaved.contains_key(other));
        let kept = self.keep_unclaimed(effects);
        if kept.is_err() {
            self.fleet.unlist_nodes(&newly);
        }
        kept
    }

    /// Before the record that knew it is changed or removed.
    fn keep_unclaimed(&mut self, effects: &mut impl Effects) -> Result<(), String> {
        let unclaimed = self.fleet.unclaimed();
        if unclaimed.changes() != self.kept {
            effects.keep(unclaimed)?;
            self.kept = unclaimed.changes();
        }
        Ok(())
    }
}

/// A decision of the core for one node.
struct Decided {
    name: NodeName,
    /// The record before the decision.
    before: Option<Record>,
    waiting: Vec<Action>,
    /// The error for the operator, if the record is not durable.
    saved: Result<(), String>,
    /// Whether an earlier decision is tried again with it.
    is_retry: bool,
    /// An operation that was called off before it began.
    unstarted: Option<OpId>,
}

const fn is_refusal(action: &Action) -> bool {
    matches!(action, Action::Reply { reply: Reply::Refused, .. })
}

/// Takes an operation that still waits for its record, and was told to stop, out of what waits. One
/// that was only told to hurry stays.
fn call_off(node: &Node, waiting: &mut Vec<Action>) -> Option<OpId> {
    let op = waiting.iter().find_map(|action| match action {
        Action::Start { op, .. } => Some(*op),
        Action::Cancel(_) | Action::Reply { .. } | Action::Forget => None,
    })?;
    waiting.retain(|action| *action != Action::Cancel(op));
    let called_off = node.running.is_some_and(|running| running.op == op && running.cancelled);
    waiting.retain(|action| !called_off || !matches!(action, Action::Start { .. }));
    called_off.then_some(op)
}

/// The end of an operation that was called off before it began.
fn never_started() -> Fault {
    Fault::passing(Step::Preflight, NEVER_STARTED, "called off before it began", "")
}

//! The executor and its write-ahead rule: a node's record is durable before its boot menu is
//! served, and the boot menu is served before any effect. While a record cannot be written, the
//! node's actions wait, but not refusals, cancellations, and answers that announce no decision.
//!
//! Owned by the agent's driver, which passes it events with the time and implements [`Effects`], as
//! the simulation of a whole site does. No action may have an effect before the record that
//! announces it is durable.

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
    event::{Action, Event, Operation, ReceivedLog},
    fleet::{Fleet, Specs},
    node::Node,
    state::Record,
    unclaimed::UnclaimedInstalls,
};

/// The effects of the core's decisions. No method may block for long.
pub trait Effects {
    /// Writes a node's record durably. The error is a message for the operator.
    fn save(&mut self, node: &NodeName, record: &Record) -> Result<(), String>;
    /// Writes the site file durably. The error is a message for the operator.
    fn save_site(&mut self, unclaimed: &UnclaimedInstalls) -> Result<(), String>;
    /// Serves the node's boot menu.
    fn serve(&mut self, node: &Node);
    /// Starts an operation, which must end with [`Event::Done`].
    fn start(&mut self, node: &NodeName, op: OpId, operation: Operation, spec: Arc<NodeSpec>);
    /// Cancels an operation, which must still end with [`Event::Done`].
    fn cancel(&mut self, node: &NodeName, op: OpId);
    /// Answers a callback.
    fn reply(&mut self, request: u64, reply: Reply);
    /// Writes a deploy ramdisk's log. A failure has no effect.
    fn keep_log(&mut self, node: &NodeName, log: ReceivedLog);
    /// Wakes the waiting ramdisks after a change of a node's state.
    fn wake_ramdisks(&mut self);
    /// Publishes the status of a node.
    fn show(&mut self, status: Status);
    /// Logs that a node has entered this phase.
    fn log_phase(&mut self, status: &Status);
    /// Removes a forgotten node's boot menu, status file and record.
    fn forget(&mut self, node: &NodeName);
}

/// The fleet, with the actions that wait for a record to be written.
#[derive(Debug)]
pub struct Executor {
    fleet: Fleet,
    /// The waiting actions of each node whose record cannot be written.
    unsaved: BTreeMap<NodeName, Vec<Action>>,
    /// The value of [`UnclaimedInstalls::changes`] in the durable site file.
    saved_changes: u64,
}

impl Executor {
    /// Makes an executor for this fleet.
    pub fn new(fleet: Fleet) -> Self {
        Self { fleet, unsaved: BTreeMap::new(), saved_changes: 0 }
    }

    /// The fleet, read-only.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Whether a record waits to be written; [`Executor::tick`] retries.
    pub fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// Whether this node's record waits to be written.
    pub fn is_unsaved(&self, name: &NodeName) -> bool {
        self.unsaved.contains_key(name)
    }

    /// Serves every node's boot menu after a start. Publishes no status before the first scan,
    /// because the last agent's status files still hold.
    pub fn present(&mut self, effects: &mut impl Effects) {
        for name in self.fleet.names() {
            let Some(node) = self.fleet.node(&name) else { continue };
            // Knowledge from a status file must be on record before that file is replaced.
            if node.spec().is_none() && effects.save(&name, node.record()).is_err() {
                self.fleet.not_recorded(&name, None);
                self.unsaved.insert(name, Vec::new());
                continue;
            }
            effects.serve(node);
        }
    }

    /// Passes an event to its node, and executes everything that follows, for other nodes, too.
    pub fn step(
        &mut self,
        now: Timestamp,
        name: &NodeName,
        event: Event,
        effects: &mut impl Effects,
    ) {
        self.step_all(now, [(name.clone(), event)], effects);
    }

    /// Passes one event each to many nodes, with a single write of the site file.
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

    /// Turns a scan of the spec directory into an event for each node, for [`Executor::step`].
    pub fn compare(
        &mut self,
        now: Timestamp,
        specs: Specs,
        clashes: &BTreeMap<NodeName, Vec<Problem>>,
    ) -> Vec<(NodeName, Event)> {
        self.fleet.compare(now, specs, clashes)
    }

    /// Sets the nodes whose spec names the BMC of an installed machine by another name or address.
    pub fn note_aliased(&mut self, aliased: BTreeSet<NodeName>) {
        self.fleet.note_aliased(aliased);
    }

    /// Approves that machines of specs which appear from now on are new, although records were
    /// lost. Returns whether this changed anything.
    pub fn approve_new_machines(&mut self, effects: &mut impl Effects) -> Result<bool, String> {
        if !self.fleet.unclaimed().is_incomplete() {
            return Ok(false);
        }
        self.fleet.set_incomplete(false);
        let site_saved = self.save_changed_site(effects);
        self.fleet.set_incomplete(site_saved.is_err());
        site_saved.map(|()| true)
    }

    /// Passes a tick to every node that is due, and retries failed writes of records.
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

    /// Has the core decide, and records the decision. `None`: nothing is left to execute.
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
            // No such node: the caller gets the same reply as with a wrong key.
            (None, Some(request)) => {
                effects.reply(request, Reply::Refused);
                None
            }
            (None, None) => None,
        }
    }

    /// Tries to make the record durable.
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
        if self.fleet.node(&name).is_none() {
            waiting.iter_mut().for_each(refuse);
        }
        waiting.extend(actions);
        let site_saved = self.save_changed_site(effects);
        let Some(node) = self.fleet.node(&name) else {
            let before = before.filter(|_| !is_retry);
            self.forget(&name, before.as_ref(), waiting, site_saved.is_ok(), effects);
            return None;
        };
        let unstarted = remove_cancelled(node, &mut waiting);
        let record = node.record();
        if before.as_ref().map(|before| before.phase) != Some(record.phase) {
            effects.log_phase(&node.status(now));
        }
        // The site file must be durable first for a node that changes its machine, because the old
        // one becomes unclaimed, and for a reinstall, because the breaker counts it.
        let spec_before = before.as_ref().and_then(|before| before.spec.as_ref());
        let same_machine = spec_before
            .zip(record.spec.as_ref())
            .is_some_and(|(before, spec)| before.machine_change(spec) == MachineChange::None);
        let needs_site = is_retry || !same_machine || self.fleet.is_counted(&name);
        let saved = if is_retry || before.as_ref() != Some(record) {
            site_saved
                .or_else(|error| if needs_site { Err(error) } else { Ok(()) })
                .and_then(|()| effects.save(&name, record))
        } else {
            Ok(())
        };
        if saved.is_err() {
            self.unsaved.insert(name.clone(), Vec::new());
        }
        Some(Decided { name, before, waiting, saved, is_retry, unstarted })
    }

    /// Executes the durable decisions; the others wait.
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
            // The operation was cancelled while it waited for its record: it never starts, so that
            // it has ended.
            if let Some((name, op)) = unstarted {
                let event = Event::Done { op, outcome: Err(never_started()) };
                let decided = self.decide(now, name, event, effects);
                self.execute(now, decided.into_iter().collect(), effects);
            }
        }
    }

    /// Serves the boot menu, and then performs the actions.
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
                Action::KeepLog(log) => effects.keep_log(&name, *log),
                Action::Forget => {}
            }
        }
        effects.show(node.status(now));
        if is_retry {
            self.fleet.recorded(&name);
        }
    }

    /// Keeps a decision that is not durable until [`Self::tick`].
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
        // A refusal and the ranges of a write announce no decision, and must not pile up: a machine
        // can cause any number of them. A cancellation ends an effect: the operator who wants that
        // does not wait for the disk.
        for action in waiting.extract_if(.., |action| decides_nothing(action)) {
            match action {
                Action::Reply { request, reply } => effects.reply(request, reply),
                Action::Cancel(op) => effects.cancel(&name, op),
                Action::Start { .. } | Action::KeepLog(_) | Action::Forget => {}
            }
        }
        self.fleet.not_recorded(&name, before.as_ref().filter(|_| !is_retry));
        self.unsaved.entry(name).or_default().extend(waiting);
    }

    /// Forgets a node of which nothing runs any more, and answers its callers. Its record stays
    /// until the site file has its unclaimed installation.
    fn forget(
        &mut self,
        name: &NodeName,
        before: Option<&Record>,
        waiting: Vec<Action>,
        site_saved: bool,
        effects: &mut impl Effects,
    ) {
        for action in waiting {
            if let Action::Reply { request, reply } = action {
                effects.reply(request, reply);
            }
        }
        if site_saved {
            effects.forget(name);
            self.fleet.recorded(name);
        } else {
            self.unsaved.insert(name.clone(), Vec::new());
            self.fleet.not_recorded(name, before);
        }
    }

    /// Lists the nodes with a durable record in the site file before any effect on an unlisted
    /// node's machine, so that a lost record would be noticed.
    fn list(&mut self, decided: &[Decided], effects: &mut impl Effects) -> Result<(), String> {
        let is_unlisted = |one: &Decided| one.saved.is_ok() && self.fleet.is_unlisted(&one.name);
        if !decided.iter().any(is_unlisted) {
            return Ok(());
        }
        let unsaved = &self.unsaved;
        let newly = self.fleet.list_nodes(|other| unsaved.contains_key(other));
        let site_saved = self.save_changed_site(effects);
        if site_saved.is_err() {
            self.fleet.unlist_nodes(&newly);
        }
        site_saved
    }

    /// Writes the site file if it has changed. This must precede the change or removal of a record.
    fn save_changed_site(&mut self, effects: &mut impl Effects) -> Result<(), String> {
        let unclaimed = self.fleet.unclaimed();
        if unclaimed.changes() != self.saved_changes {
            effects.save_site(unclaimed)?;
            self.saved_changes = unclaimed.changes();
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
    /// Whether the record is durable, or the message for the operator.
    saved: Result<(), String>,
    /// Whether this retries an earlier decision, too.
    is_retry: bool,
    /// An operation that was cancelled before it began.
    unstarted: Option<OpId>,
}

/// Whether an action does not wait for its node's record.
const fn decides_nothing(action: &Action) -> bool {
    matches!(
        action,
        Action::Reply { reply: Reply::Refused | Reply::Flushed(_), .. } | Action::Cancel(_)
    )
}

/// Replaces an answer that announces a decision of which no record will ever tell.
fn refuse(action: &mut Action) {
    if let Action::Reply { reply, .. } = action {
        *reply = Reply::Refused;
    }
}

/// Removes a cancelled operation that still waits for its record. An interrupted one, whose result
/// still counts, stays.
fn remove_cancelled(node: &Node, waiting: &mut Vec<Action>) -> Option<OpId> {
    let op = waiting.iter().find_map(|action| match action {
        Action::Start { op, .. } => Some(*op),
        Action::Cancel(_) | Action::Reply { .. } | Action::KeepLog(_) | Action::Forget => None,
    })?;
    waiting.retain(|action| *action != Action::Cancel(op));
    let is_cancelled = node.running.is_some_and(|running| running.op == op && running.cancelled);
    waiting.retain(|action| !is_cancelled || !matches!(action, Action::Start { .. }));
    is_cancelled.then_some(op)
}

/// The fault of an operation that was cancelled before it began.
fn never_started() -> Fault {
    Fault::passing(Step::Preflight, "NeverStarted", "cancelled before it began", "")
}

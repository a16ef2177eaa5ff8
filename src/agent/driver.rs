//! The one task that owns the fleet: select an event, step, carry out.
//!
//! The order in [`Driver::carry_out`] is the heart of crash safety: the record first, then the boot menu, then everything else. While
//! a record cannot be written, the node's actions wait.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::Arc,
    time::Duration,
};

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::yield_now,
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

use crate::{
    callback::Request,
    imaging::Meter,
    lifecycle::{Action, Event, Fleet, Operation, Record},
    model::{
        boot::Fetch,
        callback::Reply,
        fault::{Fault, Step},
        ids::{NodeName, OpId},
        spec::NodeSpec,
    },
    spec::{ReadError, Snapshot, clashes},
    store::Store,
};

use super::{
    CHANNEL_DEPTH,
    menu::MenuWriter,
    publish::Publisher,
    work::{Workshop, cancel_signal},
};

/// How often a running operation's progress is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// How soon a record that could not be written is tried again.
const RECORD_RETRY: Duration = Duration::from_secs(1);
/// How long running operations get to stop when the agent stops; a wipe on a live disk takes far less.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// The fleet and everything its actions need.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) fleet: Fleet,
    /// The spec directory's name in messages.
    pub(super) specs_dir: String,
    pub(super) store: Store,
    pub(super) menus: MenuWriter,
    pub(super) publisher: Publisher,
    pub(super) workshop: Arc<Workshop>,
    /// Ticks when a node may have something new to tell its ramdisk.
    pub(super) changed: watch::Sender<u64>,
    /// What the last scan means and has not been brought to its node yet. Everything else goes first: a thousand new specs are a
    /// thousand records to write, and a machine that calls back is not kept waiting for them.
    pub(super) news: VecDeque<(NodeName, Event)>,
    /// Nodes whose record could not be written, with why and the actions that wait for it.
    pub(super) unsaved: BTreeMap<NodeName, (String, Vec<Action>)>,
    /// Callbacks to be answered.
    pub(super) replies: BTreeMap<u64, oneshot::Sender<Reply>>,
    /// How to stop each running operation.
    pub(super) running: BTreeMap<(NodeName, OpId), watch::Sender<bool>>,
}

/// What a node's operation says to the driver.
type Report = (NodeName, Event);

impl Driver {
    /// Drives until `shutdown`, then stops what runs.
    pub(super) async fn run(
        mut self,
        mut scans: mpsc::Receiver<Result<Snapshot, ReadError>>,
        mut calls: mpsc::Receiver<Request>,
        mut fetches: mpsc::Receiver<Fetch>,
        shutdown: impl Future<Output = ()>,
    ) {
        let (reports, mut reported) = mpsc::channel::<Report>(CHANNEL_DEPTH);
        let mut request = 0;
        tokio::pin!(shutdown);
        for name in self.fleet.names() {
            self.show(&name);
        }
        loop {
            let wake = self.next_wake();
            // Every arm is cancel-safe: receiving loses nothing, and all work is done after the select.
            let (name, event) = tokio::select! {
                () = &mut shutdown => break,
                Some(snapshot) = scans.recv(), if self.news.is_empty() => {
                    self.compare(snapshot);
                    continue;
                }
                () = yield_now(), if !self.news.is_empty() => match self.news.pop_front() {
                    Some(news) => news,
                    None => continue,
                },
                Some(call) = calls.recv() => {
                    request += 1;
                    let Request { node, peer, key, call, reply } = call;
                    self.replies.insert(request, reply);
                    (node, Event::Callback { request, peer, key, call })
                }
                Some(fetch) = fetches.recv() => (fetch.node.clone(), Event::Fetched(fetch)),
                Some(report) = reported.recv() => report,
                () = sleep_until(wake) => {
                    self.tick(&reports);
                    continue;
                }
            };
            self.step(&name, event, &reports);
        }
        self.stop(reports, reported).await;
    }

    /// One event to one node, and its consequences.
    fn step(&mut self, name: &NodeName, event: Event, reports: &mpsc::Sender<Report>) {
        if let Event::Done { op, .. } = &event {
            self.running.remove(&(name.clone(), *op));
        }
        let request =
            if let Event::Callback { request, .. } = &event { Some(*request) } else { None };
        let before = self.fleet.node(name).map(|node| node.record().clone());
        match self.fleet.step(now(), name, event) {
            Some(actions) => self.carry_out(name, before.as_ref(), actions, reports),
            // No such node: its caller learns as little as one with a wrong key.
            None => self.reply(request, Reply::Refused),
        }
    }

    /// Makes the record durable, puts the boot menu in force, and only then does what the core asked for.
    fn carry_out(
        &mut self,
        name: &NodeName,
        before: Option<&Record>,
        mut actions: Vec<Action>,
        reports: &mpsc::Sender<Report>,
    ) {
        let Some(node) = self.fleet.node(name) else { return self.forget(name, actions) };
        let record = node.record();
        if before.map(|before| before.phase) != Some(record.phase) {
            info!(node = %name, phase = record.phase.as_str(), attempt = record.attempt, message = node.status(record.since).message, "phase");
        }
        let waiting = self.unsaved.remove(name);
        let unsaved = waiting.is_some() || before != Some(record);
        if let Err(error) = if unsaved { self.store.save(name, record) } else { Ok(()) } {
            error!(node = %name, %error, "a record cannot be written; nothing is started until it can");
            let mut held = waiting.map(|(_, held)| held).unwrap_or_default();
            held.append(&mut actions);
            self.unsaved.insert(name.clone(), (error.to_string(), held));
            return self.show(name);
        }
        self.menus.apply(name, node);
        if before.map(|before| &before.state) != Some(&record.state) {
            self.changed.send_modify(|version| *version += 1);
        }
        let held = waiting.map(|(_, held)| held).unwrap_or_default();
        for action in held.into_iter().chain(actions) {
            match action {
                Action::Start { op, operation, spec } => {
                    self.start(name, op, operation, spec, reports.clone());
                }
                Action::Cancel(op) => {
                    if let Some(cancel) = self.running.get(&(name.clone(), op)) {
                        cancel.send_replace(true);
                    }
                }
                Action::Reply { request, reply } => self.reply(Some(request), reply),
                Action::Forget => {}
            }
        }
        self.show(name);
    }

    fn start(
        &mut self,
        name: &NodeName,
        op: OpId,
        operation: Operation,
        spec: Arc<NodeSpec>,
        reports: mpsc::Sender<Report>,
    ) {
        let (stop, cancel) = cancel_signal();
        self.running.insert((name.clone(), op), stop);
        let (name, workshop) = (name.clone(), Arc::clone(&self.workshop));
        tokio::spawn(async move {
            let meter = Arc::new(Meter::default());
            let work = tokio::spawn({
                let meter = Arc::clone(&meter);
                async move { workshop.perform(operation, &spec, &meter, cancel).await }
            });
            let outcome = watch_over(work, &meter, |progress| {
                // Progress may be lost when the driver is busy; the end may not.
                drop(reports.try_send((name.clone(), Event::Progress { op, progress })));
            })
            .await;
            if let Err(fault) = &outcome {
                warn!(node = %name, %op, step = ?fault.step, code = %fault.code, error = fault.message, "operation failed");
            }
            if reports.send((name, Event::Done { op, outcome })).await.is_err() {
                // The agent is stopping; the record says what was under way.
            }
        });
    }

    /// What a scan found, as events. A directory that cannot be read holds everything.
    fn compare(&mut self, snapshot: Result<Snapshot, ReadError>) {
        let events = match snapshot {
            Ok(snapshot) => {
                let in_force: Vec<Arc<NodeSpec>> = snapshot
                    .nodes
                    .iter()
                    .filter_map(|(name, spec)| match spec {
                        Ok(spec) => Some(Arc::clone(spec)),
                        Err(_) => self.fleet.node(name)?.spec().cloned(),
                    })
                    .chain(self.fleet.leaving(&snapshot.nodes).cloned())
                    .collect();
                let clashes = clashes(&self.specs_dir, in_force.iter().map(AsRef::as_ref));
                self.fleet.compare(snapshot.nodes, &clashes)
            }
            Err(error) => {
                warn!(%error, "the spec directory cannot be read; everything is held");
                self.fleet.hold(&error.to_string())
            }
        };
        self.news.extend(events);
    }

    /// Brings every node whose time has come its tick, and tries to write records that could not be written.
    fn tick(&mut self, reports: &mpsc::Sender<Report>) {
        for name in self.unsaved.keys().cloned().collect::<Vec<_>>() {
            self.step(&name, Event::Tick, reports);
        }
        for name in self.fleet.due(now()) {
            self.step(&name, Event::Tick, reports);
        }
    }

    fn next_wake(&self) -> Instant {
        let now = Timestamp::now();
        let core = self.fleet.next_wake().map_or(Duration::from_secs(3600), |(at, _)| {
            Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
        });
        let wait = if self.unsaved.is_empty() { core } else { core.min(RECORD_RETRY) };
        // At least a moment, so that a wake that changes nothing cannot keep a core busy.
        Instant::now() + wait.max(Duration::from_millis(10))
    }

    fn show(&self, name: &NodeName) {
        let Some(node) = self.fleet.node(name) else { return };
        let mut status = node.status(now());
        if let Some((error, _)) = self.unsaved.get(name) {
            status.message = format!("{error}; nothing is started until it can be written");
            status.ready = false;
        }
        self.publisher.show(status);
    }

    fn forget(&mut self, name: &NodeName, actions: Vec<Action>) {
        info!(node = %name, "its spec is gone: forgotten");
        let waiting = self.unsaved.remove(name).map(|(_, waiting)| waiting).unwrap_or_default();
        for action in waiting.into_iter().chain(actions) {
            // Nothing runs any more; callers still want their answer.
            if let Action::Reply { request, reply } = action {
                self.reply(Some(request), reply);
            }
        }
        self.menus.remove(name);
        self.publisher.remove(name);
        if let Err(error) = self.store.remove(name) {
            error!(node = %name, %error, "a record cannot be removed");
        }
    }

    fn reply(&mut self, request: Option<u64>, reply: Reply) {
        if let Some(waiting) = request.and_then(|request| self.replies.remove(&request)) {
            // A caller that has gone will call again.
            drop(waiting.send(reply));
        }
    }

    /// Tells everything that runs to stop, and waits for it within a limit.
    async fn stop(self, reports: mpsc::Sender<Report>, mut reported: mpsc::Receiver<Report>) {
        drop(reports);
        info!(operations = self.running.len(), "stopping");
        for cancel in self.running.values() {
            cancel.send_replace(true);
        }
        let drained = async { while reported.recv().await.is_some() {} };
        if tokio::time::timeout(STOP_LIMIT, drained).await.is_err() {
            warn!("some operations did not stop in time");
        }
    }
}

/// The time as people read it in a status file: to the millisecond.
fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(TimestampRound::new().smallest(Unit::Millisecond).mode(RoundMode::Trunc))
        .unwrap_or(now)
}

/// Waits for the work, passing on its progress now and then. A panic in it is a fault like any other.
async fn watch_over<T>(
    mut work: tokio::task::JoinHandle<Result<T, Fault>>,
    meter: &Meter,
    tell: impl Fn(crate::model::status::Progress),
) -> Result<T, Fault> {
    let mut told = None;
    loop {
        match tokio::time::timeout(PROGRESS_INTERVAL, &mut work).await {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(panic)) => {
                let message = format!("hostler itself failed: {panic}");
                return Err(Fault::passing(
                    Step::Cleanup,
                    "Internal",
                    message,
                    "report this with the agent's log",
                ));
            }
            Err(_) => {
                let progress = meter.progress();
                if let Some(progress) = progress.filter(|_| progress != told) {
                    tell(progress);
                    told = Some(progress);
                }
            }
        }
    }
}

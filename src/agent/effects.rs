//! The effects of the core's decisions: record, boot menu, operations, replies and status files.
//!
//! Owned by the driver. It knows the running operations and the unanswered callbacks. It must never
//! decide anything.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::{
    admin::AdminReply,
    lifecycle::{
        Effects, Event, NO_ANSWER, Node, Operation, Outcome, ReceivedLog, Record, UnclaimedInstalls,
    },
    model::{
        admin::{BmcCommand, NicBoot},
        callback::{FlushedRanges, Reply},
        fault::{CANCELLED, Fault, Step},
        ids::{Digest, MacAddr, NodeName, OpId},
        spec::NodeSpec,
        status::{Phase, Progress, Status},
    },
    progress::Meter,
    status_file::KeptLog,
    store::Store,
};

use super::{
    bmc_names::BmcNames,
    clock::now,
    consoles::Consoles,
    faults,
    last_words::LastWords,
    menu::MenuWriter,
    netboot_warnings::NetbootWarnings,
    publish::Publisher,
    work::{NodeEvent, Operations},
};

/// The time between two readings of a running operation's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Adapters {
    store: Store,
    /// The logged error of each record that cannot be written.
    unsaved: BTreeMap<NodeName, String>,
    menus: MenuWriter,
    publisher: Publisher,
    consoles: Consoles,
    operations: Arc<Operations>,
    /// Ticks when a node's deploy state may have changed.
    changed: watch::Sender<u64>,
    /// The channel for the ends of operations.
    reports: mpsc::Sender<NodeEvent>,
    /// The unanswered callbacks.
    replies: BTreeMap<u64, ReplySender>,
    requests: u64,
    /// The running operations.
    running: BTreeMap<(NodeName, OpId), RunningOperation>,
    /// The logged code of each node's failed poll.
    failed_polls: BTreeMap<NodeName, Cow<'static, str>>,
    netboot_warnings: NetbootWarnings,
    last_words: LastWords,
}

/// The way back to a caller.
#[derive(Debug)]
enum ReplySender {
    /// A node's deploy ramdisk.
    Ramdisk(NodeName, oneshot::Sender<Reply>),
    /// An installed system learns only whether its call counts.
    System(oneshot::Sender<bool>),
}

#[derive(Debug)]
struct RunningOperation {
    /// Cancels the operation.
    stop: watch::Sender<bool>,
    is_poll: bool,
    meter: Arc<Meter>,
}

impl Adapters {
    pub(super) fn new(
        store: Store,
        menus: MenuWriter,
        publisher: Publisher,
        operations: Operations,
        changed: watch::Sender<u64>,
        reports: mpsc::Sender<NodeEvent>,
    ) -> Self {
        Self {
            store,
            unsaved: BTreeMap::new(),
            menus,
            publisher,
            consoles: Consoles::default(),
            operations: Arc::new(operations),
            changed,
            reports,
            replies: BTreeMap::new(),
            requests: 0,
            running: BTreeMap::new(),
            failed_polls: BTreeMap::new(),
            netboot_warnings: NetbootWarnings::default(),
            last_words: LastWords::default(),
        }
    }

    /// Registers an unanswered callback, and returns its number.
    pub(super) fn expect_reply(&mut self, node: NodeName, reply: oneshot::Sender<Reply>) -> u64 {
        self.expect(ReplySender::Ramdisk(node, reply))
    }

    /// An installed system waits for an answer.
    pub(super) fn expect_boot_reply(&mut self, reply: oneshot::Sender<bool>) -> u64 {
        self.expect(ReplySender::System(reply))
    }

    fn expect(&mut self, reply: ReplySender) -> u64 {
        self.requests += 1;
        self.replies.insert(self.requests, reply);
        self.requests
    }

    /// Notes the end of an operation.
    pub(super) fn note_end(&mut self, node: &NodeName, event: &Event) {
        if let Event::Done { op, outcome } = event
            && let Some(ended) = self.running.remove(&(node.clone(), *op))
            && ended.is_poll
        {
            self.tell_poll(node, outcome);
        }
    }

    /// Logs the first of several failed polls, because a BMC may be silent for ever.
    fn tell_poll(&mut self, node: &NodeName, outcome: &Result<Outcome, Fault>) {
        match outcome {
            Ok(_) => {
                if self.failed_polls.remove(node).is_some() {
                    info!(%node, "its BMC answers again");
                }
            }
            Err(fault) if is_expected(fault) => {}
            Err(fault) => {
                let reported = self.failed_polls.insert(node.clone(), fault.code.clone());
                if reported.as_ref() != Some(&fault.code) {
                    tell_failure(node, fault);
                }
            }
        }
    }

    /// Removes unused network boot files from the cache, in the background.
    pub(super) fn prune_netboot_files(&self, needed: BTreeSet<Digest>) {
        let operations = Arc::clone(&self.operations);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = operations.library.prune_kept(&needed) {
                warn!(%error, "unused kernels and ramdisks cannot be removed from the cache");
            }
        });
    }

    /// Performs an operator's BMC command until the operator goes away, and then tells the core
    /// that the power state may have changed.
    pub(super) fn start_bmc_command(
        &self,
        spec: Arc<NodeSpec>,
        command: BmcCommand,
        mut reply: AdminReply,
    ) {
        let operations = Arc::clone(&self.operations);
        // A weak sender, because a stopping agent waits for operations only.
        let reports = self.reports.downgrade();
        tokio::spawn(async move {
            let node = spec.name.clone();
            tokio::select! {
                done = async {
                    operations.standing.confirmed().await;
                    if !command.changes_nothing() {
                        let shared = operations.bmc_names.check(Step::Power, &spec).await;
                        shared.map_err(|fault| format!("{node}: {}", fault.message))?;
                    }
                    operations.bmcs.command(&spec, command).await
                } => {
                    if done.is_ok() {
                        operations.bmcs.refusals.forget(&node);
                    }
                    reply.send(&done);
                }
                () = reply.closed() => info!(%node, command = command.name(), "an operator went \
                    away before it was done"),
            }
            if let Some(reports) = reports.upgrade()
                && reports.send((node, Event::PowerMayHaveChanged)).await.is_err()
            {
                // The agent is stopping.
            }
        });
    }

    /// The number of status files that wait to be written.
    pub(super) fn statuses_waiting(&self) -> usize {
        self.publisher.backlog()
    }

    /// The resolved host names of BMCs.
    pub(super) fn bmc_names(&self) -> &BmcNames {
        &self.operations.bmc_names
    }

    /// Forgets a rejected login, because an operator wants the BMC to be tried again.
    pub(super) fn ask_bmc_anew(&self, node: &NodeName) {
        self.operations.bmcs.refusals.forget(node);
    }

    /// Returns the boot menus of a network interface, with the attempt's key only if `secrets`.
    pub(super) fn show_boot(&self, mac: MacAddr, secrets: bool) -> Option<NicBoot> {
        self.menus.show(mac, secrets)
    }

    /// The ranges of the node's running write that its disk holds.
    fn flushed_ranges(&self, node: &NodeName) -> FlushedRanges {
        let all = (node.clone(), OpId::MIN)..=(node.clone(), OpId::MAX);
        let its = self.running.range(all).map(|(_, running)| running.meter.ranges_on_disk());
        FlushedRanges { ranges: its.flatten().collect() }
    }

    /// Cancels all running operations and returns their number.
    pub(super) fn stop_all(&self) -> usize {
        for running in self.running.values() {
            running.stop.send_replace(true);
        }
        self.running.len()
    }
}

impl Effects for Adapters {
    fn save(&mut self, node: &NodeName, record: &Record) -> Result<(), String> {
        match self.store.save(node, record) {
            Ok(()) => {
                if self.unsaved.remove(node).is_some() {
                    info!(%node, "its record can be written again");
                }
                Ok(())
            }
            Err(error) => {
                let error = error.to_string();
                // The executor retries every second; the log has the error once.
                if self.unsaved.insert(node.clone(), error.clone()).as_ref() != Some(&error) {
                    error!(%node, error, "a record cannot be written; nothing is started until it \
                        can");
                }
                Err(error)
            }
        }
    }

    fn save_site(&mut self, unclaimed: &UnclaimedInstalls) -> Result<(), String> {
        self.store.save_site(unclaimed).map_err(|error| {
            error!(%error, "the site file cannot be written; nothing is started or forgotten until \
                it can");
            error.to_string()
        })
    }

    fn serve(&mut self, node: &Node) {
        self.menus.apply(node);
        self.consoles.follow(node, &self.operations, &self.publisher, &self.reports);
    }

    fn start(&mut self, node: &NodeName, op: OpId, operation: Operation, spec: Arc<NodeSpec>) {
        let (stop, cancel) = watch::channel(false);
        let is_poll = operation == Operation::PollPower;
        let meter = Arc::new(Meter::default());
        let running = RunningOperation { stop, is_poll, meter: Arc::clone(&meter) };
        self.running.insert((node.clone(), op), running);
        let last_words = (operation == Operation::CleanUp)
            .then(|| self.last_words.wait_for(node, Instant::now()));
        let (node, operations, reports) =
            (node.clone(), Arc::clone(&self.operations), self.reports.clone());
        let has_progress = matches!(operation, Operation::Prepare | Operation::Image { .. });
        tokio::spawn(async move {
            let work = tokio::spawn({
                let meter = Arc::clone(&meter);
                async move {
                    if let Some(last_words) = last_words {
                        last_words.over(cancel.clone()).await;
                    }
                    operations.perform(operation, &spec, &meter, cancel).await
                }
            });
            let outcome = if has_progress {
                watch_over(work, &meter, |progress| {
                    // A busy driver may miss progress, but never the end.
                    drop(reports.try_send((node.clone(), Event::Progress { op, progress })));
                })
                .await
            } else {
                // No progress to report: nothing wakes before the end.
                work.await.unwrap_or_else(|panic| Err(faults::internal(&panic)))
            };
            if let Err(fault) = &outcome
                && !is_poll
                && !is_expected(fault)
            {
                tell_failure(&node, fault);
            }
            if reports.send((node, Event::Done { op, outcome })).await.is_err() {
                // The agent is stopping; the record has the operation under way.
            }
        });
    }

    fn cancel(&mut self, node: &NodeName, op: OpId) {
        if let Some(running) = self.running.get(&(node.clone(), op)) {
            running.stop.send_replace(true);
        }
    }

    fn reply(&mut self, request: u64, reply: Reply) {
        // A client that has gone will call again.
        match self.replies.remove(&request) {
            Some(ReplySender::Ramdisk(node, waiting)) => {
                self.last_words.note_reply(&node, &reply, Instant::now());
                let reply = match reply {
                    Reply::Flushed(_) => Reply::Flushed(self.flushed_ranges(&node)),
                    other => other,
                };
                drop(waiting.send(reply));
            }
            Some(ReplySender::System(waiting)) => drop(waiting.send(reply == Reply::Accepted)),
            None => {}
        }
    }

    fn keep_log(&mut self, node: &NodeName, log: ReceivedLog) {
        let ReceivedLog { attempt, peer, key, log } = log;
        self.last_words.note_log(node);
        let (node, at) = (node.clone(), now());
        self.publisher.keep_ramdisk_log(KeptLog { node, attempt, peer, at, log, key });
    }

    fn wake_ramdisks(&mut self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn show(&mut self, status: Status) {
        self.netboot_warnings.follow(&status);
        self.publisher.show(status);
    }

    fn log_phase(&mut self, status: &Status) {
        let Status { node, attempt, message, .. } = status;
        let phase = status.phase.as_str();
        // Warnings, for alerts: these phases need an operator.
        if matches!(status.phase, Phase::Failed | Phase::Held | Phase::Invalid) {
            warn!(%node, phase, attempt, message, "phase");
        } else {
            info!(%node, phase, attempt, message, "phase");
        }
    }

    fn forget(&mut self, node: &NodeName) {
        info!(%node, "its spec is gone: forgotten");
        self.unsaved.remove(node);
        self.failed_polls.remove(node);
        self.netboot_warnings.forget(node);
        self.last_words.forget(node);
        self.ask_bmc_anew(node);
        self.menus.remove(node);
        self.consoles.forget(node);
        self.publisher.remove(node);
        if let Err(error) = self.store.remove(node) {
            error!(%node, %error, "a record cannot be removed");
        }
    }
}

fn tell_failure(node: &NodeName, fault: &Fault) {
    let Fault { step, code, message, .. } = fault;
    warn!(%node, ?step, %code, error = message, "operation failed");
}

/// Whether the operation was cancelled, or probed a system that is not up yet, so that its failure
/// is not logged.
fn is_expected(fault: &Fault) -> bool {
    [CANCELLED, faults::POLL_CUT, NO_ANSWER].contains(&fault.code.as_ref())
}

/// Waits for the work and reports its progress regularly. A panic in it becomes a fault.
async fn watch_over<T>(
    mut work: tokio::task::JoinHandle<Result<T, Fault>>,
    meter: &Meter,
    tell: impl Fn(Progress),
) -> Result<T, Fault> {
    let mut reported = None;
    loop {
        match tokio::time::timeout(PROGRESS_INTERVAL, &mut work).await {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(panic)) => return Err(faults::internal(&panic)),
            Err(_) => {
                let progress = meter.progress();
                if let Some(progress) = progress.filter(|_| progress != reported) {
                    tell(progress);
                    reported = Some(progress);
                }
            }
        }
    }
}

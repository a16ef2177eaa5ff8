//! The driver: the one task that owns the fleet, passes it each event and performs its decisions.
//!
//! Started by [`super::Agent::run`]. The [`Executor`] orders the effects; `effects.rs` implements
//! them. Nothing else may pass an event to the core.

use std::{collections::VecDeque, future::Future, iter, path::Path, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    task::yield_now,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use crate::{
    admin,
    boot_call::BootCall,
    callback::CallbackRequest,
    lifecycle::{Event, Executor},
    model::{boot::Fetch, ids::NodeName},
    spec_dir::{ReadError, Snapshot, clashes},
};

use super::{clock::now, effects::Adapters, work::NodeEvent};

/// The pause before a failed write of a record is retried.
const RECORD_RETRY: Duration = Duration::from_secs(1);
/// The time for events of a scan before other events are served.
const UPDATES_LIMIT: Duration = Duration::from_millis(50);
/// The waiting status files after which the events of a scan pause: ten thousand of them would take
/// memory that the agent keeps for good.
const STATUSES_MAX: usize = 512;
/// The length of the pause, by which a slow directory delays each few hundred of these events.
const STATUSES_PAUSE: Duration = Duration::from_millis(50);
/// The time between two removals of unused network boot files from the cache.
const PRUNE_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// The time for running operations to stop when the agent stops; the longest one, a write of zeros,
/// needs far less.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// The driver's state: the core with the fleet, and the adapters.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) executor: Executor,
    pub(super) adapters: Adapters,
    /// The remaining events of the last scan. Other events come first: a thousand new specs need a
    /// thousand writes of records, for which no machine's call must wait.
    updates: VecDeque<(NodeName, Event)>,
    /// When the next of them may be handled.
    updates_at: Instant,
    /// The spec directory's name in messages.
    specs_dir: String,
    /// When unused network boot files were last removed from the cache.
    pruned: Option<Instant>,
}

/// The channels that events come from.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) scans: mpsc::Receiver<Result<Snapshot, ReadError>>,
    pub(super) calls: mpsc::Receiver<CallbackRequest>,
    pub(super) boot_calls: mpsc::Receiver<BootCall>,
    pub(super) orders: mpsc::Receiver<admin::AdminRequest>,
    pub(super) fetches: mpsc::Receiver<Fetch>,
    pub(super) reports: mpsc::Receiver<NodeEvent>,
}

impl Driver {
    /// Makes a driver for the specs in this directory.
    pub(super) fn new(executor: Executor, adapters: Adapters, specs_dir: &Path) -> Self {
        let specs_dir = specs_dir.display().to_string();
        let (updates, updates_at) = (VecDeque::new(), Instant::now());
        Self { executor, adapters, updates, updates_at, specs_dir, pruned: None }
    }

    /// Handles events until `shutdown`, and then stops the running operations.
    pub(super) async fn run(mut self, mut sources: Sources, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            let wake = self.next_wake();
            // Every arm is cancel-safe: receiving loses nothing, and all work follows the select.
            let event = tokio::select! {
                () = &mut shutdown => break,
                Some(snapshot) = sources.scans.recv(), if self.updates.is_empty() => {
                    self.compare(snapshot);
                    continue;
                }
                () = after_others(self.updates_at), if !self.updates.is_empty() => {
                    self.update();
                    continue;
                }
                Some(CallbackRequest { node, peer, key, call, reply }) = sources.calls.recv() => {
                    let request = self.adapters.expect_reply(node.clone(), reply);
                    (node, Event::Callback { request, peer, key, call })
                }
                Some(BootCall { node, peer, token, report, reply }) = sources.boot_calls.recv() => {
                    let request = self.adapters.expect_boot_reply(reply);
                    (node, Event::BootCalled { request, peer, token, report })
                }
                Some(request) = sources.orders.recv() => {
                    self.attend(request);
                    continue;
                }
                Some(fetch) = sources.fetches.recv() => (fetch.node.clone(), Event::Fetched(fetch)),
                Some((name, event)) = sources.reports.recv() => {
                    self.adapters.note_end(&name, &event);
                    (name, event)
                }
                () = sleep_until(wake) => {
                    self.executor.tick(now(), &mut self.adapters);
                    continue;
                }
            };
            self.executor.step_all(now(), [event], &mut self.adapters);
        }
        self.stop(sources.reports).await;
    }

    /// Handles some events of the last scan.
    fn update(&mut self) {
        let began = Instant::now();
        let (updates, mut taken) = (&mut self.updates, 0);
        let few = iter::from_fn(|| {
            taken += 1;
            let may_go_on = began.elapsed() < UPDATES_LIMIT && taken <= STATUSES_MAX;
            may_go_on.then(|| updates.pop_front()).flatten()
        });
        self.executor.step_all(now(), few, &mut self.adapters);
        if self.updates.is_empty() {
            // Frees the memory of perhaps ten thousand events.
            self.updates = VecDeque::new();
        }
        if self.adapters.statuses_waiting() > STATUSES_MAX {
            self.updates_at = Instant::now() + STATUSES_PAUSE;
        }
    }

    /// Turns the result of a scan into events. An unreadable directory stops all nodes.
    fn compare(&mut self, snapshot: Result<Snapshot, ReadError>) {
        let events = match snapshot {
            Ok(snapshot) => {
                if self.pruned.is_none_or(|at| at.elapsed() >= PRUNE_INTERVAL) {
                    self.pruned = Some(Instant::now());
                    self.adapters.prune_netboot_files(self.executor.fleet().netboot_digests());
                }
                let effective = self.executor.fleet().effective_specs(&snapshot.nodes);
                let specs = || effective.iter().map(AsRef::as_ref);
                let mut clashes = clashes(&self.specs_dir, specs());
                let by_name = self.adapters.bmc_names().clashes(&self.specs_dir, specs());
                let found = || snapshot.nodes.values().filter_map(|spec| spec.as_deref().ok());
                let names = self.adapters.bmc_names();
                names.note_installed(self.executor.fleet().bmcs_of_installed(), found());
                self.executor.note_aliased(names.aliased(found()));
                for (node, problems) in by_name {
                    clashes.entry(node).or_default().extend(problems);
                }
                self.executor.compare(now(), snapshot.nodes, &clashes)
            }
            Err(error) => {
                warn!(%error, "the spec directory cannot be read; no node starts anything");
                self.executor.fleet().hold(&error.to_string())
            }
        };
        self.updates.extend(events);
    }

    fn next_wake(&self) -> Instant {
        let now = Timestamp::now();
        let core = self.executor.fleet().next_wake().map_or(Duration::from_secs(3600), |at| {
            Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
        });
        let wait = if self.executor.has_unsaved() { core.min(RECORD_RETRY) } else { core };
        // At least 10 ms, so that a wake-up that changes nothing cannot keep a CPU busy.
        Instant::now() + wait.max(Duration::from_millis(10))
    }

    /// Cancels the running operations, and waits for their ends within a limit.
    async fn stop(self, mut reports: mpsc::Receiver<NodeEvent>) {
        info!(operations = self.adapters.stop_all(), "stopping");
        // Without the adapters, only running operations hold the channel's sending end.
        drop(self.adapters);
        let drained = async { while reports.recv().await.is_some() {} };
        if tokio::time::timeout(STOP_LIMIT, drained).await.is_err() {
            warn!("some operations did not stop in time");
        }
    }
}

/// Ends at this time, and never before other tasks had their turn.
async fn after_others(at: Instant) {
    yield_now().await;
    if at > Instant::now() {
        sleep_until(at).await;
    }
}

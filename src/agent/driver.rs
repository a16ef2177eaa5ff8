//! The one task that owns the fleet: it selects an event, brings it to the core, and performs what
//! the core decides.
//!
//! Started by [`super::Agent::run`]. The [`Executor`] orders the effects; `effects.rs` implements
//! them. Nothing else may bring the core an event.

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

use super::{clock::now, effects::Adapters, work::Report};

/// How soon a record that could not be written is tried again.
const RECORD_RETRY: Duration = Duration::from_secs(1);
/// How long what a scan means is brought to its nodes before somebody else has a turn.
const NEWS_LIMIT: Duration = Duration::from_millis(50);
/// How often kernels and ramdisks that nobody boots any more are removed from the cache.
const PRUNE_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// How long running operations get to stop when the agent stops; a wipe on a live disk takes far
/// less.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// The fleet, and the adapters it acts upon.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) executor: Executor,
    pub(super) adapters: Adapters,
    /// Events of the last scan that were not brought to their nodes yet. Everything else goes
    /// first: a thousand new specs are a thousand records to write, and a machine that calls back
    /// is not kept waiting for them.
    updates: VecDeque<(NodeName, Event)>,
    /// The spec directory's name in messages.
    specs_dir: String,
    /// When kernels and ramdisks that nobody boots any more were last removed from the cache.
    pruned: Option<Instant>,
}

/// Where events come from.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) scans: mpsc::Receiver<Result<Snapshot, ReadError>>,
    pub(super) calls: mpsc::Receiver<CallbackRequest>,
    pub(super) boot_calls: mpsc::Receiver<BootCall>,
    pub(super) orders: mpsc::Receiver<admin::AdminRequest>,
    pub(super) fetches: mpsc::Receiver<Fetch>,
    pub(super) reports: mpsc::Receiver<Report>,
}

impl Driver {
    /// For the specs in this directory.
    pub(super) fn new(executor: Executor, adapters: Adapters, specs_dir: &Path) -> Self {
        let specs_dir = specs_dir.display().to_string();
        Self { executor, adapters, updates: VecDeque::new(), specs_dir, pruned: None }
    }

    /// Drives until `shutdown`, then stops what runs.
    pub(super) async fn run(mut self, mut sources: Sources, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            let wake = self.next_wake();
            // Every arm is cancel-safe: receiving loses nothing, and all work is done after the
            // select.
            let event = tokio::select! {
                () = &mut shutdown => break,
                Some(snapshot) = sources.scans.recv(), if self.updates.is_empty() => {
                    self.compare(snapshot);
                    continue;
                }
                () = yield_now(), if !self.updates.is_empty() => {
                    let began = Instant::now();
                    let updates = &mut self.updates;
                    let few = iter::from_fn(|| {
                        let in_time = began.elapsed() < NEWS_LIMIT;
                        in_time.then(|| updates.pop_front()).flatten()
                    });
                    self.executor.step_all(now(), few, &mut self.adapters);
                    if self.updates.is_empty() {
                        // Ten thousand have been in it.
                        self.updates = VecDeque::new();
                    }
                    continue;
                }
                Some(CallbackRequest { node, peer, key, call, reply }) = sources.calls.recv() => {
                    let request = self.adapters.expect_reply(reply);
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

    /// The findings of a scan, as events. A directory that cannot be read holds everything.
    fn compare(&mut self, snapshot: Result<Snapshot, ReadError>) {
        let events = match snapshot {
            Ok(snapshot) => {
                if self.pruned.is_none_or(|at| at.elapsed() >= PRUNE_INTERVAL) {
                    self.pruned = Some(Instant::now());
                    self.adapters.prune_netboot_files(self.executor.fleet().netboot_digests());
                }
                let in_force = self.executor.fleet().effective_specs(&snapshot.nodes);
                let specs = || in_force.iter().map(AsRef::as_ref);
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
                warn!(%error, "the spec directory cannot be read; everything is held");
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
        // At least a moment, so that a wake that changes nothing cannot keep a core busy.
        Instant::now() + wait.max(Duration::from_millis(10))
    }

    /// Tells everything that runs to stop, and waits for it within a limit.
    async fn stop(self, mut reports: mpsc::Receiver<Report>) {
        info!(operations = self.adapters.stop_all(), "stopping");
        // Dropping the adapters closes their end of the reports: what is left belongs to operations
        // that still run.
        drop(self.adapters);
        let drained = async { while reports.recv().await.is_some() {} };
        if tokio::time::timeout(STOP_LIMIT, drained).await.is_err() {
            warn!("some operations did not stop in time");
        }
    }
}

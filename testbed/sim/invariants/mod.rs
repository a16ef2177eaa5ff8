//! What must hold at every moment of every run. Each rule has a name; a run that breaks one says so and goes on.
//!
//! The rules look at what the core does to the world, and at what people did; where they look at the core's own records they say so.

mod consent;
mod ledger;
mod order;
mod permits;
mod settling;
mod shown;

use std::collections::{BTreeMap, BTreeSet};

use hostler::{
    lifecycle::{Event, Executor, Record, Specs},
    model::{
        ids::{NodeName, OpId},
        problem::Problem,
        spec::{MachineId, NodeSpec},
    },
};
use jiff::Timestamp;

use crate::world::{Site, World};

pub(crate) use self::{ledger::Ledger, settling::settling};
use self::{
    order::Wait,
    permits::{Place, Share},
};

/// Every rule, as it is named in violations.
pub(crate) const RULES: [&str; 21] = [
    "consent_is_for_one_machine",
    "never_writes_without_consent",
    "never_two_writers",
    "never_writes_the_wrong_machine",
    "never_writes_what_was_not_booted_for_it",
    "never_asks_a_bmc_that_is_not_there",
    "half_written_never_boots",
    "never_switches_unasked",
    "installed_is_true",
    "settles",
    "turns_within_limits",
    "menu_only_for_the_present_attempt",
    "every_call_is_answered_once",
    "one_operation_at_a_time",
    "status_matches_record",
    "stale_result_changes_nothing",
    "record_before_action",
    "deadlines_absolute",
    "fair",
    "a_failing_node_never_delays_another",
    "same_seed_same_run",
];

/// A rule that was broken.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) node: Option<NodeName>,
    pub(crate) step: u64,
    pub(crate) what: String,
    /// The last that happened before, if it was traced.
    pub(crate) story: Vec<String>,
}

/// What the rules remember.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) violations: Vec<Violation>,
    /// What people consented to, for each node.
    pub(crate) ledgers: BTreeMap<NodeName, Ledger>,
    /// The same as the agent would know it after a crash: as its record was last saved.
    pub(crate) durable: BTreeMap<NodeName, Ledger>,
    /// Records that could not be saved.
    pub(crate) unsaved: BTreeMap<NodeName, Record>,
    /// The same for machines whose spec went away, while the agent lives.
    pub(crate) unclaimed: BTreeMap<MachineId, Ledger>,
    /// The same as it would be found after a crash.
    pub(crate) unclaimed_kept: BTreeMap<MachineId, Ledger>,
    /// Nodes without a record whose status file tells of a disk that was written since.
    pub(crate) outdated: BTreeSet<NodeName>,
    /// What a scan has found and the core has not yet been told.
    pub(crate) news: BTreeMap<NodeName, News>,
    /// Nodes that the core has been told of since it started: before, nothing goes on.
    told: BTreeSet<NodeName>,
    /// Records that are damaged when the agent starts.
    pub(crate) garbled: BTreeSet<NodeName>,
    running: BTreeMap<NodeName, OpId>,
    touched: BTreeSet<NodeName>,
    waits: BTreeMap<NodeName, Wait>,
    shares: BTreeMap<NodeName, Share>,
    line: BTreeMap<NodeName, Place>,
    /// Reinstalls that were begun without a word of consent, with when they came up.
    pub(crate) let_through: Vec<ledger::LetThrough>,
}

/// What a scan found for one node.
#[derive(Clone, Debug)]
pub(crate) enum News {
    Spec(std::sync::Arc<NodeSpec>),
    Clash,
    Broken,
    Gone,
}

impl Site {
    pub(crate) fn ledger(&mut self, node: &NodeName) -> &mut Ledger {
        self.watch.ledgers.entry(node.clone()).or_default()
    }

    /// What a scan is about to tell the core.
    pub(crate) fn judge_scan(&mut self, specs: &Specs, clashes: &BTreeMap<NodeName, Vec<Problem>>) {
        let gone = self.watch.ledgers.keys().filter(|name| !specs.contains_key(*name));
        let gone = gone.map(|name| (name.clone(), News::Gone)).collect::<Vec<_>>();
        let news = specs.iter().map(|(name, spec)| {
            let news = match spec {
                _ if clashes.contains_key(name) => News::Clash,
                Ok(spec) => News::Spec(spec.clone()),
                Err(_) => News::Broken,
            };
            (name.clone(), news)
        });
        self.watch.news = news.collect();
        if !specs.is_empty() {
            // Who is gone waits for nothing, also if a full disk keeps its files.
            self.watch.line.retain(|name, _| specs.contains_key(name));
            self.watch.news.extend(gone);
            self.note_departures(specs);
        }
    }

    /// The core has heard the news of this node.
    pub(crate) fn deliver_news(&mut self, node: &NodeName) {
        let news = self.watch.news.remove(node);
        if news.is_some() {
            self.watch.told.insert(node.clone());
        }
        match news {
            Some(News::Spec(spec)) => self.note_spec(node, &spec),
            Some(News::Clash) => self.note_clash(node),
            Some(News::Broken | News::Gone) | None => {}
        }
    }

    /// Everything that only the agent's process knew is gone.
    pub(crate) fn judge_crash(&mut self) {
        self.watch.news.clear();
        self.watch.told.clear();
        self.watch.unsaved.clear();
        self.watch.unclaimed.clone_from(&self.watch.unclaimed_kept);
        self.watch.running.clear();
        self.watch.touched.clear();
        self.watch.line.clear();
        self.watch.shares.clear();
        self.watch.let_through.clear();
    }

    pub(crate) fn touch(&mut self, node: &NodeName) {
        self.watch.touched.insert(node.clone());
    }

    /// If the event is the end of an operation that does not run: the record as it is, which must stay so.
    pub(crate) fn stale_check(
        &self,
        executor: &Executor,
        name: &NodeName,
        event: &Event,
    ) -> Option<Record> {
        let Event::Done { op, .. } = event else { return None };
        let node = executor.fleet().node(name)?;
        let stale = self.watch.running.get(name) != Some(op);
        let quiet = node.next_wake().is_none_or(|(at, _)| at > self.now());
        (stale && quiet).then(|| node.record().clone())
    }

    /// What people say to the core, before it hears it.
    pub(crate) fn judge_event(&mut self, node: &NodeName, event: &Event) {
        match event {
            Event::Approve => self.note_approval(node),
            Event::Retry => self.note_retry(node),
            Event::Done { op, .. } if self.watch.running.get(node) == Some(op) => {
                self.watch.running.remove(node);
            }
            _ => {}
        }
    }

    pub(crate) fn runs(&self, node: &NodeName) -> bool {
        self.watch.running.contains_key(node)
    }

    pub(crate) fn told(&self, node: &NodeName) -> bool {
        self.watch.told.contains(node)
    }

    pub(crate) fn begins(&mut self, node: &NodeName, op: OpId) {
        if let Some(before) = self.watch.running.insert(node.clone(), op) {
            self.broken("one_operation_at_a_time", Some(node), format!("{op} while {before} runs"));
        }
    }

    /// The clock was set: who came first can no longer be told from it.
    pub(crate) fn judge_clock(&mut self) {
        for place in self.watch.line.values_mut() {
            place.since = Timestamp::MIN;
        }
    }
}

impl World {
    /// What must hold after every event.
    pub(crate) fn check(&mut self) {
        if self.site.dead {
            return self.bury();
        }
        let Some(executor) = &self.executor else { return };
        let touched = std::mem::take(&mut self.site.watch.touched);
        let unsaved = self.site.unsaved.iter().cloned().collect::<Vec<_>>();
        for name in touched.iter().chain(&unsaved) {
            match executor.fleet().node(name) {
                Some(node) => self.site.note_share(name, node.record()),
                None => self.site.forget_watch(name),
            }
            self.site.check_shown(executor.fleet(), name);
        }
        self.site.check_permits();
    }
}

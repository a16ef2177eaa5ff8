//! The invariants: they hold at every moment of every run. Each has a name; a run that breaks one
//! reports it and continues.
//!
//! They are judged by the core's operations and the operators' acts; an invariant that reads the
//! core's records says so.

mod attempt;
mod consent;
mod first_boot;
mod order;
mod permits;
mod ramdisk_logs;
mod settling;
mod shown;

use std::collections::BTreeMap;

use hostler::{
    lifecycle::{Event, Executor, Record, Specs},
    model::{
        callback::Call,
        ids::{NodeName, OpId},
        problem::Problem,
    },
};
use jiff::Timestamp;

use crate::{
    ledger::Ledger,
    watch::Update,
    world::{Caller, Site, World},
};

pub(crate) use self::settling::settling;

/// All invariants, by their names in violations.
pub(crate) const RULES: [&str; 28] = [
    "consent_is_for_one_machine",
    "never_writes_without_consent",
    "never_two_writers",
    "never_writes_the_wrong_machine",
    "never_writes_what_was_not_booted_for_it",
    "never_asks_a_bmc_that_is_not_there",
    "half_written_never_boots",
    "never_switches_unasked",
    "installed_is_true",
    "deployed_is_up",
    "a_first_boot_switches_once",
    "settles",
    "turns_within_limits",
    "menu_only_for_the_present_attempt",
    "every_call_is_answered_once",
    "one_operation_at_a_time",
    "status_matches_record",
    "secrets_stay_inside",
    "strangers_are_refused",
    "stale_result_changes_nothing",
    "ramdisk_logs_are_their_attempts",
    "a_ramdisk_log_changes_nothing",
    "record_before_action",
    "deadlines_absolute",
    "never_woken_in_vain",
    "fair",
    "a_failing_node_never_delays_another",
    "same_seed_same_run",
];

impl Site {
    pub(crate) fn ledger(&mut self, node: &NodeName) -> &mut Ledger {
        self.watch.ledgers.entry(node.clone()).or_default()
    }

    /// Notes the update that a scan is about to bring to the core.
    pub(crate) fn judge_scan(&mut self, specs: &Specs, clashes: &BTreeMap<NodeName, Vec<Problem>>) {
        let gone = self.watch.ledgers.keys().filter(|name| !specs.contains_key(*name));
        let gone = gone.map(|name| (name.clone(), Update::Gone)).collect::<Vec<_>>();
        let update = specs.iter().map(|(name, spec)| {
            let update = match spec {
                _ if clashes.contains_key(name) => Update::Clash,
                Ok(spec) => Update::Spec(spec.clone()),
                Err(_) => Update::Broken,
            };
            (name.clone(), update)
        });
        self.watch.updates = update.collect();
        if !specs.is_empty() {
            // A node that is gone waits for nothing, also if a full disk keeps its files.
            self.watch.queue.retain(|name, _| specs.contains_key(name));
            self.watch.updates.extend(gone);
            self.note_departures(specs);
        }
    }

    /// Notes that the core has received the node's update.
    pub(crate) fn deliver_update(&mut self, node: &NodeName) {
        let update = self.watch.updates.remove(node);
        if update.is_some() {
            self.watch.informed.insert(node.clone());
        }
        match update {
            Some(Update::Spec(spec)) => self.note_spec(node, &spec),
            Some(Update::Clash) => self.note_clash(node),
            Some(Update::Broken | Update::Gone) | None => {}
        }
    }

    /// Forgets all that only the agent's process knew.
    pub(crate) fn judge_crash(&mut self) {
        self.watch.updates.clear();
        self.watch.informed.clear();
        self.watch.decided.clear();
        self.watch.unclaimed.clone_from(&self.watch.unclaimed_kept);
        self.watch.running.clear();
        self.watch.touched.clear();
        self.watch.queue.clear();
        self.watch.shares.clear();
        self.watch.let_through.clear();
        self.forget_log_counts();
    }

    pub(crate) fn touch(&mut self, node: &NodeName) {
        self.watch.touched.insert(node.clone());
    }

    /// The node's record, which must stay as it is by this invariant, if the event is a stranger's
    /// call, a call with another token than the installation's, a ramdisk's log, or the end of an
    /// operation that does not run.
    pub(crate) fn unchanged_by(
        &self,
        executor: &Executor,
        name: &NodeName,
        event: &Event,
    ) -> Option<(&'static str, Record)> {
        // Whatever reaches a node first after its record was lost writes that down.
        let node = executor.fleet().node(name).filter(|node| node.record().spec.is_some())?;
        let rule = match event {
            Event::Done { op, .. } if self.watch.running.get(name) != Some(op) => {
                "stale_result_changes_nothing"
            }
            Event::Callback { request, .. }
                if self.open_requests.get(request) == Some(&Caller::Stranger) =>
            {
                "strangers_are_refused"
            }
            Event::Callback { call: Call::Log(_), .. } => "a_ramdisk_log_changes_nothing",
            Event::BootCalled { token, .. } if node.record().boot_token.as_ref() != Some(token) => {
                "strangers_are_refused"
            }
            _ => return None,
        };
        // After a restart of the agent, the first event notes the phase without a clash, which is
        // known again with the first scan.
        let is_noted = node.record().phase == node.phase();
        // And with a record that waited for the disk, the first event goes on.
        let is_noted = is_noted && !executor.is_unsaved(name);
        let quiet = is_noted && node.next_wake().is_none_or(|(at, _)| at > self.now());
        quiet.then(|| (rule, node.record().clone()))
    }

    /// Notes an operator's order, before the core receives it.
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

    pub(crate) fn is_informed(&self, node: &NodeName) -> bool {
        self.watch.informed.contains(node)
    }

    pub(crate) fn begins(&mut self, node: &NodeName, op: OpId) {
        if let Some(before) = self.watch.running.insert(node.clone(), op) {
            self.broken("one_operation_at_a_time", Some(node), format!("{op} while {before} runs"));
        }
    }

    /// Notes that the clock was set: the queue's order can no longer be judged by time.
    pub(crate) fn judge_clock(&mut self) {
        for place in self.watch.queue.values_mut() {
            place.since = Timestamp::MIN;
        }
    }
}

impl World {
    /// Checks what must hold after every event.
    pub(crate) fn check(&mut self) {
        if self.site.dead {
            return self.bury();
        }
        let Some(executor) = &self.executor else { return };
        let touched = std::mem::take(&mut self.site.watch.touched);
        let unsaved = self.site.unsaved.iter().cloned().collect::<Vec<_>>();
        for name in touched.iter().chain(&unsaved) {
            match executor.fleet().node(name) {
                Some(node) => {
                    self.site.note_share(name, node.record());
                    // A full disk may have kept the site file, so that the record was not tried.
                    if self.site.unsaved.contains(name) {
                        self.site.judge_decision(name, node.record());
                    }
                }
                None => self.site.forget_watch(name),
            }
            self.site.check_shown(executor.fleet(), name);
        }
        self.site.check_permits();
    }
}

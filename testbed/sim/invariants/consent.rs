//! Consent, as the simulated world knows it from operators' acts and machines' states, never from
//! the core's own records of consent.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hostler::{
    lifecycle::{Hold, Operation, Outcome, Record, Records, Specs, State},
    model::{
        fault::Fault,
        ids::NodeName,
        machine::Machine,
        power::PowerState,
        spec::{Goal, MachineId, NodeSpec, WantedPower},
        status::{Installed, Phase, Status},
    },
};
use jiff::SignedDuration;

use crate::{
    ledger::{Change, Known, Ledger, LetThrough, is_same, leave, shares},
    world::{JobKey, Site, machine::Content},
};

/// Time for which the consent to an attempt covers its repetitions.
const CONSENT_LASTS: SignedDuration = SignedDuration::from_hours(1);
/// Time within which several reinstalls count as one change.
const ONE_CHANGE: SignedDuration = SignedDuration::from_mins(10);

impl Site {
    /// Whether the node is held because its record is lost, as its status says unless a pause hides
    /// the hold. The core may know less than the rules do, and then asks.
    fn is_held_as_lost(&self, node: &NodeName) -> bool {
        let state = self.decided(node).map(|record| &record.state);
        if matches!(state, Some(State::Held { reason: Hold::RecordLost, .. })) {
            return true;
        }
        let lost = |shown: &Status| {
            let mut conditions = shown.conditions.iter();
            conditions.any(|one| one.kind == "Held" && one.reason == "RecordLost")
        };
        self.shown.get(node).is_some_and(lost)
    }

    pub(crate) fn note_approval(&mut self, node: &NodeName) {
        let held = self.decided(node).is_some_and(|record| record.phase == Phase::Held)
            && self.is_informed(node);
        let lost = self.is_held_as_lost(node);
        let ledger = self.ledger(node);
        if held && lost {
            (ledger.under, ledger.installed_as, ledger.unknown) = (None, None, true);
        }
        ledger.approved |= held;
        ledger.agreed |= held;
        ledger.turned &= !held;
    }

    pub(crate) fn note_retry(&mut self, node: &NodeName) {
        let ledger = self.ledger(node);
        ledger.power_ordered = true;
        ledger.turned = false;
    }

    /// Notes that two specs claim the node's machine: consent and power orders end, except the
    /// consent to an attempt under way.
    pub(crate) fn note_clash(&mut self, node: &NodeName) {
        let under_way = self.decided(node).is_some_and(|record| !record.state.at_rest());
        let ledger = self.ledger(node);
        ledger.approved &= under_way;
        ledger.power_ordered = false;
    }

    /// Notes a usable spec that the core receives.
    pub(crate) fn note_spec(&mut self, node: &NodeName, new: &Arc<NodeSpec>) {
        self.watch.outdated.remove(node);
        let deployed = self.watch.ledgers.values().filter(|ledger| ledger.under.is_some()).count();
        let lost = self.is_held_as_lost(node);
        let record = self.decided(node);
        let held = record.is_some_and(|record| record.phase == Phase::Held);
        let held_back = record.is_some_and(|r| r.too_many_changes || r.phase == Phase::Held);
        let held_under = match record.map(|record| (&record.state, &record.spec)) {
            Some((State::Held { redeploy, .. }, _)) => Some(redeploy.clone()),
            Some((_, Some(_))) => None,
            // The record has no hold yet: it waits for the list of nodes, or a pause hides the
            // hold.
            Some((_, None)) | None => {
                let ledger = self.ledger(node);
                ledger.first_redeploy.clone().filter(|_| ledger.unknown)
            }
        };
        let change = Change { at: self.now(), t: self.t, deployed };
        let Some(old) = self.ledger(node).spec.replace(Arc::clone(new)) else {
            return self.note_first_spec(node, new);
        };
        if old == *new {
            return;
        }
        let ledger = self.ledger(node);
        let other_machine = !is_same(&old, new);
        let wanted_before = ledger.wants_reinstall(&old);
        let stands_still = new.paused || new.goal != Goal::Deployed;
        let reworded = new.redeploy.is_some() && new.redeploy != old.redeploy;
        let ordered = (old.goal, old.power) != (new.goal, new.power);
        ledger.power_ordered = (ledger.power_ordered || ordered) && !other_machine;
        // A change of the machine takes consent from all other changes of the edit.
        ledger.turned = other_machine || ledger.turned && !reworded && !ordered;
        ledger.unrestarted &= !other_machine;
        if other_machine || stands_still || old.digest() != new.digest() {
            ledger.approved = false;
        }
        if other_machine {
            self.note_other_machine(node, &old, new);
        }
        let ledger = self.ledger(node);
        let reworded_in_hold =
            held && reworded || held_under.is_some_and(|under| under != new.redeploy);
        if !stands_still && new.redeploy.is_some() && reworded_in_hold && !other_machine {
            if lost {
                (ledger.under, ledger.installed_as, ledger.unknown) = (None, None, true);
            }
            (ledger.approved, ledger.turned) = (true, false);
        }
        // A change in a pause counts from the end of the pause.
        let changed_again = held_back && old.digest() != new.digest();
        let comes_up = !wanted_before || old.paused || changed_again;
        if ledger.wants_reinstall(new) && !new.paused && comes_up && !other_machine {
            ledger.came_up = Some(change);
            ledger.agreed = false;
        }
    }

    /// Keeps the ledgers of machines whose spec is gone or names another machine now.
    pub(crate) fn note_departures(&mut self, specs: &Specs) {
        for (name, ledger) in &self.watch.ledgers {
            let Some(old) = &ledger.spec else { continue };
            let stays = match specs.get(name) {
                Some(Ok(spec)) => ledger.is_taken_along(old, spec),
                Some(Err(_)) => true,
                None => false,
            };
            if !stays {
                leave(&mut self.watch.unclaimed, ledger);
            }
        }
    }

    /// Notes the first spec of a node: its machine may have belonged to a node of another name. A
    /// status file about another machine does not count.
    fn note_first_spec(&mut self, node: &NodeName, new: &NodeSpec) {
        let known = self.kept_of(new);
        let is_incomplete = self.watch.is_incomplete;
        let ledger = self.ledger(node);
        ledger.turned = true;
        ledger.first_redeploy = Some(new.redeploy.clone());
        let is_reported = ledger.under.is_some();
        if is_reported && ledger.installed_as.as_ref().is_some_and(|machine| shares(machine, new)) {
            ledger.under = Some(new.redeploy.clone());
        } else if known.is_some() || is_reported || is_incomplete {
            ledger.learn(known.flatten(), new);
        }
    }

    /// Notes a spec that names another machine, or the same machine with another BMC address or
    /// other NICs.
    fn note_other_machine(&mut self, node: &NodeName, old: &NodeSpec, new: &NodeSpec) {
        let known = self.kept_of(new);
        let shared = shares(&Machine::named_by(old), new);
        let is_incomplete = self.watch.is_incomplete;
        let ledger = self.ledger(node);
        let installed = ledger.under.is_some();
        if installed && ledger.installed_as.as_ref().is_some_and(|machine| shares(machine, new)) {
            ledger.under = Some(new.redeploy.clone());
        } else if known.is_some() || installed && shared || is_incomplete && !shared {
            ledger.learn(known.flatten(), new);
        } else {
            (ledger.under, ledger.installed_as) = (None, None);
        }
    }

    /// The knowledge of the spec's machine from nodes that no longer have it.
    fn kept_of(&self, new: &NodeSpec) -> Option<Known> {
        let unclaimed = &self.watch.unclaimed;
        let macs = |ledger: &Ledger| ledger.shares_mac(new);
        if let Some(ledger) = unclaimed.get(&new.machine()) {
            return Some(Some(ledger).filter(|ledger| macs(ledger)).cloned());
        }
        let ledger = unclaimed.values().find(|ledger| macs(ledger))?;
        let same_bmc = ledger
            .installed_as
            .as_ref()
            .is_some_and(|machine| machine.bmc.as_ref() == new.bmc_address());
        Some(Some(ledger).filter(|_| same_bmc).cloned())
    }

    /// Notes the result of an operation, before the core receives it.
    pub(crate) fn note_end(
        &mut self,
        node: &NodeName,
        operation: &Operation,
        spec: &NodeSpec,
        outcome: &Result<Outcome, Fault>,
    ) {
        // The core does not know a restart whose time was over, and the clean-up undoes one.
        let is_unknown = self.decided(node).is_some_and(|record| {
            record.state.at_rest() || matches!(record.state, State::CleaningUp { .. })
        });
        let ledger = self.ledger(node);
        match (operation, outcome) {
            (_, Ok(Outcome::Power(state))) => {
                ledger.polled = Some((*state, spec.machine()));
            }
            (_, Ok(Outcome::Restarted(_))) => {
                (ledger.restarted, ledger.unrestarted) = (true, ledger.unrestarted && is_unknown);
            }
            (_, Ok(Outcome::PowerSet(_))) => (ledger.approved, ledger.unrestarted) = (false, false),
            _ => {}
        }
    }

    /// Judges whether the core may start this operation.
    pub(crate) fn judge_consent(
        &mut self,
        node: &NodeName,
        operation: &Operation,
        spec: &NodeSpec,
    ) {
        let record = self.records.get(node);
        let by_order =
            record.is_some_and(|record| matches!(record.state, State::SettingPower { .. }));
        let is_booting = record.is_some_and(|record| matches!(record.state, State::Booting { .. }));
        match operation {
            Operation::Prepare => self.judge_beginning(node),
            Operation::Restart { .. } if is_booting => self.judge_boot_restart(node, spec),
            // After the end of an installation a restart cuts the power of a running machine.
            Operation::Restart { wanted } if by_order => self.judge_switching(node, *wanted, spec),
            // These were judged when their record was written; one that continues after a crash is
            // no new one.
            Operation::PowerOn
            | Operation::Image { .. }
            | Operation::Release(_)
            | Operation::Restart { .. } => self.judge_attempt(node, spec),
            Operation::SetPower(wanted) => self.judge_switching(node, *wanted, spec),
            Operation::PollPower
            | Operation::ConfirmPower
            | Operation::CleanUp
            | Operation::ProbePort { .. }
            | Operation::NetbootFiles { .. } => {}
        }
    }

    fn judge_beginning(&mut self, node: &NodeName) {
        let (now, breaker) = (self.now(), self.plan.policy.breaker);
        let ledger = self.ledger(node);
        ledger.polled = None;
        let late = ledger.next_attempt_at.take().map(|at| now.duration_since(at));
        ledger.approved &= late.is_none_or(|late| late <= CONSENT_LASTS);
        let reinstalls = ledger.under.is_some() && !ledger.agreed;
        let Some(change) = ledger.came_up.filter(|_| reinstalls && breaker) else { return };
        let together = &mut self.watch.let_through;
        together.retain(|other| other.node != *node);
        together.push(LetThrough { node: node.clone(), change });
        let one_change = together.iter().map(|other| other.change).filter(|other| {
            let really_apart = Duration::from_millis(change.t.abs_diff(other.t));
            other.at <= change.at
                && change.at.duration_since(other.at).abs() < ONE_CHANGE
                && really_apart < ONE_CHANGE.unsigned_abs()
        });
        let one_change: Vec<Change> = one_change.collect();
        let most = one_change.iter().map(|other| other.deployed).max().unwrap_or(0);
        let count = one_change.len();
        // Machines under installation were deployed a moment ago.
        if count > 1 && count * 4 > most + count - 1 {
            let what =
                format!("{count} of {most} machines are reinstalled by one change: {together:?}");
            self.broken("never_writes_without_consent", Some(node), what);
        }
    }

    /// Judges a power-on. Without a BMC the attempt waits for an operator's power-on, which
    /// installs the machine.
    fn judge_power_on(&mut self, node: &NodeName, spec: &NodeSpec) {
        let ledger = self.ledger(node);
        let off = (PowerState::Off, spec.machine());
        let reworded = ledger.wants_reinstall(spec);
        let installed = ledger.under.is_some();
        let seen_off = spec.bmc.is_none() || ledger.polled.as_ref() == Some(&off);
        let may = if installed { reworded } else { ledger.approved || seen_off && !ledger.unknown };
        let begun_with = format!("{ledger:?}");
        let strangers = ledger.turned && ledger.polled.as_ref() != Some(&off) && spec.bmc.is_some();
        ledger.begun = Some((spec.machine(), Arc::new(spec.clone())));
        (ledger.approved, ledger.turned) = (true, false);
        ledger.restarted = false;
        if strangers {
            let what =
                format!("a running machine is begun with that was only just named: {begun_with}");
            self.broken("consent_is_for_one_machine", Some(node), what);
        }
        if !may {
            let what = format!("the attempt switches the machine on, knowing {begun_with}");
            self.broken("never_writes_without_consent", Some(node), what);
        }
    }

    /// Judges an operation of an attempt: the spec and the machine must be those it began with, and
    /// no operator may have stopped it.
    fn judge_attempt(&mut self, node: &NodeName, spec: &NodeSpec) {
        let ledger = self.ledger(node);
        let same = ledger
            .begun
            .as_ref()
            .is_some_and(|(bmc, begun)| *bmc == spec.machine() && begun.digest() == spec.digest());
        if !same || spec.paused || spec.goal != Goal::Deployed {
            let what = format!("goes on with something else than it began: {ledger:?}");
            self.broken("never_writes_without_consent", Some(node), what);
        }
    }

    fn judge_switching(&mut self, node: &NodeName, wanted: PowerState, spec: &NodeSpec) {
        let enforced = self.plan.policy.enforce_power;
        let ledger = self.ledger(node);
        let known = ledger.under.is_some() || ledger.approved;
        let here = ledger
            .installed_as
            .as_ref()
            .is_some_and(|machine| machine.bmc.as_ref() == spec.bmc_address());
        let first_start = ledger.unrestarted && wanted == PowerState::On;
        let ordered = ledger.power_ordered || ledger.approved || first_start || enforced && here;
        let off = spec.goal == Goal::Available || spec.power == WantedPower::Off;
        let right = (wanted == PowerState::Off) == off;
        if !known || !ordered || !right || spec.paused || spec.goal == Goal::Unmanaged {
            let what = format!("switched {}: {ledger:?}", wanted.as_str());
            self.broken("never_switches_unasked", Some(node), what);
        }
    }

    /// Judges the first write to a disk.
    pub(crate) fn judge_write(&mut self, key: &JobKey, machine: usize, platter: usize) {
        let node = &key.0;
        let Some(job) = self.jobs.get(key) else { return };
        let spec = Arc::clone(&job.spec);
        let meant = self.machines.iter().find(|m| m.is_meant(&spec));
        // Only the spec's author can see that it names one machine's BMC and another machine's NIC.
        let sound = meant.is_some_and(|meant| spec.boot.macs.contains(&meant.mac));
        let begun = self.ledger(node).begun.clone().map(|(_, spec)| spec);
        let is_begun = begun.as_ref().is_some_and(|spec| self.machines[machine].is_meant(spec));
        if sound && !is_begun || platter != 0 {
            let what = format!("writes disk {platter} of {machine}, and began with {begun:?}");
            self.broken("never_writes_the_wrong_machine", Some(node), what);
        }
        let key = self.decided(node).and_then(|record| record.state.attempt());
        if key.is_none_or(|attempt| !self.was_booted_with(machine, &attempt.key)) {
            let what = format!("machine {machine} was not booted with this attempt's menu");
            self.broken("never_writes_what_was_not_booted_for_it", Some(node), what);
        }
        if begun.is_none() {
            let what = "the attempt was over before the write began".to_owned();
            self.broken("never_writes_without_consent", Some(node), what);
        }
    }

    pub(crate) fn judge_writers(&mut self, key: &JobKey, machine: usize, platter: usize) {
        let writers = self.machines[machine].platters[platter].writers.clone();
        if writers.len() > 1 {
            let what = format!("{writers:?} write the disk of machine {machine}");
            self.broken("never_two_writers", Some(&key.0), what);
        }
    }

    /// Notes the consent and the installation in a record that the core decided on.
    pub(crate) fn note_record(&mut self, node: &NodeName, record: &Record) {
        let before = self.decided(node);
        let installed_at =
            |record: &Record| record.installed.as_ref().map(|installed| installed.at);
        let newly = record.installed.is_some()
            && before.is_some_and(|before| {
                before.spec.is_some() && installed_at(before) != installed_at(record)
            });
        let begins_to_write = writes(record) && !before.is_some_and(writes);
        let spec_before = before.and_then(|before| before.spec.clone());
        let key = |record: &Record| record.state.attempt().map(|attempt| attempt.key.clone());
        let key_before = before.and_then(key);
        if let (State::PoweringOn { attempt }, Some(spec)) = (&record.state, &record.spec)
            && key_before.as_ref() != Some(&attempt.key)
        {
            self.judge_power_on(node, spec);
        }
        let ledger = self.ledger(node);
        ledger.next_attempt_at = match record.state {
            State::Idle => record.not_before,
            State::Preparing { .. } => None,
            _ => ledger.next_attempt_at,
        };
        if begins_to_write && let Some(spec) = &record.spec {
            forget_content(&mut self.watch.unclaimed, spec);
        }
        if newly && let Some(installed) = &record.installed {
            let same = spec_before.zip(record.spec.as_ref()).is_some_and(|(a, b)| is_same(&a, b));
            let turned = !same;
            // A completed attempt leaves a whole disk, even if the restart fails.
            let completed = key_before.is_some_and(|key| self.has_completed(&key));
            self.ledger(node).restarted |= completed;
            self.judge_installed(node, record, installed, turned);
        }
        let is_on_record = self.is_begun_on_record(node);
        let ledger = self.ledger(node);
        match record.state {
            // The first write destroys the disk's old contents.
            State::Imaging { granted: true, .. } => {
                (ledger.under, ledger.installed_as, ledger.unknown) = (None, None, false);
                ledger.unrestarted = false;
            }
            State::CleaningUp { .. } => {
                if let Some((machine, _)) = ledger.begun.take() {
                    ledger.abandoned = Some(machine).filter(|_| is_on_record);
                }
            }
            State::Failed => {
                (ledger.approved, ledger.begun, ledger.abandoned) = (false, None, None);
            }
            State::Held { .. } => (ledger.begun, ledger.abandoned) = (None, None),
            State::Idle => ledger.abandoned = None,
            _ => {}
        }
    }

    /// Whether the attempt under way is on record: no other has touched its machine.
    fn is_begun_on_record(&self, node: &NodeName) -> bool {
        let begun = |ledgers: &BTreeMap<NodeName, Ledger>| {
            ledgers.get(node).and_then(|ledger| ledger.begun.as_ref()).map(|(_, spec)| spec.clone())
        };
        let attempt = begun(&self.watch.ledgers).zip(begun(&self.watch.durable));
        attempt.is_some_and(|(present, on_record)| Arc::ptr_eq(&present, &on_record))
    }

    /// Notes that a decided record is durable.
    pub(crate) fn note_durable(&mut self, node: &NodeName, record: &Record) {
        let begins_to_write = writes(record) && !self.records.get(node).is_some_and(writes);
        if begins_to_write && let Some(spec) = &record.spec {
            self.note_writing_on_record(node, spec);
        }
        let ledger = self.ledger(node).clone();
        self.watch.durable.insert(node.clone(), ledger);
    }

    /// Marks the machine unknown in the ledgers of unclaimed machines that the next start finds,
    /// and in those of nodes without a record whose status file reports it.
    fn note_writing_on_record(&mut self, node: &NodeName, spec: &NodeSpec) {
        forget_content(&mut self.watch.unclaimed_kept, spec);
        let outdated = self.statuses.iter().filter(|(name, status)| {
            let reported =
                status.installed.as_ref().and_then(|installed| installed.machine.as_ref());
            let lost = self.records.get(*name).is_none_or(|record| record.spec.is_none());
            lost && *name != node && reported.is_some_and(|reported| shares(reported, spec))
        });
        let outdated: Vec<NodeName> = outdated.map(|(name, _)| name.clone()).collect();
        for name in &outdated {
            let ledger = self.ledger(name);
            (ledger.under, ledger.installed_as, ledger.unknown) = (None, None, true);
        }
        self.watch.outdated.extend(outdated);
    }

    /// Judges the core's claim that a machine is installed.
    fn judge_installed(
        &mut self,
        node: &NodeName,
        record: &Record,
        installed: &Installed,
        turned: bool,
    ) {
        let ledger = self.ledger(node);
        // The installation may be another node's, unchanged.
        let found = turned && ledger.under.is_some();
        // The installation counts once the ramdisk has released the disk, even if the restart
        // fails.
        let is_let_go = matches!(record.state, State::Restarting { .. });
        let is_done = std::mem::take(&mut ledger.restarted) || found || is_let_go;
        ledger.approved = false;
        if !found && let Some((_, spec)) = &ledger.begun {
            ledger.under = Some(spec.redeploy.clone());
            ledger.installed_as = Some(Machine::named_by(spec));
            ledger.unrestarted = true;
        }
        let spec = record.spec.as_ref();
        let is_meant = |spec| self.machines.iter().find(|machine| machine.is_meant(spec));
        let machine = spec.and_then(|spec| is_meant(spec));
        let content = machine.map(|machine| machine.platters[0].content.clone());
        // Only the spec's author can see that it names one machine's BMC and another machine's NIC.
        let mixed = machine.zip(spec).is_some_and(|(m, spec)| !spec.boot.macs.contains(&m.mac));
        // A mistyped address has no disk to judge.
        let installed_as = self.ledger(node).installed_as.clone();
        let carried = found
            && installed_as
                .zip(spec)
                .is_some_and(|(machine, spec)| machine.bmc.as_ref() != spec.bmc_address());
        let is_true = content.as_ref().map_or(found, |content| {
            carried || mixed || *content == Content::Whole(installed.image.to_string())
        });
        if !is_done || !is_true {
            let what = format!("let go or restarted: {is_done}, the disk: {content:?}");
            self.broken("installed_is_true", Some(node), what);
        }
    }

    pub(crate) fn judge_forget(&mut self, node: &NodeName) {
        if self.runs(node) {
            self.broken(
                "one_operation_at_a_time",
                Some(node),
                "forgotten while it runs".to_owned(),
            );
        }
        let Some(ledger) = self.watch.ledgers.remove(node) else { return };
        leave(&mut self.watch.unclaimed, &ledger);
        self.forget_watch(node);
    }

    /// Notes the start of an agent from these records and, for nodes without one, from status
    /// files.
    pub(crate) fn judge_start_of_agent(
        &mut self,
        records: &Records,
        recovered: &BTreeMap<NodeName, Installed>,
        is_lost: bool,
    ) {
        self.watch.is_incomplete |= is_lost;
        self.watch
            .ledgers
            .retain(|name, _| records.contains_key(name) || recovered.contains_key(name));
        for (name, record) in records {
            let durable = self.watch.durable.get(name).cloned();
            let ledger = self.ledger(name);
            // The agent forgets orders that were not written, and also withdrawn ones.
            *ledger = durable.unwrap_or_default();
            ledger.spec.clone_from(&record.spec);
            if record.record_lost && record.spec.is_none() {
                let restarted_again = ledger.restarted_again;
                *ledger = Ledger { unknown: true, restarted_again, ..Ledger::default() };
            }
        }
        for (name, installed) in recovered {
            if self.watch.outdated.contains(name) {
                *self.ledger(name) = Ledger { unknown: true, ..Ledger::default() };
                continue;
            }
            let file = self.files.get(name).map(|file| file.spec.clone());
            let ledger = self.ledger(name);
            let same = file.as_ref().is_some_and(|spec| spec.digest() == installed.digest);
            let there = file.and_then(|spec| spec.redeploy);
            let under = if same { installed.redeploy.clone() } else { there };
            let installed_as = installed.machine.clone();
            let reported = Ledger { under: Some(under), installed_as, ..Ledger::default() };
            ledger.clone_from(&reported);
            if let Some(machine) = installed.machine.as_ref().map(Machine::id) {
                self.watch.unclaimed.entry(machine).or_insert(reported);
            }
        }
    }
}

/// Whether the disk may be written.
fn writes(record: &Record) -> bool {
    matches!(record.state, State::Imaging { granted: true, .. })
}

/// Marks what these ledgers know of the spec's machine as unknown, because its disk is written.
fn forget_content(unclaimed: &mut BTreeMap<MachineId, Ledger>, spec: &NodeSpec) {
    for (id, kept) in unclaimed {
        if *id == spec.machine() || kept.shares_mac(spec) {
            (kept.under, kept.installed_as, kept.unknown) = (None, None, true);
        }
    }
}

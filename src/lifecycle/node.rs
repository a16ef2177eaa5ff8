//! A node of the fleet, which takes events and returns actions.
//!
//! Called by the [`super::Fleet`]. [`Node::step`] passes each event to the file that judges it:
//! operations to `attempt.rs`, callbacks to `callback.rs`, specs to this one. Every change of state
//! goes through [`Node::enter`] and `transitions.rs`. The end of each step is in `settle.rs`, every
//! wait in `wait.rs`, and the status in `report.rs`.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::model::{
    fault::Fault,
    ids::{Digest, NodeName, OpId},
    machine::MachineChange,
    power::PowerState,
    problem::Problem,
    spec::{Goal, NodeSpec},
    status::{Installed, Power, Progress},
};

use super::{
    event::{Action, Event, Menu, Operation, Outcome},
    late_disks::MissingDisk,
    limits::{Policy, after, patience, power_limit},
    netboot_files::{NetbootUpdate, installed_menu, upgrade_identity, upgrade_record},
    polls::Polls,
    state::{Purpose, RamdiskLogs, Record, State},
    text::plain_fault,
    transitions::{Cause, Effect, next},
    unclaimed::Known,
};

/// A node: its record, and everything that is in memory only.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub(super) name: NodeName,
    /// Boxed, so that a start moves the records that it reads, and copies none.
    pub(super) record: Box<Record>,
    pub(super) policy: Policy,
    /// The identity of the last good spec's installation, cached because hashing it at every poll
    /// would cost too much.
    pub(super) wanted: Option<Digest>,
    /// The identity of the last good spec's disk content, cached as well.
    pub(super) written: Option<Digest>,
    /// The problems of the present spec file.
    pub(super) problems: Vec<Problem>,
    /// Whether the problems are a clash with another node.
    pub(super) clash: bool,
    /// The reason why nothing may start, although the spec is valid.
    pub(super) blocked: Option<String>,
    /// Whether no scan has succeeded since the start. Until then the spec may be out of date, and
    /// not even an attempt under way goes on.
    pub(super) unread: bool,
    /// Whether the spec is gone, so that the node is forgotten once nothing is under way.
    pub(super) gone: bool,
    /// The operation under way, at most one.
    pub(super) running: Option<Running>,
    /// The state on the durable record, while a later one waits to be written: no effect of the
    /// later one has begun.
    pub(super) on_record: Option<Box<State>>,
    pub(super) progress: Option<Progress>,
    /// The progress of the ramdisk's comparison of its disk. Not on record: the ramdisk reports it
    /// again.
    pub(super) comparison: Option<Comparison>,
    pub(super) power: Option<Power>,
    /// The fault of the BMC's last command, if that failed.
    pub(super) bmc_trouble: Option<Box<Fault>>,
    /// The reason why the installed system's last probe failed.
    pub(super) boot_trouble: Option<String>,
    pub(super) refused: u32,
    pub(super) refused_reason: Option<String>,
    /// The root device that the node waits for. Not on record: after a restart of the agent, the
    /// wait begins again.
    pub(super) missing_disk: Option<Box<MissingDisk>>,
    /// The accepted logs of the attempt's ramdisk.
    pub(super) ramdisk_logs: RamdiskLogs,
    /// The known installation of the machine that the next spec names, if another node had that
    /// machine.
    pub(super) moved_here: Option<Box<Known>>,
    /// The time since which an attempt waits only for its permit.
    pub(super) queued_since: Option<Timestamp>,
    /// The schedule of the BMC's polls.
    pub(super) polls: Polls,
    /// The state of the machine's network boot files.
    pub(super) netboot: NetbootUpdate,
    /// The number of failures in a row by files missing on the agent's own machine.
    pub(super) missing_in_a_row: u32,
    next_op: u64,
}

/// The reported progress of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Comparison {
    pub(super) progress: Progress,
    /// The bytes of the first report that this agent received: the rate is that of the others.
    pub(super) had_bytes: u64,
    /// The time of that report.
    pub(super) began_at: Timestamp,
    /// The time of the last report with more bytes than before.
    pub(super) advanced_at: Timestamp,
}

/// The operation under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Running {
    pub(super) op: OpId,
    /// Whether it was cancelled: its result then means only that it has stopped.
    pub(super) cancelled: bool,
    /// Whether it verifies network boot files.
    pub(super) netboot: bool,
    /// The time of the next interruption of a node at rest.
    pub(super) patience_until: Timestamp,
    /// The full length of that wait.
    pub(super) patience: Duration,
}

impl Node {
    /// Makes a node never seen before. Nothing starts until the first [`Event::Spec`].
    pub fn new(name: NodeName, policy: Policy, now: Timestamp) -> Self {
        Self::resume(name, Record::new(now), policy, now)
    }

    /// Makes a node from its durable record, as after a crash. The first scan restarts its
    /// operation within the old deadlines.
    pub fn resume(
        name: NodeName,
        record: impl Into<Box<Record>>,
        policy: Policy,
        now: Timestamp,
    ) -> Self {
        let mut record = record.into();
        record.note_machine();
        upgrade_record(&mut record);
        let wanted = record.spec.as_ref().map(|spec| spec.identity());
        let polls = Polls::new(&name, now);
        Self {
            name,
            policy,
            wanted: wanted.as_ref().map(|wanted| wanted.digest.clone()),
            written: wanted.map(|wanted| wanted.written),
            record,
            problems: Vec::new(),
            clash: false,
            blocked: Some("the spec directory has not been read yet".to_owned()),
            unread: true,
            gone: false,
            running: None,
            on_record: None,
            progress: None,
            comparison: None,
            power: None,
            bmc_trouble: None,
            boot_trouble: None,
            refused: 0,
            refused_reason: None,
            missing_disk: None,
            ramdisk_logs: RamdiskLogs::default(),
            moved_here: None,
            queued_since: None,
            polls,
            netboot: NetbootUpdate::default(),
            missing_in_a_row: 0,
            next_op: 1,
        }
    }

    /// The record, which must be durable before the actions of the last step are executed.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The boot menu, which must be served before the actions of the last step are executed.
    pub fn menu(&self) -> Menu {
        let Some(spec) = &self.record.spec else { return Menu::Unknown };
        match &self.record.state {
            State::PoweringOn { attempt }
            | State::WaitingRamdisk { attempt }
            | State::Imaging { attempt, .. } => Menu::Deploy(attempt.key.clone()),
            rest if rest.at_rest() && (self.clash || spec.goal != Goal::Deployed) => Menu::Unknown,
            State::Switching { attempt, .. }
            | State::WaitingCompleted { attempt, .. }
            | State::Restarting { attempt, .. } => {
                installed_menu(attempt.image.netboot.as_ref(), attempt.image.root().as_deref())
            }
            State::Idle
            | State::Held { .. }
            | State::Failed
            | State::SettingPower { .. }
            | State::Preparing { .. }
            | State::Booting { .. }
            | State::CleaningUp { .. } => match &self.record.installed {
                Some(installed) => {
                    installed_menu(installed.netboot.as_ref(), installed.root().as_deref())
                }
                None => Menu::LocalDisk,
            },
        }
    }

    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// The effective spec: the last good one.
    pub fn spec(&self) -> Option<&Arc<NodeSpec>> {
        self.record.spec.as_ref()
    }

    /// The spec with the attempt's machine, if an attempt is under way.
    pub(super) fn spec_of_busy_machine(&self) -> Option<Arc<NodeSpec>> {
        let bmc = &self.record.state.attempt()?.bmc;
        let mut spec = self.record.spec.clone()?;
        if spec.bmc != *bmc {
            Arc::make_mut(&mut spec).bmc.clone_from(bmc);
        }
        Some(spec)
    }

    /// Takes an event and returns the actions, in order.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.unread && event.is_about_spec() {
            self.boot_again_if_cut_off(now);
        }
        self.bound_waits(now);
        if event.is_about_spec() {
            (self.unread, self.gone) = (false, false);
        }
        match event {
            Event::Spec(spec) => self.take_spec(now, &spec, &mut actions),
            Event::MassChange(spec) => {
                self.take_spec(now, &spec, &mut actions);
                self.record.too_many_changes = self.wants_install();
            }
            Event::SpecProblems(problems) => self.take_problems(problems),
            Event::SpecClash(problems) => self.take_clash(now, problems, &mut actions),
            Event::SpecGone => {
                self.gone = true;
                if self.record.state.at_rest() || matches!(self.record.state, State::Booting { .. })
                {
                    // `settle` ends a first boot.
                    self.cancel(&mut actions);
                } else {
                    self.abandon(now, Purpose::StartOver, &mut actions);
                }
            }
            Event::DirectoryLost(reason) => self.blocked = Some(reason),
            Event::Done { op, outcome } => {
                // A result with another id is stale and changes nothing.
                if let Some(running) = self.running.take_if(|running| running.op == op) {
                    self.progress = None;
                    match outcome.map_err(plain_fault) {
                        _ if running.cancelled => {}
                        Ok(Outcome::NetbootFiles(files)) => self.take_netboot_files(now, files),
                        Err(fault) if running.netboot => self.miss_netboot_files(now, fault),
                        outcome => self.finish(now, outcome, &mut actions),
                    }
                }
            }
            Event::Progress { op, progress } => {
                if self.running.is_some_and(|running| running.op == op && !running.cancelled) {
                    self.progress = Some(progress);
                }
            }
            Event::Callback { request, peer, key, call } => {
                let reply = self.judge(now, peer, &key, call, &mut actions);
                actions.push(Action::Reply { request, reply });
            }
            Event::BootCalled { request, peer, token, report } => {
                let reply = self.boot_called(now, peer, &token, report, &mut actions);
                actions.push(Action::Reply { request, reply });
            }
            Event::Fetched(fetch) => self.take_evidence(now, &fetch),
            Event::Tick => {}
            Event::Granted(permit) => self.take_permit(now, permit),
            Event::NetbootLost => self.note_netboot_lost(),
            Event::PowerMayHaveChanged => self.polls.ask(now),
            Event::Approve => self.approve(now),
            Event::Retry => self.retry(now),
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Whether a scan with this spec changes nothing for the node.
    pub(super) fn knows(&self, spec: &Arc<NodeSpec>) -> bool {
        let is_settled = !self.unread && !self.gone && self.blocked.is_none();
        let is_good = self.problems.is_empty() && !self.clash;
        is_settled && is_good && self.record.spec.as_ref() == Some(spec)
    }

    /// Whether the spec wants an installation: the first one, or one by a changed `redeploy`.
    pub(super) fn wants_install(&self) -> bool {
        let Some(spec) = &self.record.spec else { return false };
        spec.goal == Goal::Deployed
            && self.record.installed.as_ref().is_none_or(|installed| {
                Some(&installed.digest) != self.wanted.as_ref() && redeploy_changed(spec, installed)
            })
    }

    /// Whether an attempt may begin.
    pub(super) fn may_start(&self) -> bool {
        self.wants_install() && !self.stands_still() && !self.needs_consent()
    }

    /// Whether the attempt's, or else the state's, effects may have begun: not while its record
    /// waits to be written.
    pub(super) fn has_begun(&self) -> bool {
        let Some(on_record) = &self.on_record else { return true };
        match self.record.state.attempt() {
            Some(attempt) => on_record.attempt().is_some_and(|other| other.key == attempt.key),
            None => **on_record == self.record.state,
        }
    }

    /// Whether nothing is under way: no attempt, no clean-up and no change of power.
    pub fn is_at_rest(&self) -> bool {
        self.record.state.at_rest()
    }

    /// Whether the BMC's last command failed.
    pub fn has_bmc_trouble(&self) -> bool {
        self.bmc_trouble.is_some()
    }

    /// Whether the node's spec has not been read since the start of the agent.
    pub fn is_unread(&self) -> bool {
        self.unread
    }

    /// Whether nothing may start: the spec is paused, broken or may be out of date.
    pub fn stands_still(&self) -> bool {
        let paused = self.record.spec.as_ref().is_none_or(|spec| spec.paused);
        paused || !self.problems.is_empty() || self.blocked.is_some()
    }

    /// Changes the state and sets its deadline, so that no wait is without one.
    pub(super) fn enter(&mut self, now: Timestamp, cause: Cause) {
        let from = std::mem::replace(&mut self.record.state, State::Idle);
        let attempt = from.attempt().map(|attempt| (attempt.key.clone(), attempt.peer));
        #[cfg(test)]
        super::tests::transitions::note(&from, &cause);
        let (state, effects) = match next(from, cause) {
            Ok(next) => next,
            Err(neither) => {
                let (from, cause) = *neither;
                debug_assert!(false, "{cause:?} means nothing in {from:?}");
                self.record.state = from;
                return;
            }
        };
        self.record.state = state;
        self.comparison = None;
        if let (Some((key, peer)), None) = (attempt, self.record.state.attempt()) {
            self.ramdisk_logs.note_end(self.record.attempt, key, peer);
        }
        for effect in effects {
            match effect {
                Effect::ConsentGiven => self.record.consented = true,
                Effect::ConsentEnds => self.record.consented = false,
                Effect::AttemptCounts => {
                    self.record.attempt = self.record.attempt.saturating_add(1);
                }
                Effect::AttemptUncounted => {
                    self.record.attempt = self.record.attempt.saturating_sub(1);
                }
                Effect::AttemptsForgotten => self.record.attempt = 0,
                Effect::WaitGoesOn => return,
            }
        }
        self.record.tries = 0;
        self.record.not_before = None;
        self.record.deadline = self.limit().map(|limit| after(now, limit));
    }

    fn take_spec(&mut self, now: Timestamp, spec: &Arc<NodeSpec>, actions: &mut Vec<Action>) {
        self.blocked = None;
        self.problems.clear();
        self.clash = false;
        if self.record.spec.as_ref() == Some(spec) {
            // Sharing one copy saves memory and makes the next comparison quick.
            self.record.spec = Some(Arc::clone(spec));
            return;
        }
        let limit_before = self.limit();
        let old = self.record.spec.replace(Arc::clone(spec));
        self.shift_deadline(limit_before);
        let wanted = spec.identity();
        let other_install = self.wanted.as_ref() != Some(&wanted.digest);
        (self.wanted, self.written) = (Some(wanted.digest), Some(wanted.written));
        self.netboot.start_afresh();
        let change = old.as_ref().map_or(MachineChange::None, |old| old.machine_change(spec));
        let other_machine = change != MachineChange::None;
        if other_machine {
            self.change_machine(now, spec, change);
        }
        let other_ramdisk = old.as_ref().is_some_and(|old| old.boot.ramdisk != spec.boot.ramdisk);
        if old.as_ref().is_some_and(|old| old.bmc != spec.bmc) {
            self.polls.ask(now);
            if self.record.state.at_rest() {
                self.cancel(actions);
            }
        }
        if let Some(installed) = &mut self.record.installed {
            upgrade_identity(spec, installed);
        }
        if let Some(old) = &old {
            self.reconsider_boot(old, spec);
            self.restart_boot_check(now, old, spec, actions);
        }
        let stand_still = spec.paused || spec.goal != Goal::Deployed;
        if other_install || other_machine || stand_still {
            self.record.consented = false;
        }
        if other_install || !self.wants_install() {
            // The held change was taken back, or this node's spec changed again.
            self.record.too_many_changes = false;
        }
        self.order_power(now, old.as_deref(), spec);
        match &self.record.state {
            State::Held { .. } => self.consider_hold(now, spec, old.is_none()),
            State::Idle | State::Failed => self.start_afresh(now),
            // `settle` ends it.
            State::Booting { .. } => {}
            State::CleaningUp { .. } | State::SettingPower { .. } => {
                self.abandon(now, Purpose::StartOver, actions);
            }
            State::Preparing { .. }
            | State::PoweringOn { .. }
            | State::WaitingRamdisk { .. }
            | State::Imaging { .. }
            | State::Switching { .. }
            | State::WaitingCompleted { .. }
            | State::Restarting { .. } => {
                if other_install || other_machine || other_ramdisk || stand_still {
                    self.abandon(now, Purpose::StartOver, actions);
                }
            }
        }
    }

    fn take_problems(&mut self, problems: Vec<Problem>) {
        self.blocked = None;
        self.problems = problems;
        self.clash = false;
    }

    /// Notes a clash of specs. An attempt goes on; an order to switch the machine ends.
    fn take_clash(&mut self, now: Timestamp, problems: Vec<Problem>, actions: &mut Vec<Action>) {
        self.take_problems(problems);
        self.clash = true;
        self.record.consented = false;
        self.record.power_ordered = false;
        if matches!(self.record.state, State::SettingPower { .. }) {
            self.abandon(now, Purpose::StartOver, actions);
        }
    }

    fn retry(&mut self, now: Timestamp) {
        self.netboot.start_afresh();
        self.polls.ask(now);
        // A retry after a fault of the BMC is no order to switch the machine.
        let has_trouble = self.bmc_trouble.is_some();
        let is_order = self.power_differs() || !has_trouble && self.wanted_power().is_some();
        // Waiting again for a first boot is no order to switch the machine.
        let waits_again = self.retry_boot();
        if is_order && !waits_again || self.owes_restart() {
            self.record.power_ordered = true;
        }
        match &self.record.state {
            State::Idle | State::Failed => self.start_afresh(now),
            State::CleaningUp { .. } => self.enter(now, Cause::Abandoned(Purpose::StartOver)),
            // An attempt goes on, and a hold waits for consent.
            State::Held { .. }
            | State::SettingPower { .. }
            | State::Preparing { .. }
            | State::PoweringOn { .. }
            | State::WaitingRamdisk { .. }
            | State::Imaging { .. }
            | State::Switching { .. }
            | State::WaitingCompleted { .. }
            | State::Restarting { .. }
            | State::Booting { .. } => {}
        }
    }

    /// Resets the count of attempts and lets the first begin at once.
    pub(super) fn start_afresh(&mut self, now: Timestamp) {
        self.enter(now, Cause::StartedAfresh);
    }

    /// Cancels the running operation, whose result does not count any more. The node waits for its
    /// end before it starts another one.
    pub(super) fn cancel(&mut self, actions: &mut Vec<Action>) {
        if let Some(running) = &mut self.running {
            running.cancelled = true;
        }
        self.interrupt(actions);
    }

    /// Interrupts the running operation, because it takes too long. Its result still counts.
    pub(super) fn interrupt(&self, actions: &mut Vec<Action>) {
        actions.extend(self.running.map(|running| Action::Cancel(running.op)));
    }

    /// Whether the node polls the power state.
    pub(super) fn observes(&self) -> bool {
        let may_poll = self.record.state.at_rest() || self.awaits_system();
        may_poll && self.bmc().is_some() && !self.clash
    }

    /// Whether the BMC last reported that the machine is off.
    pub(super) fn is_off(&self) -> bool {
        self.power.is_some_and(|power| power.observed == PowerState::Off)
    }

    /// Starts the operation that the state needs, if none runs.
    pub(super) fn drive(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if self.running.is_some() || self.unread {
            return;
        }
        if self.gone && self.record.state.at_rest() {
            return actions.push(Action::Forget);
        }
        let operation = self.operation(now);
        // Without a BMC, no operation that needs one starts.
        let operation = operation.filter(|wanted| !wanted.needs_bmc() || self.bmc().is_some());
        let (Some(operation), Some(mut spec)) = (operation, self.record.spec.clone()) else {
            return;
        };
        if let State::CleaningUp { attempt: Some(attempt), .. } = &self.record.state {
            let timeouts = self.timeouts_of_bmc(&spec.timeouts);
            self.record.deadline = Some(after(now, power_limit(&timeouts)));
            if attempt.bmc_address() != spec.bmc_address() {
                let spec = Arc::make_mut(&mut spec);
                spec.bmc.clone_from(&attempt.bmc);
                spec.timeouts = timeouts;
            }
        }
        let op = OpId(self.next_op);
        self.next_op += 1;
        let netboot = matches!(operation, Operation::NetbootFiles { .. });
        let patience = patience(&operation, &spec.timeouts);
        let patience_until = after(now, patience);
        self.running = Some(Running { op, cancelled: false, netboot, patience, patience_until });
        self.polls.began(operation == Operation::PollPower);
        actions.push(Action::Start { op, operation, spec });
    }

    /// The operation that the state needs now.
    fn operation(&self, now: Timestamp) -> Option<Operation> {
        let due = self.record.not_before.is_none_or(|at| at <= now);
        match &self.record.state {
            State::Idle | State::Held { .. } | State::Failed => {
                let polls = self.polls.granted() && self.wants_poll(now);
                polls.then_some(Operation::PollPower).or_else(|| self.netboot_operation_at(now))
            }
            State::Preparing { ready: None } => Some(Operation::Prepare),
            State::Preparing { ready: Some(_) } => Some(Operation::ConfirmPower),
            State::SettingPower { wanted } if self.owes_restart() => {
                due.then_some(Operation::Restart { wanted: *wanted })
            }
            State::SettingPower { wanted } => due.then_some(Operation::SetPower(*wanted)),
            State::PoweringOn { .. } => Some(Operation::PowerOn),
            State::Imaging { attempt, target, disk, granted: true } => Some(Operation::Image {
                image: attempt.image.digest.clone(),
                target: target.clone(),
                size: self.disk_size(attempt, disk),
                boot_token: attempt.image.boot_token.clone(),
            }),
            State::Switching { attempt, .. } if !self.ramdisk().confirms_completion() => {
                attempt.peer.map(Operation::Release)
            }
            State::Restarting { .. } => {
                due.then_some(Operation::Restart { wanted: self.power_after_install() })
            }
            State::Booting { boot } => self.boot_operation_at(now, *boot),
            State::CleaningUp { .. } => due.then_some(Operation::CleanUp),
            State::WaitingRamdisk { .. }
            | State::Imaging { granted: false, .. }
            | State::Switching { .. }
            | State::WaitingCompleted { .. } => None,
        }
    }
}

/// Whether a spec wants an installed machine WIPED and installed again.
pub(super) fn wants_reinstall(spec: &NodeSpec, installed: &Installed) -> bool {
    spec.goal == Goal::Deployed
        && redeploy_changed(spec, installed)
        && installed.digest != spec.digest()
}

/// Whether `redeploy` is set and differs from that at the installation.
fn redeploy_changed(spec: &NodeSpec, installed: &Installed) -> bool {
    spec.redeploy.is_some() && spec.redeploy != installed.redeploy
}

//! One node: takes events, keeps the rules, asks for work.
//!
//! Called by the [`super::Fleet`]. What happens inside an attempt is in `attempt.rs`, callbacks are judged in `callback.rs`, the
//! status is made in `report.rs`.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::model::{
    fault::{Fault, RetryAdvice},
    ids::{Digest, NodeName, OpId},
    power::PowerState,
    problem::Problem,
    spec::{Goal, NodeSpec},
    status::{HistoryEntry, LastSeen, Phase, Power, Progress},
};

use super::{
    event::{Action, Event, Menu, Operation},
    state::{Purpose, Record, State},
};

/// How often a node without an attempt is asked for its power state: BMCs are fragile, and a minute is soon enough for drift.
const OBSERVATION_INTERVAL: Duration = Duration::from_secs(60);
/// The same for a BMC that refuses what the spec has it asked with. Half a dozen wrong passwords in a few minutes lock a user out.
const REFUSED_OBSERVATION_INTERVAL: Duration = Duration::from_secs(3600);
/// How long a cancelled operation may take to report before it is told again.
pub(super) const CANCEL_PATIENCE: Duration = Duration::from_secs(60);
/// Added to what an operation's own limits allow before the core steps in.
pub(super) const OPERATION_SLACK: Duration = Duration::from_secs(30);
/// Entries kept in `[[history]]`.
const HISTORY_MAX: usize = 50;

/// One node.
#[derive(Debug)]
pub struct Node {
    pub(super) name: NodeName,
    pub(super) record: Record,
    /// The identity of what the last good spec wants installed, kept because hashing it at every look would be dear.
    pub(super) wanted: Option<Digest>,
    /// What is wrong with the spec file as it is now.
    pub(super) problems: Vec<Problem>,
    /// Whether those problems are a clash with another node.
    pub(super) clash: bool,
    /// Why nothing may start although the last good spec is fine.
    pub(super) blocked: Option<String>,
    /// The one operation under way.
    pub(super) running: Option<Running>,
    pub(super) progress: Option<Progress>,
    pub(super) power: Option<Power>,
    /// Why the BMC's last answer was none, or of no use.
    pub(super) bmc_trouble: Option<Fault>,
    pub(super) refused: u32,
    pub(super) refused_reason: Option<String>,
    next_observation: Timestamp,
    next_op: u64,
}

/// The operation under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) op: OpId,
    /// It was told to stop: its result means nothing but that it has stopped.
    pub(super) cancelled: bool,
    /// When an observation that does not report is told to stop.
    patience_until: Timestamp,
}

impl Node {
    /// A node never seen before. Nothing starts until a [`Event::Spec`] comes.
    pub fn new(name: NodeName, now: Timestamp) -> Self {
        let record = Record {
            spec: None,
            state: State::Idle { not_before: None },
            phase: Phase::Invalid,
            since: now,
            attempt: 0,
            consented: false,
            installed: None,
            last_error: None,
            last_seen: LastSeen::default(),
            durations: std::collections::BTreeMap::new(),
            history: Vec::new(),
        };
        Self::resume(name, record, now)
    }

    /// A node from its durable record, as after a crash. What was under way is started again, within the old deadlines, once the
    /// spec directory has been read.
    pub fn resume(name: NodeName, record: Record, now: Timestamp) -> Self {
        Self {
            name,
            wanted: record.spec.as_ref().map(|spec| spec.digest()),
            record,
            problems: Vec::new(),
            clash: false,
            blocked: Some("the spec directory has not been read yet".to_owned()),
            running: None,
            progress: None,
            power: None,
            bmc_trouble: None,
            refused: 0,
            refused_reason: None,
            next_observation: now,
            next_op: 1,
        }
    }

    /// What must be durable before the actions of the last step are carried out.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What the node's boot menu must be before the actions of the last step are carried out.
    pub fn menu(&self) -> Menu {
        let Some(spec) = &self.record.spec else { return Menu::Unknown };
        match &self.record.state {
            State::PoweringOn { attempt, .. }
            | State::WaitingRamdisk { attempt, .. }
            | State::Imaging { attempt, .. } => Menu::Deploy(attempt.key.clone()),
            rest if rest.at_rest() && (self.clash || spec.goal == Goal::Unmanaged) => Menu::Unknown,
            State::Idle { .. }
            | State::Held { .. }
            | State::Failed
            | State::Preparing { .. }
            | State::Switching { .. }
            | State::WaitingCompleted { .. }
            | State::Restarting { .. }
            | State::CleaningUp { .. } => Menu::LocalDisk,
        }
    }

    /// The last good spec.
    pub fn spec(&self) -> Option<&Arc<NodeSpec>> {
        self.record.spec.as_ref()
    }

    /// Takes one event and answers with what to do, in order.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Spec(spec) => self.take_spec(now, &spec, &mut actions),
            Event::SpecProblems(problems) => self.take_problems(problems, false),
            Event::SpecClash(problems) => self.take_problems(problems, true),
            Event::SpecGone => self.abandon(now, Purpose::Forget, &mut actions),
            Event::DirectoryLost(reason) => self.blocked = Some(reason),
            Event::Done { op, outcome } => {
                // Anything else is a stale result and changes nothing.
                if let Some(running) = self.running.take_if(|running| running.op == op) {
                    self.progress = None;
                    if !running.cancelled {
                        self.finish(now, outcome, &mut actions);
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
            Event::Fetched(fetch) => self.take_evidence(now, fetch),
            Event::Tick => {}
            Event::Approve => self.approve(),
            Event::Retry => self.retry(),
        }
        self.expire(now, &mut actions);
        self.drive(now, &mut actions);
        self.note_phase(now);
        actions
    }

    /// When [`Event::Tick`] is due, and what for.
    pub fn next_wake(&self) -> Option<(Timestamp, &'static str)> {
        let start = match &self.record.state {
            State::Idle { not_before: Some(at) } if self.may_start() => {
                Some((*at, "the next attempt"))
            }
            _ => None,
        };
        let clean_up = match &self.record.state {
            State::CleaningUp { not_before: Some(at), .. } if self.running.is_none() => {
                Some((*at, "the next try to clean up"))
            }
            _ => None,
        };
        let observe = match self.running {
            None if self.observes() => Some((self.next_observation, "a look at the power state")),
            Some(running) if self.record.state.at_rest() => {
                Some((running.patience_until, "the BMC's answer"))
            }
            None | Some(_) => None,
        };
        [self.deadline(), start, clean_up, observe].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// When the present state is given up, and what it waits for.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        match &self.record.state {
            State::Idle { .. } | State::Held { .. } | State::Failed => None,
            State::Preparing { deadline } => Some((*deadline, "the image to be verified")),
            State::PoweringOn { deadline, .. } => {
                Some((*deadline, "the machine to be switched on"))
            }
            State::WaitingRamdisk { deadline, .. } => {
                Some((*deadline, "the deploy ramdisk to export its disk"))
            }
            State::Imaging { deadline, .. } => Some((*deadline, "the disk to be written")),
            State::Switching { deadline, .. } => {
                Some((*deadline, "the ramdisk to hear that it may let go"))
            }
            State::WaitingCompleted { deadline, .. } => {
                Some((*deadline, "the ramdisk's completed notice"))
            }
            State::Restarting { deadline, .. } => Some((*deadline, "the machine to restart")),
            State::CleaningUp { deadline, .. } => {
                self.running.map(|_| (*deadline, "the operation under way to stop"))
            }
        }
    }

    /// Whether the spec wants the disk written: it never was, or `redeploy` was changed since.
    pub(super) fn wants_install(&self) -> bool {
        let Some(spec) = &self.record.spec else { return false };
        spec.goal == Goal::Deployed
            && self.record.installed.as_ref().is_none_or(|installed| {
                Some(&installed.digest) != self.wanted.as_ref()
                    && spec.redeploy.is_some()
                    && spec.redeploy != installed.redeploy
            })
    }

    /// Whether an attempt may be begun at all.
    pub(super) fn may_start(&self) -> bool {
        let paused = self.record.spec.as_ref().is_none_or(|spec| spec.paused);
        self.wants_install() && !paused && self.problems.is_empty() && self.blocked.is_none()
    }

    fn take_spec(&mut self, now: Timestamp, spec: &Arc<NodeSpec>, actions: &mut Vec<Action>) {
        self.blocked = None;
        self.problems.clear();
        self.clash = false;
        if let State::CleaningUp { purpose: purpose @ Purpose::Forget, .. } = &mut self.record.state
        {
            *purpose = Purpose::StartOver;
        }
        let old = self.record.spec.replace(Arc::clone(spec));
        if old.as_ref() == Some(spec) {
            return;
        }
        if old.is_some_and(|old| old.bmc != spec.bmc) {
            // What the old BMC said, or is about to say, is not about this machine.
            self.power = None;
            self.next_observation = now;
            if self.record.state.at_rest() {
                self.cancel(actions);
            }
        }
        let wanted = Some(spec.digest());
        let other_install = wanted != self.wanted;
        self.wanted = wanted;
        if other_install {
            self.record.consented = false;
        }
        match &self.record.state {
            State::Held { redeploy } if spec.redeploy.is_some() && spec.redeploy != *redeploy => {
                self.approve();
            }
            State::Held { .. } => {}
            State::Idle { .. } | State::Failed => self.retry(),
            _ if other_install || spec.paused || spec.goal == Goal::Unmanaged => {
                self.abandon(now, Purpose::StartOver, actions);
            }
            _ => {}
        }
    }

    fn take_problems(&mut self, problems: Vec<Problem>, clash: bool) {
        self.blocked = None;
        self.problems = problems;
        self.clash = clash;
    }

    fn approve(&mut self) {
        if matches!(self.record.state, State::Held { .. }) {
            self.record.consented = true;
            self.record.attempt = 0;
            self.record.state = State::Idle { not_before: None };
        }
    }

    fn retry(&mut self) {
        if matches!(self.record.state, State::Idle { .. } | State::Failed) {
            self.record.attempt = 0;
            self.record.state = State::Idle { not_before: None };
        }
    }

    /// Tells the running operation to stop; the node waits for its report before it starts another.
    pub(super) fn cancel(&mut self, actions: &mut Vec<Action>) {
        if let Some(running) = &mut self.running {
            running.cancelled = true;
            actions.push(Action::Cancel(running.op));
        }
    }

    /// Whether the power state is to be looked at now and then.
    fn observes(&self) -> bool {
        self.record.state.at_rest() && self.record.spec.is_some() && !self.clash
    }

    /// Starts what the state needs, if nothing runs.
    fn drive(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if self.running.is_some() {
            return;
        }
        let due = |at: &Option<Timestamp>| at.is_none_or(|at| at <= now);
        let operation = match &self.record.state {
            State::Idle { not_before } if self.may_start() && due(not_before) => {
                Operation::ObservePower
            }
            State::Idle { .. } | State::Held { .. } | State::Failed
                if self.observes() && self.next_observation <= now =>
            {
                Operation::ObservePower
            }
            State::Preparing { .. } => Operation::Prepare,
            State::PoweringOn { .. } => Operation::PowerOn,
            State::Imaging { target, disk, .. } => {
                Operation::Image { target: Box::new(target.clone()), disk_bytes: disk.size }
            }
            State::Restarting { .. } => Operation::Restart,
            State::CleaningUp { attempt: None, purpose, .. } => {
                return self.conclude(now, *purpose, actions);
            }
            State::CleaningUp { not_before, .. } if due(not_before) => Operation::CleanUp,
            State::Idle { .. }
            | State::Held { .. }
            | State::Failed
            | State::WaitingRamdisk { .. }
            | State::Switching { .. }
            | State::WaitingCompleted { .. }
            | State::CleaningUp { .. } => return,
        };
        // Every state that needs work was reached with a spec.
        let Some(spec) = self.record.spec.clone() else { return };
        let power_limit = spec.timeouts.power.saturating_mul(3) + OPERATION_SLACK;
        if let State::CleaningUp { deadline, .. } = &mut self.record.state {
            *deadline = after(now, power_limit);
        }
        let op = OpId(self.next_op);
        self.next_op += 1;
        self.running =
            Some(Running { op, cancelled: false, patience_until: after(now, power_limit) });
        actions.push(Action::Start { op, operation, spec });
    }

    /// Tells an observation that does not report to stop; deadlines of attempts are in `attempt.rs`.
    fn expire(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if let (true, Some(running)) = (self.record.state.at_rest(), &mut self.running) {
            if running.patience_until <= now {
                running.patience_until = after(now, CANCEL_PATIENCE);
                self.cancel(actions);
            }
        } else if self.deadline().is_some_and(|(deadline, _)| deadline <= now) {
            self.miss_deadline(now, actions);
        }
    }

    /// Takes note of a power state the BMC reported.
    pub(super) fn see_power(&mut self, now: Timestamp, observed: PowerState) {
        self.power = Some(Power { observed, observed_at: now });
        self.bmc_trouble = None;
        self.next_observation = after(now, OBSERVATION_INTERVAL);
    }

    /// Takes note that the BMC did not say.
    pub(super) fn miss_power(&mut self, now: Timestamp, trouble: Fault) {
        let pause = match trouble.retry {
            RetryAdvice::Backoff => OBSERVATION_INTERVAL,
            RetryAdvice::Never => REFUSED_OBSERVATION_INTERVAL,
        };
        self.bmc_trouble = Some(trouble);
        self.next_observation = after(now, pause);
    }

    fn note_phase(&mut self, now: Timestamp) {
        let phase = self.phase();
        if phase == self.record.phase && !self.record.history.is_empty() {
            return;
        }
        if self.record.phase.is_busy() {
            let spent_ms =
                u64::try_from(now.duration_since(self.record.since).as_millis()).unwrap_or(0);
            *self
                .record
                .durations
                .entry(format!("{}_ms", self.record.phase.as_str()))
                .or_default() += spent_ms;
        }
        self.record.phase = phase;
        self.record.since = now;
        let entry = HistoryEntry { at: now, phase, message: self.message() };
        self.record.history.push(entry);
        let surplus = self.record.history.len().saturating_sub(HISTORY_MAX);
        self.record.history.drain(..surplus);
    }
}

/// `now` plus a duration; the far end of time if there is no such moment.
pub(super) fn after(now: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait)
        .ok()
        .and_then(|wait| now.checked_add(wait).ok())
        .unwrap_or(Timestamp::MAX)
}

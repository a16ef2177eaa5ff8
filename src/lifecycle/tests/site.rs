//! The reference of the random histories: two machines, a ramdisk, an operator and a clock. From
//! the events alone, it derives power, consent, operations and writes, and checks the core against
//! them.

#![expect(clippy::print_stdout, reason = "a history that is played again is printed")]

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::{
    lifecycle::{
        Action, DiskSize, Event, Menu, Node, Operation, Outcome, POLL_LIMIT, Record, State,
    },
    model::{
        callback::{Call, DeployState, Reply},
        fault::Fault,
        ids::{Digest, OpId},
        power::PowerState,
        spec::{DeployRamdisk, Goal, MachineId, NodeSpec, WantedPower},
        status::Phase,
    },
};

use super::support::*;

/// The longest wait with the specs used here: `timeouts.imaging`.
const WAIT_MAX: SignedDuration = SignedDuration::from_hours(4);
/// The time for which consent covers a repeated attempt.
const CONSENT_LASTS: SignedDuration = SignedDuration::from_hours(1);

/// `SplitMix64`, a small and portable generator.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let n = self.roll(from.len() as u64);
        &from[usize::try_from(n).unwrap()]
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
}

/// A node with the real state of its surroundings.
pub(super) struct Site {
    pub(super) dice: Dice,
    pub(super) now: Timestamp,
    pub(super) node: Node,
    /// The present spec file.
    pub(super) spec: Option<NodeSpec>,
    /// The power of the two machines.
    pub(super) on: [bool; 2],
    pub(super) running: Option<Job>,
    /// Whether there is trouble.
    pub(super) faults: bool,
    /// Whether every event is printed.
    pub(super) trace: bool,
    consent: Consent,
    /// The attempt under way, with its beginning.
    begun: Option<Begun>,
    keys_made: u8,
    steps: u64,
}

/// The operator's consent.
#[derive(Default)]
struct Consent {
    /// Whether there is consent, or a series of attempts began with consent that has not ended.
    given: bool,
    /// Whether a changed spec or an operator ordered a power state.
    power: bool,
    /// The `redeploy` of the present installation; a change of it is consent to reinstall.
    installed_under: Option<Redeploy>,
    /// Whether the machine was not switched since its disk was written.
    unstarted: bool,
}

type Redeploy = Option<String>;

struct Begun {
    bmc: MachineId,
    digest: Digest,
    written: bool,
    /// Whether the ramdisk has called.
    has_called: bool,
}

pub(super) struct Job {
    pub(super) op: OpId,
    operation: Operation,
    bmc: MachineId,
    pub(super) ends: Timestamp,
    cancelled: bool,
}

impl Site {
    pub(super) fn new(seed: u64) -> Self {
        let now = "2026-11-22T12:00:00Z".parse().unwrap();
        let mut dice = Dice(seed);
        let on = [dice.chance(30), dice.chance(50)];
        Self {
            dice,
            now,
            node: Node::new(spec().name, POLICY, now),
            spec: None,
            on,
            running: None,
            faults: true,
            trace: false,
            consent: Consent::default(),
            begun: None,
            keys_made: 0,
            steps: 0,
        }
    }

    pub(super) fn send(&mut self, event: Event) -> Option<Reply> {
        self.steps += 1;
        let before = self.node.record().clone();
        let ended = self.note(&event);
        if self.trace {
            let shown = format!("{event:?}");
            println!("{} {}", self.now, shown.chars().take(160).collect::<String>());
        }
        let compared = matches!(
            &event,
            Event::Callback { call: Call::Completed(body), .. }
                if body.verified && body.error.is_empty()
        );
        // A full check costs more than a step, so that only every 16th step has one.
        let actions = match self.steps % 16 {
            0 => step(&mut self.node, self.now, event),
            _ => self.node.step(self.now, event),
        };
        self.judge(&before, ended.as_ref());
        self.judge_comparison(&before, compared);
        let (mut answer, mut forgotten) = (None, false);
        for action in actions {
            match action {
                Action::Start { op, operation, spec } => self.start(op, operation, &spec),
                Action::Cancel(op) => self.cancel(op),
                Action::Reply { reply, .. } => answer = Some(reply),
                Action::KeepLog(_) => {}
                Action::Forget => forgotten = true,
            }
        }
        if self.trace {
            println!("    {:?} {:?}", self.node.phase(), self.node.next_wake());
        }
        if forgotten {
            assert!(self.running.is_none(), "forgotten while something runs");
            self.node = Node::new(spec().name, POLICY, self.now);
            self.spec = None;
            self.consent = Consent::default();
            self.begun = None;
        } else {
            self.check();
        }
        answer
    }

    /// Updates the consent for an event, before the core gets it.
    fn note(&mut self, event: &Event) -> Option<Outcome> {
        match event {
            Event::Spec(new) => self.note_spec(new),
            Event::SpecClash(_) => self.consent.given = false,
            Event::Approve if self.node.phase() == Phase::Held => self.consent_in_hold(),
            Event::Retry => self.consent.power = true,
            Event::Done { outcome: Ok(outcome), .. } => return Some(outcome.clone()),
            _ => {}
        }
        None
    }

    fn note_spec(&mut self, new: &NodeSpec) {
        let Some(old) = self.node.spec().filter(|old| old.as_ref() != new).cloned() else { return };
        let reworded = new.redeploy.is_some() && new.redeploy != old.redeploy;
        let other_machine = old.machine() != new.machine() || old.boot.macs != new.boot.macs;
        let was_held = self.node.phase() == Phase::Held;
        self.consent.power |= (old.goal, old.power) != (new.goal, new.power);
        let stands_still = new.paused || new.goal != Goal::Deployed;
        if other_machine || stands_still || old.digest() != new.digest() {
            self.consent.given = false;
        }
        if other_machine && let Some(under) = &mut self.consent.installed_under {
            under.clone_from(&old.redeploy);
        }
        self.consent.unstarted &= !other_machine;
        let state = &self.node.record().state;
        let was_paused_in_hold =
            matches!(state, State::Held { redeploy, .. } if *redeploy != new.redeploy);
        if !stands_still && new.redeploy.is_some() && (reworded && was_held || was_paused_in_hold) {
            self.consent_in_hold();
        }
    }

    /// Consents to the shown hold, and so to the loss of an unknown installation.
    fn consent_in_hold(&mut self) {
        self.consent.given = true;
        if self.node.record().record_lost {
            self.consent.installed_under = None;
        }
    }

    /// Checks the actions of the core.
    fn judge(&mut self, before: &Record, ended: Option<&Outcome>) {
        let record = self.node.record();
        let Some(spec) = record.spec.as_ref() else { return };
        let prepares = |state: &State| matches!(state, State::Preparing { .. });
        if !prepares(&before.state) && prepares(&record.state) {
            let late = before.not_before.map(|at| self.now.duration_since(at));
            self.consent.given &= late.is_none_or(|late| late <= CONSENT_LASTS);
            let (bmc, digest) = (spec.machine(), spec.digest());
            self.begun = Some(Begun { bmc, digest, written: false, has_called: false });
        }
        if prepares(&before.state) && matches!(record.state, State::PoweringOn { .. }) {
            let reworded = self
                .consent
                .installed_under
                .as_ref()
                .is_some_and(|under| spec.redeploy.is_some() && spec.redeploy != *under);
            let seen_off = ended == Some(&Outcome::Power(PowerState::Off));
            assert!(seen_off || self.consent.given || reworded, "begun without consent");
            assert!(self.consent.installed_under.is_none() || reworded, "reinstalled unasked");
            assert!(!spec.paused && spec.goal == Goal::Deployed);
            self.consent.given = true;
        }
        if before.state.attempt().is_some() && matches!(record.state, State::Switching { .. }) {
            let written = matches!(ended, Some(Outcome::Imaged { .. }));
            assert!(written || before.state == record.state, "written by nobody");
            self.begun.as_mut().unwrap().written = true;
        }
        if before.state != record.state {
            match record.state {
                State::Imaging { granted: true, .. } => {
                    (self.consent.installed_under, self.consent.unstarted) = (None, false);
                }
                State::Failed => self.consent.given = false,
                _ => {}
            }
        }
        let installed_at =
            |record: &Record| record.installed.as_ref().map(|installed| installed.at);
        if installed_at(before) != installed_at(record) && record.installed.is_some() {
            let is_let_go = matches!(record.state, State::Restarting { .. });
            assert!(is_let_go, "installed before the ramdisk let go of the disk");
            assert!(self.begun.as_ref().unwrap().written, "installed without a write");
            self.consent.given = false;
            self.consent.installed_under = Some(spec.redeploy.clone());
            self.consent.unstarted = true;
        } else if record.installed.is_some() && record.state == State::Idle {
            self.begun = None;
        }
    }

    fn start(&mut self, op: OpId, operation: Operation, spec: &NodeSpec) {
        assert!(self.running.is_none(), "two operations at once");
        let bmc = spec.machine();
        let polls = matches!(
            operation,
            Operation::PollPower | Operation::ConfirmPower | Operation::Prepare
        );
        let by_order = matches!(self.node.record().state, State::SettingPower { .. });
        let boots = matches!(self.node.record().state, State::Booting { .. });
        if !polls && !by_order && !boots {
            let begun = self.begun.as_ref().expect("the machine is touched without an attempt");
            assert_eq!(begun.bmc, bmc, "{operation:?} of another machine than the attempt's");
            assert!(
                operation == Operation::CleanUp || begun.digest == spec.digest(),
                "{operation:?} for another installation than the attempt's"
            );
        }
        match &operation {
            Operation::Image { target, size, .. } => {
                // Consent was checked when the attempt began; only a clash does not stop an attempt
                // under way.
                assert!(!spec.paused && spec.goal == Goal::Deployed, "written in a pause");
                assert!(matches!(self.node.menu(), Menu::Deploy(_)));
                assert_eq!(self.node.record().installed, None, "half written and said to be whole");
                let wanted = match self.node.ramdisk() {
                    DeployRamdisk::Hostler => DiskSize::Exactly(disk().size),
                    DeployRamdisk::Ironic => DiskSize::AtLeast(IMAGE_BYTES),
                };
                assert_eq!((target.address, *size), (RAMDISK, wanted));
            }
            Operation::Restart { wanted } if boots => {
                assert_eq!(*wanted, PowerState::On);
                assert!(self.consent.installed_under.is_some(), "nothing was installed");
                assert!(!spec.paused && spec.goal == Goal::Deployed, "restarted in a pause");
            }
            Operation::Restart { wanted } => {
                assert_eq!(
                    *wanted,
                    self.left_in(),
                    "left in another power state than its spec wants"
                );
                assert_eq!(self.node.menu(), Menu::LocalDisk);
                let unstarted = self.consent.unstarted;
                let written = self.begun.as_ref().map_or(unstarted, |begun| begun.written);
                assert!(written || unstarted, "restarted before it is written");
            }
            Operation::Release(_) => assert_eq!(self.node.menu(), Menu::LocalDisk),
            Operation::SetPower(wanted) => self.judge_switching(*wanted, spec),
            Operation::CleanUp => assert_ne!(self.node.menu(), Menu::Unknown),
            Operation::PollPower
            | Operation::ConfirmPower
            | Operation::Prepare
            | Operation::ProbePort { .. }
            | Operation::NetbootFiles { .. }
            | Operation::PowerOn => {}
        }
        // Without trouble, a poll ends by itself.
        let polls = operation == Operation::PollPower && !self.faults;
        let longest_s = if polls { POLL_LIMIT.as_secs() } else { 90 };
        let lasts = i64::try_from(self.dice.roll(longest_s)).unwrap();
        let ends = self.later(lasts);
        self.running = Some(Job { op, operation, bmc, ends, cancelled: false });
    }

    /// The power state after an installation.
    fn left_in(&self) -> PowerState {
        let power = self.node.spec().unwrap().power;
        if power == WantedPower::Off { PowerState::Off } else { PowerState::On }
    }

    /// Checks that hostler switches a machine only if it knows the machine and somebody ordered
    /// that.
    fn judge_switching(&self, wanted: PowerState, spec: &NodeSpec) {
        let known = self.consent.installed_under.is_some() || self.consent.given;
        assert!(known, "a machine is switched that hostler does not know");
        assert!(!spec.paused && spec.goal != Goal::Unmanaged, "switched in a pause");
        let first_start = self.consent.unstarted && wanted == PowerState::On;
        assert!(self.consent.power || self.consent.given || first_start, "drift is forced");
        let off = spec.goal == Goal::Available || spec.power == WantedPower::Off;
        assert_eq!(wanted, if off { PowerState::Off } else { PowerState::On });
    }

    fn cancel(&mut self, op: OpId) {
        let soon = self.later(1);
        let job = self
            .running
            .as_mut()
            .filter(|job| job.op == op)
            .expect("only what runs is told to stop");
        (job.ends, job.cancelled) = (job.ends.min(soon), true);
    }

    pub(super) fn later(&self, seconds: i64) -> Timestamp {
        self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap()
    }

    /// Checks the rules that hold after every event.
    fn check(&self) {
        let record = self.node.record();
        let at_rest = record.state.at_rest();
        let wake = self.node.next_wake();
        assert!(at_rest || wake.is_some(), "a wait without an end: {:?}", record.state);
        if let Some((at, reason)) = wake {
            assert!(at > self.now, "woken for {reason} at once and again: {record:?}");
            assert!(at.duration_since(self.now) <= WAIT_MAX, "{reason} only at {at}");
        }
        let busy_with_netboot =
            matches!(self.node.phase(), Phase::PoweringOn | Phase::WaitingRamdisk | Phase::Imaging);
        match self.node.menu() {
            Menu::Deploy(shown) => {
                assert!(busy_with_netboot, "the deploy menu in {:?}", self.node.phase());
                assert_eq!(shown, key(self.keys_made), "an old key is served");
            }
            Menu::LocalDisk | Menu::Network { .. } | Menu::Unknown => assert!(!busy_with_netboot),
        }
        // The check of status and record costs more than all the rest, so that it is rare.
        if self.steps.is_multiple_of(16) {
            self.check_status();
        }
    }

    fn check_status(&self) {
        let record = self.node.record();
        let status = self.node.status(self.now);
        assert!(!status.ready || matches!(status.phase, Phase::Deployed | Phase::Available));
        assert_eq!((status.phase, status.attempt), (record.phase, record.attempt));
        assert_eq!(status.deadline.is_some(), status.deadline_reason.is_some());
        assert_eq!(status.installed, record.installed);
        assert!(!status.message.is_empty() && status.history.len() <= 50);
        if self.steps.is_multiple_of(64) {
            self.check_files(&toml::to_string(&status).unwrap());
        }
    }

    fn check_files(&self, status: &str) {
        let record = self.node.record();
        let saved = serde_json::to_string(record).unwrap();
        let made = [self.keys_made, self.keys_made.wrapping_sub(1)].map(key);
        assert!(!status.contains("chap-secret"), "a secret in the status");
        assert!(!made.iter().any(|key| status.contains(key.expose())), "a key in the status");
        if record.state.attempt().is_none() && !matches!(record.state, State::Preparing { .. }) {
            assert!(
                !made.iter().any(|key| saved.contains(key.expose())),
                "a key outlives its attempt"
            );
        }
        if !matches!(record.state, State::Imaging { .. }) {
            assert!(!saved.contains("chap-secret"), "a secret outlives its target");
        }
        let read: Record = serde_json::from_str(&saved).unwrap();
        assert_eq!(&read, record, "the record does not survive its file");
    }

    pub(super) fn finish_job(&mut self) {
        let Some(job) = self.running.take() else { return };
        let fails = job.cancelled && self.dice.chance(80) || self.faults && self.dice.chance(15);
        let outcome = if fails {
            Err(if self.dice.chance(20) && !job.cancelled { lasting() } else { passing() })
        } else {
            Ok(self.execute(&job))
        };
        if self.dice.chance(5) {
            self.stale_result_changes_nothing(job.op);
        }
        self.send(Event::Done { op: job.op, outcome });
    }

    fn execute(&mut self, job: &Job) -> Outcome {
        let on = &mut self.on[usize::from(job.bmc != spec().machine())];
        match &job.operation {
            Operation::PollPower | Operation::ConfirmPower => {
                Outcome::Power(if *on { PowerState::On } else { PowerState::Off })
            }
            Operation::Prepare => {
                self.keys_made = self.keys_made.wrapping_add(1);
                prepared(key(self.keys_made))
            }
            Operation::Image { .. }
                if self.node.ramdisk().confirms_completion() && self.dice.chance(30) =>
            {
                imaged_unverified()
            }
            Operation::Image { .. } => imaged(),
            Operation::Release(_) => Outcome::Released,
            Operation::NetbootFiles { .. } | Operation::ProbePort { .. } => {
                good_outcome(&job.operation)
            }
            Operation::PowerOn => {
                *on = true;
                Outcome::PoweredOn
            }
            Operation::Restart { wanted: state } | Operation::SetPower(state) => {
                *on = *state == PowerState::On;
                self.consent.unstarted = false;
                good_outcome(&job.operation)
            }
            Operation::CleanUp => {
                *on = false;
                Outcome::CleanedUp
            }
        }
    }

    /// A disk that the ramdisk must compare boots only after the ramdisk has reported the
    /// comparison.
    fn judge_comparison(&self, before: &Record, compared: bool) {
        let restarting = |state: &State| matches!(state, State::Restarting { .. });
        let wanted = before.state.attempt().is_some_and(|attempt| !attempt.verify.is_empty());
        let began = restarting(&self.node.record().state) && !restarting(&before.state);
        assert!(!(wanted && began) || compared, "restarted into a disk that nobody has compared");
    }

    fn stale_result_changes_nothing(&mut self, real: OpId) {
        let before = self.node.record().clone();
        let outcome: Result<Outcome, Fault> =
            if self.dice.chance(50) { Ok(imaged()) } else { Err(lasting()) };
        self.node.step(self.now, Event::Done { op: OpId(real.0 + 1000), outcome });
        assert_eq!(self.node.record(), &before, "a stale result changed something");
    }

    /// Makes a call that must be refused or may be accepted.
    pub(super) fn call(&mut self, call: Call) {
        let attempt = self.node.record().state.attempt().cloned();
        let real = attempt.as_ref().map(|attempt| attempt.key.clone());
        let key = match real.clone() {
            Some(real) if !self.faults || !self.dice.chance(10) => real,
            _ => key(self.keys_made.wrapping_sub(1)),
        };
        let peer = if self.faults && self.dice.chance(5) {
            "192.0.2.66".parse().unwrap()
        } else {
            RAMDISK
        };
        let has_called = self.begun.as_ref().is_some_and(|begun| begun.has_called);
        let key_fits = real.as_ref() == Some(&key);
        // The reference does not cover a stranger who uses the right key first.
        if key_fits && peer != RAMDISK && !has_called {
            return;
        }
        let legitimate = key_fits && peer == RAMDISK;
        if let Some(begun) = &mut self.begun {
            begun.has_called |= legitimate;
        }
        let before = self.node.record().clone();
        let expired = self.node.next_wake().is_some_and(|(at, _)| at <= self.now);
        let event = Event::Callback { request: 1, peer, key, call };
        let reply = self.send(event).expect("every callback is answered");
        if !legitimate {
            assert_eq!(reply, Reply::Refused, "a stranger was believed");
            assert!(expired || self.node.record() == &before, "a stranger changed something");
        }
        if reply == Reply::State(DeployState::Release.into()) {
            assert_eq!(self.node.menu(), Menu::LocalDisk, "released while the menu still installs");
            assert!(self.begun.as_ref().unwrap().written, "released before it is written");
        }
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut NodeSpec)) {
        let mut new = self.spec.clone().unwrap_or_else(spec);
        change(&mut new);
        self.spec = Some(new.clone());
        self.send(Event::Spec(Arc::new(new)));
    }

    /// Kills and restarts the agent: operations are gone, and the record is read back.
    pub(super) fn crash(&mut self) {
        let saved = serde_json::to_string(self.node.record()).unwrap();
        self.node =
            Node::resume(spec().name, serde_json::from_str(&saved).unwrap(), POLICY, self.now);
        self.running = None;
        if let Some(spec) = self.spec.clone() {
            self.send(Event::Spec(Arc::new(spec)));
        }
    }

    /// Sets the clock, without an effect on running operations.
    pub(super) fn set_clock(&mut self, seconds: i64) {
        self.now = self.later(seconds);
        if let Some(job) = &mut self.running {
            job.ends = job.ends.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        }
        self.send(Event::Tick);
    }

    pub(super) fn advance_clock(&mut self) {
        // Sometimes other events come first.
        let others_first = self.faults && self.dice.chance(30);
        let waits = [self.node.waits_to_poll(), self.node.waits_for()];
        if let Some((permit, _)) = waits.into_iter().flatten().find(|_| !others_first) {
            self.send(Event::Granted(permit));
        }
        let wake = self.node.next_wake().map(|(at, _)| at);
        let job = self.running.as_ref().map(|job| job.ends);
        let next = [wake, job].into_iter().flatten().min();
        self.now = next.unwrap_or(self.now).max(self.now);
        if self.running.as_ref().is_some_and(|job| job.ends <= self.now) {
            self.finish_job();
        } else {
            self.send(Event::Tick);
        }
    }
}

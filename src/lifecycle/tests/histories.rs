//! Random histories: nodes, a pretended site and every kind of trouble, with the seed printed when a rule breaks.
//!
//! The site is the reference: it knows which machine is on, whose disk may be wiped and what runs, and says so independently of
//! the core. `HISTORY_EVENTS=` sets the number of events.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a run says how long it was, and with which seed it broke"
)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    lifecycle::{Action, Event, Menu, Node, Operation, Outcome, Record, State},
    model::{
        boot::{BootStage, Fetch},
        callback::{Call, DeployState, Reply},
        fault::Fault,
        ids::OpId,
        power::PowerState,
        problem::Problem,
        secret::AttemptKey,
        spec::NodeSpec,
        status::Phase,
    },
};

use super::support::*;

const EVENTS_DEFAULT: u64 = 200_000;
const EVENTS_PER_HISTORY: u64 = 400;

/// `SplitMix64`: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
}

/// One machine with its BMC and its operator, as they really are.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the site")]
struct Site {
    dice: Dice,
    now: Timestamp,
    node: Node,
    spec: Option<NodeSpec>,
    machine_on: bool,
    /// Somebody said that this machine's disk may be wiped: it was seen off, or an operator consented.
    may_wipe: bool,
    running: Option<Job>,
    keys_made: u8,
    forgotten: bool,
    faults: bool,
    steps: u64,
}

struct Job {
    op: OpId,
    operation: Operation,
    ends: Timestamp,
}

impl Site {
    fn new(seed: u64) -> Self {
        let now = "2026-11-22T12:00:00Z".parse().unwrap();
        let mut dice = Dice(seed);
        let machine_on = dice.chance(30);
        Self {
            dice,
            now,
            node: Node::new(spec().name, now),
            spec: None,
            machine_on,
            may_wipe: false,
            running: None,
            keys_made: 0,
            forgotten: false,
            faults: true,
            steps: 0,
        }
    }

    fn send(&mut self, event: Event) -> Option<Reply> {
        self.steps += 1;
        let actions = self.node.step(self.now, event);
        let mut answer = None;
        for action in actions {
            match action {
                Action::Start { op, operation, .. } => self.start(op, operation),
                Action::Cancel(op) => self.cancel(op),
                Action::Reply { reply, .. } => answer = Some(reply),
                Action::Forget => self.forgotten = true,
            }
        }
        self.check();
        if self.forgotten {
            // The agent drops the node; a job that still reports finds nobody.
            self.forgotten = false;
            self.node = Node::new(spec().name, self.now);
            self.spec = None;
            self.running = None;
            self.may_wipe = false;
        }
        answer
    }

    fn start(&mut self, op: OpId, operation: Operation) {
        assert!(self.running.is_none(), "two operations at once");
        if matches!(operation, Operation::Image { .. }) {
            assert!(self.may_wipe, "a disk is written without consent");
            assert!(matches!(self.node.menu(), Menu::Deploy(_)));
        }
        let lasts = i64::try_from(self.dice.roll(90)).unwrap();
        let ends = self.now.checked_add(SignedDuration::from_secs(lasts)).unwrap();
        self.running = Some(Job { op, operation, ends });
    }

    fn cancel(&mut self, op: OpId) {
        let soon = self.now.checked_add(SignedDuration::from_secs(1)).unwrap();
        if let Some(job) = self.running.as_mut().filter(|job| job.op == op) {
            job.ends = job.ends.min(soon);
        }
    }

    /// What must hold after every event.
    fn check(&self) {
        let record = self.node.record();
        let at_rest = record.state.at_rest();
        assert!(
            at_rest || self.node.next_wake().is_some(),
            "a wait without a deadline: {:?}",
            record.state
        );
        assert!(
            matches!(self.node.menu(), Menu::Deploy(_)) <= record.state.attempt().is_some(),
            "a key is served without an attempt"
        );
        let status = self.node.status(self.now);
        assert!(!(status.ready && status.phase != Phase::Deployed));
        assert_eq!(status.phase, record.phase, "the status does not match the record");
        // Writing both files out costs more than all the rest: now and then is enough.
        if !self.steps.is_multiple_of(32) {
            return;
        }
        let text = toml::to_string(&status).unwrap();
        let key = record.state.attempt().map(|attempt| attempt.key.expose());
        assert!(!text.contains("chap-secret") && key.is_none_or(|key| !text.contains(key)));
        let saved = serde_json::to_string(record).unwrap();
        assert_eq!(
            &serde_json::from_str::<Record>(&saved).unwrap(),
            record,
            "the record does not survive its file"
        );
    }

    fn finish_job(&mut self) {
        let Some(job) = self.running.take() else { return };
        let fails = self.faults && self.dice.chance(15);
        let outcome = if fails {
            Err(if self.dice.chance(20) { lasting() } else { passing() })
        } else {
            Ok(self.carry_out(&job.operation))
        };
        self.note_consent(&outcome, &job.operation);
        if self.dice.chance(5) {
            self.stale_result_changes_nothing(job.op);
        }
        self.send(Event::Done { op: job.op, outcome });
    }

    fn carry_out(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::ObservePower => {
                Outcome::Power(if self.machine_on { PowerState::On } else { PowerState::Off })
            }
            Operation::Prepare => {
                self.keys_made = self.keys_made.wrapping_add(1);
                Outcome::Prepared { image_bytes: IMAGE_BYTES, key: key(self.keys_made) }
            }
            Operation::PowerOn | Operation::Restart => {
                self.machine_on = true;
                good_outcome(operation)
            }
            Operation::Image { .. } => Outcome::Imaged,
            Operation::CleanUp => {
                self.machine_on = false;
                Outcome::CleanedUp
            }
        }
    }

    /// Being off when hostler looks is the machine's own consent.
    fn note_consent(&mut self, outcome: &Result<Outcome, Fault>, operation: &Operation) {
        if *operation == Operation::ObservePower && *outcome == Ok(Outcome::Power(PowerState::Off))
        {
            self.may_wipe = true;
        }
        if matches!(outcome, Ok(Outcome::Restarted)) {
            self.may_wipe = false;
        }
    }

    fn stale_result_changes_nothing(&mut self, real: OpId) {
        let before = self.node.record().clone();
        let outcome = if self.dice.chance(50) { Ok(Outcome::Imaged) } else { Err(lasting()) };
        let actions = self.node.step(self.now, Event::Done { op: OpId(real.0 + 1000), outcome });
        assert!(
            !actions.iter().any(|action| matches!(action, Action::Start { .. }))
                || self.running.is_none()
        );
        assert_eq!(self.node.record(), &before, "a stale result changed something");
    }

    fn key(&mut self) -> AttemptKey {
        let real = self.node.record().state.attempt().map(|attempt| attempt.key.clone());
        match real {
            Some(real) if !self.dice.chance(10) => real,
            _ => key(self.keys_made.wrapping_sub(1)),
        }
    }

    fn call(&mut self) {
        let call = match self.dice.roll(8) {
            0 | 1 => lookup(),
            2 | 3 => deploy_info(""),
            4 | 5 => Call::DeployState,
            6 => completed(""),
            _ if self.faults && self.dice.chance(30) => deploy_info("trouble"),
            _ => Call::DeployState,
        };
        let key = self.key();
        let right = self.node.record().state.attempt().is_some_and(|attempt| attempt.key == key);
        let state_before = self.node.record().state.clone();
        let event = Event::Callback { request: 1, peer: RAMDISK, key, call };
        let reply = self.send(event).expect("every callback is answered");
        if !right {
            assert_eq!(reply, Reply::Refused, "a wrong key was believed");
            assert_eq!(self.node.record().state, state_before);
        }
        if reply == Reply::State(DeployState::Release) {
            assert_eq!(
                self.node.menu(),
                Menu::LocalDisk,
                "released while the boot menu still installs"
            );
        }
    }

    fn operator(&mut self) {
        match self.dice.roll(12) {
            0 => self.machine_on = !self.machine_on,
            1 => {
                if matches!(self.node.record().state, State::Held { .. }) {
                    self.may_wipe = true;
                }
                drop(self.send(Event::Approve));
            }
            2 => drop(self.send(Event::Retry)),
            3 => drop(self.send(Event::SpecProblems(vec![Problem::of_file("f", "empty")]))),
            4 => drop(self.send(Event::SpecClash(vec![Problem::of_file("f", "clash")]))),
            5 => drop(self.send(Event::DirectoryLost("gone".into()))),
            6 if self.dice.chance(20) => drop(self.send(Event::SpecGone)),
            7 => {
                let value = self.dice.roll(1000).to_string();
                self.change(|spec| spec.redeploy = Some(value));
            }
            8 => {
                let paused = self.dice.chance(50);
                self.change(|spec| spec.paused = paused);
            }
            9 => {
                let digits = self.dice.roll(3).to_string().repeat(64);
                self.change(|spec| {
                    spec.image.checksum = format!("sha256:{digits}").parse().unwrap();
                });
            }
            _ => self.change(|_| {}),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut NodeSpec)) {
        let mut new = self.spec.clone().unwrap_or_else(spec);
        change(&mut new);
        // The consent that an operator gives by a changed `redeploy`, told independently of the core: after a hold was shown, or
        // to a machine that hostler installed.
        let consents = match &self.node.record().state {
            State::Held { redeploy, .. } => new.redeploy.is_some() && new.redeploy != *redeploy,
            _ => self
                .node
                .record()
                .installed
                .as_ref()
                .is_some_and(|i| new.redeploy.is_some() && new.redeploy != i.redeploy),
        };
        self.may_wipe |= consents;
        self.spec = Some(new.clone());
        self.send(Event::Spec(Arc::new(new)));
    }

    /// SIGKILL and a new start: what was running is gone, the record is read back.
    fn crash(&mut self) {
        let saved = serde_json::to_string(self.node.record()).unwrap();
        self.node = Node::resume(spec().name, serde_json::from_str(&saved).unwrap(), self.now);
        self.running = None;
        if let Some(spec) = self.spec.clone() {
            self.send(Event::Spec(Arc::new(spec)));
        }
    }

    fn advance_clock(&mut self) {
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

    fn random_event(&mut self) {
        match self.dice.roll(100) {
            0..=39 => self.advance_clock(),
            40..=74 => self.call(),
            75..=79 => {
                let stage = if self.dice.chance(50) { BootStage::Menu } else { BootStage::Kernel };
                let fetch = Fetch {
                    node: spec().name,
                    stage,
                    path: "x".into(),
                    peer: RAMDISK,
                    sent_bytes: 1,
                    complete: true,
                };
                drop(self.send(Event::Fetched(fetch)));
            }
            80..=96 => self.operator(),
            _ => self.crash(),
        }
    }

    /// Once the trouble stops, the node comes to rest where it should within its deadlines.
    fn settle(&mut self) {
        self.faults = false;
        self.machine_on = false;
        self.change(|spec| {
            spec.paused = false;
            spec.redeploy = Some("the-last-word".into());
        });
        drop(self.send(Event::Approve));
        drop(self.send(Event::Retry));
        let start = self.now;
        for _ in 0..2000 {
            if self.node.phase() == Phase::Deployed && self.running.is_none() {
                let took = self.now.duration_since(start);
                assert!(took < SignedDuration::from_hours(12), "took {took:?}");
                return;
            }
            let attempt = self.node.record().state.attempt().map(|attempt| attempt.key.clone());
            match (attempt, self.running.is_some()) {
                (Some(key), false) => {
                    for call in [lookup(), deploy_info(""), Call::DeployState, completed("")] {
                        let event =
                            Event::Callback { request: 1, peer: RAMDISK, key: key.clone(), call };
                        drop(self.send(event));
                    }
                    self.advance_clock();
                }
                _ => self.advance_clock(),
            }
        }
        panic!("never settled: {:?}", self.node.record().state);
    }
}

#[test]
fn no_history_breaks_a_rule() {
    let events =
        std::env::var("HISTORY_EVENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(EVENTS_DEFAULT);
    let histories = events / EVENTS_PER_HISTORY;
    for seed in 0..histories {
        let run = catch_unwind(AssertUnwindSafe(|| {
            let mut site = Site::new(seed);
            site.change(|_| {});
            for _ in 0..EVENTS_PER_HISTORY {
                site.random_event();
            }
            site.settle();
        }));
        if let Err(panic) = run {
            eprintln!("history with seed {seed} broke a rule");
            resume_unwind(panic);
        }
    }
    println!(
        "histories: {histories} seeds, {} events, 0 violations",
        histories * EVENTS_PER_HISTORY
    );
}

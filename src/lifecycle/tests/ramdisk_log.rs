//! Tests of deploy ramdisks' logs: sender, number, and that they change nothing.

use std::net::IpAddr;

use crate::{
    lifecycle::{Event, Outcome, State, ramdisk_log::LOGS_MAX},
    model::{
        callback::{Call, DeployState, RamdiskLog, Reply},
        power::PowerState,
        secret::AttemptKey,
        spec::DeployRamdisk,
        status::Phase,
    },
};

use super::support::*;

const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 66));

fn log(text: &str) -> RamdiskLog {
    RamdiskLog { kernel: text.to_owned(), ramdisk: String::new() }
}

impl Bench {
    /// Sends a log, and checks that the record is as before.
    fn send_log(&mut self, peer: IpAddr, key: &AttemptKey, text: &str) -> Reply {
        let (before, running) = (self.node.record().clone(), self.running.clone());
        let (deadline, menu) = (self.node.deadline(), self.menu());
        let call = Call::Log(log(text));
        let reply = self.send(Event::Callback { request: 1, peer, key: key.clone(), call });
        assert!(*self.node.record() == before && self.running == running, "{:?}", before.state);
        assert_eq!((self.node.deadline(), self.menu()), (deadline, menu));
        reply.expect("every callback is answered")
    }

    fn takes_log(&mut self) -> bool {
        let before = self.logs.len();
        let reply = self.send_log(RAMDISK, &key(1), "x");
        let kept = self.logs.len() - before;
        assert_eq!(
            (&reply, kept),
            if kept == 1 { (&Reply::Accepted, 1) } else { (&Reply::Refused, 0) }
        );
        kept == 1
    }
}

/// Invariant (ramdisk): A ramdisk's log changes nothing about its attempt, comes with the attempt's
/// key, and only so often.
#[test]
fn a_log_is_taken_throughout_its_attempt_and_changes_nothing() {
    for phase in WITH_KEY {
        let mut bench = Bench::with_spec();
        assert!(!bench.takes_log(), "no attempt is under way");
        bench.go_to(phase);
        assert!(bench.takes_log(), "{phase:?}");
        let kept = bench.logs.pop().unwrap();
        assert_eq!((kept.attempt, kept.peer, kept.key), (1, RAMDISK, key(1)));
        assert_eq!(kept.log, log("x"));
    }
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.done(Err(passing()));
    assert!(matches!(bench.node.record().state, State::CleaningUp { .. }));
    assert_eq!(
        bench.call(&key(1), Call::DeployState),
        Reply::State(DeployState::Abort.into()),
        "so it learns that it is to send one"
    );
    assert!(bench.takes_log(), "before the machine is switched off");
}

/// Invariant (ramdisk): A ramdisk's log changes nothing about its attempt, comes with the attempt's
/// key, and only so often.
#[test]
fn a_ramdisk_that_learns_late_that_its_attempt_is_over_may_still_send_its_log_until_the_next() {
    for fails in [true, false] {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::Imaging);
        if fails {
            bench.done(Err(passing()));
            bench.done(Ok(Outcome::CleanedUp));
            assert_eq!(bench.phase(), Phase::Pending);
        } else {
            bench.go_to(Phase::Deployed);
        }
        assert_eq!(bench.send_log(STRANGER, &key(1), "x"), Reply::Refused);
        assert_eq!(bench.send_log(RAMDISK, &key(2), "x"), Reply::Refused);
        assert_eq!(bench.call(&key(1), Call::DeployState), Reply::Refused, "for nothing else");
        assert!(bench.takes_log());
        assert_eq!(bench.logs.pop().unwrap().attempt, 1);
        if fails {
            bench.pass(3600);
            bench.poll(PowerState::Off);
            assert_eq!(bench.phase(), Phase::Preparing, "the next attempt");
        } else {
            bench.restart();
        }
        assert!(!bench.takes_log());
    }
}

/// Invariant (ramdisk): A ramdisk's log changes nothing about its attempt, comes with the attempt's
/// key, and only so often.
#[test]
fn a_thousand_logs_are_as_many_as_one_attempt_may_send_and_a_next_one_has_its_own() {
    let mut bench = Bench::with_spec();
    for attempt in 1..=2 {
        bench.go_to(Phase::WaitingRamdisk);
        let taken = (0..1000).filter(|_| bench.takes_log()).count();
        assert_eq!(taken, usize::try_from(LOGS_MAX).unwrap());
        bench.go_to(Phase::Imaging);
        bench.done(Err(passing()));
        assert!(!bench.takes_log(), "while it is cleaned up");
        bench.done(Ok(Outcome::CleanedUp));
        assert!(!bench.takes_log(), "nor after that");
        assert_eq!(bench.node.record().attempt, attempt);
    }
    let reason = bench.node.status(bench.now).last_seen.and_then(|seen| seen.refused_reason);
    assert!(reason.as_ref().is_some_and(|reason| reason.contains("as many logs")), "{reason:?}");
}

/// Invariant (ramdisk): A ramdisk's log changes nothing about its attempt, comes with the attempt's
/// key, and only so often.
#[test]
fn a_log_of_a_stranger_or_of_ironics_ramdisk_is_refused() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    assert_eq!(bench.send_log(RAMDISK, &key(2), "x"), Reply::Refused);
    bench.call(&key(1), lookup());
    assert_eq!(bench.send_log(STRANGER, &key(1), "x"), Reply::Refused);
    assert!(bench.takes_log());
    let mut bench = Bench::with_spec();
    bench.change(|spec| {
        spec.boot.ramdisk = DeployRamdisk::Ironic;
        spec.boot.require_chap = false;
    });
    bench.go_to(Phase::WaitingRamdisk);
    assert!(!bench.takes_log(), "Ironic's ramdisk sends none");
}

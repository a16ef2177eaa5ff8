//! Tests of files that are missing on the agent's own machine: the node waits and uses up no
//! attempt.

use crate::{
    lifecycle::{Operation, Outcome},
    model::{
        fault::{Fault, Step},
        power::PowerState,
        status::Phase,
    },
};

use super::support::*;

fn missing() -> Fault {
    Fault::missing(Step::Preflight, "PasswordUnreadable", "no such file", "put it there")
}

/// Longer than any pause before a retry.
const PAUSE_S: i64 = 60;

/// Invariant (bmc): Only a plausible secret is sent, and a missing local file uses up no attempt.
#[test]
fn a_node_waits_before_its_first_attempt_for_what_is_missing_and_goes_on_by_itself() {
    let mut bench = Bench::with_spec();
    for _ in 0..20 {
        assert_eq!(bench.running.as_ref().unwrap().1, Operation::PollPower);
        bench.done(Err(missing()));
        assert!(bench.running.is_none(), "it pauses");
        assert_eq!((bench.phase(), bench.node.record().attempt), (Phase::Pending, 0));
        assert_eq!(bench.message(), "waiting for what is missing: no such file");
        let (at, _) = bench.node.next_wake().unwrap();
        assert!(at.duration_since(bench.now).as_secs() <= 40, "{at}");
        bench.pass(PAUSE_S);
    }
    bench.done(Ok(Outcome::Power(PowerState::Off)));
    assert_eq!((bench.phase(), bench.node.record().attempt), (Phase::Preparing, 1));
    assert_eq!(bench.node.record().last_error, None, "nothing is missing any more");
}

/// Invariant (bmc): Only a plausible secret is sent, and a missing local file uses up no attempt.
#[test]
fn a_ramdisk_that_is_missing_in_every_preparation_uses_up_no_attempt() {
    let mut bench = Bench::with_spec();
    for _ in 0..20 {
        bench.go_to(Phase::Preparing);
        assert_eq!(bench.node.record().attempt, 1);
        bench.done(Err(missing()));
        assert_eq!((bench.phase(), bench.node.record().attempt), (Phase::Pending, 0));
        assert!(bench.node.status(bench.now).next_attempt_at.is_some());
        bench.pass(PAUSE_S);
    }
    bench.go_to(Phase::PoweringOn);
    assert_eq!(bench.node.record().attempt, 1);
    assert_eq!(bench.node.record().last_error, None);
}

/// Invariant (bmc): Only a plausible secret is sent, and a missing local file uses up no attempt.
#[test]
fn what_is_missing_in_the_middle_of_an_attempt_repeats_it_after_a_clean_up_that_waits_too() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::PoweringOn);
    bench.done(Err(missing()));
    for _ in 0..20 {
        assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp);
        bench.done(Err(missing()));
        assert_eq!((bench.phase(), bench.node.record().attempt), (Phase::Pending, 0));
        bench.pass(PAUSE_S);
    }
    bench.done(Ok(Outcome::CleanedUp));
    bench.pass(3600);
    assert!(bench.running.is_some(), "it goes on");
    assert_ne!(bench.phase(), Phase::Failed);
}

/// Invariant (bmc): Only a plausible secret is sent, and a missing local file uses up no attempt.
#[test]
fn a_restart_waits_for_what_is_missing_longer_than_its_tries_and_its_deadline() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Restarting);
    for _ in 0..100 {
        assert_eq!(
            bench.running.as_ref().unwrap().1,
            Operation::Restart { wanted: PowerState::On }
        );
        bench.done(Err(missing()));
        assert_eq!(bench.phase(), Phase::Restarting);
        bench.pass(PAUSE_S);
    }
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    assert_eq!((bench.phase(), bench.node.record().attempt), (Phase::Deployed, 1));
}

#[test]
fn what_is_missing_at_an_installed_machine_is_trouble_with_its_bmc_until_it_is_there() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.pass(PAUSE_S);
    bench.done(Err(missing()));
    assert_eq!(bench.phase(), Phase::Deployed);
    assert!(
        bench.message().contains("its power is not known: no such file"),
        "{}",
        bench.message()
    );
    bench.pass(20);
    bench.done(Ok(Outcome::Power(PowerState::On)));
    assert_eq!((bench.message().as_str(), &bench.node.record().last_error), ("installed", &None));
}

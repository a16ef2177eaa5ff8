//! Tests of the BMC during a first boot: it is polled, operators may use it, and neither moves the
//! wait.

use crate::{
    lifecycle::{Action, Event, FirstBoot, NO_ANSWER, Node, Operation, Outcome, Policy, State},
    model::{
        fault::{Fault, RetryAdvice, Step},
        power::PowerState,
        secret::BootToken,
        spec::BootCheck,
        status::{Booted, Phase},
    },
};

use super::support::*;

fn booting() -> Bench {
    let mut bench = Bench::with_spec();
    bench.change(check_port);
    bench.go_to(Phase::Booting);
    bench
}

fn is_polling(bench: &Bench) -> bool {
    bench.running.as_ref().is_some_and(|(_, operation)| *operation == Operation::PollPower)
}

fn is_probing(bench: &Bench) -> bool {
    let running = bench.running.as_ref();
    running.is_some_and(|(_, operation)| matches!(operation, Operation::ProbePort { .. }))
}

/// Ends probes until the BMC is polled.
fn go_to_poll(bench: &mut Bench) {
    let unanswered = || Fault::passing(Step::FirstBoot, NO_ANSWER, "connection refused", "");
    for _ in 0..5 {
        if is_polling(bench) {
            return;
        }
        bench.pass(30);
        bench.done(Err(unanswered()));
    }
    panic!("it is not polled: {:?}", bench.running);
}

/// Ends a cancelled operation.
fn end_cancelled(bench: &mut Bench) {
    if let Some((op, _)) = bench.running.take_if(|(op, _)| bench.cancelled.contains(op)) {
        bench.send(Event::Done { op, outcome: Err(passing()) });
    }
}

fn seen(bench: &Bench) -> Option<PowerState> {
    Some(bench.status().power?.observed)
}

/// Invariant (attempt): A first boot's BMC is polled, and no power state or fault of it moves the
/// wait.
#[test]
fn a_booting_machines_power_is_shown_and_its_wait_goes_on_whatever_it_is() {
    let mut bench = booting();
    let deadline = bench.node.record().deadline;
    for (outcome, shown) in [
        (Ok(PowerState::On), PowerState::On),
        (Ok(PowerState::Off), PowerState::Off),
        (Err(passing()), PowerState::Off),
        // A missing password file extends other waits.
        (Err(Fault { retry: RetryAdvice::Wait, ..passing() }), PowerState::Off),
        (Err(lasting()), PowerState::Off),
        (Ok(PowerState::On), PowerState::On),
    ] {
        go_to_poll(&mut bench);
        let is_good = outcome.is_ok();
        bench.done(outcome.map(Outcome::Power));
        assert_eq!((bench.phase(), seen(&bench)), (Phase::Booting, Some(shown)));
        assert_eq!(bench.node.record().deadline, deadline);
        assert_eq!(bench.node.has_bmc_trouble(), !is_good);
        assert!(is_probing(&bench), "{:?}", bench.running);
        assert_eq!(bench.message().contains("the machine is off"), shown == PowerState::Off);
    }
    bench.done(Ok(Outcome::PortAnswered { address: RAMDISK, ssh_banner: None }));
    assert_eq!(bench.phase(), Phase::Deployed);
}

#[test]
fn a_system_that_calls_has_its_bmc_polled_every_minute() {
    let mut bench = Bench::with_spec();
    bench.change(|spec| spec.boot_check = BootCheck::Call);
    bench.go_to(Phase::Preparing);
    let Outcome::Prepared { mut image, key, .. } = prepared(key(1)) else { unreachable!() };
    image.boot_token = Some(BootToken::from_bytes(&[1; 32]));
    bench.done(Ok(Outcome::Prepared { image, key, system_guid: None, stages: Vec::new() }));
    bench.go_to(Phase::Booting);
    assert_eq!((bench.phase(), &bench.running), (Phase::Booting, &None));
    bench.poll(PowerState::On);
    assert_eq!((bench.phase(), &bench.running), (Phase::Booting, &None));
    assert_eq!(seen(&bench), Some(PowerState::On));
    let (at, _) = bench.node.next_wake().unwrap();
    assert_eq!(at.duration_since(bench.now).as_secs(), 60);
}

/// Invariant (fair): A probe waits for a poll no longer than 5 s.
#[test]
fn a_poll_that_gets_no_permit_does_not_keep_the_probe_waiting() {
    let bench = booting();
    let (before, spec) = (bench.node.record().clone(), bench.node.spec().unwrap().clone());
    let mut node = Node::resume(spec.name.clone(), before, POLICY, bench.now);
    let started = |actions: Vec<Action>| {
        let starts = actions.into_iter();
        starts.filter_map(|action| match action {
            Action::Start { operation, .. } => Some(operation),
            _ => None,
        })
    };
    let first = step(&mut node, bench.now, Event::Spec(spec));
    assert_eq!(started(first).count(), 0);
    let (at, _) = node.next_wake().unwrap();
    assert_eq!(at.duration_since(bench.now).as_secs(), 5);
    let operation = started(step(&mut node, at, Event::Tick)).next().unwrap();
    assert!(matches!(operation, Operation::ProbePort { .. }), "{operation:?}");
}

/// Invariant (attempt): A machine that somebody switched off is not switched on for its first boot.
#[test]
fn a_machine_that_an_operator_switched_off_is_left_off_and_a_retry_starts_it() {
    let mut bench = booting();
    go_to_poll(&mut bench);
    bench.done(Ok(Outcome::Power(PowerState::Off)));
    bench.pass(20 * 60);
    end_cancelled(&mut bench);
    let status = bench.status();
    assert_eq!(status.phase, Phase::Failed);
    assert_eq!(status.installed.unwrap().booted, Some(Booted::Missed));
    let error = status.last_error.unwrap().fault;
    assert!(error.message.ends_with("the machine is off"), "{}", error.message);
    bench.poll(PowerState::Off);
    bench.send(Event::Retry);
    assert_eq!(bench.node.record().state, State::Booting { boot: FirstBoot::Restarting });
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    // The one restart of a system that hangs is still to be had.
    bench.pass(20 * 60 + 1);
    end_cancelled(&mut bench);
    assert_eq!(bench.node.record().state, State::Booting { boot: FirstBoot::Restarting });
    // Where hostler enforces the power, it restarts the machine itself.
    let mut bench = booting();
    bench.node.policy = Policy { enforce_power: true, ..POLICY };
    go_to_poll(&mut bench);
    bench.done(Ok(Outcome::Power(PowerState::Off)));
    bench.pass(20 * 60);
    end_cancelled(&mut bench);
    assert_eq!(bench.node.record().state, State::Booting { boot: FirstBoot::Restarting });
}

#[test]
fn a_poll_that_hangs_is_cut_and_the_probe_goes_on() {
    let mut bench = booting();
    go_to_poll(&mut bench);
    let (op, _) = bench.running.clone().unwrap();
    bench.pass(14);
    assert!(!bench.cancelled.contains(&op));
    let (at, _) = bench.node.next_wake().unwrap();
    bench.now = at;
    bench.send(Event::Tick);
    assert!(bench.cancelled.contains(&op));
    bench.done(Err(passing()));
    assert!(is_probing(&bench));
}

//! Tests of waits and wake-ups: every wait ends, every fault has a hint, and no node is woken twice
//! or late.

use std::collections::BTreeMap;

use crate::{
    lifecycle::{Event, Operation, wake_ups::WakeUps},
    model::{
        boot::{BootStage, Fetch},
        callback::{Call, Reply},
        fault::Fault,
        power::PowerState,
        spec::WantedPower,
        status::Phase,
    },
};

use super::support::*;

fn busy() -> impl Iterator<Item = Phase> {
    [Phase::Preparing].into_iter().chain(WITH_KEY)
}

fn code_after_deadline(bench: &mut Bench) -> Fault {
    let (at, reason) = bench.node.deadline().expect("a deadline");
    assert!(!reason.is_empty());
    let shown = bench.node.status(bench.now);
    assert_eq!((shown.deadline, shown.deadline_reason.as_deref()), (Some(at), Some(reason)));
    bench.now = at.checked_sub(jiff::SignedDuration::from_secs(1)).unwrap();
    bench.send(Event::Tick);
    assert_eq!(bench.node.record().last_error, None, "not before its time");
    bench.now = at;
    bench.send(Event::Tick);
    bench.node.record().last_error.clone().expect("the deadline is missed").fault
}

/// Invariant (attempt): Every wait ends with a reason, and every fault of the core has a hint.
#[test]
fn every_wait_of_an_attempt_has_a_deadline_and_ends_there_with_a_reason() {
    let codes = [
        "ImageTimeout",
        "PowerTimeout",
        "RamdiskTimeout",
        "ImagingTimeout",
        "ReleaseNotHeard",
        "CompletedTimeout",
        "RestartTimeout",
    ];
    for (phase, code) in busy().zip(codes) {
        let mut bench = Bench::with_spec();
        bench.go_to(phase);
        let fault = code_after_deadline(&mut bench);
        assert_eq!(fault.code, code);
        is_useful(&fault);
    }
}

/// Checks that a fault of the core has a message and a hint.
fn is_useful(fault: &Fault) {
    assert!(fault.code.chars().next().unwrap().is_ascii_uppercase(), "{fault:?}");
    assert!(fault.code.chars().all(|c| c.is_ascii_alphanumeric()), "{fault:?}");
    assert!(fault.message.len() > 10 && !fault.message.ends_with('.'), "{fault:?}");
    assert!(fault.hint.len() > 10, "{fault:?}");
}

/// Invariant (attempt): Every wait ends with a reason, and every fault of the core has a hint.
#[test]
fn every_fault_the_core_makes_says_what_where_and_what_to_do() {
    let mut faults = Vec::new();
    let stages = [BootStage::Loader, BootStage::Menu, BootStage::Kernel, BootStage::Ramdisk];
    for stage in stages {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::WaitingRamdisk);
        let (node, path, peer) = (spec().name, "x".into(), RAMDISK);
        bench.send(Event::Fetched(Fetch {
            refused_times: 0,
            unknown_mac: None,
            node,
            stage,
            path,
            peer,
            sent_bytes: 1,
            complete: true,
        }));
        faults.push(code_after_deadline(&mut bench));
    }
    for call in [lookup(), Call::DeployState] {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::WaitingRamdisk);
        bench.call(&key(1), call);
        faults.push(code_after_deadline(&mut bench));
    }
    let Call::Lookup(body) = lookup() else { unreachable!() };
    for wrong in 0..3 {
        let mut body = body.clone();
        match wrong {
            0 => body.disks.clear(),
            1 => body.disks[0].size = 1,
            _ => body.macs = vec!["52:54:00:00:00:77".parse().unwrap()],
        }
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::WaitingRamdisk);
        if matches!(bench.call(&key(1), Call::Lookup(body)), Reply::LookupAgain(_)) {
            bench.pass(60);
        }
        faults.push(bench.node.record().last_error.clone().unwrap().fault);
    }
    for bad in [deploy_info("oh, dear"), completed("oh, dear")] {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::Switching);
        bench.call(&key(1), bad);
        faults.push(bench.node.record().last_error.clone().unwrap().fault);
    }
    faults.iter().for_each(is_useful);
    let different: std::collections::BTreeSet<&str> =
        faults.iter().map(|fault| fault.message.as_str()).collect();
    assert!(different.len() >= faults.len() - 1, "{different:?}");
}

#[test]
fn a_deadline_that_passed_while_the_agent_was_down_counts_once_the_directory_was_read() {
    for phase in busy() {
        let mut bench = Bench::with_spec();
        bench.go_to(phase);
        bench.restart();
        bench.now = bench.now.checked_add(jiff::SignedDuration::from_hours(48)).unwrap();
        bench.send(Event::Spec(std::sync::Arc::new(spec())));
        assert!(bench.node.record().last_error.is_some(), "{phase:?}");
    }
}

#[test]
fn attempts_are_bounded_and_the_pauses_between_them_are_shown_and_grow() {
    let mut bench = Bench::with_spec();
    bench.change(|spec| spec.retry.attempts = 5);
    let mut pauses = Vec::new();
    for attempt in 1..=5 {
        bench.go_to(Phase::Imaging);
        bench.done(Err(passing()));
        assert_eq!(bench.node.status(bench.now).next_attempt_at, None, "it is cleaned up first");
        bench.done(Ok(good_outcome(&Operation::CleanUp)));
        let status = bench.node.status(bench.now);
        assert_eq!(status.attempt, attempt);
        let error = status.last_error.expect("shown until a success");
        assert_eq!((error.attempt, error.fault), (attempt, passing()));
        let Some(next) = status.next_attempt_at else { break };
        assert_eq!(bench.node.next_wake().unwrap().0.min(next), bench.node.next_wake().unwrap().0);
        let pause = next.duration_since(bench.now).as_secs();
        let base = 60 << (attempt - 1);
        assert!((base..=base * 6 / 5).contains(&pause), "{pause} s after attempt {attempt}");
        pauses.push(pause);
        // No earlier.
        bench.now = next.checked_sub(jiff::SignedDuration::from_secs(1)).unwrap();
        if bench.running.is_none() {
            bench.send(Event::Tick);
        }
        if bench.running.is_some() {
            bench.done(Ok(good_outcome(&Operation::PollPower)));
        }
        assert_eq!(bench.phase(), Phase::Pending);
        bench.now = next;
        bench.send(Event::Tick);
        assert!(bench.node.status(bench.now).last_error.is_some());
    }
    assert_eq!((pauses.len(), bench.phase()), (4, Phase::Failed));
    assert_eq!(bench.node.status(bench.now).next_attempt_at, None);
}

#[test]
fn the_last_error_stays_until_a_success_and_no_longer() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.done(Err(passing()));
    bench.done(Ok(good_outcome(&Operation::CleanUp)));
    bench.pass(100);
    for phase in busy() {
        bench.go_to(phase);
        assert!(bench.node.status(bench.now).last_error.is_some(), "{phase:?}");
    }
    bench.go_to(Phase::Deployed);
    assert_eq!(bench.node.status(bench.now).last_error, None);
}

#[test]
fn a_clean_up_that_a_crash_interrupts_is_done_again() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.done(Err(passing()));
    for _ in 0..3 {
        bench.restart();
        bench.send(Event::Spec(std::sync::Arc::new(spec())));
        assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp);
    }
    bench.done(Err(passing()));
    let (at, reason) = bench.node.next_wake().unwrap();
    assert_eq!(reason, "the next try to clean up");
    bench.restart();
    bench.send(Event::Spec(std::sync::Arc::new(spec())));
    assert!(bench.running.is_none(), "the pause is not cut short");
    bench.now = at;
    bench.send(Event::Tick);
    bench.done(Ok(good_outcome(&Operation::CleanUp)));
    assert_eq!((bench.phase(), bench.node.record().attempt), (Phase::Pending, 1));
    assert_eq!(bench.node.record().last_error.as_ref().unwrap().fault, passing());
}

#[test]
fn switching_has_a_deadline_that_all_its_tries_fit_into() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.change(|spec| spec.power = WantedPower::Off);
    bench.poll(PowerState::On);
    for tries in 1..=4 {
        bench.pass(6 * 60);
        assert_eq!(bench.running.as_ref().unwrap().1, Operation::SetPower(PowerState::Off));
        bench.done(Err(passing()));
        if tries < 4 {
            bench.now = bench.node.next_wake().unwrap().0;
            bench.send(Event::Tick);
        }
    }
    assert_eq!(bench.node.record().last_error.clone().unwrap().fault, passing());
}

#[test]
fn the_wake_ups_are_in_order_of_time_and_a_nodes_wish_is_replaced() {
    let name = |n: u32| format!("edge-{n}").parse().unwrap();
    let at = |second: i64| jiff::Timestamp::from_second(second).unwrap();
    let mut wake_ups = WakeUps::default();
    assert_eq!((wake_ups.next(), wake_ups.due(at(99))), (None, vec![]));
    wake_ups.put(&name(1), Some(at(30)));
    wake_ups.put(&name(2), Some(at(20)));
    wake_ups.put(&name(3), Some(at(10)));
    assert_eq!(wake_ups.due(at(30)), [name(3), name(2), name(1)]);
    assert_eq!(wake_ups.due(at(29)), [name(3), name(2)]);
    assert_eq!(wake_ups.due(at(9)), []);
    wake_ups.put(&name(3), Some(at(40)));
    wake_ups.put(&name(3), Some(at(40)));
    assert_eq!(wake_ups.next(), Some((at(20), &name(2))));
    assert_eq!(wake_ups.due(at(99)), [name(2), name(1), name(3)]);
    wake_ups.put(&name(2), None);
    wake_ups.put(&name(2), None);
    assert_eq!(wake_ups.due(at(99)), [name(1), name(3)]);
}

#[test]
fn after_a_start_the_first_looks_of_many_nodes_are_spread_out() {
    use super::rack::Rack;
    let mut rack = Rack::deployed(100);
    rack.restart();
    let mut seconds = BTreeMap::new();
    rack.scan_only();
    for _ in 0..30 {
        *seconds.entry(rack.now).or_insert(0) += rack.world.running.len();
        rack.settle();
        rack.now = rack.now.checked_add(jiff::SignedDuration::from_secs(1)).unwrap();
        rack.tick();
    }
    assert!(seconds.values().all(|polls| *polls <= 6), "{seconds:?}");
    assert_eq!(seconds.values().sum::<usize>(), 100);
}

//! Tests of the concurrency limits: how many machines are brought up or written at once, in which
//! order, and that no permit is ever lost.

use crate::{
    lifecycle::{Event, Operation, Outcome, Permit, Policy, State},
    model::{callback::Reply, power::PowerState, problem::Problem, spec::Goal, status::Phase},
};

use super::{rack::*, support::*};

fn limited(attempts_max: usize, imagings_max: usize) -> Policy {
    Policy { attempts_max, imagings_max, ..POLICY }
}

fn holders(rack: &Rack, permit: Permit) -> usize {
    let fleet = rack.executor.fleet();
    let holds = |name| fleet.node(name).unwrap().record().state.holds();
    fleet.names().iter().filter(|name| holds(name) == Some(permit)).count()
}

fn in_line(rack: &Rack, n: usize) -> bool {
    rack.status(n).message.contains("waiting for its turn")
}

/// Invariant (state): A disk that waits for its permit to be written still holds its old
/// installation.
#[test]
fn a_machine_that_waits_for_its_turn_to_be_written_still_holds_what_is_installed() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.change(|spec| spec.redeploy = Some("again".to_owned()));
    bench.go_to(Phase::WaitingRamdisk);
    bench.crowded = true;
    assert!(matches!(bench.call(&key(1), lookup()), Reply::Lookup(_)));
    assert_eq!(bench.call(&key(1), deploy_info("")), Reply::Accepted);
    assert!(matches!(bench.node.record().state, State::Imaging { granted: false, .. }));
    assert!(bench.node.record().installed.is_some(), "nothing was written");
    bench.send(Event::Granted(Permit::Imaging));
    assert_eq!(bench.node.record().installed, None, "it is being written");
}

/// Invariant (fair): Concurrency limits hold, and every node gets its permit.
#[test]
fn no_more_machines_are_brought_up_or_written_at_once_than_allowed_and_all_get_their_turn() {
    for (attempts, imagings) in [(1, 1), (3, 1), (3, 2), (1, 5), (20, 20)] {
        let mut rack = Rack::new(12, limited(attempts, imagings));
        rack.scan_only();
        for _ in 0..10_000 {
            assert!(holders(&rack, Permit::Attempt) <= attempts);
            assert!(holders(&rack, Permit::Imaging) <= imagings);
            // Operations end one at a time, not always the oldest first.
            let steps = rack.world.story.len();
            if let Some(job) =
                steps.is_multiple_of(3).then(|| rack.world.running.pop_back()).flatten()
            {
                rack.world.running.push_front(job);
            }
            if !rack.end_one() {
                rack.let_ramdisks_call();
            }
            if rack.count(Phase::Deployed) == 12 {
                break;
            }
        }
        assert_eq!((rack.count(Phase::Deployed), rack.writes()), (12, 12));
        assert_eq!((holders(&rack, Permit::Attempt), holders(&rack, Permit::Imaging)), (0, 0));
    }
}

#[test]
fn who_waits_longest_goes_first() {
    let mut rack = Rack::new(4, limited(1, 1));
    rack.world.silent = true;
    // The nodes arrive in another order than that of their names.
    let specs = std::mem::take(&mut rack.specs);
    for n in [2, 3, 0, 1] {
        rack.specs.insert(name(n), specs[&name(n)].clone());
        rack.scan();
        rack.pass(60);
    }
    assert_eq!(rack.phase(2), Phase::WaitingRamdisk);
    assert!([0, 1, 3].into_iter().all(|n| in_line(&rack, n)));
    rack.world.silent = false;
    rack.pass(60);
    let written: Vec<&str> = rack
        .world
        .story
        .iter()
        .filter(|(_, operation)| *operation == Operation::PowerOn)
        .map(|(host, _)| host.as_str())
        .collect();
    assert_eq!(written, [host(2), host(3), host(0), host(1)]);
}

/// Invariant (fair): Concurrency limits hold, and every node gets its permit.
#[test]
fn first_attempts_go_before_repeated_ones() {
    let mut rack = Rack::new(4, limited(1, 1));
    let specs = std::mem::take(&mut rack.specs);
    rack.world.silent = true;
    for n in [0, 1] {
        rack.specs.insert(name(n), specs[&name(n)].clone());
        rack.scan();
    }
    assert!(rack.phase(0) == Phase::WaitingRamdisk && in_line(&rack, 1));
    // The first machine never comes up; after its node is back in the queue, a new one joins.
    rack.pass(20 * 60);
    assert_eq!((rack.phase(0), rack.phase(1)), (Phase::Pending, Phase::WaitingRamdisk));
    rack.pass(5 * 60);
    assert!(in_line(&rack, 0));
    rack.specs.insert(name(2), specs[&name(2)].clone());
    rack.scan();
    assert!(in_line(&rack, 2));
    rack.world.silent = false;
    rack.settle();
    rack.pass(120);
    let order: Vec<String> = rack
        .world
        .story
        .iter()
        .filter(|(_, o)| *o == Operation::PowerOn)
        .map(|(host, _)| host.clone())
        .collect();
    assert_eq!(order, [host(0), host(1), host(2), host(0)]);
}

#[test]
fn waiting_to_be_written_is_not_writing() {
    let mut bench = Bench::with_spec();
    bench.crowded = true;
    bench.poll(PowerState::Off);
    bench.send(Event::Granted(Permit::Attempt));
    bench.done(Ok(good_outcome(&Operation::Prepare)));
    bench.poll(PowerState::Off);
    bench.done(Ok(Outcome::PoweredOn));
    bench.call(&key(1), lookup());
    bench.call(&key(1), deploy_info(""));
    assert!(bench.running.is_none() && bench.message().contains("waits for its turn"));
    assert_eq!(bench.node.deadline().unwrap().1, "its turn to be written");
    bench.pass(7000);
    // A restart neither loses nor grants a permit.
    bench.restart();
    bench.send(Event::Spec(std::sync::Arc::new(spec())));
    assert!(bench.running.is_none());
    bench.send(Event::Granted(Permit::Imaging));
    let (deadline, _) = bench.node.deadline().unwrap();
    assert_eq!(deadline.duration_since(bench.now), jiff::SignedDuration::from_hours(2));
    bench.restart();
    bench.send(Event::Spec(std::sync::Arc::new(spec())));
    assert!(matches!(bench.running, Some((_, Operation::Image { .. }))));
    assert_eq!(bench.node.deadline().unwrap().0, deadline);
}

#[test]
fn a_turn_that_never_comes_ends_the_attempt_with_a_reason() {
    let mut rack = Rack::new(2, limited(2, 1));
    rack.scan_only();
    while rack.node(0).record().state.holds() != Some(Permit::Imaging) {
        if !rack.end_one() {
            rack.let_ramdisks_call();
        }
    }
    rack.let_ramdisks_call();
    while rack.world.running.iter().any(|job| job.node == name(1)) {
        let at = rack.world.running.iter().position(|job| job.node == name(1)).unwrap();
        let job = rack.world.running.remove(at).unwrap();
        rack.world.running.push_front(job);
        rack.end_one();
    }
    rack.let_ramdisks_call();
    assert!(matches!(rack.node(1).record().state, State::Imaging { granted: false, .. }));
    rack.edit(0, |spec| spec.timeouts.imaging *= 2);
    rack.scan_only();
    rack.now = rack.now.checked_add(jiff::SignedDuration::from_hours(2)).unwrap();
    rack.tick();
    let error = rack.status(1).last_error.unwrap().fault;
    assert_eq!(error.code, "NoTurn");
    assert!(error.hint.contains("limits.imaging"), "{}", error.hint);
    assert_eq!(rack.node(1).record().state.holds(), None);
}

#[test]
fn after_a_restart_the_limits_still_hold_and_everybody_gets_a_turn() {
    let mut rack = Rack::new(6, limited(2, 1));
    rack.scan_only();
    for step in 0..2000 {
        if step % 7 == 6 {
            rack.restart();
            assert!(holders(&rack, Permit::Attempt) <= 2 && holders(&rack, Permit::Imaging) <= 1);
            rack.scan_only();
            rack.now = rack.now.checked_add(jiff::SignedDuration::from_secs(60)).unwrap();
            rack.tick();
        }
        assert!(holders(&rack, Permit::Attempt) <= 2 && holders(&rack, Permit::Imaging) <= 1);
        if !rack.end_one() {
            rack.let_ramdisks_call();
        }
    }
    assert_eq!(rack.count(Phase::Deployed), 6);
    // With lower limits, no node stops, and none starts before there is room.
    let mut rack = Rack::new(6, limited(4, 4));
    rack.world.silent = true;
    rack.scan();
    rack.policy = limited(1, 1);
    rack.restart();
    rack.scan();
    assert_eq!(holders(&rack, Permit::Attempt), 4);
    rack.pass(60);
    assert!(in_line(&rack, 4) && in_line(&rack, 5));
    rack.world.silent = false;
    rack.settle();
    rack.pass(60);
    assert_eq!(rack.count(Phase::Deployed), 6);
}

/// A way by which a node gives up its permit.
type Exit = (&'static str, fn(&mut Rack));

const EXITS: [Exit; 10] = [
    ("paused", |rack| rack.edit(0, |spec| spec.paused = true)),
    ("unmanaged", |rack| rack.edit(0, |spec| spec.goal = Goal::Unmanaged)),
    ("available", |rack| rack.edit(0, |spec| spec.goal = Goal::Available)),
    ("another installation, held", |rack| {
        rack.edit(0, |spec| (spec.redeploy, spec.paused) = (Some("x".into()), true));
    }),
    ("gone", |rack| drop(rack.specs.remove(&name(0)))),
    ("another machine that is on", |rack| {
        rack.world.on.insert("bmc-other".into());
        rack.edit(0, |spec| spec.bmc.as_mut().unwrap().move_to("bmc-other"));
    }),
    ("a fault", |rack| drop(rack.world.faults.insert(host(0), lasting()))),
    ("a ramdisk that gives up", |rack| {
        let attempt = rack.node(0).record().state.attempt().cloned();
        if let Some(attempt) = attempt {
            let call = deploy_info("oh");
            rack.send(0, Event::Callback { request: 1, peer: RAMDISK, key: attempt.key, call });
        }
    }),
    ("a silent machine", |rack| rack.world.silent = true),
    ("a restart", Rack::restart),
];

/// Invariant (fair): Concurrency limits hold, and every node gets its permit.
#[test]
fn no_way_out_of_an_attempt_keeps_a_permit() {
    for (exit, act) in EXITS {
        for steps in 0..14 {
            let mut rack = Rack::new(2, limited(1, 1));
            let mut other = rack.specs.remove(&name(1)).unwrap();
            other.retry.attempts = 99;
            rack.edit(0, |spec| spec.retry.attempts = 1);
            rack.scan_only();
            for _ in 0..steps {
                if !rack.end_one() {
                    rack.let_ramdisks_call();
                }
            }
            rack.specs.insert(name(1), other);
            act(&mut rack);
            rack.scan();
            rack.pass(10 * 3600);
            rack.world.silent = false;
            rack.pass(10 * 3600);
            assert_eq!(rack.phase(1), Phase::Deployed, "{exit} after {steps} steps");
            assert_eq!((holders(&rack, Permit::Attempt), holders(&rack, Permit::Imaging)), (0, 0));
        }
    }
}

#[test]
fn a_node_that_leaves_the_queue_frees_its_place() {
    let exits: [Exit; 6] = [
        ("paused", |rack| rack.edit(1, |spec| spec.paused = true)),
        ("broken", |rack| rack.broken.extend([name(1)])),
        ("clash", |rack| drop(rack.clashes.insert(name(1), vec![Problem::of_file("f", "clash")]))),
        ("gone", |rack| drop(rack.specs.remove(&name(1)))),
        ("switched on by somebody", |rack| rack.world.on.extend([host(1)])),
        ("unmanaged", |rack| rack.edit(1, |spec| spec.goal = Goal::Unmanaged)),
    ];
    for (exit, act) in exits {
        let mut rack = Rack::new(3, limited(1, 1));
        rack.world.silent = true;
        rack.scan();
        assert!(in_line(&rack, 1) && in_line(&rack, 2));
        act(&mut rack);
        rack.scan();
        rack.pass(120);
        rack.world.silent = false;
        rack.settle();
        rack.pass(120);
        assert_eq!(rack.world.writes(&host(1)), 0, "{exit}");
        assert_eq!((rack.phase(0), rack.phase(2)), (Phase::Deployed, Phase::Deployed), "{exit}");
    }
}

#[test]
fn a_machine_switched_on_while_it_waits_in_line_is_not_wiped_when_its_turn_comes() {
    let mut rack = Rack::new(2, limited(1, 1));
    rack.world.silent = true;
    rack.scan();
    rack.world.on.insert(host(1));
    // The node gets its permit before the next poll; the poll after the image is verified finds the
    // machine on.
    rack.world.silent = false;
    rack.settle();
    assert_eq!((rack.phase(1), rack.world.writes(&host(1))), (Phase::Held, 0));
}

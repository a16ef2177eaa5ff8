//! Tests of consent: its object and its end.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    lifecycle::{Action, Event, Fleet, Menu, Node, Operation, Outcome, Record, UnclaimedInstalls},
    model::{
        callback::{Call, Reply},
        ids::{NodeName, OpId},
        power::PowerState,
        problem::Problem,
        spec::{Goal, NodeSpec},
        status::Phase,
    },
};

use super::support::*;

fn move_bmc(spec: &mut NodeSpec) {
    spec.bmc.as_mut().unwrap().move_to("192.0.2.21");
}

/// A node in the pause after its first failed attempt.
fn between_attempts() -> Bench {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    bench.call(&key(1), deploy_info("oh"));
    bench.done(Ok(Outcome::CleanedUp));
    assert!(bench.node.record().consented && bench.phase() == Phase::Pending);
    bench
}

#[test]
fn consent_holds_for_a_repetition_of_the_attempt() {
    let mut bench = between_attempts();
    bench.pass(120);
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Preparing, "hostler itself may have left it on");
}

#[test]
fn a_machine_that_is_installed_as_soon_as_it_is_off_is_known_as_such() {
    let mut bench = Bench::with_spec();
    assert!(bench.node.is_wiped_when_off(), "nobody has looked yet");
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Held);
    assert!(bench.node.is_wiped_when_off());
    bench.change(|spec| spec.paused = true);
    assert!(bench.node.is_wiped_when_off(), "it waits for the end of the pause");
    bench.change(|spec| (spec.paused, spec.goal) = (false, Goal::Available));
    assert!(!bench.node.is_wiped_when_off());

    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    assert!(!bench.node.is_at_rest());
    bench.go_to(Phase::Deployed);
    assert!(bench.node.is_at_rest() && !bench.node.is_wiped_when_off());
    bench.change(|spec| spec.redeploy = Some("again".into()));
    assert!(bench.node.is_wiped_when_off());
}

/// Invariant (consent): Consent is for one machine, one installation and one series of attempts.
#[test]
fn consent_for_one_machine_or_installation_does_not_pass_to_another() {
    let others: [fn(&mut NodeSpec); 3] = [
        move_bmc,
        |spec| spec.boot.macs = vec!["52:54:00:00:00:02".parse().unwrap()],
        |spec| spec.root_device.serial = Some("other".into()),
    ];
    for other in others {
        let mut bench = between_attempts();
        bench.change(other);
        bench.poll(PowerState::On);
        assert_eq!(bench.phase(), Phase::Held);
    }
}

#[test]
fn consent_ends_with_a_pause_with_unmanaged_and_with_a_clash() {
    let mut paused = between_attempts();
    paused.change(|spec| spec.paused = true);
    paused.change(|spec| spec.paused = false);
    let mut unmanaged = between_attempts();
    unmanaged.change(|spec| spec.goal = Goal::Unmanaged);
    unmanaged.change(|spec| spec.goal = Goal::Deployed);
    let mut clashed = between_attempts();
    clashed.send(Event::SpecClash(vec![Problem::of_file("f", "clash")]));
    clashed.change(|_| {});
    clashed.pass(120);
    for mut bench in [paused, unmanaged, clashed] {
        bench.poll(PowerState::On);
        assert_eq!(bench.phase(), Phase::Held);
    }
}

/// Invariant (consent): Consent is for one machine, one installation and one series of attempts.
#[test]
fn consent_ends_when_the_node_gives_up() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::PoweringOn);
    bench.done(Err(lasting()));
    bench.done(Ok(Outcome::CleanedUp));
    assert_eq!(bench.phase(), Phase::Failed);
    // Somebody installs the machine manually, and edits the spec much later.
    bench.change(|spec| spec.timeouts.ramdisk *= 2);
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Held);
}

/// Invariant (consent): Consent is for one machine, one installation and one series of attempts.
#[test]
fn a_repetition_that_comes_hours_late_asks_again() {
    let mut bench = between_attempts();
    bench.now = bench.now.checked_add(jiff::SignedDuration::from_hours(3)).unwrap();
    bench.restart();
    bench.send(Event::Spec(Arc::new(spec())));
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Held);
}

/// Invariant (consent): No approval counts before the agent has read the node's spec.
#[test]
fn an_approval_before_the_agent_has_read_the_spec_counts_for_nothing() {
    let mut bench = Bench::with_spec();
    bench.poll(PowerState::On);
    // Its status shows a clash, which is not on record.
    bench.send(Event::SpecClash(vec![Problem::of_file("f", "clash")]));
    bench.restart();
    bench.send(Event::Approve);
    assert!(!bench.node.record().consented);
    bench.change(|_| {});
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Held);
    bench.send(Event::Approve);
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Preparing);
}

#[test]
fn an_approval_counts_only_while_the_node_shows_that_it_waits_for_one() {
    let mut early = Bench::with_spec();
    early.send(Event::Approve);
    early.poll(PowerState::On);
    assert_eq!(early.phase(), Phase::Held);
    early.change(|spec| spec.paused = true);
    early.send(Event::Approve);
    early.change(|spec| spec.paused = false);
    early.poll(PowerState::On);
    assert_eq!(early.phase(), Phase::Held);
}

#[test]
fn a_redeploy_changed_during_a_pause_counts_when_the_pause_ends() {
    let mut bench = Bench::with_spec();
    bench.poll(PowerState::On);
    bench.change(|spec| (spec.paused, spec.redeploy) = (true, Some("yes".into())));
    assert_eq!(bench.phase(), Phase::Paused);
    bench.change(|spec| spec.paused = false);
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Preparing);
}

/// Invariant (machine): A clean-up reaches the machine of its attempt before another node takes
/// that machine.
#[test]
fn a_bmc_changed_in_the_middle_cleans_up_the_old_machine_and_leaves_the_new_one_alone() {
    for phase in [Phase::PoweringOn, Phase::WaitingRamdisk, Phase::Imaging, Phase::Restarting] {
        let mut bench = Bench::with_spec();
        bench.go_to(phase);
        bench.change(move_bmc);
        if let Some((_, operation)) =
            bench.running.clone().filter(|(_, o)| *o != Operation::CleanUp)
        {
            bench.done(Ok(good_outcome(&operation)));
        }
        assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp);
        assert_eq!(bench.started_for.as_ref().unwrap().bmc, spec().bmc, "from {phase:?}");
        bench.done(Ok(Outcome::CleanedUp));
        assert_eq!(bench.node.status(bench.now).power, None, "that was the other machine");
        bench.poll(PowerState::On);
        assert_eq!(
            bench.started_for.as_ref().unwrap().bmc_address().unwrap().host().unwrap().host,
            "192.0.2.21"
        );
        // A written and released disk stays installed.
        let written = phase == Phase::Restarting;
        assert_eq!(bench.phase(), if written { Phase::Deployed } else { Phase::Held });
        assert!(bench.running.is_none());
    }
}

#[test]
fn a_corrected_password_reaches_the_clean_up_of_the_same_machine() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    bench.change(|spec| spec.bmc.as_mut().unwrap().username = "corrected".into());
    assert_eq!(bench.phase(), Phase::WaitingRamdisk, "the same machine: the attempt goes on");
    bench.pass(20 * 60);
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp);
    assert_eq!(bench.started_for.as_ref().unwrap().bmc.as_ref().unwrap().username, "corrected");
}

#[test]
fn a_reinstall_asked_of_one_machine_is_not_done_to_another() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.change(|spec| spec.redeploy = Some("again".into()));
    assert_eq!(bench.phase(), Phase::Pending);
    bench.change(move_bmc);
    assert_eq!(bench.phase(), Phase::Deployed);
    bench.done(Ok(Outcome::Power(PowerState::On)));
    bench.pass(3600);
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Deployed);
    bench.change(|spec| spec.redeploy = Some("this one too".into()));
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Preparing);
}

/// Invariant (consent): A machine whose record was damaged is not wiped, even if it is off.
#[test]
fn a_machine_whose_record_was_damaged_is_not_wiped_even_if_it_is_off() {
    let mut bench = Bench::new();
    bench.node = Node::resume(spec().name, Record::distrusted(bench.now), POLICY, bench.now);
    let mut old = spec();
    old.redeploy = Some("years-ago".into());
    bench.send(Event::Spec(Arc::new(old)));
    for observed in [PowerState::On, PowerState::Off, PowerState::Off] {
        bench.poll(observed);
        assert_eq!(bench.phase(), Phase::Held);
    }
    assert!(bench.message().contains("damaged"), "{}", bench.message());
    bench.restart();
    bench.change(|spec| spec.redeploy = Some("now".into()));
    bench.poll(PowerState::Off);
    assert_eq!(bench.phase(), Phase::Preparing);
}

/// Passes an event to a node of the fleet and ends its operations with success.
fn settle(fleet: &mut Fleet, name: &NodeName, event: Event) {
    let now = "2026-11-22T12:00:00Z".parse().unwrap();
    let mut events = vec![event];
    while let Some(event) = events.pop() {
        for action in fleet.step(now, name, event).unwrap_or_default() {
            if let Action::Start { op, operation, .. } = action {
                let outcome = Ok(good_outcome(&operation));
                events.push(Event::Done { op, outcome });
            }
        }
        if let Some((_, permit)) = fleet.next_permit() {
            events.push(Event::Granted(permit));
        }
    }
}

fn deployed_fleet() -> (Fleet, NodeName) {
    let (mut fleet, name) = (empty_fleet(), spec().name);
    settle(&mut fleet, &name, Event::Spec(Arc::new(spec())));
    for call in [lookup(), deploy_info(""), Call::DeployState, completed("")] {
        settle(&mut fleet, &name, Event::Callback { request: 1, peer: RAMDISK, key: key(1), call });
    }
    assert_eq!(fleet.node(&name).unwrap().phase(), Phase::Deployed);
    (fleet, name)
}

#[test]
fn a_spec_that_is_renamed_or_comes_back_finds_its_machine_installed() {
    for new_name in ["edge-07", "edge-7"] {
        let (mut fleet, old_name) = deployed_fleet();
        let mut renamed = spec();
        renamed.name = new_name.parse().unwrap();
        settle(&mut fleet, &old_name, Event::SpecGone);
        assert!(fleet.node(&old_name).is_none());
        settle(&mut fleet, &renamed.name.clone(), Event::Spec(Arc::new(renamed.clone())));
        let node = fleet.node(&renamed.name).unwrap();
        assert_eq!(node.phase(), Phase::Deployed, "it is off, and is not wiped");
        renamed.redeploy = Some("now".into());
        settle(&mut fleet, &renamed.name.clone(), Event::Spec(Arc::new(renamed.clone())));
        assert_eq!(fleet.node(&renamed.name).unwrap().phase(), Phase::WaitingRamdisk);
    }
}

#[test]
fn a_node_is_forgotten_only_when_nothing_runs_any_more() {
    let (mut fleet, name) = (empty_fleet(), spec().name);
    let now = "2026-11-22T12:00:00Z".parse().unwrap();
    let started = step_fleet(&mut fleet, now, &name, Event::Spec(Arc::new(spec())));
    let [Action::Start { op, .. }] = started.as_slice() else { panic!("{started:?}") };
    let actions = fleet.step(now, &name, Event::SpecGone).unwrap();
    assert_eq!(actions, [Action::Cancel(*op)]);
    let none = BTreeMap::new();
    assert_eq!(fleet.effective_specs(&none).len(), 1, "it still has its machine");
    let outcome = Ok(Outcome::Power(PowerState::Off));
    let ended = fleet.step(now, &name, Event::Done { op: *op, outcome }).unwrap();
    assert_eq!(ended, [Action::Forget], "and its answer starts nothing");
    assert!(fleet.node(&name).is_none() && fleet.effective_specs(&none).is_empty());
}

#[test]
fn a_damaged_record_stays_in_mind_when_the_spec_goes_away_and_comes_back() {
    let now = Bench::new().now;
    let name = spec().name;
    for forgotten_at_once in [true, false] {
        let records = BTreeMap::from([(name.clone(), Record::distrusted(now).into())]);
        let mut fleet =
            Fleet::resume(POLICY, records, UnclaimedInstalls::default(), BTreeMap::new(), now);
        if forgotten_at_once {
            settle(&mut fleet, &name, Event::Spec(Arc::new(spec())));
            settle(&mut fleet, &name, Event::SpecGone);
            assert!(fleet.node(&name).is_none());
        } else {
            // During the poll, so that the file is back before the node is forgotten.
            step_fleet(&mut fleet, now, &name, Event::Spec(Arc::new(spec())));
            fleet.step(now, &name, Event::SpecGone).unwrap();
            let done = Event::Done { op: OpId(1), outcome: Err(passing()) };
            fleet.step(now, &name, Event::Spec(Arc::new(spec()))).unwrap();
            settle(&mut fleet, &name, done);
        }
        settle(&mut fleet, &name, Event::Spec(Arc::new(spec())));
        assert_eq!(fleet.node(&name).unwrap().phase(), Phase::Held);
    }
}

/// Invariant (consent): Consent is for one machine, one installation and one series of attempts.
#[test]
fn a_machine_switched_on_while_the_image_is_verified_is_held() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Preparing);
    bench.done(Ok(good_outcome(&Operation::Prepare)));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Preparing, Menu::LocalDisk));
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Held);
    // The consent was an operator's.
    bench.send(Event::Approve);
    bench.poll(PowerState::On);
    bench.done(Ok(good_outcome(&Operation::Prepare)));
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::PoweringOn);
}

#[test]
fn a_ramdisk_on_another_machine_ends_the_attempt() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    let Call::Lookup(mut body) = lookup() else { unreachable!() };
    body.macs = vec!["52:54:00:00:00:77".parse().unwrap()];
    assert!(matches!(bench.call(&key(1), Call::Lookup(body)), Reply::Failed(_)));
    let error = bench.node.record().last_error.clone().unwrap().fault;
    assert_eq!(error.code, "WrongMachine");
    assert!(error.message.contains("52:54:00:00:00:77"), "{}", error.message);
    bench.done(Ok(Outcome::CleanedUp));
    assert_eq!(bench.phase(), Phase::Failed);
}

/// Invariant (machine): A clean-up reaches the machine of its attempt before another node takes
/// that machine.
#[test]
fn a_machine_that_another_node_is_still_busy_with_is_a_clash() {
    let mut fleet = empty_fleet();
    let now = Bench::new().now;
    let name = spec().name;
    settle(&mut fleet, &name, Event::Spec(Arc::new(spec())));
    assert_eq!(fleet.node(&name).unwrap().phase(), Phase::WaitingRamdisk);
    let mut moved = spec();
    move_bmc(&mut moved);
    fleet.step(now, &name, Event::Spec(Arc::new(moved.clone()))).unwrap();
    // The clean-up still runs, on the old machine.
    let found = BTreeMap::from([(name, Ok(Arc::new(moved.clone())))]);
    let addresses: Vec<_> =
        fleet.effective_specs(&found).iter().map(|spec| spec.machine()).collect();
    assert_eq!(addresses, [moved.machine(), spec().machine()]);
}

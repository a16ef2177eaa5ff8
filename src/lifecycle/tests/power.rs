//! Tests of power outside of attempts: orders, drift, and machines that hostler must not switch.

use crate::{
    lifecycle::{Event, Menu, Operation, Policy},
    model::{
        fault::Step,
        power::PowerState,
        problem::Problem,
        spec::{Goal, WantedPower},
        status::Phase,
    },
};

use super::{rack::*, support::*};

const ENFORCING: Policy = Policy { enforce_power: true, ..POLICY };
const OFF: Operation = Operation::SetPower(PowerState::Off);
const ON: Operation = Operation::SetPower(PowerState::On);

/// An installed machine, with the operations on it.
fn installed() -> Rack {
    Rack::deployed(1)
}

fn done(rack: &Rack) -> Vec<Operation> {
    rack.world.story.iter().map(|(_, operation)| operation.clone()).collect()
}

fn operator_switches(rack: &mut Rack, state: PowerState) {
    match state {
        PowerState::On => rack.world.on.insert(host(0)),
        PowerState::Off => rack.world.on.remove(&host(0)),
    };
}

/// Invariant (bmc): A changed wish for power takes effect once; it is enforced at most every 15
/// minutes.
#[test]
fn a_changed_power_is_an_order_that_is_carried_out_once() {
    let mut rack = installed();
    rack.edit(0, |spec| spec.power = WantedPower::Off);
    rack.scan();
    assert_eq!(done(&rack), [OFF]);
    assert_eq!(rack.condition(0, "PowerAsWanted"), Some(("True".into(), "Off".into())));
    // A later change is drift.
    operator_switches(&mut rack, PowerState::On);
    rack.pass(86_400);
    assert_eq!(done(&rack), [OFF]);
    assert_eq!(rack.condition(0, "PowerAsWanted"), Some(("False".into(), "On".into())));
    let message = rack.status(0).message;
    assert_eq!(message, "installed; the machine is on, and its spec wants it off");
    // So is a difference from before hostler's start.
    rack.edit(0, |spec| spec.timeouts.ramdisk *= 2);
    rack.scan();
    rack.restart();
    rack.scan();
    rack.pass(3600);
    assert_eq!(done(&rack), [OFF]);
}

#[test]
fn somebody_who_says_retry_has_it_switched_once_more() {
    let mut rack = installed();
    operator_switches(&mut rack, PowerState::Off);
    rack.pass(3600);
    assert_eq!(done(&rack), []);
    rack.send(0, Event::Retry);
    rack.settle();
    assert_eq!(done(&rack), [ON]);
    operator_switches(&mut rack, PowerState::Off);
    rack.pass(3600);
    assert_eq!(done(&rack), [ON]);
}

#[test]
fn a_machine_whose_bmc_somebody_used_is_looked_at_at_once() {
    let mut rack = installed();
    rack.pass(90);
    operator_switches(&mut rack, PowerState::Off);
    rack.settle();
    assert_eq!(rack.condition(0, "PowerAsWanted"), Some(("True".into(), "On".into())));
    rack.send(0, Event::PowerMayHaveChanged);
    rack.settle();
    assert_eq!(rack.condition(0, "PowerAsWanted"), Some(("False".into(), "Off".into())));
    assert_eq!(done(&rack), []);
}

#[test]
fn power_that_does_not_matter_is_neither_switched_nor_judged() {
    let mut rack = Rack::deployed_under(1, ENFORCING);
    rack.edit(0, |spec| spec.power = WantedPower::Ignore);
    rack.scan();
    operator_switches(&mut rack, PowerState::Off);
    rack.send(0, Event::Retry);
    rack.pass(7200);
    assert_eq!((done(&rack), rack.condition(0, "PowerAsWanted")), (vec![], None));
    assert!(rack.status(0).ready);
    rack.edit(0, |spec| spec.goal = Goal::Unmanaged);
    rack.scan();
    rack.send(0, Event::Retry);
    rack.pass(7200);
    assert_eq!(done(&rack), []);
}

#[test]
fn drift_is_enforced_only_where_the_site_says_so_and_at_most_every_fifteen_minutes() {
    let mut rack = Rack::deployed_under(1, ENFORCING);
    for _ in 0..60 {
        operator_switches(&mut rack, PowerState::Off);
        rack.pass(60);
    }
    assert_eq!(done(&rack).len(), 4, "in an hour");
    assert!(done(&rack).iter().all(|operation| *operation == ON));
}

/// Invariant (machine): A machine that two specs claim is not switched.
#[test]
fn a_machine_that_two_specs_claim_is_not_switched_any_more() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.change(|spec| spec.power = WantedPower::Off);
    bench.poll(PowerState::On);
    let switching = Some(&Operation::SetPower(PowerState::Off));
    assert_eq!(bench.running.as_ref().map(|(_, operation)| operation), switching);
    bench.send(Event::SpecClash(vec![Problem::of_file("f", "clash")]));
    assert_eq!(bench.cancelled.len(), 1);
    bench.done(Err(passing()));
    bench.pass(7200);
    assert_eq!((bench.phase(), &bench.running), (Phase::Invalid, &None));
    bench.change(|_| {});
    bench.poll(PowerState::On);
    assert_eq!((bench.phase(), &bench.running), (Phase::Deployed, &None), "the order has lapsed");
}

/// Invariant (bmc): A changed wish for power takes effect once; it is enforced at most every 15
/// minutes.
#[test]
fn neither_a_restart_nor_a_clock_set_back_makes_enforcement_more_frequent_or_stops_it() {
    for (restarts, clock_s) in [(true, 0), (false, -60), (false, -86_400), (true, -3600)] {
        let mut rack = Rack::deployed_under(1, ENFORCING);
        operator_switches(&mut rack, PowerState::Off);
        rack.pass(60);
        assert_eq!(done(&rack), [ON]);
        operator_switches(&mut rack, PowerState::Off);
        rack.now = rack.now.checked_add(jiff::SignedDuration::from_secs(clock_s)).unwrap();
        if restarts {
            rack.restart();
        }
        rack.scan();
        rack.pass(13 * 60);
        assert_eq!(done(&rack).len(), 1, "{clock_s}");
        rack.pass(3 * 60);
        assert_eq!(done(&rack).len(), 2, "{clock_s}");
    }
}

/// Invariant (consent): An unknown machine is not switched.
#[test]
fn an_available_machine_that_nobody_knows_is_held_if_it_is_on_and_ready_if_it_is_off() {
    for policy in [POLICY, ENFORCING] {
        let mut rack = Rack::new(2, policy);
        rack.edit(0, |spec| spec.goal = Goal::Available);
        rack.edit(1, |spec| spec.goal = Goal::Available);
        rack.world.on.insert(host(0));
        rack.scan();
        rack.pass(3600);
        assert_eq!((rack.phase(0), rack.phase(1)), (Phase::Held, Phase::Available));
        assert_eq!(rack.condition(0, "Held").unwrap().1, "PoweredOn");
        assert!(rack.status(0).message.contains("let hostler do so"));
        assert!(!rack.status(0).ready && rack.status(1).ready);
        assert_eq!((rack.node(1).menu(), rack.world.story.len()), (Menu::Unknown, 0));
        // Neither a retry nor a changed `redeploy` is consent to switch the machine off.
        rack.send(0, Event::Retry);
        rack.redeploy([0], "now");
        rack.scan();
        rack.pass(600);
        assert_eq!((rack.phase(0), rack.world.story.len()), (Phase::Held, 0));
        let mut approved = rack;
        approved.send(0, Event::Approve);
        approved.settle();
        assert_eq!((approved.phase(0), done(&approved)), (Phase::Available, vec![OFF]));
        operator_switches(&mut approved, PowerState::On);
        approved.pass(3600);
        assert_eq!((approved.phase(0), done(&approved)), (Phase::Held, vec![OFF]), "once");
    }
}

#[test]
fn an_installed_machine_made_available_is_switched_off_and_keeps_its_disk() {
    let mut rack = installed();
    rack.edit(0, |spec| spec.goal = Goal::Available);
    rack.scan();
    assert_eq!((rack.phase(0), done(&rack)), (Phase::Available, vec![OFF]));
    assert_eq!(rack.node(0).menu(), Menu::Unknown);
    assert!(rack.status(0).ready && rack.status(0).installed.is_some());
    rack.edit(0, |spec| spec.goal = Goal::Deployed);
    rack.scan();
    assert_eq!((rack.phase(0), done(&rack)), (Phase::Deployed, vec![OFF, ON]));
    assert!(rack.status(0).ready);
    assert_eq!(rack.node(0).menu(), Menu::LocalDisk);
    rack.pass(3600);
    assert_eq!(done(&rack), [OFF, ON]);
}

#[test]
fn an_available_machine_whose_redeploy_changed_is_reinstalled_when_it_is_wanted_again() {
    let mut rack = installed();
    rack.edit(0, |spec| spec.goal = Goal::Available);
    rack.redeploy([0], "meanwhile");
    rack.scan();
    rack.pass(600);
    assert_eq!((rack.phase(0), rack.writes()), (Phase::Available, 0));
    rack.edit(0, |spec| spec.goal = Goal::Deployed);
    rack.scan();
    assert_eq!((rack.phase(0), rack.writes()), (Phase::Deployed, 1));
}

#[test]
fn a_machine_made_available_in_the_middle_of_an_attempt_is_cleaned_up() {
    for phase in [Phase::PoweringOn, Phase::WaitingRamdisk, Phase::Imaging, Phase::Restarting] {
        let mut bench = Bench::with_spec();
        bench.go_to(phase);
        bench.change(|spec| spec.goal = Goal::Available);
        if let Some((_, operation)) =
            bench.running.clone().filter(|(_, operation)| *operation != Operation::CleanUp)
        {
            assert!(!bench.cancelled.is_empty(), "{operation:?} goes on");
            bench.done(Err(passing()));
        }
        assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp, "{phase:?}");
        bench.done(Ok(good_outcome(&Operation::CleanUp)));
        assert_eq!((bench.phase(), bench.menu()), (Phase::Available, Menu::Unknown));
        bench.poll(PowerState::Off);
        bench.pass(30);
        assert!(bench.running.is_none());
        assert!(bench.node.status(bench.now).ready && !bench.node.record().power_ordered);
    }
}

#[test]
fn a_machine_wanted_off_is_installed_and_left_off() {
    let mut rack = Rack::new(1, ENFORCING);
    rack.edit(0, |spec| spec.power = WantedPower::Off);
    rack.scan();
    rack.pass(3600);
    assert_eq!((rack.phase(0), rack.writes()), (Phase::Deployed, 1));
    assert_eq!(done(&rack).last().unwrap(), &Operation::Restart { wanted: PowerState::Off });
    assert!(rack.world.on.is_empty() && rack.status(0).ready);
}

#[test]
fn power_changed_in_the_last_moment_of_an_installation_is_an_order() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Restarting);
    bench.change(|spec| spec.power = WantedPower::Off);
    bench.done(Ok(crate::lifecycle::Outcome::Restarted(PowerState::On)));
    assert_eq!(bench.phase(), Phase::Deployed);
    bench.poll(PowerState::On);
    assert_eq!(bench.running.as_ref().unwrap().1, OFF);
}

#[test]
fn an_order_survives_a_restart_and_a_silent_bmc() {
    let mut rack = installed();
    rack.world.faults.insert(host(0), passing());
    rack.edit(0, |spec| spec.power = WantedPower::Off);
    rack.scan();
    rack.pass(600);
    rack.restart();
    rack.scan();
    assert_eq!(done(&rack), []);
    rack.world.faults.clear();
    rack.pass(120);
    assert_eq!(done(&rack), [OFF]);
    // The same while the machine is being switched.
    rack.edit(0, |spec| spec.power = WantedPower::On);
    rack.scan_only();
    rack.end_one();
    assert_eq!(rack.world.running.front().unwrap().operation, ON);
    rack.restart();
    rack.scan();
    assert_eq!(done(&rack), [OFF, ON]);
}

#[test]
fn an_order_is_dropped_by_a_clash_and_by_another_machine() {
    for clash in [true, false] {
        let mut rack = installed();
        rack.world.faults.insert(host(0), passing());
        rack.edit(0, |spec| spec.power = WantedPower::Off);
        rack.scan();
        assert!(rack.node(0).record().power_ordered);
        if clash {
            rack.clashes.insert(name(0), vec![Problem::of_file("f", "clash")]);
            rack.scan();
            rack.clashes.clear();
        } else {
            rack.edit(0, |spec| spec.bmc.as_mut().unwrap().move_to("bmc-other"));
            rack.world.on.insert("bmc-other".into());
        }
        rack.world.faults.clear();
        rack.scan();
        rack.pass(3600);
        assert_eq!(done(&rack), []);
    }
}

#[test]
fn a_paused_a_broken_and_a_missing_spec_switch_nothing_until_they_are_mended() {
    for trouble in 0..3 {
        let mut rack = Rack::deployed_under(1, ENFORCING);
        rack.edit(0, |spec| (spec.power, spec.paused) = (WantedPower::Off, trouble == 0));
        rack.scan_only();
        match trouble {
            0 => {}
            1 => {
                rack.broken.insert(name(0));
                rack.scan_only();
            }
            _ => rack.lose_directory("not mounted"),
        }
        rack.settle();
        rack.send(0, Event::Retry);
        rack.pass(7200);
        assert_eq!(done(&rack), []);
        rack.broken.clear();
        rack.edit(0, |spec| spec.paused = false);
        rack.scan();
        rack.pass(60);
        assert_eq!(done(&rack), [OFF], "the order still stands");
    }
}

#[test]
fn a_machine_that_cannot_be_switched_is_tried_a_few_times_with_pauses_and_then_told() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.change(|spec| spec.power = WantedPower::Off);
    bench.poll(PowerState::On);
    for tries in 1..4 {
        assert_eq!(bench.running.as_ref().unwrap().1, OFF);
        bench.done(Err(passing()));
        assert!(bench.running.is_none(), "it waits first");
        let said = format!("switching the machine off; try {} of 4 after: it broke", tries + 1);
        assert_eq!(bench.message(), said);
        let (at, reason) = bench.node.next_wake().unwrap();
        assert_eq!(reason, "the next try to switch the power");
        assert!(at > bench.now && Some(at) < bench.node.deadline().map(|(at, _)| at));
        bench.now = at;
        bench.send(Event::Tick);
    }
    let fault = crate::model::fault::Fault { step: Step::Power, ..passing() };
    bench.done(Err(fault));
    assert_eq!(bench.phase(), Phase::Deployed);
    assert_eq!(bench.node.record().last_error.as_ref().unwrap().fault.step, Step::Power);
    bench.pass(3600);
    bench.poll(PowerState::On);
    bench.pass(30);
    assert!(bench.running.is_none(), "it is left as it is");
    // The next try succeeds, which clears the error.
    bench.send(Event::Retry);
    bench.poll(PowerState::On);
    bench.done(Ok(good_outcome(&OFF)));
    assert_eq!(bench.node.record().last_error, None);
    assert!(!bench.node.record().power_ordered);
}

#[test]
fn a_power_error_is_over_when_the_machine_is_as_wanted_whoever_did_it() {
    let mut rack = installed();
    rack.world
        .faults
        .insert(host(0), crate::model::fault::Fault { step: Step::Power, ..lasting() });
    rack.edit(0, |spec| spec.power = WantedPower::Off);
    rack.scan_only();
    rack.world.faults.clear();
    rack.end_one();
    rack.world
        .faults
        .insert(host(0), crate::model::fault::Fault { step: Step::Power, ..lasting() });
    rack.settle();
    assert!(rack.status(0).last_error.is_some(), "a lasting fault is not tried again");
    rack.world.faults.clear();
    operator_switches(&mut rack, PowerState::Off);
    rack.pass(7200);
    assert_eq!(rack.status(0).last_error, None);
    assert_eq!(done(&rack), []);
}

#[test]
fn a_bmc_that_hangs_while_it_switches_ends_with_a_reason() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.change(|spec| spec.power = WantedPower::Off);
    bench.poll(PowerState::On);
    let (op, _) = bench.running.clone().unwrap();
    bench.pass(86_400);
    assert_eq!(bench.cancelled, [op]);
    assert_eq!(bench.phase(), Phase::Deployed);
    let error = bench.node.record().last_error.clone().unwrap().fault;
    assert_eq!((error.step, error.code.as_ref()), (Step::Power, "PowerTimeout"));
    assert!(error.message.contains("not switched off in time"), "{}", error.message);
    // No other operation starts before this one has really ended.
    bench.pass(3600);
    assert_eq!(bench.running.as_ref().unwrap().0, op);
    assert_eq!(bench.cancelled, [op, op], "it is told again");
    bench.done(Ok(good_outcome(&OFF)));
    bench.poll(PowerState::On);
    assert!(bench.running.is_none() && !bench.node.record().power_ordered);
}

#[test]
fn another_word_while_a_machine_is_switched_stops_that_first() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.change(|spec| spec.power = WantedPower::Off);
    bench.poll(PowerState::On);
    let (op, _) = bench.running.clone().unwrap();
    bench.change(|spec| spec.power = WantedPower::On);
    assert_eq!(bench.cancelled, [op]);
    bench.done(Ok(good_outcome(&OFF)));
    bench.poll(PowerState::Off);
    assert_eq!(bench.running.as_ref().unwrap().1, ON, "seen off, wanted on");
}

#[test]
fn a_redeploy_taken_back_switches_nothing() {
    let mut rack = Rack::deployed(8);
    operator_switches(&mut rack, PowerState::Off);
    rack.pass(120);
    rack.redeploy(0..8, "all");
    rack.scan();
    assert_eq!(rack.count(Phase::Held), 8);
    for n in 0..8 {
        rack.edit(n, |spec| spec.redeploy = None);
    }
    rack.scan();
    rack.pass(600);
    assert_eq!((rack.count(Phase::Deployed), done(&rack)), (8, vec![]));
}

#[test]
fn a_machine_with_a_lost_record_is_neither_switched_nor_wiped_when_it_is_made_available() {
    let mut rack = Rack::deployed_under(1, ENFORCING);
    rack.world.statuses.clear();
    let lost = crate::lifecycle::Record::distrusted(rack.now);
    rack.start_with([(name(0), lost)].into());
    rack.scan();
    assert_eq!(rack.phase(0), Phase::Held);
    for goal in [Goal::Available, Goal::Deployed, Goal::Available, Goal::Deployed] {
        rack.edit(0, |spec| spec.goal = goal);
        for state in [PowerState::On, PowerState::Off] {
            operator_switches(&mut rack, state);
            rack.scan();
            rack.pass(3600);
        }
        assert_eq!(done(&rack), []);
    }
    assert_eq!(rack.phase(0), Phase::Held, "and it is still not wiped for being off");
    assert_eq!(rack.condition(0, "Held").unwrap().1, "RecordLost");
}

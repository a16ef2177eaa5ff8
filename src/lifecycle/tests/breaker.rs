//! Tests of the breaker: the limit, the hold, and its ends.

use crate::{
    lifecycle::{Event, Policy},
    model::{problem::Problem, spec::Goal, status::Phase},
};

use super::{rack::*, support::*};

/// A site of eight with three reinstalls in one change: one too many.
fn held_three_of_eight() -> Rack {
    let mut rack = Rack::deployed(8);
    rack.redeploy(0..3, "all");
    rack.scan();
    assert_eq!((rack.count(Phase::Held), rack.writes()), (3, 0));
    rack
}

/// Invariant (consent): One mistake does not wipe a site: a reinstall of more than a quarter in ten
/// minutes is held.
#[test]
fn one_machine_or_a_quarter_of_the_site_is_reinstalled_and_one_more_holds_all_of_them() {
    for (changed, of, goes) in [
        (1, 1, true),
        (1, 4, true),
        (2, 4, false),
        (1, 7, true),
        (2, 7, false),
        (2, 8, true),
        (3, 8, false),
        (25, 100, true),
        (26, 100, false),
        (100, 100, false),
    ] {
        let mut rack = Rack::deployed(of);
        rack.redeploy(0..changed, "all");
        rack.scan();
        rack.pass(120);
        let (held, writes) = if goes { (0, changed) } else { (changed, 0) };
        assert_eq!((rack.count(Phase::Held), rack.writes()), (held, writes), "{changed} of {of}");
        assert_eq!(rack.count(Phase::Deployed), of - held);
    }
}

#[test]
fn a_held_node_says_what_it_is_held_for_and_what_lets_it_go() {
    let rack = held_three_of_eight();
    let held = Some(("True".into(), "TooManyChanges".into()));
    assert_eq!(rack.condition(0, "Held"), held);
    assert_eq!(rack.condition(3, "Held"), None);
    let status = rack.status(0);
    assert!(!status.ready);
    assert!(status.message.contains("hostler approve --all"), "{}", status.message);
    assert!(status.installed.is_some(), "it is still installed");
}

#[test]
fn new_machines_drift_and_power_are_not_reinstalls() {
    let mut rack = Rack::new(40, POLICY);
    rack.scan();
    assert_eq!(rack.count(Phase::Deployed), 40, "all at once");
    rack.world.story.clear();
    for n in 0..40 {
        rack.edit(n, |spec| {
            spec.image.checksum = format!("sha256:{}", "7".repeat(64)).parse().unwrap();
        });
    }
    rack.scan();
    assert_eq!((rack.count(Phase::Deployed), rack.world.story.len()), (40, 0));
    for n in 0..40 {
        rack.edit(n, |spec| spec.goal = Goal::Available);
    }
    rack.scan();
    assert_eq!((rack.count(Phase::Available), rack.world.on.len()), (40, 0));
    // A machine that failed before its first installation has nothing to lose.
    let mut rack = Rack::new(8, POLICY);
    for n in 0..8 {
        rack.world.faults.insert(host(n), lasting());
    }
    rack.scan();
    assert_eq!(rack.count(Phase::Failed), 8);
    rack.world.faults.clear();
    rack.redeploy(0..8, "now");
    rack.scan();
    assert_eq!(rack.count(Phase::Deployed), 8);
}

/// Invariant (consent): One mistake does not wipe a site: a reinstall of more than a quarter in ten
/// minutes is held.
///
/// Invariant (consent): The breaker's count outlives the agent, and is on record before a machine
/// is reinstalled.
#[test]
fn files_changed_one_by_one_within_ten_minutes_are_one_change_also_for_an_agent_started_anew() {
    for (apart_s, written) in [(1, 2), (299, 2), (301, 3), (601, 3)] {
        for restarts in [false, true] {
            let mut rack = Rack::deployed(8);
            for n in 0..3 {
                rack.redeploy([n], "one by one");
                rack.scan();
                rack.pass(apart_s);
                if restarts {
                    rack.restart();
                    rack.scan();
                }
            }
            assert_eq!(rack.writes(), written, "{apart_s} s apart; restarts: {restarts}");
        }
    }
}

/// Invariant (consent): The breaker's count outlives the agent, and is on record before a machine
/// is reinstalled.
#[test]
fn no_machine_is_reinstalled_that_a_crash_would_not_let_count() {
    let mut rack = Rack::deployed(8);
    rack.world.site_file_stuck = true;
    rack.redeploy([0], "now");
    rack.scan();
    rack.pass(120);
    assert_eq!(rack.writes(), 0, "that it counts is not on record");
    rack.world.site_file_stuck = false;
    rack.tick();
    rack.settle();
    assert_eq!(rack.writes(), 1);
}

#[test]
fn the_ten_minutes_end_after_ten_minutes_whatever_the_clock_does() {
    let after = |seconds: i64| {
        let mut rack = Rack::deployed(4);
        rack.redeploy([0], "first");
        rack.scan();
        rack.now = rack.now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap();
        rack.redeploy([1], "second");
        rack.scan();
        rack.phase(1)
    };
    assert_eq!(after(599), Phase::Held);
    assert_eq!(after(600), Phase::Deployed);
    assert_eq!(after(-599), Phase::Held);
    assert_eq!(after(-600), Phase::Deployed);
}

#[test]
fn a_clock_that_is_set_back_and_right_again_lets_no_more_through() {
    let mut rack = Rack::deployed(8);
    for (n, seconds) in [(0, -7200), (1, 7260), (2, 0)] {
        rack.redeploy([n], "one by one");
        rack.scan();
        rack.settle();
        rack.now = rack.now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap();
    }
    assert_eq!(rack.phase(2), Phase::Deployed, "the second one counts at another time");
    rack.redeploy([3], "one more");
    rack.scan();
    assert_eq!(rack.phase(3), Phase::Held);
}

#[test]
fn one_machine_redeployed_twice_is_one_and_a_machine_being_written_still_counts_to_the_site() {
    let mut rack = Rack::deployed(4);
    for value in ["a", "b", "c"] {
        rack.redeploy([0], value);
        rack.scan();
    }
    assert_eq!(rack.writes(), 3);
    // Its disk is being written, so that nothing is installed there; it still counts as one of
    // eight.
    let mut rack = Rack::deployed(8);
    rack.redeploy([0], "now");
    rack.scan_only();
    while rack.phase(0) != Phase::Imaging {
        if !rack.end_one() {
            rack.let_ramdisks_call();
        }
    }
    rack.redeploy([1], "now");
    rack.scan_only();
    assert_eq!(rack.phase(1), Phase::Pending);
    rack.settle();
    assert_eq!(rack.writes(), 2);
}

/// Invariant (consent): A mass change survives a restart as a hold, and touches nothing when it is
/// taken back.
#[test]
fn a_hold_survives_a_restart() {
    let mut rack = held_three_of_eight();
    rack.restart();
    rack.scan();
    rack.pass(86_400);
    assert_eq!((rack.count(Phase::Held), rack.writes()), (3, 0));
    assert_eq!(rack.condition(0, "Held").unwrap().1, "TooManyChanges");
}

#[test]
fn specs_changed_while_the_agent_was_down_are_one_change() {
    let mut rack = Rack::deployed(8);
    rack.redeploy(0..3, "all");
    rack.restart();
    rack.scan();
    rack.pass(3600);
    assert_eq!((rack.count(Phase::Held), rack.writes()), (3, 0));
}

/// Invariant (consent): A mass change survives a restart as a hold, and touches nothing when it is
/// taken back.
#[test]
fn a_change_taken_back_lets_all_go_and_touches_nothing() {
    for off in [false, true] {
        let mut rack = held_three_of_eight();
        if off {
            // Somebody uses the machine.
            rack.world.on.remove(&host(0));
        }
        for n in 0..3 {
            rack.edit(n, |spec| spec.redeploy = None);
        }
        rack.scan();
        rack.pass(3600);
        assert_eq!(rack.count(Phase::Deployed), 8);
        assert_eq!(rack.world.story, [], "not even switched");
    }
}

/// Invariant (consent): A mass change survives a restart as a hold, and touches nothing when it is
/// taken back.
#[test]
fn an_operator_lets_all_go_or_each() {
    let mut rack = held_three_of_eight();
    for n in 0..8 {
        rack.send(n, Event::Approve);
    }
    rack.settle();
    assert_eq!((rack.count(Phase::Deployed), rack.writes()), (8, 3));
    rack.pass(3600);
    assert_eq!(rack.writes(), 3, "once");

    let mut rack = held_three_of_eight();
    rack.send(1, Event::Approve);
    rack.settle();
    rack.pass(3600);
    assert_eq!((rack.count(Phase::Held), rack.writes()), (2, 1));
    assert_eq!(rack.world.writes(&host(1)), 1);
}

#[test]
fn retry_does_not_let_a_held_node_go() {
    let mut rack = held_three_of_eight();
    rack.send(0, Event::Retry);
    rack.settle();
    rack.pass(3600);
    assert_eq!((rack.count(Phase::Held), rack.writes()), (3, 0));
}

#[test]
fn one_file_changed_again_after_the_hold_is_consent_for_that_one_and_all_at_once_are_not() {
    let mut rack = held_three_of_eight();
    rack.redeploy([1], "this one, really");
    rack.scan();
    assert_eq!((rack.count(Phase::Held), rack.writes()), (2, 1));

    let mut rack = held_three_of_eight();
    rack.redeploy(0..3, "all of them, really");
    rack.scan();
    rack.pass(3600);
    assert_eq!((rack.count(Phase::Held), rack.writes()), (3, 0));
    // An unrelated edit changes nothing.
    rack.edit(0, |spec| spec.timeouts.ramdisk *= 2);
    rack.scan();
    rack.pass(3600);
    assert_eq!((rack.count(Phase::Held), rack.writes()), (3, 0));
}

/// Invariant (consent): A `redeploy` that comes with a machine is no consent.
#[test]
fn files_renamed_and_redeployed_in_one_go_are_only_renamed() {
    let mut rack = Rack::deployed(8);
    let old = std::mem::take(&mut rack.specs);
    for (n, mut spec) in old.into_values().enumerate() {
        spec.name = name(100 + n);
        spec.redeploy = Some("renamed and redeployed".into());
        rack.specs.insert(spec.name.clone(), spec);
    }
    rack.scan();
    rack.pass(3600);
    assert_eq!((rack.count(Phase::Deployed), rack.world.story.len()), (8, 0));
    assert_eq!(rack.condition(100, "Drifted").unwrap().0, "True");
    // Later changes count.
    rack.redeploy(100..108, "again");
    rack.scan();
    rack.pass(3600);
    assert_eq!((rack.count(Phase::Held), rack.writes()), (8, 0));
}

/// Invariant (consent): One mistake does not wipe a site: a reinstall of more than a quarter in ten
/// minutes is held.
#[test]
fn a_change_made_during_a_pause_counts_when_the_pause_ends() {
    let mut rack = Rack::deployed(8);
    for n in 0..8 {
        rack.edit(n, |spec| (spec.paused, spec.redeploy) = (true, Some("later".into())));
        rack.scan();
        rack.pass(3600);
    }
    for n in 0..8 {
        rack.edit(n, |spec| spec.paused = false);
    }
    rack.scan();
    rack.pass(3600);
    assert_eq!((rack.count(Phase::Held), rack.writes()), (8, 0));
}

#[test]
fn a_change_counts_when_what_kept_it_from_counting_is_over() {
    // Unmanaged, available, a broken file and a clash.
    let mut unmanaged = Rack::deployed(8);
    let mut available = Rack::deployed(8);
    for n in 0..8 {
        unmanaged.edit(n, |spec| spec.goal = Goal::Unmanaged);
        available.edit(n, |spec| spec.goal = Goal::Available);
    }
    let mut broken = Rack::deployed(8);
    broken.broken = broken.specs.keys().cloned().collect();
    let mut clash = Rack::deployed(8);
    clash.clashes =
        clash.specs.keys().map(|n| (n.clone(), vec![Problem::of_file("f", "clash")])).collect();
    for mut rack in [unmanaged, available, broken, clash] {
        rack.redeploy(0..8, "meanwhile");
        rack.scan();
        rack.broken.clear();
        rack.clashes.clear();
        for n in 0..8 {
            rack.edit(n, |spec| spec.goal = Goal::Deployed);
        }
        rack.scan();
        rack.pass(3600);
        assert_eq!((rack.count(Phase::Held), rack.writes()), (8, 0));
    }
}

#[test]
fn a_node_that_is_being_switched_when_the_change_comes_is_held_too() {
    let mut rack = Rack::deployed(4);
    rack.edit(0, |spec| spec.power = crate::model::spec::WantedPower::Off);
    rack.scan_only();
    // While the poll runs, and then while the machine is switched.
    rack.end_one();
    assert!(rack.node(0).status(rack.now).message.contains("switching"), "{:?}", rack.status(0));
    rack.redeploy(0..4, "all");
    rack.scan();
    rack.pass(3600);
    assert_eq!((rack.count(Phase::Held), rack.writes()), (4, 0));
}

#[test]
fn a_machine_that_is_being_reinstalled_is_not_a_second_one_and_its_clean_up_is_not_stopped() {
    let mut rack = Rack::deployed(8);
    rack.world.silent = true;
    rack.redeploy([0], "first");
    rack.scan();
    assert_eq!(rack.phase(0), Phase::WaitingRamdisk);
    rack.redeploy(0..3, "all");
    rack.scan();
    // Node 0 has consent of its own and starts over; the others wait.
    rack.world.silent = false;
    rack.pass(600);
    assert_eq!(
        (rack.phase(0), rack.phase(1), rack.phase(2)),
        (Phase::Deployed, Phase::Held, Phase::Held)
    );
    assert_eq!((rack.writes(), rack.world.writes(&host(0))), (1, 1));
}

#[test]
fn without_the_breaker_everything_goes() {
    let mut rack = Rack::deployed_under(8, Policy { breaker: false, ..POLICY });
    rack.redeploy(0..8, "all");
    rack.scan();
    rack.pass(600);
    assert_eq!((rack.count(Phase::Deployed), rack.writes()), (8, 8));
}

#[test]
fn specs_that_go_away_with_a_change_make_it_no_smaller() {
    let mut rack = Rack::deployed(9);
    for n in 0..5 {
        rack.specs.remove(&name(n));
    }
    rack.redeploy(7..9, "again");
    rack.scan();
    assert_eq!((rack.count(Phase::Held), rack.writes()), (2, 0));
}

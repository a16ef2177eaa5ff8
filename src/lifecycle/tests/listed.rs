//! Tests of missing records: the node is held, under its old and its new name, whenever the agent
//! was killed; and no kill makes the record of an untouched machine look lost.

use std::collections::BTreeMap;

use crate::lifecycle::{Event, Operation, UnclaimedInstalls};
use crate::model::{ids::NodeName, status::Phase};

use super::{rack::*, support::*};

/// The least number of effects in the history below.
const CALLS_MIN: usize = 20;

/// Plays a node's history, from new over installed and gone to back, with a kill of the agent after
/// so many effects. Returns whether the agent was killed.
fn killed_after(calls: usize) -> (Rack, bool) {
    let mut rack = Rack::new(2, POLICY);
    let spec = rack.specs.remove(&name(0)).unwrap();
    rack.scan();
    rack.world.story.clear();
    rack.world.fuse = Some(calls);
    rack.specs.insert(name(0), spec.clone());
    rack.scan();
    rack.specs.remove(&name(0));
    rack.scan();
    rack.specs.insert(name(0), spec);
    rack.scan();
    let was_killed = rack.world.fuse == Some(0);
    rack.world.fuse = None;
    rack.world.on.clear();
    (rack, was_killed)
}

/// Whether an operation touched the first node's machine.
fn was_touched(rack: &Rack) -> bool {
    rack.world.story.iter().any(|(at, _)| *at == host(0))
}

/// Whether the site file lists the first node.
fn is_kept(rack: &Rack) -> bool {
    rack.world.unclaimed.as_ref().is_some_and(|unclaimed| unclaimed.contains(name(0).as_str()))
}

fn writes_after(rack: &Rack, begun: usize) -> usize {
    let write = |(at, operation): &&(String, Operation)| {
        *at == host(0) && matches!(operation, Operation::Image { .. })
    };
    rack.world.story.iter().skip(begun).filter(write).count()
}

/// Invariant (state): A record that is gone is missed, and no crash makes an untouched machine look
/// lost.
#[test]
fn no_crash_makes_a_node_look_lost_whose_record_is_there() {
    let mut calls = 0;
    loop {
        let (mut rack, was_killed) = killed_after(calls);
        if !was_killed {
            break;
        }
        rack.restart();
        rack.scan();
        rack.pass(7200);
        assert_eq!(rack.phase(0), Phase::Deployed, "killed after {calls} calls");
        calls += 1;
    }
    assert!(calls >= CALLS_MIN, "{calls}");
}

/// Invariant (state): A record that is gone is missed, and no crash makes an untouched machine look
/// lost.
#[test]
fn no_crash_makes_a_machine_that_was_touched_look_new_when_its_record_is_gone() {
    for renamed in [false, true] {
        let mut calls = 0;
        loop {
            let (mut rack, was_killed) = killed_after(calls);
            if !was_killed {
                break;
            }
            let touched = was_touched(&rack);
            let unlisted = !is_kept(&rack);
            rack.world.records.remove(&name(0));
            rack.world.statuses.remove(&name(0));
            if renamed {
                let mut spec = rack.specs.remove(&name(0)).unwrap();
                spec.name = name(9);
                rack.specs.insert(name(9), spec);
            }
            let node = if renamed { 9 } else { 0 };
            let begun = rack.world.story.len();
            rack.restart();
            rack.scan();
            rack.pass(7200);
            rack.restart();
            rack.scan();
            rack.pass(7200);
            if touched {
                // Unless the site file got the installation when the node went away.
                assert!(
                    matches!(rack.phase(node), Phase::Held | Phase::Deployed),
                    "killed after {calls} calls: {:?}",
                    rack.phase(node)
                );
                assert_eq!(writes_after(&rack, begun), 0, "killed after {calls} calls");
            } else if unlisted {
                assert_eq!(rack.phase(node), Phase::Deployed, "killed after {calls} calls");
            }
            calls += 1;
        }
        assert!(calls >= CALLS_MIN, "{calls}");
    }
}

/// Invariant (state): A record that is gone is missed, and no crash makes an untouched machine look
/// lost.
#[test]
fn nothing_is_done_to_a_machine_whose_record_would_not_be_missed() {
    let mut rack = Rack::new(1, POLICY);
    rack.scan_only();
    let requested = std::mem::take(&mut rack.world.requested);
    assert!(
        !requested.contains(&Requested::Keep),
        "a node that only waits need not be missed: {requested:?}"
    );
    assert!(rack.end_one());
    let requested = std::mem::take(&mut rack.world.requested);
    let at = |wanted: fn(&Requested) -> bool| requested.iter().position(wanted).unwrap();
    let save = at(|requested| *requested == Requested::Save);
    let keep = at(|requested| *requested == Requested::Keep);
    let start = at(|requested| matches!(requested, Requested::Start(_)));
    assert!(save < keep && keep < start, "{requested:?}");
    // No second write for the next steps.
    rack.settle();
    assert_eq!(rack.phase(0), Phase::Deployed);
    assert!(!rack.world.requested.contains(&Requested::Keep));
}

#[test]
fn a_scan_of_many_new_machines_is_one_change_of_what_is_kept() {
    let mut rack = Rack::new(50, POLICY);
    for spec in rack.specs.values_mut() {
        spec.bmc = None;
    }
    rack.scan_only();
    let requested = &rack.world.requested;
    let count = |wanted: fn(&Requested) -> bool| {
        requested.iter().filter(|requested| wanted(requested)).count()
    };
    assert_eq!(
        count(|requested| matches!(requested, Requested::Start(_))),
        50,
        "each begins at once"
    );
    assert_eq!(count(|requested| *requested == Requested::Keep), 1);
    let keep = requested.iter().position(|requested| *requested == Requested::Keep).unwrap();
    let start =
        requested.iter().position(|requested| matches!(requested, Requested::Start(_))).unwrap();
    assert!(keep < start, "{requested:?}");
}

#[test]
fn a_node_is_not_started_while_its_record_would_not_be_missed() {
    let mut rack = Rack::new(1, POLICY);
    rack.scan_only();
    rack.world.disk_full = true;
    rack.settle();
    assert!(rack.executor.has_unsaved());
    assert_eq!(rack.world.story, []);
    rack.world.disk_full = false;
    rack.tick();
    rack.settle();
    assert_eq!(rack.phase(0), Phase::Deployed);
}

/// Invariant (consent): The breaker's count outlives the agent, and is on record before a machine
/// is reinstalled.
#[test]
fn no_node_is_started_on_a_list_that_another_one_could_not_write() {
    let mut rack = Rack::new(3, POLICY);
    rack.scan_only();
    rack.world.site_file_stuck = true;
    rack.settle();
    rack.pass(60);
    assert_eq!(rack.world.story, []);
    rack.world.site_file_stuck = false;
    rack.tick();
    rack.settle();
    assert_eq!(rack.count(Phase::Deployed), 3);
}

#[test]
fn a_node_that_goes_away_in_the_middle_of_its_first_attempt_is_not_missed() {
    let mut rack = Rack::new(2, POLICY);
    rack.world.silent = true;
    rack.scan();
    assert_eq!(rack.phase(0), Phase::WaitingRamdisk);
    let spec = rack.specs.remove(&name(0)).unwrap();
    rack.scan();
    assert!(!rack.world.records.contains_key(&name(0)), "forgotten");
    rack.restart();
    rack.world.silent = false;
    rack.specs.insert(name(0), spec);
    rack.scan();
    rack.pass(3600);
    assert_eq!(rack.phase(0), Phase::Deployed);
}

#[test]
fn a_whole_directory_that_goes_away_is_one_change_of_what_is_kept() {
    let mut rack = Rack::deployed(50);
    rack.world.requested.clear();
    let kept = rack.specs.remove(&name(0)).unwrap();
    rack.specs.clear();
    rack.specs.insert(name(0), kept);
    rack.scan();
    assert_eq!(rack.executor.fleet().names(), [name(0)]);
    let keeps =
        rack.world.requested.iter().filter(|requested| **requested == Requested::Keep).count();
    assert_eq!(keeps, 1);
}

/// Loses the site file.
fn incomplete(mut rack: Rack) -> Rack {
    rack.world.unclaimed = Some(serde_json::to_string(&UnclaimedInstalls::lost()).unwrap());
    rack.restart();
    rack.scan();
    rack
}

fn reason(rack: &Rack, n: usize) -> Option<String> {
    rack.condition(n, "Held").map(|(_, reason)| reason)
}

/// Invariant (state): Doubt is durable; consent ends it for one machine, an operator's order for
/// new ones.
#[test]
fn while_something_that_was_kept_is_lost_every_machine_that_is_new_here_waits_for_consent() {
    let mut rack = incomplete(Rack::deployed(2));
    assert_eq!(rack.count(Phase::Deployed), 2, "a good record knows better");
    rack.specs.insert(name(5), spec_of(5));
    rack.scan();
    assert_eq!(reason(&rack, 5).as_deref(), Some("RecordLost"));
    // A node changes to a machine that is new here.
    rack.edit(0, |spec| spec.bmc.as_mut().unwrap().move_to("bmc-new"));
    rack.edit(0, |spec| spec.boot.macs = spec_of(77).boot.macs);
    rack.redeploy([0], "again");
    rack.world.on.clear();
    rack.scan();
    rack.pass(7200);
    assert_eq!(rack.world.writes("bmc-new"), 0);
    // The hold is on record, and ends for each node separately.
    rack.restart();
    rack.scan();
    rack.send(5, Event::Approve);
    rack.settle();
    assert_eq!(rack.phase(5), Phase::Deployed);
    rack.specs.insert(name(6), spec_of(6));
    rack.scan();
    assert_eq!(reason(&rack, 6).as_deref(), Some("RecordLost"));
}

/// Invariant (state): Doubt is durable; consent ends it for one machine, an operator's order for
/// new ones.
#[test]
fn an_operator_ends_the_doubt_about_machines_to_come_and_about_no_other() {
    let mut rack = incomplete(Rack::deployed(1));
    rack.specs.insert(name(5), spec_of(5));
    rack.scan();
    rack.world.disk_full = true;
    assert!(rack.executor.approve_new_machines(&mut rack.world).is_err());
    rack.world.disk_full = false;
    rack.specs.insert(name(6), spec_of(6));
    rack.scan();
    assert_eq!(reason(&rack, 6).as_deref(), Some("RecordLost"), "it could not be written down");
    assert_eq!(rack.executor.approve_new_machines(&mut rack.world), Ok(true));
    assert_eq!(rack.executor.approve_new_machines(&mut rack.world), Ok(false));
    for restarted in [false, true] {
        if restarted {
            rack.restart();
        }
        let n = 7 + usize::from(restarted);
        rack.specs.insert(name(n), spec_of(n));
        rack.scan();
        assert_eq!(rack.phase(n), Phase::Deployed);
    }
    for n in [5, 6] {
        assert_eq!(reason(&rack, n).as_deref(), Some("RecordLost"));
    }
}

#[test]
fn more_machines_than_can_be_remembered_are_known_to_be_forgotten() {
    let mut unclaimed = UnclaimedInstalls::default();
    let mut record = Rack::deployed(1).node(0).record().clone();
    record.installed.as_mut().unwrap().machine = None;
    for n in 0..=20_000_u32 {
        let mut spec = spec_of(0);
        spec.bmc.as_mut().unwrap().move_to(format!("bmc-{n}"));
        record.spec = Some(spec.into());
        let node: NodeName = format!("n{n}").parse().unwrap();
        assert!(!unclaimed.is_incomplete());
        unclaimed.remember(&node, &record);
    }
    assert!(unclaimed.is_incomplete());
}

#[test]
fn what_a_status_file_tells_of_a_disk_that_was_written_since_is_not_believed_again() {
    let mut unclaimed = UnclaimedInstalls::default();
    let mut record = Rack::deployed(1).node(0).record().clone();
    let reported = BTreeMap::from([(name(7), record.installed.clone())]);
    unclaimed.recover_from_status(reported.clone());
    let spec = record.spec.clone().unwrap();
    assert!(matches!(unclaimed.machine(&spec), Some(Some(_))), "as the status file says");
    unclaimed.written(&spec);
    assert_eq!(unclaimed.machine(&spec), Some(None));
    assert_eq!(unclaimed.node(&name(7)), Some(&None));
    // Another node writes the disk and removes its installation, and the agent restarts.
    record.installed = None;
    unclaimed.remember(&name(8), &record);
    unclaimed.recover_from_status(reported);
    assert_eq!(unclaimed.machine(&spec), None);
}

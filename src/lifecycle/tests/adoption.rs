//! Tests of installed machines whose files are lost, renamed, swapped or broken: none of it WIPES
//! one.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;

use crate::{
    lifecycle::{Event, Hold, Operation, Record},
    model::{ids::NodeName, problem::Problem, spec::NodeSpec, status::Phase},
};

use super::{rack::*, support::*};

/// Lets hours pass, in which every machine is off half of the time.
fn stays_untouched(mut rack: Rack, expected: Phase) {
    for _ in 0..3 {
        rack.scan();
        rack.pass(7200);
        rack.world.on.clear();
    }
    let phases: Vec<Phase> = rack
        .executor
        .fleet()
        .names()
        .iter()
        .map(|name| rack.executor.fleet().node(name).unwrap().phase())
        .collect();
    assert!(phases.iter().all(|phase| *phase == expected), "{phases:?}");
    assert_eq!(rack.world.story, []);
}

/// Makes an installation with `redeploy = "first"`.
fn site() -> Rack {
    let mut rack = Rack::new(4, POLICY);
    rack.redeploy(0..4, "first");
    rack.scan();
    rack.pass(600);
    assert_eq!(rack.count(Phase::Deployed), 4);
    rack.world.story.clear();
    rack
}

/// Invariant (state): A lost state directory is recovered from the status files.
#[test]
fn a_site_whose_state_directory_is_lost_is_adopted_from_its_status_files() {
    for off in [false, true] {
        let mut rack = site();
        if off {
            rack.world.on.clear();
        }
        rack.restart_without_records();
        rack.scan();
        assert!(rack.status(0).ready && rack.status(0).installed.is_some());
        // From now on the record has the installation.
        rack.world.statuses.clear();
        rack.restart();
        stays_untouched(rack, Phase::Deployed);
    }
}

#[test]
fn a_spec_that_wants_something_else_than_the_status_file_says_is_drift() {
    let changes: [fn(&mut Rack); 3] = [
        |rack| rack.redeploy(0..4, "second"),
        |rack| {
            rack.edit(0, |spec| {
                spec.image.checksum = format!("sha256:{}", "7".repeat(64)).parse().unwrap();
            });
        },
        |rack| rack.edit(0, |spec| spec.redeploy = None),
    ];
    for change in changes {
        let mut rack = site();
        change(&mut rack);
        rack.restart_without_records();
        rack.scan();
        assert_eq!(rack.condition(0, "Drifted").unwrap().0, "True");
        assert!(!rack.status(0).ready);
        // Only a later change is consent.
        rack.redeploy([0], "third");
        rack.scan();
        assert_eq!((rack.phase(0), rack.writes()), (Phase::Deployed, 1));
        let mut rack = site();
        change(&mut rack);
        rack.restart_without_records();
        stays_untouched(rack, Phase::Deployed);
    }
}

#[test]
fn a_status_file_that_says_nothing_of_an_installation_makes_no_machine_new() {
    let mut rack = Rack::new(2, POLICY);
    rack.world.on.insert(host(0));
    rack.scan();
    rack.world.statuses.remove(&name(1));
    rack.restart_without_records();
    rack.world.on.remove(&host(1));
    rack.world.story.clear();
    rack.scan();
    for n in [0, 1] {
        assert_eq!(rack.node(n).held_for(), Some(Hold::RecordLost), "{n}");
    }
    assert_eq!(rack.writes(), 0);
}

#[test]
fn a_damaged_record_with_a_good_status_file_is_adopted_and_can_be_switched() {
    for redeploy in ["first", "second"] {
        let mut rack = site();
        rack.redeploy(0..4, redeploy);
        let records = (0..4).map(|n| (name(n), Record::distrusted(rack.now))).collect();
        rack.start_with(records);
        rack.scan();
        assert_eq!(rack.phase(0), Phase::Deployed);
        rack.send(0, Event::Approve);
        rack.world.on.clear();
        rack.send(0, Event::Retry);
        rack.settle();
        assert!(rack.world.on.contains(&host(0)), "the operator said so");
        assert_eq!(rack.writes(), 0);
    }
}

#[test]
fn a_damaged_record_without_a_witness_is_held_until_somebody_consents() {
    let mut rack = site();
    let records = (0..4).map(|n| (name(n), Record::distrusted(rack.now))).collect();
    rack.world.statuses.clear();
    rack.start_with(records);
    stays_untouched(rack, Phase::Held);
}

/// Invariant (consent): No file that is lost, renamed, swapped or broken wipes an installed
/// machine.
#[test]
fn what_the_status_files_say_outlives_a_spec_that_is_broken_clashes_or_comes_late() {
    for trouble in 0..3 {
        for restarted in [false, true] {
            let mut rack = site();
            rack.restart_without_records();
            let specs = rack.specs.clone();
            match trouble {
                0 => rack.broken.extend(specs.keys().cloned()),
                1 => rack.clashes.extend(specs.keys().map(|name| (name.clone(), Vec::new()))),
                _ => rack.specs.retain(|spec, _| *spec == name(3)),
            }
            rack.scan();
            if restarted && trouble < 2 {
                rack.restart();
            }
            (rack.specs, rack.broken, rack.clashes) = (specs, [].into(), BTreeMap::new());
            rack.world.on.clear();
            stays_untouched(rack, Phase::Deployed);
        }
    }
}

#[test]
fn a_damaged_record_stays_in_mind_when_its_spec_comes_late() {
    let mut rack = site();
    rack.world.statuses.clear();
    rack.start_with((0..3).map(|n| (name(n), Record::distrusted(rack.now))).collect());
    let specs = rack.specs.clone();
    rack.specs.retain(|spec, _| *spec == name(2));
    rack.scan();
    rack.specs = specs.into_iter().filter(|(spec, _)| *spec != name(3)).collect();
    stays_untouched(rack, Phase::Held);
}

#[test]
fn a_status_file_for_a_machine_that_was_replaced_meanwhile_wipes_nothing() {
    let mut rack = site();
    rack.edit(0, |spec| spec.bmc.as_mut().unwrap().move_to("bmc-new"));
    rack.restart_without_records();
    stays_untouched(rack, Phase::Deployed);
}

/// Invariant (consent): No file that is lost, renamed, swapped or broken wipes an installed
/// machine.
#[test]
fn specs_that_swap_their_names_keep_their_machines() {
    for restarted in [false, true] {
        let mut rack = Rack::deployed(16);
        rack.redeploy([0], "a");
        rack.redeploy([1], "b");
        rack.scan();
        rack.pass(3600);
        assert_eq!(rack.writes(), 2);
        rack.world.story.clear();
        let [mut one, mut other] = [0, 1].map(|n| rack.specs[&name(n)].clone());
        std::mem::swap(&mut one.name, &mut other.name);
        rack.specs.extend([one, other].map(|spec| (spec.name.clone(), spec)));
        if restarted {
            rack.restart();
        }
        rack.scan();
        assert_eq!(rack.condition(0, "Drifted").unwrap().0, "False");
        stays_untouched(rack, Phase::Deployed);
    }
}

#[test]
fn a_site_whose_names_move_on_by_one_keeps_its_machines() {
    let mut rack = site();
    let old = std::mem::take(&mut rack.specs);
    for (n, mut spec) in old.into_values().enumerate() {
        spec.name = name(n + 1);
        rack.specs.insert(spec.name.clone(), spec);
    }
    rack.world.on.clear();
    stays_untouched(rack, Phase::Deployed);
}

#[test]
fn a_machine_of_a_damaged_record_is_held_under_its_next_name_too() {
    let mut rack = site();
    rack.world.statuses.clear();
    rack.start_with((0..4).map(|n| (name(n), Record::distrusted(rack.now))).collect());
    rack.scan();
    let [mut one, mut other] = [0, 1].map(|n| rack.specs[&name(n)].clone());
    std::mem::swap(&mut one.name, &mut other.name);
    rack.specs.extend([one, other].map(|spec| (spec.name.clone(), spec)));
    let mut renamed = rack.specs.remove(&name(2)).unwrap();
    renamed.name = name(9);
    rack.specs.insert(name(9), renamed);
    stays_untouched(rack, Phase::Held);
}

/// Makes status files of an earlier version, which did not record machines.
fn forget_machines(rack: &mut Rack) {
    for status in rack.world.statuses.values_mut() {
        status.machine = None;
        status.installed.as_mut().unwrap().machine = None;
    }
}

#[test]
fn a_spec_that_was_renamed_when_the_state_directory_was_lost_is_found_by_its_machine_or_held() {
    for noted in [true, false] {
        let mut rack = site();
        let mut renamed = rack.specs.remove(&name(0)).unwrap();
        renamed.name = name(9);
        rack.specs.insert(name(9), renamed);
        rack.world.on.clear();
        if !noted {
            forget_machines(&mut rack);
        }
        rack.restart_without_records();
        rack.scan();
        rack.restart();
        rack.scan();
        rack.pass(7200);
        let expected = if noted { Phase::Deployed } else { Phase::Held };
        assert_eq!((rack.phase(1), rack.phase(9)), (Phase::Deployed, expected));
        let held = rack.condition(9, "Held").map(|(_, reason)| reason);
        assert_eq!(held.as_deref(), (!noted).then_some("RecordLost"));
        assert_eq!(rack.world.story, []);
        // Until an operator approves new machines, any machine that is named for the first time may
        // be installed.
        rack.specs.insert(name(8), spec_of(8));
        rack.scan();
        assert_eq!(rack.node(8).held_for(), Some(Hold::RecordLost));
        assert_eq!(rack.executor.approve_new_machines(&mut rack.world), Ok(true));
        rack.specs.insert(name(7), spec_of(7));
        rack.scan();
        assert_eq!((rack.phase(7), rack.writes()), (Phase::Deployed, 1));
    }
}

#[test]
fn a_spec_that_was_turned_to_another_machine_when_the_state_directory_was_lost_is_held() {
    let mut rack = site();
    let other = spec_of(7);
    rack.edit(0, |spec| (spec.bmc, spec.boot.macs) = (other.bmc, other.boot.macs));
    rack.world.on.clear();
    rack.restart_without_records();
    for _ in 0..2 {
        rack.scan();
        rack.pass(7200);
        assert_eq!((rack.phase(0), rack.phase(1)), (Phase::Held, Phase::Deployed));
        rack.restart();
    }
    assert_eq!(rack.world.story, []);
}

#[test]
fn specs_that_swapped_their_names_when_the_state_directory_was_lost_keep_their_machines() {
    let mut rack = site();
    rack.edit(0, |spec| spec.root_device.serial = Some("root-1".into()));
    rack.redeploy([0], "root-1");
    rack.scan();
    rack.world.story.clear();
    let [mut one, mut other] = [0, 1].map(|n| rack.specs[&name(n)].clone());
    std::mem::swap(&mut one.name, &mut other.name);
    rack.specs.extend([one, other].map(|spec| (spec.name.clone(), spec)));
    rack.restart_without_records();
    rack.scan();
    assert_eq!(rack.condition(0, "Drifted").unwrap().0, "False");
    assert_eq!(rack.condition(1, "Drifted").unwrap().0, "False");
    stays_untouched(rack, Phase::Deployed);
}

/// Histories of mishaps, unless `MISHAP_SEEDS` says how many: `testbed/check damage` plays more.
const SEEDS: u64 = 25;

/// A mishap of files, processes or machines, none of which is consent.
fn mishap(rack: &mut Rack, dice: &mut Rng, catalog: &mut Vec<NodeSpec>) {
    let present: Vec<NodeName> = rack.specs.keys().cloned().collect();
    let [one, other] = [0, 1].map(|_| dice.choice(&present).unwrap().clone());
    match dice.u8(..16) {
        0 | 1 if one != other => {
            let [mut a, mut b] = [&one, &other].map(|name| rack.specs[name].clone());
            std::mem::swap(&mut a.name, &mut b.name);
            rack.specs.extend([a, b].map(|spec| (spec.name.clone(), spec)));
        }
        2 | 3 => {
            let mut spec = rack.specs.remove(&one).unwrap();
            let taken = |name: &NodeName| {
                present.contains(name) || catalog.iter().any(|spec| spec.name == *name)
            };
            spec.name = (0..99).map(name).find(|name| !taken(name)).unwrap();
            rack.specs.insert(spec.name.clone(), spec);
        }
        4 if present.len() > 2 => catalog.push(rack.specs.remove(&one).unwrap()),
        5 => rack.specs.extend(catalog.drain(..).map(|spec| (spec.name.clone(), spec))),
        6 => rack.broken.extend([one]),
        7 => rack.broken.clear(),
        8 => rack.clashes.extend([(one, vec![Problem::of_file("f", "clash")])]),
        9 => rack.clashes.clear(),
        10 => rack.restart(),
        11 => rack.lose_directory("not mounted"),
        // Only the spec of the same name tells which machine a damaged record was about.
        13 if !rack.broken.contains(&one) && !rack.clashes.contains_key(&one) => {
            rack.scan();
            let damaged = Record::distrusted(rack.now);
            rack.world.records.insert(one, damaged);
            rack.restart();
            rack.scan();
        }
        12 => rack.specs.get_mut(&one).unwrap().timeouts.ramdisk += Duration::from_secs(1),
        _ => {
            let host = rack.specs[&one].bmc_address().unwrap().host().unwrap().host.clone();
            if !rack.world.on.remove(&host) {
                rack.world.on.insert(host);
            }
        }
    }
}

/// Invariant (consent): No file that is lost, renamed, swapped or broken wipes an installed
/// machine.
#[test]
fn no_history_of_mishaps_wipes_an_installed_machine() {
    let seeds = std::env::var("MISHAP_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let mut dice = Rng::with_seed(seed);
        let mut rack = site();
        let mut catalog = Vec::new();
        for _ in 0..60 {
            mishap(&mut rack, &mut dice, &mut catalog);
            match dice.u8(..3) {
                0 => rack.scan(),
                1 => rack.scan_only(),
                _ => rack.pass(300),
            }
            for (host, operation) in &rack.world.story {
                let switched = matches!(operation, Operation::SetPower(_));
                assert!(switched, "seed {seed}: {operation:?} of {host}");
            }
        }
        // The state directory is lost at the end, when all files are in place again.
        rack.specs.extend(catalog.drain(..).map(|spec| (spec.name.clone(), spec)));
        rack.broken.clear();
        rack.clashes.clear();
        for _ in 0..3 {
            rack.scan();
            rack.pass(7200);
        }
        assert_eq!(rack.count(Phase::Deployed), 4, "seed {seed}");
        rack.restart_without_records();
        stays_untouched(rack, Phase::Deployed);
    }
}

/// Invariant (consent): No file that is lost, renamed, swapped or broken wipes an installed
/// machine.
#[test]
fn a_spec_that_comes_back_after_the_agent_was_killed_finds_its_machine_installed() {
    let mut rack = site();
    let spec = rack.specs.remove(&name(0)).unwrap();
    rack.scan();
    assert!(!rack.world.records.contains_key(&name(0)), "forgotten");
    rack.restart();
    rack.scan();
    rack.restart();
    rack.world.on.clear();
    rack.specs.insert(name(0), spec);
    stays_untouched(rack, Phase::Deployed);
}

#[test]
fn what_is_installed_is_kept_before_the_record_that_knows_it_is_removed() {
    let mut rack = site();
    rack.world.requested.clear();
    let spec = rack.specs.remove(&name(0)).unwrap();
    rack.world.disk_full = true;
    rack.scan();
    rack.tick();
    assert!(rack.world.records.contains_key(&name(0)), "nothing else knows it");
    assert!(
        rack.world.requested.iter().all(|requested| *requested == Requested::Serve),
        "of the other nodes"
    );
    rack.world.requested.clear();
    rack.world.disk_full = false;
    rack.tick();
    assert_eq!(rack.world.requested, [Requested::Keep, Requested::Forget]);
    assert!(!rack.executor.has_unsaved());
    rack.restart();
    rack.specs.insert(name(0), spec);
    stays_untouched(rack, Phase::Deployed);
}

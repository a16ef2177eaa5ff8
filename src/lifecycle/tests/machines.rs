//! Tests of edits that name another machine, in part or as a whole: consent is for one machine.

use std::sync::Arc;

use crate::{
    lifecycle::{Event, Operation, Policy},
    model::{
        power::PowerState,
        spec::{Goal, NodeSpec, WantedPower},
        status::Phase,
    },
};

use super::{rack::*, support::*};

type Edit = fn(&mut NodeSpec);

/// Other changes of the same edit.
const ALONG: [(&str, Edit); 7] = [
    ("nothing", |_| {}),
    ("redeploy", |spec| spec.redeploy = Some("again".into())),
    ("redeploy and image", |spec| {
        spec.redeploy = Some("again".into());
        spec.image.checksum = format!("sha256:{}", "7".repeat(64)).parse().unwrap();
    }),
    ("image", |spec| spec.image.checksum = format!("sha256:{}", "7".repeat(64)).parse().unwrap()),
    ("power", |spec| spec.power = WantedPower::Off),
    ("available", |spec| spec.goal = Goal::Available),
    ("available and redeploy", |spec| {
        (spec.goal, spec.redeploy) = (Goal::Available, Some("again".into()));
    }),
];

fn other_bmc(spec: &mut NodeSpec) {
    spec.bmc.as_mut().unwrap().move_to(host(99));
}

fn other_macs(spec: &mut NodeSpec) {
    spec.boot.macs = spec_of(99).boot.macs;
}

fn other_machine(spec: &mut NodeSpec) {
    other_bmc(spec);
    other_macs(spec);
}

/// Lets hours pass and checks that no machine is touched.
fn watch_untouched(rack: &mut Rack, what: &str) {
    for _ in 0..2 {
        rack.scan();
        rack.pass(7200);
        rack.restart();
    }
    rack.scan();
    rack.pass(7200);
    assert_eq!(rack.world.story, [], "{what}");
}

/// Invariant (consent): An edit that names another machine consents to nothing, whatever else it
/// changes.
#[test]
fn a_spec_turned_to_another_machine_that_is_on_holds_it_whatever_else_the_edit_changes() {
    for enforce_power in [false, true] {
        for (what, along) in ALONG {
            let mut rack = Rack::deployed_under(4, Policy { enforce_power, ..POLICY });
            rack.world.on.insert(host(99));
            rack.edit(0, other_machine);
            rack.edit(0, along);
            rack.scan();
            assert_eq!(rack.phase(0), Phase::Held, "{what}");
            let status = rack.status(0);
            assert_eq!((status.ready, status.installed), (false, None), "{what}");
            assert!(status.message.contains(&host(99)), "{what}: {}", status.message);
            watch_untouched(&mut rack, what);
            assert_eq!(rack.phase(0), Phase::Held, "{what}");
        }
    }
}

/// Invariant (consent): An edit that names another machine consents to nothing, whatever else it
/// changes.
#[test]
fn a_spec_turned_to_another_machine_that_is_off_installs_it_and_leaves_the_old_one_alone() {
    for (what, along) in &ALONG[..4] {
        let mut rack = Rack::deployed(4);
        rack.edit(0, other_machine);
        rack.edit(0, along);
        rack.scan();
        assert_eq!((rack.phase(0), rack.world.writes(&host(99))), (Phase::Deployed, 1), "{what}");
        assert!(rack.world.story.iter().all(|(at, _)| *at == host(99)), "{what}");
        // The old machine's installation is known again.
        rack.specs.insert(name(50), NodeSpec { name: name(50), ..spec_of(0) });
        rack.scan();
        assert_eq!((rack.phase(50), rack.world.writes(&host(0))), (Phase::Deployed, 0), "{what}");
    }
}

/// Invariant (machine): A machine whose BMC is an installed one's under another name is held.
#[test]
fn a_machine_whose_bmc_is_an_installed_ones_in_other_words_is_one_that_may_be_installed() {
    let mut rack = Rack::deployed(4);
    rack.edit(0, other_machine);
    rack.specs.remove(&name(1));
    rack.specs.insert(name(50), NodeSpec { name: name(50), ..spec_of(98) });
    rack.executor.note_aliased([name(0), name(50)].into());
    rack.scan();
    for n in [0, 50] {
        assert_eq!(rack.condition(n, "Held").unwrap().1, "RecordLost");
        let bmcs = rack.executor.fleet().bmcs_of_installed();
        assert!(
            bmcs.map(|bmc| &bmc.host().unwrap().host)
                .any(|known| *known == host(usize::from(n != 0)))
        );
    }
    assert_eq!(rack.world.story, []);
}

#[test]
fn a_redeploy_that_is_changed_after_the_hold_of_the_other_machine_is_consent() {
    let mut rack = Rack::deployed(4);
    rack.world.on.insert(host(99));
    rack.edit(0, other_machine);
    rack.redeploy([0], "with it");
    rack.scan();
    assert_eq!(rack.phase(0), Phase::Held);
    rack.redeploy([0], "after it");
    rack.scan();
    assert_eq!((rack.phase(0), rack.world.writes(&host(99))), (Phase::Deployed, 1));
}

/// Invariant (consent): An edit that names another machine consents to nothing, whatever else it
/// changes.
#[test]
fn a_held_machine_is_not_consented_to_by_an_edit_that_names_another_one() {
    for edit in [other_bmc, other_macs, other_machine] {
        let mut rack = Rack::new(4, POLICY);
        rack.world.on.extend([host(0), host(99)]);
        rack.scan();
        assert_eq!(rack.phase(0), Phase::Held);
        rack.edit(0, edit);
        rack.redeploy([0], "again");
        rack.world.story.clear();
        rack.scan();
        assert_eq!(rack.phase(0), Phase::Held);
        watch_untouched(&mut rack, "held");
        // The same in a pause.
        rack.edit(0, |spec| spec.paused = true);
        rack.scan();
        rack.edit(0, edit);
        rack.redeploy([0], "in the pause");
        rack.scan();
        rack.edit(0, |spec| spec.paused = false);
    }
}

/// Invariant (consent): An edit that names another machine consents to nothing, whatever else it
/// changes.
#[test]
fn another_bmc_address_or_other_interfaces_alone_are_the_same_machine_and_consent_to_nothing() {
    for enforce_power in [false, true] {
        for edit in [other_bmc, other_macs] {
            for (what, along) in ALONG {
                for on in [true, false] {
                    let mut rack = Rack::deployed_under(4, Policy { enforce_power, ..POLICY });
                    if on {
                        rack.world.on.insert(host(99));
                    }
                    rack.edit(0, edit);
                    rack.edit(0, along);
                    rack.scan();
                    let available = rack.specs[&name(0)].goal == Goal::Available;
                    let expected = if available { Phase::Available } else { Phase::Deployed };
                    let what = format!("{what}, on: {on}");
                    assert_eq!(rack.phase(0), expected, "{what}");
                    assert!(rack.status(0).installed.is_some());
                    let changed = rack.condition(0, "MachineChanged").map(|(status, _)| status);
                    assert_eq!(changed.as_deref(), Some("True"), "{what}");
                    let forced = enforce_power && rack.specs[&name(0)].bmc == spec_of(0).bmc;
                    if !forced {
                        watch_untouched(&mut rack, &what);
                    }
                    assert_eq!(rack.writes(), 0, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_redeploy_that_is_changed_after_the_bmc_address_is_consent_and_so_is_one_after_the_interfaces()
{
    for edit in [other_bmc, other_macs] {
        let mut rack = Rack::deployed(4);
        rack.world.on.insert(host(99));
        rack.edit(0, edit);
        rack.redeploy([0], "with it");
        rack.scan();
        assert_eq!((rack.phase(0), rack.writes()), (Phase::Deployed, 0));
        rack.redeploy([0], "after it");
        rack.scan();
        assert_eq!((rack.phase(0), rack.writes()), (Phase::Deployed, 1));
        assert_eq!(rack.condition(0, "MachineChanged"), None);
    }
}

/// Invariant (consent): An edit that names another machine consents to nothing, whatever else it
/// changes.
#[test]
fn a_machine_replaced_one_thing_after_the_other_is_neither_wiped_nor_said_to_be_installed() {
    for steps in [[other_bmc, other_macs], [other_macs, other_bmc]] {
        let mut rack = Rack::deployed(4);
        for step in steps {
            rack.edit(0, step);
            rack.scan();
        }
        assert_eq!(rack.phase(0), Phase::Held);
        assert_eq!(rack.status(0).installed, None);
        rack.world.on.clear();
        watch_untouched(&mut rack, "one after the other");
        assert_eq!(rack.phase(0), Phase::Held);
        // After the edit is taken back, the node has its installation again.
        rack.edit(0, |spec| (spec.bmc, spec.boot) = (spec_of(0).bmc, spec_of(0).boot));
        rack.scan();
        assert_eq!(rack.phase(0), Phase::Deployed);
        watch_untouched(&mut rack, "taken back");
    }
}

#[test]
fn a_mistyped_machine_that_is_corrected_is_the_installed_one_again() {
    for edit in [other_bmc, other_macs, other_machine] {
        let mut rack = Rack::deployed(4);
        // No BMC answers at that address.
        rack.world.faults.insert(host(99), passing());
        rack.edit(0, edit);
        rack.redeploy([0], "typed with it");
        rack.scan();
        rack.restart();
        rack.edit(0, |spec| (spec.bmc, spec.boot) = (spec_of(0).bmc, spec_of(0).boot));
        rack.scan();
        assert_eq!((rack.phase(0), rack.writes()), (Phase::Deployed, 0));
        assert_eq!(rack.condition(0, "MachineChanged"), None);
        assert_eq!(rack.condition(0, "Drifted").unwrap().0, "True");
        watch_untouched(&mut rack, "corrected");
    }
}

#[test]
fn a_bmc_address_that_was_another_machines_makes_no_new_machine_an_installed_one() {
    let mut rack = Rack::deployed(4);
    let decommissioned = rack.specs.remove(&name(0)).unwrap();
    rack.scan();
    let mut new = NodeSpec { name: name(50), ..spec_of(50) };
    new.bmc = decommissioned.bmc;
    rack.specs.insert(name(50), new);
    rack.world.on.clear();
    rack.scan();
    assert_eq!(rack.phase(50), Phase::Held);
    watch_untouched(&mut rack, "an address that is used again");
}

/// Invariant (consent): An edit that names another machine consents to nothing, whatever else it
/// changes.
#[test]
fn behind_another_bmc_address_a_machine_is_switched_by_an_order_and_never_enforced() {
    let mut rack = Rack::deployed_under(4, Policy { enforce_power: true, ..POLICY });
    rack.edit(0, other_bmc);
    rack.scan();
    rack.pass(3600);
    assert_eq!(rack.world.story, [], "off behind the new address, and not forced on");
    rack.send(0, Event::Retry);
    rack.settle();
    let switched = [(host(99), Operation::SetPower(PowerState::On))];
    assert_eq!(rack.world.story, switched);
    rack.world.on.remove(&host(99));
    rack.pass(3600);
    assert_eq!(rack.world.story, switched);
    // The address at the installation.
    rack.edit(0, |spec| spec.bmc = spec_of(0).bmc);
    rack.world.on.remove(&host(0));
    rack.scan();
    rack.pass(3600);
    assert_eq!(rack.world.story.len(), 2);
}

#[test]
fn a_record_that_notes_no_machine_speaks_of_the_one_its_spec_names() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    let mut record = bench.node.record().clone();
    record.installed.as_mut().unwrap().machine = None;
    bench.node = crate::lifecycle::Node::resume(spec().name, record, POLICY, bench.now);
    bench.send(Event::Spec(Arc::new(spec())));
    bench.change(other_bmc);
    assert_eq!(bench.phase(), Phase::Deployed);
    bench.change(other_macs);
    assert_eq!((bench.phase(), bench.node.record().installed.clone()), (Phase::Held, None));
}

#[test]
fn machines_that_are_replaced_are_no_reinstalls_and_hold_nobody_up() {
    let mut rack = Rack::deployed(8);
    for n in 0..4 {
        let other = spec_of(90 + n);
        rack.edit(n, |spec| (spec.bmc, spec.boot.macs) = (other.bmc, other.boot.macs));
    }
    rack.redeploy(0..5, "all of them");
    rack.scan();
    assert_eq!(rack.count(Phase::Deployed), 8);
    let [new, old] = [90..94, 0..4].map(|hosts| hosts.map(|n| rack.world.writes(&host(n))).sum());
    assert_eq!((new, old, rack.world.writes(&host(4))), (4_usize, 0_usize, 1));
}

/// Invariant (consent): An edit that names another machine consents to nothing, whatever else it
/// changes.
#[test]
fn a_disk_that_was_begun_to_be_written_is_not_said_to_hold_what_it_held_before() {
    let mut rack = Rack::deployed(4);
    // Under another name and with another NIC, so that the machine may or may not be the same.
    let mut renamed = NodeSpec { name: name(50), ..rack.specs.remove(&name(0)).unwrap() };
    other_macs(&mut renamed);
    rack.specs.insert(name(50), renamed);
    rack.scan();
    assert_eq!(rack.phase(50), Phase::Held);
    rack.executor.step(rack.now, &name(50), Event::Approve, &mut rack.world);
    while rack.phase(50) != Phase::Imaging {
        assert!(rack.end_one() || rack.let_ramdisks_call());
    }
    rack.edit(50, |spec| {
        (spec.boot, spec.goal) = (spec_of(0).boot, Goal::Available);
    });
    rack.scan();
    rack.pass(600);
    rack.world.story.clear();
    assert_eq!((rack.phase(50), rack.status(50).installed), (Phase::Available, None));
    rack.edit(50, |spec| spec.goal = Goal::Deployed);
    watch_untouched(&mut rack, "begun");
    assert_eq!(rack.phase(50), Phase::Held);
}

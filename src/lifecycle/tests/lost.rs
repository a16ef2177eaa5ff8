//! Tests of machines with a damaged record, which stay unknown through every history.

use std::sync::Arc;

use crate::{
    lifecycle::{Event, Node, Record},
    model::{
        power::PowerState,
        spec::Goal,
        status::{Phase, Status},
    },
};

use super::{rack::*, support::*};

fn lost() -> Bench {
    let mut bench = Bench::new();
    bench.node = Node::resume(spec().name, Record::distrusted(bench.now), POLICY, bench.now);
    bench.send(Event::Spec(Arc::new(spec())));
    assert_held(&bench);
    bench
}

fn assert_held(bench: &Bench) {
    let Status { phase, conditions, .. } = bench.node.status(bench.now);
    assert_eq!((phase, conditions[0].reason.as_str()), (Phase::Held, "RecordLost"));
}

#[test]
fn consent_that_was_taken_back_by_a_pause_is_asked_for_again() {
    let mut bench = lost();
    bench.send(Event::Approve);
    bench.change(|spec| spec.paused = true);
    bench.poll(PowerState::Off);
    bench.change(|spec| spec.paused = false);
    bench.poll(PowerState::Off);
    assert_held(&bench);
}

#[test]
fn consent_to_an_installation_that_is_changed_before_it_wrote_is_asked_for_again() {
    let mut bench = lost();
    bench.send(Event::Approve);
    bench.go_to(Phase::WaitingRamdisk);
    bench.call(&key(1), deploy_info("no LIO"));
    bench
        .change(|spec| spec.image.checksum = format!("sha256:{}", "7".repeat(64)).parse().unwrap());
    bench.go_to(Phase::Held);
    bench.poll(PowerState::Off);
    assert_held(&bench);
}

#[test]
fn a_disk_that_was_begun_to_be_written_is_no_longer_lost() {
    let mut bench = lost();
    bench.send(Event::Approve);
    bench.go_to(Phase::Imaging);
    bench.change(|spec| spec.paused = true);
    bench.done(Err(passing()));
    bench.go_to(Phase::Paused);
    bench.change(|spec| spec.paused = false);
    bench.go_to(Phase::Deployed);
}

#[test]
fn an_available_machine_that_is_on_is_switched_off_when_an_operator_says_so_and_is_not_wiped_for_it()
 {
    let mut bench = lost();
    bench.change(|spec| spec.goal = Goal::Available);
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Held);
    bench.send(Event::Approve);
    bench.poll(PowerState::On);
    let wanted = Some(&crate::lifecycle::Operation::SetPower(PowerState::Off));
    assert_eq!(bench.running.as_ref().map(|(_, operation)| operation), wanted);
    bench.done(Ok(crate::lifecycle::Outcome::PowerSet(PowerState::Off)));
    assert_eq!(bench.phase(), Phase::Available);
    bench.change(|spec| spec.goal = Goal::Deployed);
    assert_held(&bench);
}

/// Invariant (state): A lost record outlives every move of its node.
#[test]
fn a_node_in_the_middle_of_an_attempt_that_is_turned_to_a_lost_machine_holds_that() {
    for phase in [Phase::Pending, Phase::WaitingRamdisk, Phase::Imaging] {
        let mut rack = Rack::new(2, POLICY);
        rack.start_with([(name(0), Record::distrusted(rack.now))].into());
        rack.world.silent = true;
        rack.scan();
        assert_eq!((rack.phase(0), rack.phase(1)), (Phase::Held, Phase::WaitingRamdisk));
        if phase == Phase::Imaging {
            rack.let_ramdisks_call();
        } else if phase == Phase::Pending {
            rack.lose_directory("gone");
        }
        let old = rack.specs.remove(&name(0)).unwrap();
        rack.edit(1, |spec| (spec.bmc, spec.boot) = (old.bmc, old.boot));
        rack.world.on.clear();
        rack.world.silent = false;
        rack.scan();
        rack.pass(7200);
        assert_eq!((rack.phase(1), rack.world.writes(&host(0))), (Phase::Held, 0), "{phase:?}");
        assert_eq!(rack.condition(1, "Held").unwrap().1, "RecordLost");
    }
}

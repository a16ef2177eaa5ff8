//! Tests of every phase against every kind of event, in a table with the next phases.
//!
//! `transitions.rs` publishes it.

use std::sync::Arc;

use crate::{
    lifecycle::{Event, Outcome, Permit, State},
    model::{
        boot::{BootStage, Fetch},
        callback::Call,
        ids::OpId,
        power::PowerState,
        problem::Problem,
        spec::{BootCheck, Goal, WantedPower},
        status::{ImagingStage, Phase, Progress},
    },
};

use super::support::*;

/// The row of a clean-up, whose phase is `pending`.
const CLEANING_UP: &str = "cleaning-up";

/// The name of a node's row in the table.
fn place(bench: &Bench) -> &'static str {
    match bench.node.record().state {
        State::CleaningUp { .. } => CLEANING_UP,
        _ => bench.phase().as_str(),
    }
}

/// A row: its name and its node.
pub(super) fn bench_in(place: &str) -> Bench {
    let mut bench = Bench::with_spec();
    let Some(phase) = Phase::ALL.into_iter().find(|phase| phase.as_str() == place) else {
        bench.go_to(Phase::Imaging);
        bench.done(Err(passing()));
        return bench;
    };
    match phase {
        Phase::Available => {
            bench.change(|spec| spec.goal = Goal::Available);
            bench.poll(PowerState::Off);
        }
        Phase::Invalid => {
            bench = Bench::new();
            bench.send(Event::SpecProblems(vec![Problem::of_file("edge-07.toml", "empty")]));
        }
        Phase::Held => bench.done(Ok(Outcome::Power(PowerState::On))),
        Phase::Failed => {
            bench.go_to(Phase::Preparing);
            bench.done(Err(lasting()));
        }
        Phase::Booting => {
            bench.change(check_port);
            bench.go_to(phase);
        }
        Phase::Unmanaged => bench.change(|spec| spec.goal = Goal::Unmanaged),
        Phase::Paused => bench.change(|spec| spec.paused = true),
        _ => bench.go_to(phase),
    }
    bench
}

/// An event of the table: its name, its description, and the function that causes it.
pub(super) type Act = (&'static str, &'static str, fn(&mut Bench));

pub(super) const EVENTS: [Act; 32] = [
    ("done-ok", "the operation under way ends well", |bench| {
        if let Some((_, operation)) = bench.running.clone() {
            bench.done(Ok(good_outcome(&operation)));
        }
    }),
    ("done-passing", "it fails, and may be tried again", |bench| {
        if bench.running.is_some() {
            bench.done(Err(passing()));
        }
    }),
    ("done-lasting", "it fails, and trying again is of no use", |bench| {
        if bench.running.is_some() {
            bench.done(Err(lasting()));
        }
    }),
    ("deadline", "a day passes", |bench| bench.pass(86_400)),
    ("lookup", "the ramdisk reports its disks", |bench| drop(bench.call(&key(1), lookup()))),
    ("deploy-info", "the ramdisk exports its disk", |bench| {
        drop(bench.call(&key(1), deploy_info("")));
    }),
    ("ramdisk-error", "the ramdisk reports that it cannot go on", |bench| {
        drop(bench.call(&key(1), deploy_info("oh")));
    }),
    ("deploy-state", "the ramdisk asks what to do", |bench| {
        drop(bench.call(&key(1), Call::DeployState));
    }),
    ("completed", "the ramdisk says that it has let go of its disk", |bench| {
        drop(bench.call(&key(1), completed("")));
    }),
    ("differs", "the ramdisk says that its disk differs from the image", |bench| {
        drop(bench.call(&key(1), differing()));
    }),
    ("stranger", "a call with a wrong key", |bench| drop(bench.call(&key(9), completed("")))),
    ("fetched", "the machine fetches a boot file", |bench| {
        let (path, peer) = ("x".into(), RAMDISK);
        let stage = BootStage::Kernel;
        drop(bench.send(Event::Fetched(Fetch {
            refused_times: 0,
            unknown_mac: None,
            node: spec().name,
            stage,
            path,
            peer,
            sent_bytes: 1,
            complete: true,
        })));
    }),
    ("progress", "the write moves on", |bench| {
        let stage = ImagingStage::Write;
        let progress =
            Progress { stage, done_bytes: 1, total_bytes: 2, rate_bytes: 1, remaining_s: None };
        let op = bench.running.as_ref().map_or(OpId(77), |(op, _)| *op);
        drop(bench.send(Event::Progress { op, progress }));
    }),
    ("stale-result", "an operation ends that does not run", |bench| {
        drop(bench.send(Event::Done { op: OpId(77), outcome: Err(lasting()) }));
    }),
    ("tick", "the node is woken", |bench| drop(bench.send(Event::Tick))),
    ("spec-broken", "the spec file has errors", |bench| {
        drop(bench.send(Event::SpecProblems(vec![Problem::of_file("f", "empty")])));
    }),
    ("spec-other", "`redeploy` is changed", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.redeploy = Some("now".into()));
        }
    }),
    ("paused", "`paused = true`", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.paused = true);
        }
    }),
    ("spec-clash", "another spec names the same machine", |bench| {
        drop(bench.send(Event::SpecClash(vec![Problem::of_file("f", "clash")])));
    }),
    ("spec-gone", "the spec file is removed", |bench| drop(bench.send(Event::SpecGone))),
    ("directory-lost", "the spec directory cannot be read", |bench| {
        drop(bench.send(Event::DirectoryLost("gone".into())));
    }),
    ("spec-same", "the spec is read again, unchanged", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|_| {});
        }
    }),
    ("spec-timeouts", "a timeout is changed", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.timeouts.completed *= 2);
        }
    }),
    ("spec-unchecked", "`boot_check.by = \"none\"`", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.boot_check = BootCheck::None);
        }
    }),
    ("other-bmc", "`bmc.address` is changed", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.bmc.as_mut().unwrap().move_to("192.0.2.24"));
        }
    }),
    ("unmanaged", "`state = \"unmanaged\"`", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.goal = Goal::Unmanaged);
        }
    }),
    ("available", "`state = \"available\"`", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.goal = Goal::Available);
        }
    }),
    ("power-off", "`power = \"off\"`", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.power = WantedPower::Off);
        }
    }),
    ("mass-change", "`redeploy` is changed, with that of too many other nodes", |bench| {
        if let Some(spec) = bench.node.spec() {
            let mut spec = spec.as_ref().clone();
            spec.redeploy = Some("all".into());
            drop(bench.send(Event::MassChange(Arc::new(spec))));
        }
    }),
    ("granted", "a permit for an attempt comes", |bench| {
        drop(bench.send(Event::Granted(Permit::Attempt)));
    }),
    ("approve", "`hostler approve`", |bench| drop(bench.send(Event::Approve))),
    ("retry", "`hostler retry`", |bench| drop(bench.send(Event::Retry))),
];

/// The rows of the table.
pub(super) fn rows() -> Vec<&'static str> {
    Phase::ALL.iter().map(|phase| phase.as_str()).chain([CLEANING_UP]).collect()
}

/// The next phase of each row by each event, if it is another one.
pub(super) fn every_phase_against_every_event() -> Vec<(&'static str, &'static str, &'static str)> {
    let mut table = Vec::new();
    for from in rows() {
        for (name, _, act) in EVENTS {
            let mut bench = bench_in(from);
            assert_eq!(place(&bench), from);
            act(&mut bench);
            if bench.forgotten {
                table.push((from, name, "forgotten"));
                continue;
            }
            let wake = bench.node.next_wake().map(|(at, _)| at);
            let waits =
                bench.running.is_some() || wake.is_some() || bench.phase() == Phase::Invalid;
            assert!(waits, "{from} × {name}: nothing runs and nothing wakes the node");
            assert!(wake.is_none_or(|at| at > bench.now), "{from} × {name}: it spins");
            if place(&bench) != from {
                table.push((from, name, place(&bench)));
            }
        }
    }
    table
}

/// Invariant (attempt): Every phase handles every event, and every wait has a deadline.
#[test]
fn every_phase_meets_every_event() {
    assert!(!every_phase_against_every_event().is_empty());
}

//! One table: every phase a node can be in against every kind of event, and the phase that follows.

use std::{fmt::Write as _, sync::Arc};

use expect_test::expect;

use crate::{
    lifecycle::{Event, Outcome, Permit, State},
    model::{
        boot::{BootStage, Fetch},
        callback::Call,
        ids::OpId,
        power::PowerState,
        problem::Problem,
        spec::{Goal, WantedPower},
        status::{ImagingStage, Phase, Progress},
    },
};

use super::support::*;

/// Cleaning up, which shows as `pending`, has a row of its own.
const CLEANING_UP: &str = "cleaning-up";

/// Where a node stands, as the table names it.
fn place(bench: &Bench) -> &'static str {
    match bench.node.record().state {
        State::CleaningUp { .. } => CLEANING_UP,
        _ => bench.phase().as_str(),
    }
}

/// A node brought to a place.
fn bench_in(place: &str) -> Bench {
    let mut bench = Bench::with_spec();
    let Some(phase) = Phase::ALL.into_iter().find(|phase| phase.as_str() == place) else {
        bench.go_to(Phase::Imaging);
        bench.done(Err(passing()));
        return bench;
    };
    match phase {
        Phase::Available => {
            bench.change(|spec| spec.goal = Goal::Available);
            bench.look(PowerState::Off);
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
        Phase::Unmanaged => bench.change(|spec| spec.goal = Goal::Unmanaged),
        Phase::Paused => bench.change(|spec| spec.paused = true),
        _ => bench.go_to(phase),
    }
    bench
}

type Act = (&'static str, fn(&mut Bench));

const EVENTS: [Act; 31] = [
    ("done-ok", |bench| {
        if let Some((_, operation)) = bench.running.clone() {
            bench.done(Ok(good_outcome(&operation)));
        }
    }),
    ("done-passing", |bench| {
        if bench.running.is_some() {
            bench.done(Err(passing()));
        }
    }),
    ("done-lasting", |bench| {
        if bench.running.is_some() {
            bench.done(Err(lasting()));
        }
    }),
    ("deadline", |bench| bench.pass(86_400)),
    ("lookup", |bench| drop(bench.call(&key(1), lookup()))),
    ("deploy-info", |bench| drop(bench.call(&key(1), deploy_info("")))),
    ("ramdisk-error", |bench| drop(bench.call(&key(1), deploy_info("oh")))),
    ("deploy-state", |bench| drop(bench.call(&key(1), Call::DeployState))),
    ("completed", |bench| drop(bench.call(&key(1), completed("")))),
    ("differs", |bench| drop(bench.call(&key(1), differing()))),
    ("stranger", |bench| drop(bench.call(&key(9), completed("")))),
    ("fetched", |bench| {
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
    ("progress", |bench| {
        let stage = ImagingStage::Write;
        let progress =
            Progress { stage, done_bytes: 1, total_bytes: 2, rate_bytes: 1, remaining_s: None };
        let op = bench.running.as_ref().map_or(OpId(77), |(op, _)| *op);
        drop(bench.send(Event::Progress { op, progress }));
    }),
    ("stale-result", |bench| {
        drop(bench.send(Event::Done { op: OpId(77), outcome: Err(lasting()) }));
    }),
    ("tick", |bench| drop(bench.send(Event::Tick))),
    ("spec-broken", |bench| {
        drop(bench.send(Event::SpecProblems(vec![Problem::of_file("f", "empty")])));
    }),
    ("spec-other", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.redeploy = Some("now".into()));
        }
    }),
    ("paused", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.paused = true);
        }
    }),
    ("spec-clash", |bench| {
        drop(bench.send(Event::SpecClash(vec![Problem::of_file("f", "clash")])));
    }),
    ("spec-gone", |bench| drop(bench.send(Event::SpecGone))),
    ("directory-lost", |bench| drop(bench.send(Event::DirectoryLost("gone".into())))),
    ("spec-same", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|_| {});
        }
    }),
    ("spec-timeouts", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.timeouts.completed *= 2);
        }
    }),
    ("other-bmc", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.bmc.as_mut().unwrap().move_to("192.0.2.24"));
        }
    }),
    ("unmanaged", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.goal = Goal::Unmanaged);
        }
    }),
    ("available", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.goal = Goal::Available);
        }
    }),
    ("power-off", |bench| {
        if bench.node.spec().is_some() {
            bench.change(|spec| spec.power = WantedPower::Off);
        }
    }),
    ("mass-change", |bench| {
        if let Some(spec) = bench.node.spec() {
            let mut spec = spec.as_ref().clone();
            spec.redeploy = Some("all".into());
            drop(bench.send(Event::MassChange(Arc::new(spec))));
        }
    }),
    ("granted", |bench| drop(bench.send(Event::Granted(Permit::Attempt)))),
    ("approve", |bench| drop(bench.send(Event::Approve))),
    ("retry", |bench| drop(bench.send(Event::Retry))),
];

/// Invariant (attempt): Every phase handles every event, and every wait has a deadline.
#[test]
fn every_phase_meets_every_event() {
    let mut table = String::new();
    for from in Phase::ALL.iter().map(|phase| phase.as_str()).chain([CLEANING_UP]) {
        let mut row = Vec::new();
        for (name, act) in EVENTS {
            let mut bench = bench_in(from);
            assert_eq!(place(&bench), from);
            act(&mut bench);
            if bench.forgotten {
                row.push(format!("{name} → forgotten"));
                continue;
            }
            let wake = bench.node.next_wake().map(|(at, _)| at);
            let waits =
                bench.running.is_some() || wake.is_some() || bench.phase() == Phase::Invalid;
            assert!(waits, "{from} × {name}: nothing runs and nothing wakes the node");
            assert!(wake.is_none_or(|at| at > bench.now), "{from} × {name}: it spins");
            if place(&bench) != from {
                row.push(format!("{name} → {}", place(&bench)));
            }
        }
        writeln!(table, "{from}: {}", row.join(", ")).unwrap();
    }
    expect![[r#"
        invalid: spec-gone → forgotten
        held: spec-other → pending, paused → paused, spec-clash → invalid, spec-gone → forgotten, other-bmc → pending, unmanaged → unmanaged, approve → pending
        pending: done-ok → preparing, done-lasting → failed, paused → paused, spec-clash → invalid, unmanaged → unmanaged, available → available, mass-change → held
        preparing: done-passing → pending, done-lasting → failed, deadline → cleaning-up, spec-other → cleaning-up, paused → cleaning-up, spec-gone → cleaning-up, other-bmc → cleaning-up, unmanaged → cleaning-up, available → cleaning-up, mass-change → cleaning-up
        powering-on: done-ok → waiting-ramdisk, done-passing → cleaning-up, done-lasting → cleaning-up, deadline → cleaning-up, ramdisk-error → cleaning-up, differs → cleaning-up, spec-other → cleaning-up, paused → cleaning-up, spec-gone → cleaning-up, other-bmc → cleaning-up, unmanaged → cleaning-up, available → cleaning-up, mass-change → cleaning-up
        waiting-ramdisk: deadline → cleaning-up, ramdisk-error → cleaning-up, differs → cleaning-up, spec-other → cleaning-up, paused → cleaning-up, spec-gone → cleaning-up, other-bmc → cleaning-up, unmanaged → cleaning-up, available → cleaning-up, mass-change → cleaning-up
        imaging: done-ok → switching, done-passing → cleaning-up, done-lasting → cleaning-up, deadline → cleaning-up, ramdisk-error → cleaning-up, differs → cleaning-up, spec-other → cleaning-up, paused → cleaning-up, spec-gone → cleaning-up, other-bmc → cleaning-up, unmanaged → cleaning-up, available → cleaning-up, mass-change → cleaning-up
        switching: deadline → cleaning-up, ramdisk-error → cleaning-up, deploy-state → waiting-completed, completed → restarting, differs → cleaning-up, spec-other → cleaning-up, paused → cleaning-up, spec-gone → cleaning-up, other-bmc → cleaning-up, unmanaged → cleaning-up, available → cleaning-up, mass-change → cleaning-up
        waiting-completed: deadline → cleaning-up, ramdisk-error → cleaning-up, completed → restarting, differs → cleaning-up, spec-other → cleaning-up, paused → cleaning-up, spec-gone → cleaning-up, other-bmc → cleaning-up, unmanaged → cleaning-up, available → cleaning-up, mass-change → cleaning-up
        restarting: done-ok → deployed, done-lasting → failed, deadline → failed, spec-other → cleaning-up, paused → cleaning-up, spec-gone → cleaning-up, other-bmc → cleaning-up, unmanaged → cleaning-up, available → cleaning-up, mass-change → cleaning-up
        deployed: spec-other → pending, paused → paused, spec-clash → invalid, spec-gone → forgotten, unmanaged → unmanaged, available → available, mass-change → held
        failed: spec-other → pending, paused → paused, spec-clash → invalid, spec-gone → forgotten, spec-timeouts → pending, other-bmc → pending, unmanaged → unmanaged, available → available, power-off → pending, mass-change → held, retry → pending
        available: paused → paused, spec-clash → invalid, spec-gone → forgotten, unmanaged → unmanaged
        unmanaged: spec-clash → invalid, available → available
        paused: spec-clash → invalid, unmanaged → unmanaged
        cleaning-up: done-ok → pending, done-lasting → failed
    "#]].assert_eq(&table);
}

//! One table: every phase a node can be in against every kind of event, and the phase that follows.

use std::fmt::Write as _;

use expect_test::expect;

use crate::{
    lifecycle::{Event, Outcome},
    model::{callback::Call, power::PowerState, problem::Problem, spec::Goal, status::Phase},
};

use super::support::*;

/// A node brought into a phase.
fn bench_in(phase: Phase) -> Option<Bench> {
    let mut bench = Bench::with_spec();
    match phase {
        Phase::Available => return None,
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
    assert_eq!(bench.phase(), phase);
    Some(bench)
}

type Act = (&'static str, fn(&mut Bench));

const EVENTS: [Act; 14] = [
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
    ("approve", |bench| drop(bench.send(Event::Approve))),
    ("retry", |bench| drop(bench.send(Event::Retry))),
];

#[test]
fn every_phase_meets_every_event() {
    let mut table = String::new();
    for phase in Phase::ALL {
        let mut row = Vec::new();
        for (name, act) in EVENTS {
            let Some(mut bench) = bench_in(phase) else { continue };
            act(&mut bench);
            let waits = bench.running.is_some()
                || bench.node.next_wake().is_some()
                || bench.phase() == Phase::Invalid;
            assert!(waits, "{phase:?} × {name}: nothing runs and nothing wakes the node");
            if bench.phase() != phase {
                row.push(format!("{name} → {}", bench.phase().as_str()));
            }
        }
        writeln!(table, "{}: {}", phase.as_str(), row.join(", ")).unwrap();
    }
    expect![[r"
        invalid: 
        held: spec-other → pending, paused → paused, approve → pending
        pending: done-ok → preparing, done-lasting → failed, paused → paused
        preparing: done-ok → powering-on, done-passing → pending, done-lasting → failed, deadline → pending, spec-other → pending, paused → pending
        powering-on: done-ok → waiting-ramdisk, done-passing → pending, done-lasting → pending, deadline → pending, ramdisk-error → pending, spec-other → pending, paused → pending
        waiting-ramdisk: deadline → pending, ramdisk-error → pending, spec-other → pending, paused → pending
        imaging: done-ok → switching, done-passing → pending, done-lasting → pending, deadline → pending, ramdisk-error → pending, spec-other → pending, paused → pending
        switching: deadline → pending, ramdisk-error → pending, deploy-state → waiting-completed, completed → restarting, spec-other → pending, paused → pending
        waiting-completed: deadline → pending, ramdisk-error → pending, completed → restarting, spec-other → pending, paused → pending
        restarting: done-ok → deployed, done-lasting → pending, deadline → pending, spec-other → pending, paused → pending
        deployed: spec-other → pending, paused → paused
        failed: spec-other → pending, paused → paused, retry → pending
        available: 
        unmanaged: 
        paused: 
    "]].assert_eq(&table);
}

//! Tests of the planner against a real fleet: its predictions from status files are the actions of
//! a fleet with the full records.

use std::{collections::BTreeMap, sync::Arc};

use expect_test::{Expect, expect};
use jiff::{SignedDuration, Timestamp};

use crate::{
    lifecycle::{
        Action, Event, Fleet, Operation, Outcome, Permit, PlannedAction, PlannedChange, Planner,
        Specs, UnclaimedInstalls,
    },
    model::{
        ids::NodeName,
        machine::Machine,
        power::PowerState,
        problem::Problem,
        spec::{Goal, NodeSpec},
        status::{Phase, Status},
    },
};

use super::support::*;

/// The time for which a real fleet runs: longer than the pause between two attempts, shorter than
/// any wait in one.
const WATCHED: SignedDuration = SignedDuration::from_mins(10);

type Start = (&'static str, fn(PowerState) -> Bench);
type Change = (&'static str, fn(&mut NodeSpec));

const STARTS: [Start; 11] = [
    ("never seen", |_| Bench::with_spec()),
    ("held", |power| {
        let mut bench = Bench::with_spec();
        bench.poll(PowerState::On);
        assert_eq!(bench.phase(), Phase::Held);
        bench.crowded = true;
        bench.pass(60);
        bench.poll(power);
        bench
    }),
    ("approved and in line", |_| {
        let mut bench = Bench::with_spec();
        bench.crowded = true;
        bench.poll(PowerState::On);
        bench.send(Event::Approve);
        bench.poll(PowerState::On);
        assert_eq!(bench.phase(), Phase::Pending);
        bench
    }),
    ("deployed", |power| deployed(power)),
    ("drifted", |power| {
        let mut bench = deployed(power);
        bench.change(|spec| spec.root_device.serial = Some("root-1".into()));
        bench
    }),
    ("failed", |power| {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::PoweringOn);
        bench.done(Err(lasting()));
        bench.done(Ok(Outcome::CleanedUp));
        bench.poll(power);
        assert_eq!(bench.phase(), Phase::Failed);
        bench
    }),
    ("between attempts", |_| {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::WaitingRamdisk);
        bench.call(&key(1), deploy_info("oh"));
        bench.done(Ok(Outcome::CleanedUp));
        assert_eq!(bench.phase(), Phase::Pending);
        bench
    }),
    ("between attempts, and left on", |_| {
        let mut bench = Bench::with_spec();
        bench.change(|spec| spec.retry.backoff *= 5);
        bench.go_to(Phase::WaitingRamdisk);
        bench.call(&key(1), deploy_info("oh"));
        bench.done(Ok(Outcome::CleanedUp));
        bench.poll(PowerState::On);
        assert_eq!(bench.phase(), Phase::Pending);
        bench
    }),
    ("netbooting", |_| {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::WaitingRamdisk);
        bench
    }),
    ("paused", |power| {
        let mut bench = Bench::with_spec();
        bench.change(|spec| spec.paused = true);
        bench.poll(power);
        bench
    }),
    ("being reinstalled", |power| {
        let mut bench = deployed(power);
        bench.change(|spec| spec.redeploy = Some("a".into()));
        bench.go_to(Phase::WaitingRamdisk);
        bench
    }),
];

const CHANGES: [Change; 15] = [
    ("nothing", |_| {}),
    ("timeouts", |spec| spec.timeouts.power *= 2),
    ("image", |spec| spec.image.checksum = checksum('1')),
    ("redeploy", |spec| spec.redeploy = Some("b".into())),
    ("redeploy and image", |spec| {
        spec.redeploy = Some("b".into());
        spec.image.checksum = checksum('1');
    }),
    ("available", |spec| spec.goal = Goal::Available),
    ("unmanaged", |spec| spec.goal = Goal::Unmanaged),
    ("paused", |spec| spec.paused = true),
    ("no longer paused", |spec| spec.paused = false),
    ("another bmc", other_bmc),
    ("another bmc and redeploy", |spec| {
        other_bmc(spec);
        spec.redeploy = Some("b".into());
    }),
    ("other macs and redeploy", |spec| {
        other_macs(spec);
        spec.redeploy = Some("b".into());
    }),
    ("another machine", |spec| {
        other_bmc(spec);
        other_macs(spec);
    }),
    ("another machine and redeploy", |spec| {
        other_bmc(spec);
        other_macs(spec);
        spec.redeploy = Some("b".into());
    }),
    ("another machine without a bmc and redeploy", |spec| {
        spec.bmc = None;
        other_macs(spec);
        spec.redeploy = Some("b".into());
    }),
];

fn other_bmc(spec: &mut NodeSpec) {
    spec.bmc.as_mut().unwrap().move_to("192.0.2.21");
}

fn other_macs(spec: &mut NodeSpec) {
    spec.boot.macs = vec!["52:54:00:00:00:21".parse().unwrap()];
}

fn deployed(power: PowerState) -> Bench {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.poll(power);
    bench
}

fn checksum(digit: char) -> crate::model::spec::Checksum {
    format!("sha256:{}", String::from(digit).repeat(64)).parse().unwrap()
}

fn name(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn specs(specs: impl IntoIterator<Item = NodeSpec>) -> Specs {
    specs.into_iter().map(|spec| (spec.name.clone(), Ok(Arc::new(spec)))).collect()
}

fn plan(statuses: Vec<Status>, before: &Specs, specs: Specs, now: Timestamp) -> Vec<PlannedChange> {
    Planner::new(POLICY, statuses, before, specs, now).judge(&BTreeMap::new())
}

/// Whether a fleet with this record writes a disk if the machine's BMC reports `power`.
fn really_wipes(bench: &Bench, new: &Specs, mut power: PowerState) -> bool {
    let records = BTreeMap::from([(spec().name, bench.node.record().clone().into())]);
    let mut now = bench.now;
    let mut fleet =
        Fleet::resume(POLICY, records, UnclaimedInstalls::default(), BTreeMap::new(), now);
    let end = now.checked_add(WATCHED).unwrap();
    let mut events = fleet.compare(now, new.clone(), &BTreeMap::new());
    while now < end {
        let (node, event) = events.pop().unwrap_or((spec().name, Event::Tick));
        for action in fleet.step(now, &node, event).unwrap() {
            let Action::Start { op, operation, .. } = action else { continue };
            let outcome = match operation {
                Operation::PollPower | Operation::ConfirmPower => Outcome::Power(power),
                Operation::CleanUp => {
                    power = PowerState::Off;
                    Outcome::CleanedUp
                }
                Operation::SetPower(wanted) => Outcome::PowerSet(wanted),
                other => panic!("{other:?} was not expected"),
            };
            events.push((node.clone(), Event::Done { op, outcome: Ok(outcome) }));
        }
        match fleet.next_permit() {
            Some((node, permit @ (Permit::Poll | Permit::ProgramPoll))) => {
                events.push((node, Event::Granted(permit)));
            }
            Some(_) => return true,
            None => {}
        }
        if events.is_empty() {
            now = fleet.next_wake().map_or(end, |at| at.max(now));
        }
    }
    fleet.node(&spec().name).unwrap().phase().is_busy()
}

/// Invariant (status): `hostler plan` prints exactly the core's own decisions.
#[test]
fn what_is_planned_is_what_is_done() {
    for (start, begin) in STARTS {
        for (change, apply) in CHANGES {
            for power in [PowerState::On, PowerState::Off] {
                let bench = begin(power);
                let old = bench.node.spec().unwrap();
                let mut new = NodeSpec::clone(old);
                apply(&mut new);
                let (before, new) = (specs([NodeSpec::clone(old)]), specs([new]));
                let status = bench.node.status(bench.now);
                // The power state in the status is known; only an unknown one may be either.
                let power = status.power.map_or(power, |power| power.observed);
                let wiped = really_wipes(&bench, &new, power);
                let case = format!("{start}, {change}, {power:?}");

                let known = plan(vec![status.clone()], &before, new.clone(), bench.now);
                let known = &known[0];
                if !(known.unless_on && power == PowerState::On) {
                    assert_eq!(known.wipes.is_some(), wiped, "{case}: {known:?}");
                }
                // Without the spec before the change, the planner may predict more wipes, but never
                // fewer.
                let untold =
                    start == "failed" && (change == "timeouts" || change == "another machine");
                let feared = plan(vec![status], &Specs::new(), new, bench.now);
                assert!(!wiped || untold || feared[0].wipes.is_some(), "{case}: {:?}", feared[0]);
            }
        }
    }
}

/// Installed nodes with these names, each with a machine of its own.
fn installed(names: &[&str]) -> (Vec<Status>, Specs) {
    let bench = deployed(PowerState::On);
    let status = |name: &&str| status_of(name, &bench);
    (names.iter().map(status).collect(), specs(names.iter().map(|name| numbered(name))))
}

/// The bench's node under this name, with this spec's machine.
fn status_of(node: &str, bench: &Bench) -> Status {
    let mut status = bench.node.status(bench.now);
    let machine = Some(Machine::named_by(&numbered(node)));
    if let Some(installed) = &mut status.installed {
        installed.machine.clone_from(&machine);
    }
    Status { node: name(node), machine, ..status }
}

/// A spec with a machine of its own.
fn numbered(name: &str) -> NodeSpec {
    let mut spec = NodeSpec { name: name.parse().unwrap(), ..spec() };
    spec.bmc.as_mut().unwrap().move_to(format!("{name}.example"));
    spec.boot.macs = vec![format!("52:54:00:00:01:{:02x}", name.as_bytes()[0]).parse().unwrap()];
    spec
}

fn change(specs: &mut Specs, node: &str, apply: impl FnOnce(&mut NodeSpec)) {
    apply(Arc::make_mut(specs.get_mut(&name(node)).unwrap().as_mut().unwrap()));
}

fn check(statuses: Vec<Status>, before: &Specs, new: Specs, expected: &Expect) {
    let lines: Vec<String> = plan(statuses, before, new, Bench::new().now)
        .into_iter()
        .map(|PlannedChange { node, action, wipes, unless_on, reason, .. }| {
            format!("{node} {} {wipes:?} {unless_on} {reason}\n", action.as_str())
        })
        .collect();
    expected.assert_eq(&lines.concat());
}

#[test]
fn each_action_says_what_is_wiped_and_why() {
    let (statuses, before) = installed(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]);
    let mut new = before.clone();
    change(&mut new, "a", |spec| spec.redeploy = Some("2".into()));
    change(&mut new, "b", |spec| spec.image.checksum = checksum('1'));
    change(&mut new, "c", |spec| spec.goal = Goal::Available);
    change(&mut new, "d", |spec| spec.paused = true);
    change(&mut new, "e", |spec| {
        spec.redeploy = Some("2".into());
        spec.root_device.serial = Some("other".into());
    });
    new.insert(name("f"), Err(vec![Problem::of_file("f.toml", "empty")]));
    new.remove(&name("g"));
    new.extend(specs([numbered("z")]));
    check(
        statuses,
        &before,
        new,
        &expect![[r#"
            a reinstall Some("vda (8.0 GiB, serial root-1)") false redeploy changed from nothing to "2"
            b drift None false installed, but the spec now wants something else; nothing is done until you change `redeploy` in its spec, to WIPE and install it
            c switch-off None false switching the machine off
            d nothing None false paused by its spec
            e reinstall Some("its root device (serial = \"other\")") false redeploy changed from nothing to "2"; vda (8.0 GiB, serial root-1) is no longer its root device and keeps what is installed on it
            f invalid None false f.toml: empty; the last good spec stays effective and nothing starts
            g forget None false its spec is gone; its disk and an installed machine's power stay as they are
            h nothing None false installed
            i nothing None false installed
            z install Some("its root device") true never installed by hostler
        "#]],
    );
}

#[test]
fn too_many_reinstalls_are_held_by_the_breaker_and_stay_so() {
    let (statuses, before) = installed(&["a", "b", "c"]);
    let mut new = before.clone();
    for node in ["a", "b"] {
        change(&mut new, node, |spec| spec.redeploy = Some("2".into()));
    }
    check(
        statuses,
        &before,
        new.clone(),
        &expect![[r#"
            a breaker Some("vda (8.0 GiB, serial root-1)") false too many machines were to be reinstalled at once, which may be a mistake: run `hostler approve --all`, to WIPE and reinstall all of them; or run `hostler approve a`, to WIPE and install it; or take the change back
            b breaker Some("vda (8.0 GiB, serial root-1)") false too many machines were to be reinstalled at once, which may be a mistake: run `hostler approve --all`, to WIPE and reinstall all of them; or run `hostler approve b`, to WIPE and install it; or take the change back
            c nothing None false installed
        "#]],
    );
    // The agent has read the change since, and the status shows the wait.
    let bench = {
        let mut bench = deployed(PowerState::On);
        let mut changed = NodeSpec::clone(bench.node.spec().unwrap());
        changed.redeploy = Some("2".into());
        bench.send(Event::MassChange(Arc::new(changed)));
        bench
    };
    assert_eq!(bench.phase(), Phase::Held);
    let held = |node: &str| status_of(node, &bench);
    check(
        vec![held("a"), held("b")],
        &new,
        new.clone(),
        &expect![[r#"
            a breaker Some("vda (8.0 GiB, serial root-1)") false too many machines were to be reinstalled at once, which may be a mistake: run `hostler approve --all`, to WIPE and reinstall all of them; or run `hostler approve a`, to WIPE and install it; or take the change back
            b breaker Some("vda (8.0 GiB, serial root-1)") false too many machines were to be reinstalled at once, which may be a mistake: run `hostler approve --all`, to WIPE and reinstall all of them; or run `hostler approve b`, to WIPE and install it; or take the change back
            c install Some("its root device") true never installed by hostler
        "#]],
    );
}

#[test]
fn a_renamed_spec_finds_its_machine_again() {
    let (statuses, before) = installed(&["a", "b"]);
    let mut new = before.clone();
    new.remove(&name("a"));
    new.extend(specs([NodeSpec { name: name("z"), ..numbered("a") }]));
    check(
        statuses,
        &before,
        new,
        &expect![[r#"
        a forget None false its spec is gone; its disk and an installed machine's power stay as they are
        b nothing None false installed
        z nothing None false installed
    "#]],
    );
}

#[test]
fn a_disk_that_is_written_already_is_not_wiped_again_unless_redeploy_changes() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Restarting);
    let status = status_of("a", &bench);
    let before = specs([numbered("a")]);
    check(
        vec![status.clone()],
        &before,
        before.clone(),
        &expect![[r#"
            a nothing None false under way: restarting
        "#]],
    );
    let mut new = before.clone();
    change(&mut new, "a", |spec| spec.redeploy = Some("2".into()));
    check(
        vec![status],
        &before,
        new,
        &expect![[r#"
            a reinstall Some("vda (8.0 GiB, serial root-1)") false redeploy changed from nothing to "2"
        "#]],
    );
}

#[test]
fn an_empty_directory_is_no_order() {
    let (statuses, before) = installed(&["a"]);
    check(
        statuses,
        &before,
        Specs::new(),
        &expect![[r#"
        a nothing None false holding still: the spec directory is empty; hostler does not take that for an order to forget its nodes: put a spec there, with state = "unmanaged" where a machine is to be left alone
    "#]],
    );
}

#[test]
fn two_specs_for_one_machine_clash() {
    let (statuses, before) = installed(&["a"]);
    let mut new = before.clone();
    new.extend(specs([NodeSpec { name: name("z"), ..numbered("a") }]));
    let planner = Planner::new(POLICY, statuses, &before, new, Bench::new().now);
    assert_eq!(planner.effective_specs().len(), 2);
    let clash = |node: &str| (name(node), vec![Problem::of_file(node, "clash")]);
    let plan = planner.judge(&BTreeMap::from([clash("a"), clash("z")]));
    assert!(
        plan.iter().all(|node| node.action == PlannedAction::Clash && node.wipes.is_none()),
        "{plan:?}"
    );
}

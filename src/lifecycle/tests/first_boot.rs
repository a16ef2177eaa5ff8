//! Tests of the first boot: a machine is deployed only once its installed system has shown that it
//! is up.

use std::sync::Arc;

use crate::{
    lifecycle::{Event, FirstBoot, Menu, NO_ANSWER, Operation, Outcome, Record, State},
    model::{
        boot::{BootStage, Fetch},
        callback::Call,
        fault::{Fault, Step},
        power::PowerState,
        spec::{BootCheck, Goal, NodeSpec, WantedPower},
        status::{Booted, Phase, Status},
    },
};

use super::support::*;

/// A little longer than a first boot may take.
const TOO_LONG_S: i64 = 20 * 60 + 1;

/// A node in its first boot, with a check in its spec.
fn booting() -> Bench {
    let mut bench = Bench::with_spec();
    bench.change(check_port);
    bench.go_to(Phase::Booting);
    bench
}

fn status(bench: &Bench) -> Status {
    bench.node.status(bench.now)
}

fn booted(bench: &Bench) -> Option<Booted> {
    status(bench).installed?.booted
}

fn answered() -> Outcome {
    let ssh_banner = Some("SSH-2.0-OpenSSH_9.2p1\u{1b}[2J".to_owned());
    Outcome::PortAnswered { address: RAMDISK, ssh_banner }
}

fn unanswered() -> Fault {
    Fault::passing(Step::FirstBoot, NO_ANSWER, "192.0.2.101:22: connection refused", "")
}

/// The running operation.
fn running(bench: &Bench) -> Operation {
    bench.running.clone().expect("an operation runs").1
}

fn probe() -> Operation {
    Operation::ProbePort { address: RAMDISK.to_string(), port: 22 }
}

const RESTART: Operation = Operation::Restart { wanted: PowerState::On };

/// Lets the deadline pass, and ends the cancelled probe.
fn let_time_pass(bench: &mut Bench) {
    bench.pass(TOO_LONG_S);
    end_cancelled(bench);
}

fn end_cancelled(bench: &mut Bench) {
    if let Some((op, _)) = bench.running.take_if(|(op, _)| bench.cancelled.contains(op)) {
        bench.send(Event::Done { op, outcome: Err(passing()) });
    }
}

/// Ends a poll that began before.
fn end_poll(bench: &mut Bench) {
    if bench.running.as_ref().is_some_and(|(_, it)| *it == Operation::PollPower) {
        bench.done(Ok(Outcome::Power(PowerState::On)));
    }
}

/// A node with a missed first boot, after its one restart.
fn missed() -> Bench {
    let mut bench = booting();
    let_time_pass(&mut bench);
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    bench.done(Err(unanswered()));
    let_time_pass(&mut bench);
    bench
}

/// Invariant (attempt): A system counts as up only after its own check said so.
#[test]
fn a_machine_is_deployed_once_its_system_answers_and_no_sooner() {
    let mut bench = booting();
    let shown = status(&bench);
    assert_eq!((shown.ready, running(&bench)), (false, probe()));
    assert_eq!(bench.menu(), Menu::LocalDisk);
    assert!(shown.deadline.is_some(), "{shown:?}");
    assert_eq!(bench.node.record().state.holds(), None, "a permit is not kept for a boot");
    for _ in 0..10 {
        bench.pass(30);
        bench.done(Err(unanswered()));
        assert_eq!((bench.phase(), booted(&bench)), (Phase::Booting, Some(Booted::Waiting)));
        assert!(bench.message().contains("connection refused"), "{}", bench.message());
    }
    bench.done(Ok(answered()));
    let shown = status(&bench);
    assert_eq!((shown.phase, shown.ready, shown.last_error), (Phase::Deployed, true, None));
    let installed = shown.installed.unwrap();
    assert_eq!((installed.booted, installed.booted_at), (Some(Booted::Up), Some(bench.now)));
    let system = installed.system.unwrap();
    assert_eq!(system.ssh_banner.as_deref(), Some("SSH-2.0-OpenSSH_9.2p1[2J"));
    assert!(shown.durations.contains_key("booting_ms"));
}

/// Invariant (state): Each version's files open in the next version and mean the same.
#[test]
fn without_a_check_nothing_is_waited_for_and_records_and_digests_are_as_before() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    assert_eq!(booted(&bench), Some(Booted::Unchecked));
    let text = serde_json::to_string(&bench.node.record().spec).unwrap();
    assert!(!text.contains("boot_check") && !text.contains("first_boot"), "{text}");
    let mut checked = spec();
    check_port(&mut checked);
    assert_eq!(checked.digest(), spec().digest(), "a check is no part of what is installed");
    // A record of an earlier version, without `booted`.
    let mut record = bench.node.record().clone();
    record.installed.as_mut().unwrap().booted = None;
    bench.resume(&record);
    bench.send(Event::Spec(Arc::new(checked)));
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Deployed, Some(Booted::Unchecked)));
}

/// Invariant (attempt): A first boot writes nothing, uses up no attempt, and switches the machine
/// no more than once.
#[test]
fn a_system_that_does_not_come_up_is_restarted_once_and_then_left_as_it_is() {
    let mut bench = booting();
    bench.done(Err(unanswered()));
    let_time_pass(&mut bench);
    assert_eq!((bench.phase(), running(&bench)), (Phase::Booting, RESTART));
    assert!(bench.message().contains("restarts it once more"), "{}", bench.message());
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    assert_eq!(running(&bench), probe());
    bench.done(Err(unanswered()));
    let_time_pass(&mut bench);
    let shown = status(&bench);
    assert_eq!((shown.phase, shown.ready, shown.attempt), (Phase::Failed, false, 1));
    assert_eq!(booted(&bench), Some(Booted::Missed));
    let error = shown.last_error.unwrap();
    assert_eq!((error.fault.step, &*error.fault.code), (Step::FirstBoot, "NotBooted"));
    for part in ["20m", "another restart", "connection refused"] {
        assert!(error.fault.message.contains(part), "{}", error.fault.message);
    }
    let hint = &error.fault.hint;
    assert!(hint.contains("192.0.2.101 is the address that its deploy ramdisk had"), "{hint}");
    // Days later, nothing has changed.
    for _ in 0..5 {
        bench.poll(PowerState::On);
        bench.pass(86_400);
    }
    assert_eq!(bench.phase(), Phase::Failed);
    assert!(bench.node.record().installed.is_some());
    assert_eq!(bench.menu(), Menu::LocalDisk);
}

/// Invariant (attempt): A first boot writes nothing, uses up no attempt, and switches the machine
/// no more than once.
#[test]
fn a_retry_waits_again_and_neither_installs_nor_restarts() {
    let mut bench = missed();
    bench.send(Event::Retry);
    end_poll(&mut bench);
    assert_eq!((bench.phase(), running(&bench)), (Phase::Booting, probe()));
    let_time_pass(&mut bench);
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Failed, Some(Booted::Missed)));
    bench.send(Event::Retry);
    end_poll(&mut bench);
    bench.done(Ok(answered()));
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Deployed, Some(Booted::Up)));
    // A machine that somebody switched off meanwhile is switched on for that.
    let mut bench = missed();
    bench.poll(PowerState::Off);
    bench.send(Event::Retry);
    assert_eq!(running(&bench), RESTART);
}

#[test]
fn a_changed_redeploy_installs_a_machine_again_that_did_not_come_up() {
    for mut bench in [missed(), booting()] {
        bench.change(|spec| spec.redeploy = Some("again".into()));
        end_cancelled(&mut bench);
        bench.poll(PowerState::On);
        assert_eq!(bench.phase(), Phase::Preparing);
        bench.go_to(Phase::Booting);
        assert!(!bench.node.record().restarted_again, "its own restart is still to be had");
    }
}

#[test]
fn a_machine_that_nobody_can_restart_is_not_waited_for_twice() {
    let mut bench = Bench::with_spec();
    bench.change(|spec| {
        check_port(spec);
        spec.bmc = None;
    });
    bench.go_to(Phase::PoweringOn);
    let fetch = Fetch { stage: BootStage::Menu, ..ramdisk_fetched_by(RAMDISK) };
    bench.send(Event::Fetched(fetch));
    bench.go_to(Phase::Switching);
    bench.call(&key(1), Call::DeployState);
    bench.go_to(Phase::Booting);
    let_time_pass(&mut bench);
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Failed, Some(Booted::Missed)));
    bench.send(Event::Retry);
    assert_eq!(running(&bench), probe());
    bench.done(Ok(answered()));
    assert_eq!(bench.message(), "installed, and its system came up");
}

#[test]
fn a_bmc_that_cannot_restart_the_machine_ends_the_wait_with_what_it_said() {
    let mut bench = booting();
    let_time_pass(&mut bench);
    for _ in 0..8 {
        if bench.running.as_ref().is_some_and(|(_, operation)| *operation == RESTART) {
            bench.done(Err(passing()));
        } else if bench.phase() == Phase::Booting {
            bench.pass(60);
        }
    }
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Failed, Some(Booted::Missed)));
    let error = status(&bench).last_error.unwrap().fault;
    assert_eq!(error.step, Step::FirstBoot);
    assert!(error.message.ends_with("it broke"), "{}", error.message);
}

/// Invariant (attempt): A restarted agent goes on where it stopped, within the old deadlines.
#[test]
fn an_agent_that_is_started_again_goes_on_waiting_until_the_same_time() {
    let mut bench = booting();
    let before = bench.node.record().deadline;
    bench.pass(600);
    bench.restart();
    let spec = bench.node.spec().unwrap().clone();
    bench.send(Event::Spec(spec.clone()));
    end_poll(&mut bench);
    assert_eq!((bench.node.record().deadline, running(&bench)), (before, probe()));
    // The deadline passed while the agent was stopped: the probe comes before a restart.
    bench.restart();
    bench.now = bench.now.checked_add(jiff::SignedDuration::from_hours(5)).unwrap();
    bench.send(Event::Spec(spec));
    assert_eq!(bench.node.record().state, State::Booting { boot: FirstBoot::Overdue });
    end_poll(&mut bench);
    assert_eq!(running(&bench), probe());
    bench.pass(121);
    assert_eq!(bench.node.record().state, State::Booting { boot: FirstBoot::Restarting });
}

#[test]
fn a_spec_that_wants_something_else_ends_the_wait_and_leaves_disk_and_power() {
    type Edit = fn(&mut NodeSpec);
    let edits: [(Edit, Phase, Booted); 5] = [
        (|spec| spec.paused = true, Phase::Paused, Booted::Waiting),
        (|spec| spec.goal = Goal::Unmanaged, Phase::Unmanaged, Booted::Waiting),
        (|spec| spec.goal = Goal::Available, Phase::Available, Booted::Waiting),
        (|spec| spec.power = WantedPower::Off, Phase::Deployed, Booted::Unchecked),
        (|spec| spec.boot_check = BootCheck::None, Phase::Deployed, Booted::Unchecked),
    ];
    for (edit, phase, left) in edits {
        for restarting in [false, true] {
            let mut bench = booting();
            if restarting {
                let_time_pass(&mut bench);
            }
            bench.change(edit);
            assert_eq!((bench.phase(), booted(&bench)), (phase, Some(left)));
            let (op, _) = bench.running.take().unwrap();
            assert!(bench.cancelled.contains(&op));
            bench.send(Event::Done { op, outcome: Err(passing()) });
            let then = bench.running.as_ref().map(|(_, operation)| operation);
            assert_ne!(then, Some(&Operation::CleanUp));
            assert!(bench.node.record().installed.is_some());
        }
    }
    // And taken back.
    let mut bench = booting();
    bench.change(|spec| spec.paused = true);
    bench.done(Err(passing()));
    bench.pass(86_400);
    bench.done(Ok(Outcome::Power(PowerState::On)));
    bench.change(|spec| spec.paused = false);
    assert_eq!((bench.phase(), running(&bench)), (Phase::Booting, probe()));
}

#[test]
fn a_spec_that_goes_away_is_forgotten_and_its_machine_stays_on() {
    let mut bench = booting();
    bench.send(Event::SpecGone);
    assert!(!bench.forgotten);
    bench.done(Err(passing()));
    assert!(bench.forgotten);
    assert_eq!(bench.running, None);
}

#[test]
fn edits_that_are_not_about_the_check_let_the_wait_go_on_and_those_that_are_ask_anew() {
    let mut bench = booting();
    let before = bench.node.record().deadline;
    bench
        .change(|spec| spec.image.checksum = format!("sha256:{}", "7".repeat(64)).parse().unwrap());
    bench.change(|spec| spec.retry.attempts = 7);
    assert_eq!((bench.phase(), bench.node.record().deadline), (Phase::Booting, before));
    assert_eq!(bench.cancelled, []);
    bench.send(Event::SpecProblems(Vec::new()));
    bench.send(Event::DirectoryLost("gone".into()));
    assert_eq!((bench.phase(), running(&bench)), (Phase::Booting, probe()));
    let address = Some("192.0.2.77".to_owned());
    bench.change(|spec| spec.boot_check = BootCheck::Tcp { port: 80, address: address.clone() });
    bench.done(Err(passing()));
    let probed = Operation::ProbePort { address: "192.0.2.77".to_owned(), port: 80 };
    assert_eq!(running(&bench), probed);
    // A wrong check that is corrected is made again.
    let mut bench = missed();
    bench.change(|spec| spec.retry.attempts = 7);
    assert_eq!(bench.phase(), Phase::Failed);
    let address = Some("192.0.2.77".to_owned());
    bench.change(|spec| spec.boot_check = BootCheck::Tcp { port: 80, address });
    assert_eq!(bench.phase(), Phase::Booting);
    end_cancelled(&mut bench);
    let_time_pass(&mut bench);
    let hint = status(&bench).last_error.unwrap().fault.hint;
    assert!(hint.contains("[boot_check]") && !hint.contains("ramdisk"), "{hint}");
}

/// Invariant (consent): An edit that names another machine consents to nothing, whatever else it
/// changes.
#[test]
fn a_first_boot_never_restarts_another_machine() {
    let mut bench = booting();
    bench.change(|spec| spec.bmc.as_mut().unwrap().move_to("192.0.2.24"));
    bench.done(Err(passing()));
    end_poll(&mut bench);
    assert_eq!((bench.phase(), running(&bench)), (Phase::Booting, probe()));
    let_time_pass(&mut bench);
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Failed, Some(Booted::Missed)));
    // In the middle of the restart.
    let mut bench = booting();
    let_time_pass(&mut bench);
    bench.change(|spec| spec.bmc.as_mut().unwrap().move_to("192.0.2.24"));
    bench.done(Err(passing()));
    end_poll(&mut bench);
    assert_eq!(running(&bench), probe());
    // The number of restarts of another node's machine is unknown.
    let mut known = Record::new(bench.now);
    known.know(bench.node.record().installed.clone());
    assert!(known.restarted_again);
}

/// Invariant (consent): An edit that names another machine consents to nothing, whatever else it
/// changes.
#[test]
fn a_restart_that_a_change_of_the_machine_cuts_short_orders_no_power() {
    type Edit = fn(&mut NodeSpec);
    let edits: [Edit; 3] = [
        |spec| spec.bmc.as_mut().unwrap().move_to("192.0.2.24"),
        |spec| spec.boot.macs = vec!["52:54:00:00:00:77".parse().unwrap()],
        |spec| {
            spec.bmc.as_mut().unwrap().move_to("192.0.2.24");
            spec.boot.macs = vec!["52:54:00:00:00:77".parse().unwrap()];
        },
    ];
    for edit in edits {
        for power in [WantedPower::On, WantedPower::Off] {
            let mut bench = booting();
            let_time_pass(&mut bench);
            assert_eq!(running(&bench), RESTART);
            bench.change(|spec| {
                edit(spec);
                spec.power = power;
            });
            bench.done(Err(passing()));
            assert!(!bench.node.record().power_ordered, "{power:?}");
            end_poll(&mut bench);
            let state = &bench.node.record().state;
            assert!(!matches!(state, State::SettingPower { .. }), "{power:?}: {state:?}");
        }
    }
}

/// Invariant (bmc): The restart of a first boot fulfils the power order of the attempt before it.
#[test]
fn a_machine_that_is_switched_off_after_its_first_boots_restart_stays_off() {
    let mut bench = Bench::with_spec();
    bench.change(check_port);
    bench.go_to(Phase::Restarting);
    bench.change(|spec| spec.root_device.serial = Some("other".into()));
    end_cancelled(&mut bench);
    bench.done(Ok(Outcome::CleanedUp));
    assert!(bench.node.record().power_ordered, "the clean-up has switched it off");
    assert_eq!(running(&bench), RESTART);
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    assert!(!bench.node.record().power_ordered);
    let_time_pass(&mut bench);
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    let_time_pass(&mut bench);
    assert_eq!(booted(&bench), Some(Booted::Missed));
    bench.poll(PowerState::Off);
    let state = &bench.node.record().state;
    assert!(!matches!(state, State::SettingPower { .. }), "{state:?}");
}

#[test]
fn a_machine_that_netboots_instead_is_told_of() {
    let mut bench = booting();
    let fetch = |stage| {
        Event::Fetched(Fetch { stage, path: "grub.cfg".into(), ..ramdisk_fetched_by(RAMDISK) })
    };
    bench.send(fetch(BootStage::Loader));
    assert!(!bench.message().contains("netbooted"), "{}", bench.message());
    bench.send(fetch(BootStage::Menu));
    let first = bench.node.record().clone();
    assert_eq!(first.last_seen.netbooted_at, Some(bench.now));
    assert!(bench.message().contains("netbooted instead of booting its disk"));
    // A second request for the file changes nothing.
    bench.pass(5);
    bench.send(fetch(BootStage::Menu));
    assert_eq!(*bench.node.record(), first);
    let_time_pass(&mut bench);
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    assert_eq!(bench.node.record().last_seen.netbooted_at, None);
}

#[test]
fn a_clock_that_is_set_makes_no_first_boot_endless() {
    let mut bench = booting();
    bench.now = bench.now.checked_sub(jiff::SignedDuration::from_hours(48)).unwrap();
    bench.send(Event::Tick);
    let (deadline, _) = bench.node.deadline().unwrap();
    assert!(deadline.duration_since(bench.now) <= jiff::SignedDuration::from_mins(20));
}

#[test]
fn a_restart_that_was_owed_is_followed_by_the_check() {
    let mut bench = Bench::with_spec();
    bench.change(check_port);
    bench.go_to(Phase::Restarting);
    bench.done(Err(lasting()));
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Failed, Some(Booted::Waiting)));
    bench.send(Event::Retry);
    bench.poll(PowerState::On);
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    assert_eq!((bench.phase(), running(&bench)), (Phase::Booting, probe()));
}

/// Invariant (consent): A machine whose record was lost is held, whatever it did before.
#[test]
fn a_first_boot_that_ends_because_the_record_is_lost_is_held_in_the_same_step() {
    let mut bench = booting();
    bench.node.record.know(None);
    bench.send(Event::Tick);
    assert_eq!(bench.phase(), Phase::Held);
    assert!(matches!(bench.node.record().state, State::Held { .. }));
}

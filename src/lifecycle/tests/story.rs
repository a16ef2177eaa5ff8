//! Tests of the rules of a node's life cycle, as stories of single nodes.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    lifecycle::{Event, Menu, Node, Operation, Outcome},
    model::{
        boot::{BootStage, Fetch},
        callback::{Call, DeployInfo, DeployState, Lookup, Reply},
        ids::{NodeName, OpId},
        power::PowerState,
        problem::Problem,
        spec::Goal,
        status::Phase,
    },
};

use super::support::*;

#[test]
fn the_good_way_ends_deployed_and_shows_every_phase() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    let status = bench.node.status(bench.now);
    let phases: Vec<&str> = status.history.iter().map(|entry| entry.phase.as_str()).collect();
    assert_eq!(
        phases,
        [
            "pending",
            "preparing",
            "powering-on",
            "waiting-ramdisk",
            "imaging",
            "switching",
            "waiting-completed",
            "restarting",
            "deployed"
        ]
    );
    assert!(status.ready && status.spec_valid);
    assert_eq!(status.installed_digest, status.spec_digest);
    assert_eq!(status.installed.unwrap().disk, disk());
    assert!(!bench.node.record().consented, "the next time is asked anew");
}

/// Invariant (consent): A machine that was on when hostler first saw it is not wiped without
/// consent.
#[test]
fn a_machine_that_is_on_and_unknown_is_held_until_somebody_consents() {
    let held = || {
        let mut bench = Bench::with_spec();
        bench.done(Ok(Outcome::Power(PowerState::On)));
        assert_eq!(bench.phase(), Phase::Held);
        bench
    };
    // Neither another poll that reports on nor an unrelated change of the spec is consent.
    let mut bench = held();
    bench.pass(60);
    bench.done(Ok(Outcome::Power(PowerState::On)));
    bench.change(|spec| spec.timeouts.ramdisk *= 2);
    assert_eq!(bench.phase(), Phase::Held);
    // Switching the machine off is consent.
    bench.pass(60);
    bench.done(Ok(Outcome::Power(PowerState::Off)));
    assert_eq!(bench.phase(), Phase::Preparing);
    // A changed `redeploy` is consent, and so is an operator's approval.
    let mut bench = held();
    bench.change(|spec| spec.redeploy = Some("yes".into()));
    bench.done(Ok(Outcome::Power(PowerState::On)));
    assert_eq!(bench.phase(), Phase::Preparing);
    let mut bench = held();
    bench.send(Event::Approve);
    bench.done(Ok(Outcome::Power(PowerState::On)));
    assert_eq!(bench.phase(), Phase::Preparing);
}

/// Invariant (consent): A machine that was on when hostler first saw it is not wiped without
/// consent.
#[test]
fn a_redeploy_value_that_was_already_there_is_no_consent() {
    let mut bench = Bench::new();
    let mut old = spec();
    old.redeploy = Some("years-ago".into());
    bench.send(Event::Spec(Arc::new(old)));
    bench.done(Ok(Outcome::Power(PowerState::On)));
    assert_eq!(bench.phase(), Phase::Held);
    bench.change(|spec| spec.redeploy = None);
    assert_eq!(bench.phase(), Phase::Held, "removing the value is no consent either");
}

/// Invariant (consent): Drift never reinstalls.
#[test]
fn a_changed_image_is_drift_and_only_a_changed_redeploy_reinstalls() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench
        .change(|spec| spec.image.checksum = format!("sha256:{}", "1".repeat(64)).parse().unwrap());
    assert_eq!(bench.phase(), Phase::Deployed);
    let status = bench.node.status(bench.now);
    assert!(!status.ready);
    assert!(
        status.conditions.iter().any(|c| c.kind == "Drifted" && c.status == "True"),
        "{:?}",
        status.conditions
    );
    assert!(bench.running.is_none(), "nothing is started");
    bench.change(|spec| spec.redeploy = Some("2026-11-22-a".into()));
    bench.done(Ok(Outcome::Power(PowerState::On)));
    assert_eq!(bench.phase(), Phase::Preparing);
}

#[test]
fn a_disk_that_is_being_written_is_no_longer_installed() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.change(|spec| spec.redeploy = Some("again".into()));
    bench.go_to(Phase::WaitingRamdisk);
    assert!(bench.node.record().installed.is_some(), "nothing is lost yet");
    bench.go_to(Phase::Imaging);
    assert_eq!(bench.node.record().installed, None);
    // The old spec comes back, but its installation is gone.
    bench.change(|spec| spec.redeploy = None);
    bench.done(Err(passing()));
    bench.done(Ok(Outcome::CleanedUp));
    assert_eq!(bench.phase(), Phase::Pending);
}

/// Invariant (netboot): The boot menu is local before the ramdisk is released.
#[test]
fn boot_files_are_local_before_the_ramdisk_is_told_to_let_go() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    assert_eq!(bench.menu(), Menu::Deploy(key(1)));
    bench.go_to(Phase::Imaging);
    assert_eq!(bench.call(&key(1), Call::DeployState), Reply::State(DeployState::Imaging.into()));
    bench.go_to(Phase::Switching);
    assert_eq!(bench.menu(), Menu::LocalDisk);
    assert_eq!(bench.call(&key(1), Call::DeployState), Reply::State(DeployState::Release.into()));
}

#[test]
fn a_completed_notice_that_overtakes_the_release_is_not_refused() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Switching);
    assert_eq!(bench.call(&key(1), completed("")), Reply::Accepted);
    assert_eq!(bench.phase(), Phase::Restarting);
    assert_eq!(bench.call(&key(1), completed("")), Reply::Accepted, "a repeat is the same");
}

#[test]
fn a_completed_notice_before_the_disk_is_written_is_refused() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    assert_eq!(bench.call(&key(1), completed("")), Reply::Refused);
    assert_eq!(bench.phase(), Phase::Imaging);
}

#[test]
fn a_failed_attempt_is_cleaned_up_before_it_is_repeated_and_given_up_after_the_last() {
    let mut bench = Bench::with_spec();
    for attempt in 1..=3 {
        bench.go_to(Phase::Imaging);
        bench.done(Err(passing()));
        assert_eq!(bench.menu(), Menu::LocalDisk);
        assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp);
        bench.done(Ok(Outcome::CleanedUp));
        assert_eq!(bench.node.record().attempt, attempt);
        if attempt < 3 {
            let status = bench.node.status(bench.now);
            assert_eq!(bench.phase(), Phase::Pending);
            assert!(status.next_attempt_at.unwrap() > bench.now);
            assert_eq!(status.last_error.unwrap().fault, passing());
            bench.pass(3600);
        }
    }
    assert_eq!(bench.phase(), Phase::Failed);
    bench.pass(86_400);
    bench.done(Ok(Outcome::Power(PowerState::Off)));
    assert_eq!(bench.phase(), Phase::Failed, "failed stays failed");
    bench.change(|spec| spec.redeploy = Some("again".into()));
    assert_eq!(bench.phase(), Phase::Pending, "until the spec changes");
}

#[test]
fn a_lasting_fault_is_not_retried() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Preparing);
    bench.done(Err(lasting()));
    assert_eq!(bench.phase(), Phase::Failed);
    assert!(bench.running.is_none(), "nothing was touched, so nothing is cleaned up");
}

#[test]
fn a_missed_deadline_cancels_the_write_and_waits_until_it_has_stopped() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    let (op, _) = bench.running.clone().unwrap();
    bench.pass(7200);
    assert_eq!(bench.cancelled, [op]);
    assert_eq!(bench.phase(), Phase::Pending);
    assert_eq!(
        bench.running.as_ref().unwrap().0,
        op,
        "the clean-up has not started: the write has not reported"
    );
    bench.pass(60);
    assert_eq!(bench.cancelled, [op, op], "it is told again");
    // Even a success means now only that the operation has stopped.
    bench.done(Ok(imaged()));
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp);
}

#[test]
fn a_clean_up_that_fails_waits_tries_again_and_ends() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.done(Err(passing()));
    for _ in 1..8 {
        bench.done(Err(passing()));
        assert!(bench.running.is_none(), "it waits first");
        bench.pass(7200);
        assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp);
    }
    bench.done(Err(passing()));
    assert_eq!(bench.phase(), Phase::Failed);
    assert!(bench.node.status(bench.now).message.contains("could not be switched off"));
}

#[test]
fn a_bmc_that_refuses_its_password_ends_the_attempts_until_the_spec_is_changed() {
    let mut bench = Bench::with_spec();
    for _ in 0..5 {
        bench.done(Err(lasting()));
        assert_eq!((bench.phase(), bench.node.record().attempt), (Phase::Failed, 1));
        while bench.running.is_none() {
            bench.pass(1);
        }
    }
    bench.done(Err(lasting()));
    let trouble = bench.node.status(bench.now).conditions;
    assert!(trouble.iter().any(|condition| condition.reason == lasting().code), "{trouble:?}");
    bench.change(|spec| spec.redeploy = Some("corrected".into()));
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::PollPower);
}

#[test]
fn a_machine_that_was_never_touched_is_not_said_to_be_left_on() {
    let mut bench = Bench::with_spec();
    bench.done(Err(lasting()));
    assert_eq!(bench.phase(), Phase::Failed);
    assert!(!bench.node.status(bench.now).message.contains("switched off"));
}

#[test]
fn a_clean_up_for_a_changed_spec_that_fails_for_good_says_why() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    bench.change(|spec| spec.redeploy = Some("again".into()));
    for _ in 0..8 {
        bench.done(Err(passing()));
        bench.pass(7200);
    }
    assert_eq!(bench.phase(), Phase::Failed);
    assert!(bench.node.status(bench.now).message.contains("it broke"));
}

#[test]
fn a_key_of_another_attempt_or_from_another_address_is_refused() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    assert_eq!(bench.call(&key(2), lookup()), Reply::Refused);
    assert!(matches!(bench.call(&key(1), lookup()), Reply::Lookup(_)));
    let elsewhere = Event::Callback {
        request: 1,
        peer: "192.0.2.66".parse().unwrap(),
        key: key(1),
        call: Call::DeployState,
    };
    assert_eq!(bench.send(elsewhere), Some(Reply::Refused));
    assert_eq!(bench.phase(), Phase::WaitingRamdisk);
    let seen = bench.node.status(bench.now).last_seen.unwrap();
    assert_eq!(seen.refused, 2);
    assert!(seen.refused_reason.unwrap().contains("192.0.2.66"));
}

#[test]
fn a_target_elsewhere_or_without_chap_or_under_another_name_is_refused() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    assert_eq!(bench.call(&key(1), deploy_info("")), Reply::Refused, "no disk was asked for yet");
    bench.call(&key(1), lookup());
    let Call::PassDeployInfo(good) = deploy_info("") else { unreachable!() };
    let mut elsewhere = good.clone();
    elsewhere.address = Some("192.0.2.1".parse().unwrap());
    let mut open = good.clone();
    open.chap_password = None;
    let mut renamed = good.clone();
    renamed.iqn.push('x');
    for bad in [elsewhere, open, renamed] {
        assert_eq!(bench.call(&key(1), Call::PassDeployInfo(bad)), Reply::Refused);
    }
    assert_eq!(bench.call(&key(1), Call::PassDeployInfo(good.clone())), Reply::Accepted);
    assert_eq!(
        bench.call(&key(1), Call::PassDeployInfo(good.clone())),
        Reply::Accepted,
        "the same again is the same"
    );
    let another = DeployInfo { port: 3261, ..good };
    assert_eq!(bench.call(&key(1), Call::PassDeployInfo(another)), Reply::Refused);
}

#[test]
fn no_disk_two_disks_and_a_small_disk_each_end_the_attempt_with_a_reason() {
    let fails_with = |code: &str, phase, change: &dyn Fn(&mut Lookup)| {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::WaitingRamdisk);
        let Call::Lookup(mut body) = lookup() else { unreachable!() };
        change(&mut body);
        let reply = bench.call(&key(1), Call::Lookup(body.clone()));
        if matches!(reply, Reply::LookupAgain(_)) {
            bench.pass(60);
            assert!(matches!(bench.call(&key(1), Call::Lookup(body)), Reply::Failed(_)));
        } else {
            assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
        }
        assert_eq!(bench.node.record().last_error.as_ref().unwrap().fault.code, code);
        assert_eq!(
            bench.call(&key(1), Call::DeployState),
            Reply::State(DeployState::Abort.into()),
            "its ramdisk is told to stop"
        );
        bench.done(Ok(Outcome::CleanedUp));
        assert_eq!(bench.phase(), phase, "{code}");
    };
    fails_with("NoRootDevice", Phase::Pending, &|body| body.disks.clear());
    fails_with("NoRootDevice", Phase::Pending, &|body| body.disks.push(disk()));
    fails_with("DiskTooSmall", Phase::Failed, &|body| body.disks[0].size = IMAGE_BYTES - 1);
}

#[test]
fn a_ramdisks_own_error_is_shown_without_control_characters() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    bench.call(&key(1), deploy_info("no \u{1b}[31mdisk\nat all"));
    let error = bench.node.record().last_error.clone().unwrap();
    assert_eq!(error.fault.message, "the deploy ramdisk failed: no [31mdiskat all");
}

/// Invariant (spec): A spec that goes away leaves an installed machine alone.
#[test]
fn a_spec_that_goes_away_cancels_cleans_up_and_forgets_without_touching_an_installed_machine() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.send(Event::SpecGone);
    bench.done(Err(passing()));
    assert!(!bench.forgotten);
    bench.done(Ok(Outcome::CleanedUp));
    assert!(bench.forgotten);

    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.send(Event::SpecGone);
    assert!(bench.forgotten && bench.running.is_none());
}

/// Invariant (spec): A broken spec starts nothing and stops nothing.
#[test]
fn a_broken_spec_leaves_the_last_good_one_effective_and_starts_nothing() {
    let mut bench = Bench::with_spec();
    bench.send(Event::SpecProblems(vec![Problem::of_file("edge-07.toml", "empty")]));
    bench.done(Ok(Outcome::Power(PowerState::Off)));
    assert_eq!(bench.phase(), Phase::Pending);
    let status = bench.node.status(bench.now);
    assert!(
        !status.spec_valid && status.message.contains("edge-07.toml: empty"),
        "{}",
        status.message
    );
    // An attempt under way goes on.
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.send(Event::SpecProblems(vec![Problem::of_file("edge-07.toml", "empty")]));
    bench.go_to(Phase::Deployed);
}

#[test]
fn a_clash_is_invalid_and_touches_nothing() {
    let mut bench = Bench::with_spec();
    bench.send(Event::SpecClash(vec![Problem::of_file(
        "edge-07.toml",
        "boot.mac is also edge-08's",
    )]));
    bench.done(Ok(Outcome::Power(PowerState::Off)));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Invalid, Menu::Unknown));
    bench.pass(3600);
    assert!(bench.running.is_none(), "not even the power is looked at");
}

#[test]
fn a_pause_stops_the_attempt_and_unmanaged_serves_nothing() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.change(|spec| spec.paused = true);
    bench.done(Ok(imaged()));
    bench.done(Ok(Outcome::CleanedUp));
    assert_eq!(bench.phase(), Phase::Paused);
    bench.change(|spec| {
        spec.paused = false;
        spec.goal = Goal::Unmanaged;
    });
    assert_eq!((bench.phase(), bench.menu()), (Phase::Unmanaged, Menu::Unknown));
}

/// Invariant (spec): An empty or missing directory deletes nothing.
#[test]
fn a_lost_directory_holds_everything_and_an_empty_one_deletes_nothing() {
    let now = "2026-11-22T12:00:00Z".parse().unwrap();
    let mut fleet = empty_fleet();
    let name: NodeName = spec().name;
    fleet.step(now, &name, Event::Spec(Arc::new(spec()))).unwrap();
    let events = fleet.compare(now, BTreeMap::new(), &BTreeMap::new());
    assert!(matches!(events.as_slice(), [(_, Event::DirectoryLost(_))]));
    for (name, event) in events {
        fleet.step(now, &name, event).unwrap();
    }
    let done = Event::Done { op: OpId(1), outcome: Ok(Outcome::Power(PowerState::Off)) };
    assert_eq!(fleet.step(now, &name, done).unwrap(), [], "no attempt starts");
    assert!(fleet.node(&name).unwrap().status(now).message.contains("empty"));
}

/// Invariant (attempt): After a crash every wait goes on with its old deadline, in the same
/// attempt.
#[test]
fn after_a_crash_every_waiting_state_goes_on_with_its_old_deadline() {
    for phase in WITH_KEY {
        let mut bench = Bench::with_spec();
        bench.go_to(phase);
        let before = bench.node.deadline();
        let saved = serde_json::to_string(bench.node.record()).unwrap();
        bench.pass(30);
        let read: crate::lifecycle::Record = serde_json::from_str(&saved).unwrap();
        bench.node = Node::resume(spec().name, read, POLICY, bench.now);
        bench.running = None;
        bench.send(Event::Spec(Arc::new(spec())));
        assert_eq!((bench.phase(), bench.node.deadline()), (phase, before));
        bench.go_to(Phase::Deployed);
        assert_eq!(bench.node.record().attempt, 1, "resumed in {phase:?}");
    }
}

#[test]
fn a_machine_whose_boot_files_were_cut_off_by_a_crash_is_started_again_in_the_same_attempt() {
    let resumed = |stage: Option<BootStage>, called: bool| {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::WaitingRamdisk);
        if let Some(stage) = stage {
            let node = spec().name;
            let path = "deploy/vmlinuz".to_owned();
            let fetch = Fetch {
                refused_times: 0,
                unknown_mac: None,
                node,
                stage,
                path,
                sent_bytes: 1,
                complete: true,
                peer: RAMDISK,
            };
            bench.send(Event::Fetched(fetch));
        }
        if called {
            bench.call(&key(1), lookup());
        }
        bench.restart();
        bench.send(Event::Spec(Arc::new(spec())));
        let again = bench.phase() == Phase::PoweringOn;
        bench.go_to(Phase::Deployed);
        assert_eq!(bench.node.record().attempt, 1);
        again
    };
    for stage in [BootStage::Loader, BootStage::Menu, BootStage::Kernel] {
        assert!(resumed(Some(stage), false), "{stage:?}");
    }
    // In its firmware, which retries; in its ramdisk, which needs no more files; and after a call.
    assert!(!resumed(None, false));
    assert!(!resumed(Some(BootStage::Ramdisk), false));
    assert!(!resumed(Some(BootStage::Kernel), true));
}

#[test]
fn the_status_never_holds_a_secret() {
    let mut bench = Bench::with_spec();
    for phase in [Phase::WaitingRamdisk, Phase::Imaging, Phase::Restarting, Phase::Deployed] {
        bench.go_to(phase);
        let shown =
            format!("{}{:?}", toml::to_string(&bench.node.status(bench.now)).unwrap(), bench.node);
        assert!(
            !shown.contains(key(1).expose()) && !shown.contains("chap-secret"),
            "{phase:?}: {shown}"
        );
    }
}

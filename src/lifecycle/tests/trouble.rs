//! Tests of trouble: operations that hang, clocks that jump, and ramdisks that lie.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;

use crate::{
    lifecycle::{Event, Operation, Outcome, Record},
    model::{
        boot::{BootStage, Fetch},
        callback::{Call, DeployInfo, Reply},
        disk::Disk,
        fault::Fault,
        power::PowerState,
        secret::Secret,
        status::Phase,
    },
};

use super::support::*;

/// Invariant (bmc): A BMC that fails for a moment is no reason to write a good disk again.
#[test]
fn a_restart_that_fails_is_tried_again_before_a_good_disk_is_written_again() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Restarting);
    for _ in 1..4 {
        bench.done(Err(passing()));
        assert_eq!(bench.phase(), Phase::Restarting);
        assert!(bench.running.is_none(), "it waits first");
        assert!(bench.message().contains("it broke"), "{}", bench.message());
        bench.pass(60);
        assert_eq!(
            bench.running.as_ref().unwrap().1,
            Operation::Restart { wanted: PowerState::On }
        );
    }
    bench.done(Err(passing()));
    assert!(bench.running.is_none(), "but not for ever");

    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Restarting);
    bench.done(Err(passing()));
    bench.pass(60);
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    assert_eq!((bench.phase(), bench.node.record().attempt), (Phase::Deployed, 1));
}

#[test]
fn all_tries_to_restart_fit_into_its_deadline() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Restarting);
    for tries in 1..=4 {
        // Each operation takes as long as a BMC may, and then fails.
        bench.pass(6 * 60);
        assert_eq!(bench.phase(), Phase::Restarting);
        bench.done(Err(passing()));
        if tries < 4 {
            let (at, reason) = bench.node.next_wake().unwrap();
            assert_eq!(reason, "the next try to restart");
            bench.now = at;
            bench.send(Event::Tick);
        }
    }
    let error = bench.node.record().last_error.clone().unwrap();
    assert_eq!(error.fault.message, passing().message, "its own words, not a deadline's");
}

#[test]
fn a_clean_up_the_bmc_refuses_is_not_tried_again() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.done(Err(passing()));
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp);
    bench.done(Err(lasting()));
    assert_eq!(bench.phase(), Phase::Failed, "wrong passwords lock users out");
    assert!(bench.message().contains("could not be switched off"), "{}", bench.message());
}

/// Nodes whose machine the BMC did not restart: by a lasting fault, after all tries, and by the
/// deadline.
fn not_restarted(how: usize) -> Bench {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Restarting);
    match how {
        0 => bench.done(Err(lasting())),
        1 => {
            for _ in 0..4 {
                bench.done(Err(passing()));
                bench.pass(60);
            }
        }
        _ => {
            let (deadline, _) = bench.node.deadline().unwrap();
            bench.now = deadline;
            bench.send(Event::Tick);
            let (op, _) = bench.running.clone().unwrap();
            assert_eq!(bench.cancelled, [op]);
            bench.done(Err(passing()));
        }
    }
    bench
}

/// Invariant (bmc): A failed restart of a good disk leaves it installed, and never writes it again.
#[test]
fn a_failed_restart_of_a_good_disk_leaves_it_installed_and_is_never_a_reason_to_write_it_again() {
    for how in 0..3 {
        let mut bench = not_restarted(how);
        let status = bench.node.status(bench.now);
        assert_eq!((status.phase, status.ready), (Phase::Failed, false), "{how}");
        assert_eq!(status.installed_digest, status.spec_digest);
        assert!(status.message.contains("installed, but the machine was not restarted"));
        let fault = status.last_error.unwrap().fault;
        assert!(fault.hint.contains("hostler retry edge-07"), "{}", fault.hint);
        assert!(!bench.node.wants_install() && !bench.node.is_wiped_when_off());
        // Neither a restart of the agent nor other changes of the spec matter.
        bench.restart();
        bench.change(|spec| spec.retry.attempts = 7);
        bench.poll(PowerState::On);
        assert_eq!(bench.phase(), Phase::Failed);
        bench.pass(7200);
        assert!(bench.running.is_none_or(|(_, operation)| operation == Operation::PollPower));
    }
}

/// Invariant (bmc): A failed restart of a good disk leaves it installed, and never writes it again.
#[test]
fn an_operator_has_a_machine_restarted_that_was_not_and_then_it_is_deployed() {
    let mut bench = not_restarted(0);
    bench.send(Event::Retry);
    bench.done(Ok(Outcome::Power(PowerState::On)));
    let restart = Operation::Restart { wanted: PowerState::On };
    assert_eq!(bench.running.as_ref().unwrap().1, restart);
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    let status = bench.node.status(bench.now);
    assert_eq!((status.phase, status.ready, status.last_error), (Phase::Deployed, true, None));
    assert_eq!(bench.node.record().attempt, 0, "a restart is no attempt");
}

#[test]
fn a_machine_that_was_not_restarted_and_is_seen_off_is_switched_on_for_the_first_time() {
    let mut bench = not_restarted(1);
    bench.poll(PowerState::Off);
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::SetPower(PowerState::On));
    bench.done(Ok(Outcome::PowerSet(PowerState::On)));
    let status = bench.node.status(bench.now);
    assert_eq!((status.phase, status.ready, status.last_error), (Phase::Deployed, true, None));
}

#[test]
fn a_clean_up_that_always_hangs_ends() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.done(Err(passing()));
    for _ in 0..8 {
        assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp);
        bench.pass(400);
        assert_eq!(bench.cancelled.last(), bench.running.as_ref().map(|(op, _)| op));
        bench.done(Err(passing()));
        bench.pass(3600);
    }
    assert_eq!(bench.phase(), Phase::Failed);
}

#[test]
fn a_bmc_that_never_answers_uses_up_the_attempts() {
    let mut bench = Bench::with_spec();
    for _ in 0..3 {
        bench.pass(400);
        assert_eq!(bench.cancelled.last(), bench.running.as_ref().map(|(op, _)| op));
        bench.done(Err(passing()));
        bench.pass(600);
    }
    assert_eq!(bench.phase(), Phase::Failed);
}

/// Invariant (fair): A waiting node neither spins nor keeps others waiting.
#[test]
fn a_node_that_waits_for_its_bmc_neither_spins_nor_keeps_others_waiting() {
    let (mut fleet, now) = (empty_fleet(), Bench::new().now);
    let [slow, other] = ["edge-07", "edge-08"].map(|name| {
        let mut spec = spec();
        spec.name = name.parse().unwrap();
        spec.bmc.as_mut().unwrap().move_to(name);
        let name = spec.name.clone();
        step_fleet(&mut fleet, now, &name, Event::Spec(Arc::new(spec)));
        name
    });
    let failed = || Event::Done { op: crate::model::ids::OpId(1), outcome: Err(passing()) };
    fleet.step(now, &slow, failed()).unwrap();
    let late = now.checked_add(SignedDuration::from_secs(100)).unwrap();
    fleet.step(late, &other, failed()).unwrap();
    // The first node's next attempt is due, and its BMC is silent for minutes.
    let due = late.checked_add(SignedDuration::from_secs(1)).unwrap();
    assert_eq!(fleet.due(due), std::slice::from_ref(&slow));
    step_fleet(&mut fleet, due, &slow, Event::Tick);
    assert!(fleet.node(&slow).unwrap().next_wake().unwrap().0 > due);
    let later = due.checked_add(SignedDuration::from_secs(200)).unwrap();
    assert!(fleet.due(later).contains(&other));
}

#[test]
fn a_clock_that_is_set_back_makes_no_wait_longer_than_its_whole_length() {
    let limits = [
        (Phase::Preparing, 120 * 60),
        (Phase::PoweringOn, 6 * 60 + 30),
        (Phase::WaitingRamdisk, 20 * 60),
        (Phase::Imaging, 120 * 60),
        (Phase::Switching, 5 * 60),
        (Phase::WaitingCompleted, 5 * 60),
        (Phase::Deployed, 60),
    ];
    for (phase, limit_s) in limits {
        let mut bench = Bench::with_spec();
        bench.go_to(phase);
        bench.now = "1970-01-01T00:00:00Z".parse().unwrap();
        bench.send(Event::Tick);
        let (at, reason) = bench.node.next_wake().unwrap();
        let wait = at.duration_since(bench.now);
        assert!(wait <= SignedDuration::from_secs(limit_s), "{phase:?}: {reason} {wait:?}");
    }
}

#[test]
fn other_timeouts_move_the_deadline_of_the_wait_under_way() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    let (before, _) = bench.node.deadline().unwrap();
    bench.pass(60);
    bench.change(|spec| spec.timeouts.ramdisk += Duration::from_secs(600));
    let (longer, _) = bench.node.deadline().unwrap();
    assert_eq!(longer.duration_since(before), SignedDuration::from_secs(600));
    bench.change(|spec| spec.timeouts.ramdisk = Duration::from_secs(30));
    assert_eq!(bench.phase(), Phase::Pending, "it has waited that long already");
    assert_eq!(bench.node.record().last_error.clone().unwrap().fault.code, "RamdiskTimeout");
}

#[test]
fn a_spec_that_is_unchanged_changes_nothing_and_costs_nothing() {
    for phase in Phase::ALL.into_iter().filter(|phase| phase.is_busy() || *phase == Phase::Deployed)
    {
        let mut bench = Bench::with_spec();
        bench.change(check_port);
        bench.go_to(phase);
        let before = bench.node.record().clone();
        let spec = Arc::clone(bench.node.spec().unwrap());
        assert_eq!(bench.node.step(bench.now, Event::Spec(spec)), []);
        assert_eq!(bench.node.record(), &before);
    }
}

#[test]
fn after_a_start_nothing_goes_on_before_the_spec_directory_was_read() {
    for phase in [Phase::Preparing, Phase::PoweringOn, Phase::Imaging, Phase::Restarting] {
        let mut bench = Bench::with_spec();
        bench.go_to(phase);
        bench.restart();
        bench.send(Event::Tick);
        bench.call(&key(1), Call::DeployState);
        bench.send(Event::DirectoryLost("not mounted".into()));
        assert!(bench.running.is_none() && bench.message().contains("not mounted"));
        let mut paused = spec();
        paused.paused = true;
        bench.send(Event::Spec(Arc::new(paused)));
        let started = bench.running.map(|(_, operation)| operation);
        let harmless = [None, Some(Operation::CleanUp), Some(Operation::PollPower)];
        assert!(harmless.contains(&started), "{phase:?}: {started:?}");
        // A deadline that passes meanwhile does not touch the machine, either, and does not spin.
        let mut bench = Bench::with_spec();
        bench.go_to(phase);
        bench.restart();
        bench.pass(86_400);
        assert!(bench.running.is_none());
        assert!(bench.node.next_wake().is_none_or(|(at, _)| at > bench.now));
    }
}

#[test]
fn a_node_whose_directory_cannot_be_read_after_a_start_does_not_spin() {
    let mut resting = Bench::with_spec();
    resting.go_to(Phase::Deployed);
    let mut between_tries = Bench::with_spec();
    between_tries.go_to(Phase::Imaging);
    between_tries.done(Err(passing()));
    between_tries.done(Err(passing()));
    for mut bench in [resting, between_tries] {
        bench.restart();
        bench.pass(3600);
        assert_eq!(bench.node.next_wake(), None);
    }
}

#[test]
fn a_record_of_a_later_version_can_be_read() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    let mut saved = serde_json::to_value(bench.node.record()).unwrap();
    saved["not_known_yet"] = 1.into();
    saved["state"]["not_known_yet"] = 1.into();
    let read: Record = serde_json::from_value(saved).unwrap();
    assert_eq!(&read, bench.node.record());
}

/// Invariant (ramdisk): A ramdisk's reports are bounded and cleaned before they are kept or shown.
#[test]
fn a_lying_ramdisk_cannot_bloat_or_break_what_is_kept_and_shown() {
    let long = "x\u{1b}[2J\n".repeat(10_000);
    let monster = Disk {
        name: long.clone(),
        size: u64::MAX,
        serial: Some(long.clone()),
        wwn: Some(long.clone()),
        model: Some(long.clone()),
        vendor: Some(long.clone()),
        hctl: Some(long.clone()),
        ..Disk::default()
    };
    for disks in [vec![monster.clone()], vec![monster; 300]] {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::WaitingRamdisk);
        let Call::Lookup(mut body) = lookup() else { unreachable!() };
        (body.disks, body.macs) = (disks, Vec::new());
        bench.call(&key(1), Call::Lookup(body));
        bench.call(&key(1), deploy_info(""));
        if bench.phase() == Phase::Imaging {
            bench.go_to(Phase::Deployed);
        } else {
            bench.call(&key(1), deploy_info(&long));
        }
        let status = toml::to_string(&bench.node.status(bench.now)).unwrap();
        let record = serde_json::to_string(bench.node.record()).unwrap();
        assert!(
            status.len() < 20_000 && record.len() < 20_000,
            "{} {}",
            status.len(),
            record.len()
        );
        assert!(!status.contains("\\u001b") && !record.contains("\\u001b"));
        // TOML's integers have 64 bits with a sign.
        assert!(status.parse::<toml::Table>().is_ok());
    }
}

#[test]
fn what_a_subsystem_says_of_a_failure_is_bounded_and_clean() {
    let mut bench = Bench::with_spec();
    let words = "\u{1b}]0;x".repeat(100_000);
    bench.done(Err(Fault { message: words, ..passing() }));
    let status = toml::to_string(&bench.node.status(bench.now)).unwrap();
    assert!(status.len() < 10_000 && !status.contains("\\u001b"), "{}", status.len());
}

#[test]
fn chap_credentials_have_the_length_iscsi_allows() {
    let Call::PassDeployInfo(good) = deploy_info("") else { unreachable!() };
    let long = "x".repeat(256);
    let secret = |text: &str| Some(Secret::new(text.into()));
    let bad = [
        DeployInfo { chap_username: String::new(), ..good.clone() },
        DeployInfo { chap_username: long.clone(), ..good.clone() },
        DeployInfo { chap_password: secret(""), ..good.clone() },
        DeployInfo { chap_password: secret(&long), ..good.clone() },
    ];
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    bench.call(&key(1), lookup());
    for info in bad {
        assert_eq!(bench.call(&key(1), Call::PassDeployInfo(info)), Reply::Refused);
    }
    let longest = DeployInfo { chap_password: secret(&long[1..]), ..good };
    assert_eq!(bench.call(&key(1), Call::PassDeployInfo(longest)), Reply::Accepted);
}

#[test]
fn each_stage_of_a_netboot_counts_once_and_only_in_an_attempt() {
    let fetch = |stage, complete| {
        let path = "x".into();
        Event::Fetched(Fetch {
            refused_times: 0,
            unknown_mac: None,
            node: spec().name,
            stage,
            path,
            peer: RAMDISK,
            sent_bytes: 1,
            complete,
        })
    };
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Preparing);
    bench.send(fetch(BootStage::Menu, true));
    assert_eq!(bench.node.record().last_seen.fetched, None, "that was the local disk's menu");
    bench.go_to(Phase::WaitingRamdisk);
    bench.send(fetch(BootStage::Kernel, true));
    let before = bench.node.record().clone();
    bench.now = bench.now.checked_add(SignedDuration::from_secs(5)).unwrap();
    for (stage, complete) in
        [(BootStage::Kernel, true), (BootStage::Loader, true), (BootStage::Ramdisk, false)]
    {
        bench.send(fetch(stage, complete));
        assert_eq!(bench.node.record(), &before);
    }
}

#[test]
fn a_spec_that_changes_or_a_retry_during_a_clean_up_is_not_lost() {
    let words: [fn(&mut Bench); 2] = [
        |bench| bench.change(|spec| spec.timeouts.ramdisk *= 2),
        |bench| drop(bench.send(Event::Retry)),
    ];
    for word in words {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::Imaging);
        bench.done(Err(lasting()));
        word(&mut bench);
        bench.done(Ok(Outcome::CleanedUp));
        assert_eq!((bench.phase(), bench.node.record().attempt), (Phase::Pending, 0));
        bench.poll(PowerState::Off);
        assert_eq!(bench.phase(), Phase::Preparing);
    }
}

#[test]
fn a_spec_that_returns_during_the_clean_up_is_not_forgotten() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.send(Event::SpecGone);
    bench.send(Event::Spec(Arc::new(spec())));
    bench.done(Err(passing()));
    bench.done(Ok(Outcome::CleanedUp));
    assert!(!bench.forgotten);
    bench.go_to(Phase::Deployed);
}

/// Invariant (bmc): An installed machine's power that differs is reported, and forced only where
/// the site says so.
#[test]
fn an_installed_machine_that_is_off_is_only_reported() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.pass(60);
    bench.poll(PowerState::Off);
    assert_eq!(bench.phase(), Phase::Deployed);
    assert!(bench.message().contains("the machine is off"), "{}", bench.message());
    let conditions = bench.node.status(bench.now).conditions;
    assert!(conditions.iter().any(|c| c.kind == "PowerAsWanted" && c.status == "False"));
    bench.pass(30);
    assert!(bench.running.is_none(), "nothing is switched on");
}

#[test]
fn the_drawing_shows_every_phase() {
    let doc = include_str!("../mod.rs");
    for phase in Phase::ALL {
        assert!(doc.contains(phase.as_str()), "{phase:?} is not in lifecycle/mod.rs");
    }
}

//! Tests of the write-ahead rule: record, boot menu, actions; and of failed writes.

use jiff::SignedDuration;

use crate::{
    lifecycle::{Event, FirstBoot, Operation, Policy, State},
    model::{
        callback::{Call, DeployState, FlushedRanges, KnownRanges, Reply},
        ids::OpId,
        power::PowerState,
        spec::{BootCheck, DeployRamdisk, Goal},
        status::Phase,
    },
};

use super::{
    rack::{Requested::*, *},
    support::*,
};

fn ask(rack: &mut Rack, request: u64, call: Call) {
    let attempt = rack.node(0).record().state.attempt().cloned();
    let key = attempt.map_or_else(|| key(0), |attempt| attempt.key);
    rack.send(0, Event::Callback { request, peer: RAMDISK, key, call });
}

/// A rack with a node that waits for its ramdisk.
fn waiting() -> Rack {
    let mut rack = Rack::new(1, POLICY);
    rack.world.silent = true;
    rack.scan();
    assert_eq!(rack.phase(0), Phase::WaitingRamdisk);
    rack.world.requested.clear();
    rack
}

fn send_lookup(rack: &mut Rack, request: u64) {
    let Call::Lookup(mut body) = lookup() else { unreachable!() };
    body.macs.clone_from(&rack.node(0).spec().unwrap().boot.macs);
    ask(rack, request, Call::Lookup(body));
}

fn export(rack: &mut Rack, request: u64) {
    let Call::PassDeployInfo(mut info) = deploy_info("") else { unreachable!() };
    info.iqn = format!("iqn.2026-11.hostler:{}", name(0));
    ask(rack, request, Call::PassDeployInfo(info));
}

/// Invariant (state): Record before menu before effects; a full disk loses and repeats nothing.
#[test]
fn the_record_comes_before_the_menu_and_the_menu_before_everything_else() {
    let mut rack = waiting();
    send_lookup(&mut rack, 1);
    rack.world.requested.clear();
    export(&mut rack, 2);
    let [save, serve, wake, rest @ ..] = rack.world.requested.as_slice() else { panic!() };
    assert_eq!([save, serve, wake], [&Save, &Serve, &Wake]);
    assert!(rest.contains(&Reply(2, Reply::Accepted)), "{rest:?}");

    // Checked at every step of a site's life.
    let mut rack = Rack::new(3, POLICY);
    rack.scan();
    for phase in [Phase::Pending, Phase::Imaging, Phase::Deployed] {
        let logged = rack.world.logged.iter().filter(|logged| **logged == phase).count();
        assert_eq!(logged, 3, "{phase:?} once for each node");
    }
    rack.redeploy([0], "again");
    rack.scan();
    rack.pass(600);
    let mut durable = false;
    for requested in &rack.world.requested {
        match requested {
            Save => durable = true,
            Keep | Serve | Wake | KeepLog | Reply(..) => {}
            Start(_) | Cancel(_) => assert!(durable, "an action before any record"),
            Forget => unreachable!(),
        }
    }
}

/// Invariant (state): Record before menu before effects; a full disk loses and repeats nothing.
#[test]
fn nothing_gets_out_while_no_record_can_be_written_and_then_everything_once_and_in_order() {
    let mut rack = waiting();
    rack.world.disk_full = true;
    send_lookup(&mut rack, 1);
    export(&mut rack, 2);
    ask(&mut rack, 3, Call::DeployState);
    rack.tick();
    assert_eq!(rack.world.requested, []);
    assert!(rack.executor.has_unsaved() && rack.executor.is_unsaved(&name(0)));
    let shown = &rack.world.statuses[&name(0)];
    assert_eq!(shown.message, "no space left; nothing is started until it can be written");
    assert!(!shown.ready);

    rack.world.disk_full = false;
    rack.tick();
    let requested = std::mem::take(&mut rack.world.requested);
    let [Save, Serve, Wake, Reply(1, Reply::Lookup(_)), rest @ ..] = requested.as_slice() else {
        panic!("{requested:?}")
    };
    let replies = [Reply(2, Reply::Accepted), Reply(3, Reply::State(DeployState::Imaging.into()))];
    let (started, answered): (Vec<_>, Vec<_>) =
        rest.iter().cloned().partition(|requested| matches!(requested, Start(_)));
    assert_eq!(answered, replies);
    assert_eq!(started.len(), 1, "the write, once");
    assert!(!rack.executor.has_unsaved() && !rack.executor.is_unsaved(&name(0)));
    rack.tick();
    assert_eq!(rack.world.requested, [], "and nothing twice");
    assert!(matches!(rack.world.running[0].operation, Operation::Image { .. }));
}

#[test]
fn an_operation_that_is_cancelled_before_it_could_start_never_starts() {
    let mut rack = Rack::new(1, POLICY);
    rack.world.disk_full = true;
    rack.scan();
    rack.edit(0, |spec| spec.bmc.as_mut().unwrap().username = "other".into());
    rack.scan();
    assert_eq!(rack.world.requested, []);
    rack.world.disk_full = false;
    rack.tick();
    let calls: Vec<Requested> = rack
        .world
        .requested
        .drain(..)
        .filter(|requested| !matches!(requested, Save | Serve | Wake))
        .collect();
    assert_eq!(calls, [Start(OpId(2))]);
    rack.settle();
    assert_eq!(rack.phase(0), Phase::Deployed);
}

/// Invariant (ramdisk): A machine that offers its target is not switched off and on again.
#[test]
fn a_power_on_that_waits_for_its_record_never_starts_once_the_machine_offers_its_target() {
    let mut rack = Rack::new(1, POLICY);
    rack.edit(0, |spec| {
        (spec.boot.ramdisk, spec.boot.require_chap) = (DeployRamdisk::Ironic, false);
        spec.root_device.serial = Some("root-1".to_owned());
    });
    rack.scan_only();
    while rack.phase(0) != Phase::PoweringOn {
        assert!(rack.end_one());
    }
    // The machine was on before the agent was killed.
    rack.restart();
    rack.world.disk_full = true;
    rack.edit(0, |spec| spec.timeouts.ramdisk *= 2);
    rack.scan_only();
    assert!(rack.executor.is_unsaved(&name(0)));
    let mut call = ironic_target();
    if let Call::IronicDeployInfo(info) = &mut call {
        info.iqn = rack.node(0).iqn();
    }
    rack.send(0, Event::Callback { request: 1, peer: RAMDISK, key: key(1), call });
    rack.world.disk_full = false;
    rack.world.requested.clear();
    rack.tick();
    assert!(rack.world.requested.contains(&Reply(1, Reply::Accepted)));
    let started = rack.world.running.iter().map(|job| &job.operation).collect::<Vec<_>>();
    assert!(matches!(started.as_slice(), [Operation::Image { .. }]), "{started:?}");
}

/// A rack whose node decided to switch its machine on, which waits for a full disk.
fn about_to_power_on() -> Rack {
    let mut rack = Rack::new(1, POLICY);
    rack.world.silent = true;
    rack.scan_only();
    while rack.phase(0) != Phase::PoweringOn {
        let state = &rack.node(0).record().state;
        rack.world.disk_full = matches!(state, State::Preparing { ready: Some(_) });
        assert!(rack.end_one());
    }
    assert!(rack.executor.has_unsaved(), "nothing was started");
    rack
}

/// Invariant (bmc): An attempt that no record announced switches no machine off.
#[test]
fn an_attempt_that_never_touched_its_machine_does_not_switch_it_off() {
    let withdraw: [fn(&mut Rack); 4] = [
        |rack| rack.edit(0, |spec| spec.paused = true),
        |rack| rack.edit(0, |spec| spec.goal = Goal::Unmanaged),
        |rack| drop(rack.specs.remove(&name(0))),
        // Until its deadline.
        |rack| rack.pass(600),
    ];
    for withdraw in withdraw {
        let mut rack = about_to_power_on();
        rack.specs.insert(name(1), spec_of(1));
        withdraw(&mut rack);
        // Somebody uses it meanwhile.
        rack.world.on.insert(host(0));
        rack.scan_only();
        rack.world.disk_full = false;
        rack.tick();
        rack.settle();
        rack.pass(600);
        assert!(rack.world.on.contains(&host(0)));
        let of_it = rack.world.story.iter().filter(|(at, _)| *at == host(0));
        assert_eq!(of_it.collect::<Vec<_>>(), Vec::<&(String, Operation)>::new());
    }
    // One on record has switched it on, even if a later record waits.
    let mut rack = Rack::new(1, POLICY);
    rack.world.silent = true;
    rack.scan_only();
    while rack.phase(0) != Phase::PoweringOn {
        assert!(rack.end_one());
    }
    rack.world.disk_full = true;
    assert!(rack.end_one() && rack.phase(0) == Phase::WaitingRamdisk);
    rack.edit(0, |spec| spec.paused = true);
    rack.scan_only();
    rack.world.disk_full = false;
    rack.tick();
    rack.settle();
    assert!(!rack.world.on.contains(&host(0)));
}

/// Invariant (consent): A write that is no longer wanted is cancelled at once, also while no record
/// can be written.
#[test]
fn a_cancellation_does_not_wait_for_its_record() {
    let mut rack = waiting();
    send_lookup(&mut rack, 1);
    export(&mut rack, 2);
    let write = rack.world.running[0].op;
    rack.world.requested.clear();
    rack.world.disk_full = true;
    rack.edit(0, |spec| spec.paused = true);
    rack.scan_only();
    assert_eq!(rack.world.requested, [Cancel(write)]);
    rack.world.disk_full = false;
    rack.tick();
    assert!(!rack.world.requested[1..].contains(&Cancel(write)), "once");
}

#[test]
fn a_question_for_flushed_ranges_does_not_wait_for_a_record() {
    let mut rack = waiting();
    send_lookup(&mut rack, 1);
    export(&mut rack, 2);
    rack.world.requested.clear();
    rack.world.disk_full = true;
    rack.edit(0, |spec| spec.timeouts.imaging *= 2);
    rack.scan_only();
    assert!(rack.executor.is_unsaved(&name(0)));
    ask(&mut rack, 3, Call::Flushed(KnownRanges { known: 0 }));
    assert_eq!(rack.world.requested, [Reply(3, Reply::Flushed(FlushedRanges::default()))]);
}

/// Invariant (bmc): A first boot's restart that no record announced orders nothing.
#[test]
fn a_restart_that_never_began_leaves_no_order_to_switch_the_machine_on() {
    let mut rack = Rack::new(1, POLICY);
    rack.edit(0, check_port);
    rack.scan_only();
    while rack.phase(0) != Phase::Booting {
        assert!(rack.end_one() || rack.let_ramdisks_call());
    }
    // Its system shows nothing, until the BMC would restart the machine.
    rack.world.disk_full = true;
    let restarts = State::Booting { boot: FirstBoot::Restarting };
    while rack.node(0).record().state != restarts {
        while let Some(job) = rack.world.running.pop_front() {
            let outcome = Err(passing());
            rack.send(0, Event::Done { op: job.op, outcome });
        }
        rack.now = rack.now.checked_add(SignedDuration::from_secs(60)).unwrap();
        rack.tick();
    }
    rack.world.story.clear();
    rack.edit(0, |spec| spec.boot_check = BootCheck::None);
    rack.scan_only();
    rack.world.disk_full = false;
    rack.tick();
    assert_eq!(rack.phase(0), Phase::Deployed);
    // Somebody switches it off.
    rack.world.on.remove(&host(0));
    rack.pass(600);
    assert_eq!(rack.world.story, []);
    assert_eq!(rack.status(0).power.map(|power| power.observed), Some(PowerState::Off));
}

/// Invariant (attempt): A machine that boots before its attempt is on record ends no wait.
#[test]
fn a_menu_that_was_fetched_before_the_attempt_was_on_record_is_no_evidence_of_it() {
    let mut rack = Rack::new(1, POLICY);
    rack.edit(0, |spec| spec.bmc = None);
    rack.scan_only();
    rack.world.disk_full = true;
    while rack.end_one() {}
    assert_eq!(rack.phase(0), Phase::PoweringOn);
    rack.send(0, Event::Fetched(ramdisk_fetched_by(RAMDISK)));
    assert_eq!(rack.phase(0), Phase::PoweringOn);
    rack.world.disk_full = false;
    rack.tick();
    rack.send(0, Event::Fetched(ramdisk_fetched_by(RAMDISK)));
    assert_eq!(rack.phase(0), Phase::WaitingRamdisk);
}

#[test]
fn an_attempt_that_never_touched_its_machine_leaves_no_consent_to_wipe_it() {
    let mut rack = about_to_power_on();
    rack.pass(600);
    rack.world.on.insert(host(0));
    rack.world.disk_full = false;
    // An operator switches the machine on after the clean-up, too.
    for _ in 0..3 {
        rack.tick();
        rack.settle();
        rack.world.on.insert(host(0));
        rack.pass(600);
    }
    let wiped = rack.world.story.iter().any(|(_, action)| *action == Operation::PowerOn);
    assert_eq!((rack.phase(0), wiped), (Phase::Held, false));
}

#[test]
fn one_node_whose_record_cannot_be_written_holds_up_no_other() {
    let mut rack = Rack::new(2, POLICY);
    rack.world.disk_full = true;
    let other = rack.specs.remove(&name(1)).unwrap();
    rack.scan();
    rack.world.disk_full = false;
    rack.specs.insert(name(1), other);
    rack.send(1, Event::Spec(std::sync::Arc::new(spec_of(1))));
    rack.settle();
    assert_eq!((rack.phase(0), rack.phase(1)), (Phase::Pending, Phase::Deployed));
    rack.tick();
    rack.settle();
    assert_eq!(rack.phase(0), Phase::Deployed);
}

#[test]
fn a_node_that_is_forgotten_while_its_record_cannot_be_written_answers_its_callers() {
    let mut rack = waiting();
    rack.specs.insert(name(1), spec_of(1));
    rack.world.disk_full = true;
    send_lookup(&mut rack, 1);
    rack.specs.remove(&name(0));
    rack.scan();
    assert!(rack.world.running.iter().all(|job| job.node != name(0)), "the clean-up waits, too");
    rack.world.disk_full = false;
    rack.tick();
    rack.settle();
    let requested = &rack.world.requested;
    let replied =
        requested.iter().position(|requested| matches!(requested, Reply(1, Reply::Lookup(_))));
    let forgotten = requested.iter().position(|requested| *requested == Forget);
    assert!(replied.unwrap() < forgotten.unwrap());
    assert!(rack.executor.fleet().node(&name(0)).is_none());
    assert!(!rack.world.records.contains_key(&name(0)));

    // An idle node answers at once, and is forgotten once the site file has its installation.
    let mut rack = Rack::deployed(2);
    rack.world.disk_full = true;
    ask(&mut rack, 7, Call::DeployState);
    rack.specs.remove(&name(0));
    rack.scan();
    assert!(rack.executor.fleet().node(&name(0)).is_none());
    assert!(rack.world.requested.contains(&Reply(7, Reply::Refused)));
    rack.tick();
    assert!(rack.world.records.contains_key(&name(0)) && rack.executor.has_unsaved());
    rack.world.disk_full = false;
    rack.tick();
    assert!(!rack.world.records.contains_key(&name(0)) && !rack.executor.has_unsaved());
}

/// Invariant (state): Record before menu before effects; a full disk loses and repeats nothing.
#[test]
fn an_answer_that_no_record_announced_is_a_refusal_once_its_node_is_forgotten() {
    let mut rack = Rack::new(2, POLICY);
    rack.world.silent = true;
    rack.edit(0, |spec| spec.bmc = None);
    rack.scan();
    send_lookup(&mut rack, 1);
    export(&mut rack, 2);
    assert_eq!(rack.phase(0), Phase::Imaging);
    let key = rack.node(0).record().state.attempt().unwrap().key.clone();
    rack.world.disk_full = true;
    rack.world.requested.clear();
    while rack.end_one() {}
    let poll = |request| {
        let (key, call) = (key.clone(), Call::DeployState);
        Event::Callback { request, peer: RAMDISK, key, call }
    };
    rack.send(0, poll(3));
    assert_eq!(rack.phase(0), Phase::WaitingCompleted, "as no record tells");
    rack.specs.remove(&name(0));
    rack.scan_only();
    rack.send(0, poll(4));
    assert!(rack.executor.fleet().node(&name(0)).is_none());
    let answers = rack.world.requested.iter().filter(|it| matches!(it, Reply(..)));
    let [Reply(3, Reply::Refused), Reply(4, Reply::State(_))] = answers.collect::<Vec<_>>()[..]
    else {
        panic!("{:?}", rack.world.requested)
    };
}

#[test]
fn whoever_calls_for_a_node_that_is_not_there_is_refused() {
    let mut rack = waiting();
    let event = Event::Callback { request: 9, peer: RAMDISK, key: key(1), call: lookup() };
    rack.send(5, event);
    assert_eq!(rack.world.requested, [Reply(9, Reply::Refused)]);
}

/// Invariant (status): A status file that is up to date is not written again.
#[test]
fn after_a_start_every_menu_is_served_and_nothing_is_shown_before_the_directory_was_read() {
    let mut rack = Rack::deployed(3);
    rack.world.statuses.clear();
    rack.world.requested.clear();
    rack.restart();
    assert_eq!(rack.world.requested, [Serve, Serve, Serve]);
    assert!(rack.world.statuses.is_empty());
    rack.scan_only();
    assert_eq!(rack.world.statuses.len(), 3);
    // Nothing is published twice.
    rack.world.statuses.clear();
    rack.scan_only();
    assert!(rack.world.statuses.is_empty());
}

#[test]
fn a_directory_that_goes_away_holds_every_node() {
    let mut rack = Rack::deployed(2);
    rack.lose_directory("not mounted");
    for n in 0..2 {
        assert!(rack.status(n).message.contains("not mounted"));
    }
}

#[test]
fn a_node_that_is_gone_keeps_its_turn_until_its_record_is_gone_too() {
    let mut rack = Rack::new(2, Policy { attempts_max: 1, ..POLICY });
    rack.scan_only();
    while rack.phase(0) != Phase::Preparing {
        assert!(rack.end_one());
    }
    rack.restart();
    rack.world.disk_full = true;
    rack.specs.remove(&name(0));
    rack.scan();
    assert!(rack.executor.fleet().node(&name(0)).is_none());
    assert!(rack.world.records.contains_key(&name(0)), "after a crash it would go on");
    assert_eq!(rack.phase(1), Phase::Pending);

    rack.world.disk_full = false;
    rack.tick();
    assert!(!rack.world.records.contains_key(&name(0)));
    assert_eq!(rack.phase(1), Phase::Preparing);
}

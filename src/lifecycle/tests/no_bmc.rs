//! Tests of machines without a BMC: an operator switches one on, and its ramdisk restarts it or
//! switches it off.

use std::{collections::BTreeMap, sync::Arc};

use jiff::SignedDuration;

use crate::{
    lifecycle::{
        Event, Hold, Menu, Operation, Outcome, Permit, PlannedAction, Planner, Policy, Specs, State,
    },
    model::{
        boot::{BootStage, Fetch},
        callback::{Call, DeployState, DeployStateReply, Reply, Then},
        power::PowerState,
        spec::{DeployRamdisk, Goal, NodeSpec, WantedPower},
        status::Phase,
    },
};

use super::{rack::*, support::*};

const WEEK_S: i64 = 7 * 24 * 3600;

fn manual_power(spec: &mut NodeSpec) {
    spec.bmc = None;
    spec.timeouts.power = SignedDuration::from_secs(WEEK_S).unsigned_abs();
}

/// A node whose image is being prepared.
fn bench() -> Bench {
    let mut spec = spec();
    manual_power(&mut spec);
    let mut bench = Bench::new();
    bench.send(Event::Spec(Arc::new(spec)));
    bench
}

/// A node that waits for an operator.
fn waiting() -> Bench {
    let mut bench = bench();
    bench.done(Ok(prepared(key(1))));
    assert_eq!(bench.phase(), Phase::PoweringOn);
    bench
}

fn fetched(stage: BootStage) -> Event {
    let (node, path) = (spec().name, "x".to_owned());
    Event::Fetched(Fetch {
        refused_times: 0,
        unknown_mac: None,
        node,
        stage,
        path,
        sent_bytes: 1,
        complete: true,
        peer: RAMDISK,
    })
}

/// A node whose machine is up.
fn up() -> Bench {
    let mut bench = waiting();
    bench.send(fetched(BootStage::Menu));
    bench
}

fn deployed() -> Bench {
    let mut bench = up();
    bench.go_to_deployed();
    bench
}

impl Bench {
    fn state_reply(&mut self, n: u8) -> (DeployState, Then) {
        match self.call(&key(n), Call::DeployState) {
            Reply::State(DeployStateReply { state, then, .. }) => (state, then),
            other => panic!("{other:?}"),
        }
    }

    /// Plays the ramdisk from its first call to its last.
    fn go_to_deployed(&mut self) {
        self.call(&key(1), lookup());
        self.call(&key(1), deploy_info(""));
        self.done(Ok(imaged()));
        self.state_reply(1);
        assert_eq!(self.call(&key(1), completed("")), Reply::Accepted);
        assert_eq!(self.phase(), Phase::Deployed);
    }

    fn waits_for_operator(&self) -> bool {
        let conditions = self.status().conditions;
        let shown = conditions.iter().find(|one| one.kind == "WaitingForPerson");
        shown.is_some_and(|one| one.status == "True" && one.message == self.message())
    }

    /// Checks that no operation starts, for longer than any wait.
    fn rests(&mut self) -> bool {
        (0..48).all(|_| {
            self.pass(3600);
            self.running.is_none()
        })
    }
}

/// Invariant (bmc): A machine without a BMC gets no BMC command, and waiting for an operator delays
/// no other node.
#[test]
fn an_operator_switches_it_on_and_its_ramdisk_restarts_it() {
    let mut bench = bench();
    assert_eq!(
        bench.running.as_ref().unwrap().1,
        Operation::Prepare,
        "no power state is asked for"
    );
    assert_eq!((bench.phase(), bench.menu()), (Phase::Preparing, Menu::LocalDisk));

    bench.done(Ok(prepared(key(1))));
    assert_eq!((bench.phase(), bench.menu()), (Phase::PoweringOn, Menu::Deploy(key(1))));
    assert!(bench.running.is_none() && bench.waits_for_operator());
    let expected = "switch the machine on, or restart it, so that it boots from the network: \
        hostler will WIPE and install it";
    assert_eq!(bench.message(), expected);
    let (at, reason) = bench.node.deadline().unwrap();
    assert_eq!(at.duration_since(bench.now).as_secs(), WEEK_S);
    assert_eq!(reason, "somebody to have the machine boot from the network");

    bench.pass(3 * 24 * 3600);
    bench.send(fetched(BootStage::Loader));
    assert_eq!(bench.phase(), Phase::PoweringOn, "a loader says nothing of whose it is");
    bench.send(fetched(BootStage::Menu));
    assert_eq!((bench.phase(), bench.waits_for_operator()), (Phase::WaitingRamdisk, false));
    let (at, _) = bench.node.deadline().unwrap();
    assert_eq!(at.duration_since(bench.now).as_secs(), 20 * 60, "from now on as ever");

    assert!(matches!(bench.call(&key(1), lookup()), Reply::Lookup(_)));
    assert_eq!(bench.call(&key(1), deploy_info("")), Reply::Accepted);
    assert_eq!(bench.state_reply(1), (DeployState::Imaging, Then::Wait));
    bench.done(Ok(imaged()));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Switching, Menu::LocalDisk));
    assert_eq!(bench.state_reply(1), (DeployState::Release, Then::Reboot));
    assert!(bench.message().ends_with("say completed; then it restarts its machine"));
    assert_eq!(bench.call(&key(1), completed("")), Reply::Accepted);

    let status = bench.status();
    assert_eq!((status.phase, status.ready, status.power), (Phase::Deployed, true, None));
    assert_eq!(
        status.message,
        "installed; without a BMC nobody has seen whether the machine came up"
    );
    assert_eq!((bench.menu(), bench.rests()), (Menu::LocalDisk, true));
}

#[test]
fn a_ramdisk_that_calls_was_booted_by_somebody() {
    let mut bench = waiting();
    assert_eq!(bench.call(&key(2), lookup()), Reply::Refused);
    assert_eq!(bench.phase(), Phase::PoweringOn, "anybody can call");
    assert!(matches!(bench.call(&key(1), lookup()), Reply::Lookup(_)));
    assert_eq!(bench.phase(), Phase::WaitingRamdisk);
}

#[test]
fn nobody_who_comes_ends_the_attempt_and_after_the_last_the_node_has_failed() {
    let mut bench = waiting();
    for attempt in 1..=3 {
        assert_eq!(bench.node.record().attempt, u32::from(attempt));
        assert_eq!(bench.menu(), Menu::Deploy(key(attempt)));
        bench.pass(WEEK_S - 1);
        assert_eq!(bench.phase(), Phase::PoweringOn);
        bench.pass(1);
        assert_eq!(bench.menu(), Menu::LocalDisk);
        assert_eq!(bench.status().last_error.unwrap().fault.code, "NotSwitchedOn");
        if attempt < 3 {
            assert_eq!((bench.phase(), bench.running.is_none()), (Phase::Pending, true));
            bench.pass(3600);
            bench.done(Ok(prepared(key(attempt + 1))));
        }
    }
    assert_eq!((bench.phase(), bench.rests()), (Phase::Failed, true));
    bench.send(Event::Retry);
    bench.done(Ok(prepared(key(9))));
    assert_eq!((bench.phase(), bench.node.record().attempt), (Phase::PoweringOn, 1));
}

#[test]
fn another_timeout_counts_from_the_beginning_of_the_wait() {
    let mut bench = waiting();
    bench.pass(3600);
    bench.change(|spec| spec.timeouts.power = SignedDuration::from_hours(2).unsigned_abs());
    let (at, _) = bench.node.deadline().unwrap();
    assert_eq!((bench.phase(), at.duration_since(bench.now).as_secs()), (Phase::PoweringOn, 3600));
}

#[test]
fn a_wait_for_an_operator_outlives_the_agent() {
    let mut bench = waiting();
    let saved = bench.node.record().clone();
    bench.pass(3600);
    bench.restart();
    assert_eq!(bench.menu(), Menu::Deploy(key(1)), "also before the directory is read");
    bench.send(Event::Spec(saved.spec.clone().unwrap()));
    assert_eq!((bench.phase(), bench.node.record().deadline), (Phase::PoweringOn, saved.deadline));
    assert_eq!(bench.node.record().attempt, 1);

    // Nobody switches the machine off and on: it boots by itself, or its deadline passes.
    bench.send(fetched(BootStage::Menu));
    bench.restart();
    bench.send(Event::Spec(saved.spec.unwrap()));
    assert_eq!((bench.phase(), bench.running.is_none()), (Phase::WaitingRamdisk, true));
}

/// Invariant (bmc): A machine without a BMC gets no BMC command, and waiting for an operator delays
/// no other node.
#[test]
fn a_machine_whose_record_is_lost_is_served_its_disk_until_somebody_consents() {
    let mut bench = bench();
    let lost = crate::lifecycle::Record::distrusted(bench.now);
    let spec = bench.node.spec().cloned().unwrap();
    bench.running = None;
    bench.node = crate::lifecycle::Node::resume(spec.name.clone(), lost, POLICY, bench.now);
    bench.send(Event::Spec(spec));
    assert_eq!(bench.node.held_for(), Some(Hold::RecordLost));
    assert_eq!((bench.menu(), bench.rests()), (Menu::LocalDisk, true));
    bench.send(Event::Approve);
    bench.done(Ok(prepared(key(1))));
    assert_eq!(bench.menu(), Menu::Deploy(key(1)));
}

#[test]
fn without_a_state_directory_nobody_knows_whose_it_is() {
    let mut rack = Rack::deployed(2);
    rack.specs.insert(name(2), spec_of(2));
    rack.edit(2, manual_power);
    rack.world.silent = true;
    rack.scan();
    assert_eq!(rack.phase(2), Phase::PoweringOn);
    rack.restart_without_records();
    rack.scan();
    assert_eq!((rack.phase(0), rack.phase(1)), (Phase::Deployed, Phase::Deployed));
    assert_eq!(rack.node(2).held_for(), Some(Hold::RecordLost));
    assert_eq!(rack.node(2).menu(), Menu::LocalDisk);
    rack.send(2, Event::Approve);
    rack.settle();
    assert_eq!(rack.phase(2), Phase::PoweringOn);
}

/// Invariant (bmc): A machine without a BMC gets no BMC command, and waiting for an operator delays
/// no other node.
#[test]
fn a_wait_for_an_operator_delays_no_machine_with_a_bmc() {
    let mut rack = Rack::new(4, Policy { attempts_max: 1, imagings_max: 1, ..POLICY });
    rack.world.silent = true;
    for n in [0, 1, 2] {
        rack.edit(n, manual_power);
    }
    rack.scan();
    rack.pass(600);
    let manual_power: Vec<Phase> = (0..3).map(|n| rack.phase(n)).collect();
    assert_eq!(manual_power, [Phase::PoweringOn; 3]);
    assert_eq!(rack.phase(3), Phase::WaitingRamdisk, "it had its turn");
    // An operator switches all three on at once, and their ramdisks call.
    for n in 0..3 {
        let Event::Fetched(fetch) = fetched(BootStage::Menu) else { unreachable!() };
        rack.send(n, Event::Fetched(Fetch { node: name(n), ..fetch }));
        assert_eq!(rack.phase(n), Phase::WaitingRamdisk);
    }
    rack.let_ramdisks_call();
    let writes = |rack: &Rack| {
        (0..4).filter(|n| rack.node(*n).record().state.holds() == Some(Permit::Imaging)).count()
    };
    assert_eq!(
        (rack.count(Phase::Imaging), writes(&rack)),
        (4, 1),
        "but disks are written in turn"
    );
    rack.world.silent = false;
    rack.settle();
    assert_eq!((rack.count(Phase::Deployed), rack.writes()), (4, 4));
}

#[test]
fn a_ramdisk_hears_that_its_attempt_is_over_once_the_write_has_stopped_and_switches_itself_off() {
    let mut bench = up();
    bench.call(&key(1), lookup());
    bench.call(&key(1), deploy_info(""));
    bench.change(|spec| spec.paused = true);
    assert_eq!(bench.cancelled.len(), 1);
    assert_eq!(bench.menu(), Menu::LocalDisk);
    assert_eq!(bench.state_reply(1), (DeployState::Imaging, Then::Wait), "it wipes what it wrote");
    bench.done(Err(passing()));
    assert_eq!((bench.phase(), bench.running.is_none()), (Phase::Pending, true));
    assert!(bench.message().starts_with("waiting for the deploy ramdisk to hear"));
    assert_eq!(bench.state_reply(1), (DeployState::Abort, Then::PowerOff));
    assert_eq!((bench.phase(), bench.rests()), (Phase::Paused, true));
}

#[test]
fn a_failed_attempt_is_followed_by_one_with_another_key() {
    let mut bench = up();
    bench.call(&key(1), lookup());
    assert_eq!(bench.call(&key(1), deploy_info("no LIO")), Reply::Accepted);
    assert_eq!(bench.state_reply(1), (DeployState::Abort, Then::PowerOff));
    assert_eq!(bench.phase(), Phase::Pending);
    assert!(bench.message().ends_with("the deploy ramdisk failed: no LIO"));
    bench.pass(3600);
    bench.done(Ok(prepared(key(2))));
    assert_eq!((bench.menu(), bench.waits_for_operator()), (Menu::Deploy(key(2)), true));
    assert_eq!(bench.call(&key(1), lookup()), Reply::Refused);
    assert_eq!(bench.phase(), Phase::PoweringOn);
}

#[test]
fn of_a_ramdisk_that_does_not_ask_any_more_somebody_is_told() {
    let mut bench = up();
    bench.call(&key(1), lookup());
    bench.call(&key(1), deploy_info(""));
    bench.done(Err(lasting()));
    assert_eq!(bench.phase(), Phase::Pending);
    let (at, reason) = bench.node.deadline().unwrap();
    assert_eq!(at.duration_since(bench.now).as_secs(), 60);
    assert_eq!(reason, "the deploy ramdisk to hear that the attempt is over");
    bench.pass(60);
    assert_eq!(bench.phase(), Phase::Failed);
    assert!(bench.message().ends_with("so switch the machine off if it is still on"));
    assert_eq!(bench.call(&key(1), Call::DeployState), Reply::Refused);
}

#[test]
fn a_machine_that_never_called_is_not_waited_for() {
    let mut bench = up();
    bench.pass(20 * 60);
    assert_eq!((bench.phase(), bench.node.deadline()), (Phase::Pending, None));
    assert!(bench.message().contains("fetched its boot menu but not"));
}

#[test]
fn a_disk_that_differs_is_never_said_to_be_installed() {
    let mut bench = up();
    bench.call(&key(1), lookup());
    bench.call(&key(1), deploy_info(""));
    bench.done(Ok(imaged_unverified()));
    assert_eq!(bench.state_reply(1), (DeployState::Release, Then::Reboot));
    assert_eq!(bench.call(&key(1), differing()), Reply::Accepted);
    assert_eq!(bench.state_reply(1), (DeployState::Abort, Then::PowerOff));
    assert_eq!((bench.phase(), bench.status().installed), (Phase::Pending, None));
}

#[test]
fn its_power_is_neither_known_nor_ordered() {
    let mut bench = waiting();
    bench.change(|spec| spec.power = WantedPower::Off);
    assert_eq!(bench.phase(), Phase::PoweringOn);
    bench.send(fetched(BootStage::Menu));
    bench.call(&key(1), lookup());
    bench.call(&key(1), deploy_info(""));
    bench.done(Ok(imaged()));
    assert_eq!(bench.state_reply(1), (DeployState::Release, Then::PowerOff));
    assert!(bench.message().ends_with("then it switches its machine off"));
    bench.call(&key(1), completed(""));
    assert!(bench.message().ends_with("whether the machine switched itself off"));

    for power in [WantedPower::On, WantedPower::Off, WantedPower::Ignore] {
        bench.change(|spec| spec.power = power);
        bench.send(Event::Retry);
        let record = bench.node.record();
        assert_eq!((&record.state, record.power_ordered), (&State::Idle, false));
        assert!(bench.rests());
        assert!(bench.status().conditions.iter().all(|one| one.kind != "PowerAsWanted"));
    }
    bench.change(|spec| spec.goal = Goal::Available);
    assert_eq!((bench.phase(), bench.menu()), (Phase::Available, Menu::Unknown));
    assert!(bench.status().ready && bench.message().contains("no BMC to switch it off"));
    bench.change(|spec| spec.goal = Goal::Unmanaged);
    assert_eq!((bench.phase(), bench.rests()), (Phase::Unmanaged, true));
    bench.change(|spec| spec.goal = Goal::Deployed);
    assert_eq!(bench.phase(), Phase::Deployed);
}

#[test]
fn it_is_reinstalled_once_redeploy_has_changed_and_somebody_restarts_it() {
    let mut bench = deployed();
    bench.change(|spec| spec.root_device.serial = Some("root-1".into()));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Deployed, Menu::LocalDisk));
    bench.change(|spec| spec.redeploy = Some("again".into()));
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::Prepare);
    bench.done(Ok(prepared(key(2))));
    assert_eq!(bench.menu(), Menu::Deploy(key(2)));
    assert!(bench.message().starts_with("restart the machine into a network boot"));
    // The change is taken back before an operator came.
    bench.change(|spec| spec.redeploy = None);
    assert_eq!((bench.phase(), bench.menu()), (Phase::Deployed, Menu::LocalDisk));
    assert!(bench.rests());
}

#[test]
fn a_change_of_the_spec_while_an_operator_is_awaited_begins_at_once() {
    let mut bench = waiting();
    bench.change(|spec| spec.redeploy = Some("other".into()));
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::Prepare);
    bench.change(|spec| spec.paused = true);
    bench.done(Err(passing()));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Paused, Menu::LocalDisk));
    bench.change(|spec| spec.paused = false);
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::Prepare);
    bench.done(Ok(prepared(key(2))));
    bench.send(Event::SpecGone);
    assert!(bench.forgotten, "nobody has to be told");
}

#[test]
fn a_spec_that_is_gone_is_forgotten_when_its_ramdisk_has_heard() {
    let mut bench = up();
    bench.call(&key(1), lookup());
    bench.send(Event::SpecGone);
    assert!(!bench.forgotten);
    assert_eq!(bench.state_reply(1), (DeployState::Abort, Then::PowerOff));
    assert!(bench.forgotten);
}

#[test]
fn a_plan_says_that_somebody_has_to_come() {
    let planned = |bench: &Bench| {
        let spec = bench.node.spec().cloned().unwrap();
        let specs = Specs::from([(spec.name.clone(), Ok(spec))]);
        let statuses = vec![bench.status()];
        let planner = Planner::new(POLICY, statuses, &specs.clone(), specs, bench.now);
        let change = planner.judge(&BTreeMap::new()).pop().unwrap();
        assert!(!change.unless_on);
        (change.action, change.reason)
    };
    let expected = |action, reason: &str| (action, reason.to_owned());
    let once = "never installed by hostler; once somebody has it boot from the network";
    assert_eq!(planned(&bench()), expected(PlannedAction::Install, "under way: preparing"));
    assert_eq!(planned(&waiting()), expected(PlannedAction::Install, "under way: powering-on"));
    let mut crowded = Bench::new();
    crowded.crowded = true;
    crowded.send(Event::Spec(bench().node.spec().cloned().unwrap()));
    assert_eq!(planned(&crowded), expected(PlannedAction::Install, once));
    assert_eq!(planned(&deployed()).0, PlannedAction::Nothing);
}

#[test]
fn an_attempt_that_was_begun_with_a_bmc_is_cleaned_up_by_it() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    bench.change(manual_power);
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp);
    let started_for = bench.started_for.clone().unwrap();
    assert_eq!((&started_for.bmc, started_for.timeouts.power.as_secs()), (&spec().bmc, 120));
    let (at, _) = bench.node.deadline().unwrap();
    assert!(at.duration_since(bench.now).as_secs() < 600, "a BMC has no week");
    bench.done(Ok(Outcome::CleanedUp));
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::Prepare);
    assert_eq!(bench.status().power, None, "it was another machine's");
}

#[test]
fn an_attempt_that_was_begun_without_a_bmc_asks_none_to_clean_up() {
    let bmc = spec().bmc;
    let mut bench = up();
    bench.call(&key(1), lookup());
    bench.change(|spec| spec.bmc.clone_from(&bmc));
    assert_eq!((bench.phase(), bench.running.is_none()), (Phase::Pending, true));
    assert_eq!(bench.state_reply(1), (DeployState::Abort, Then::PowerOff));
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Held, "the machine with this BMC is somebody's");
}

#[test]
fn a_machine_that_was_held_because_it_is_on_waits_for_a_hand_when_its_bmc_goes() {
    let mut bench = Bench::with_spec();
    bench.poll(PowerState::On);
    assert_eq!(bench.phase(), Phase::Held);
    bench.change(manual_power);
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::Prepare);
    bench.done(Ok(prepared(key(1))));
    assert!(bench.waits_for_operator());
}

#[test]
fn a_look_at_the_power_state_that_is_under_way_when_the_bmc_goes_means_nothing() {
    let mut bench = Bench::with_spec();
    bench.change(manual_power);
    assert_eq!(bench.cancelled.len(), 1);
    bench.done(Ok(Outcome::Power(PowerState::On)));
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::Prepare);
    assert_eq!(bench.status().power, None);
}

#[test]
fn ironics_ramdisk_restarts_its_machine_by_itself() {
    let mut spec = spec();
    manual_power(&mut spec);
    (spec.boot.ramdisk, spec.boot.require_chap) = (DeployRamdisk::Ironic, false);
    spec.root_device.name = Some("vda".to_owned());
    let mut bench = Bench::new();
    bench.send(Event::Spec(Arc::new(spec)));
    bench.done(Ok(prepared(key(1))));
    bench.send(fetched(BootStage::Menu));
    assert_eq!(bench.call(&key(1), ironic_target()), Reply::Accepted);
    bench.done(Ok(imaged()));
    bench.done(Ok(Outcome::Released));
    assert_eq!(bench.phase(), Phase::Deployed);
    assert_eq!(bench.running, None, "no BMC is asked for anything");
}

//! Tests of deploy ramdisks' calls: which ones are accepted in which phase.

use std::{net::IpAddr, sync::Arc};

use proptest::prelude::*;

use crate::{
    lifecycle::{Event, Outcome, Record, State},
    model::{
        callback::{Call, Completed, DeployInfo, KnownRanges, Lookup, Reply, VerifyProgress},
        disk::{Disk, RootDeviceHints},
        fault::RetryAdvice,
        secret::{AttemptKey, Secret},
        spec::NodeSpec,
        status::{LastSeen, Phase},
        system_guid::SystemGuid,
    },
};

use super::support::*;

#[test]
fn an_open_target_is_taken_if_the_spec_allows_it_and_no_name_or_secret_is_given_by_halves() {
    let Call::PassDeployInfo(good) = deploy_info("") else { unreachable!() };
    let open = DeployInfo { chap_username: String::new(), chap_password: None, ..good.clone() };
    let nameless = DeployInfo { chap_username: String::new(), ..good.clone() };
    let secretless = DeployInfo { chap_password: None, ..good.clone() };
    for (require_chap, taken, refused) in [
        (true, vec![&good], vec![&open, &nameless, &secretless]),
        (false, vec![&good, &open], vec![&nameless, &secretless]),
    ] {
        let mut bench = Bench::with_spec();
        bench.change(|spec| spec.boot.require_chap = require_chap);
        bench.go_to(Phase::WaitingRamdisk);
        bench.call(&key(1), lookup());
        for info in refused {
            assert_eq!(bench.call(&key(1), Call::PassDeployInfo(info.clone())), Reply::Refused);
        }
        for info in taken {
            let mut bench = Bench::with_spec();
            bench.change(|spec| spec.boot.require_chap = require_chap);
            bench.go_to(Phase::WaitingRamdisk);
            bench.call(&key(1), lookup());
            assert_eq!(bench.call(&key(1), Call::PassDeployInfo(info.clone())), Reply::Accepted);
            let State::Imaging { target, .. } = &bench.node.record().state else { panic!() };
            assert_eq!(target.chap_password, info.chap_password);
        }
    }
}

const GUID: [u8; 16] = [7, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// A node that waits for the ramdisk of a machine whose BMC reports [`GUID`].
fn matching() -> Bench {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Preparing);
    let Outcome::Prepared { image, key, stages, .. } = prepared(key(1)) else { unreachable!() };
    let system_guid = SystemGuid::new(GUID);
    bench.done(Ok(Outcome::Prepared { image, key, system_guid, stages }));
    bench.go_to(Phase::WaitingRamdisk);
    bench
}

fn lookup_of(uuid: Option<&str>) -> Call {
    let Call::Lookup(body) = lookup() else { unreachable!() };
    Call::Lookup(Lookup { system_uuid: uuid.map(str::to_owned), ..body })
}

#[test]
fn a_ramdisk_on_the_machine_that_the_bmc_belongs_to_is_believed() {
    for uuid in SystemGuid::new(GUID).unwrap().readings() {
        let mut bench = matching();
        bench.restart();
        bench.send(Event::Spec(spec().into()));
        let reply = bench.call(&key(1), lookup_of(Some(&uuid)));
        assert!(matches!(reply, Reply::Lookup(_)), "{uuid}: {reply:?}");
    }
}

#[test]
fn a_ramdisk_on_another_machine_than_the_bmc_belongs_to_ends_the_attempt_for_good() {
    let escapes = "\u{1b}".repeat(1 << 20);
    for (uuid, named) in [
        (None, "not known to its firmware"),
        (Some(""), "its UUID is , and"),
        (Some("07010203-0405-0607-0809-0a0b0c0d0e10"), "07010203-0405-0607-0809-0a0b0c0d0e10"),
        (Some(&escapes), "its UUID is , and"),
    ] {
        let mut bench = matching();
        let Reply::Failed(why) = bench.call(&key(1), lookup_of(uuid)) else { panic!("{uuid:?}") };
        assert!(why.contains(named) && why.len() < 400 && !why.contains('\u{1b}'), "{why}");
        assert!(why.contains("07010203-0405-0607-0809-0a0b0c0d0e0f"), "{why}");
        let fault = bench.node.record().last_error.clone().unwrap().fault;
        assert_eq!((&*fault.code, fault.retry), ("WrongMachine", RetryAdvice::Never));
        bench.go_to(Phase::Failed);
    }
}

/// Generates every call, good and bad.
fn any_call() -> impl Strategy<Value = Call> {
    let Call::Lookup(good_lookup) = lookup() else { unreachable!() };
    let Call::PassDeployInfo(good_info) = deploy_info("") else { unreachable!() };
    let lookups = (0..3_usize, ".{0,20}").prop_map(move |(disks, name)| {
        let named = Disk { name, ..disk() };
        let disks = [disk(), named].into_iter().cycle().take(disks).collect();
        Call::Lookup(Lookup { disks, ..good_lookup.clone() })
    });
    let infos = (any::<u16>(), prop::option::of("[a-z]{0,3}"), "x{0,1}").prop_map(
        move |(port, secret, error)| {
            let chap_password = secret.map(Secret::new);
            Call::PassDeployInfo(DeployInfo { port, chap_password, error, ..good_info.clone() })
        },
    );
    let notices =
        ("x{0,1}", any::<bool>(), any::<u64>()).prop_map(|(error, verified, verify_ms)| {
            Call::Completed(Completed { error, verified, verify_ms })
        });
    prop_oneof![
        4 => Just(lookup()),
        1 => lookups,
        3 => Just(deploy_info("")),
        1 => infos,
        4 => Just(Call::DeployState),
        1 => Just(Call::Flushed(KnownRanges { known: 0 })),
        3 => Just(completed("")),
        1 => notices,
        1 => any::<u64>().prop_map(|done_bytes| Call::Verifying(VerifyProgress { done_bytes })),
    ]
}

/// Another event than a call: an operation succeeds, time passes, the agent restarts.
#[derive(Clone, Debug)]
enum CallbackStep {
    Call { stranger: bool, key: u8, call: Call },
    Done,
    Pass,
    Restart,
}

fn any_step() -> impl Strategy<Value = CallbackStep> {
    prop_oneof![
        8 => (prop::bool::weighted(0.2), prop_oneof![6 => Just(1_u8), 2 => 2..4_u8], any_call())
            .prop_map(|(stranger, key, call)| CallbackStep::Call { stranger, key, call }),
        4 => Just(CallbackStep::Done),
        1 => Just(CallbackStep::Pass),
        1 => Just(CallbackStep::Restart),
    ]
}

/// The phases that may follow each phase by a single call.
fn may_follow(before: &State, call: &Call, after: &State) -> bool {
    use State::{
        CleaningUp, Imaging, PoweringOn, Restarting, Switching, WaitingCompleted, WaitingRamdisk,
    };
    before == after
        || match (before, after) {
            (PoweringOn { .. } | WaitingRamdisk { .. }, Imaging { .. }) => {
                matches!(call, Call::PassDeployInfo(_))
            }
            (Switching { .. }, WaitingCompleted { .. }) => matches!(call, Call::DeployState),
            (Switching { .. } | WaitingCompleted { .. }, Restarting { .. }) => {
                matches!(call, Call::Completed(_))
            }
            (PoweringOn { .. } | WaitingRamdisk { .. }, CleaningUp { .. }) => {
                !matches!(call, Call::DeployState)
            }
            (_, CleaningUp { .. }) => matches!(call, Call::PassDeployInfo(_) | Call::Completed(_)),
            (PoweringOn { .. }, PoweringOn { .. })
            | (WaitingRamdisk { .. }, WaitingRamdisk { .. }) => matches!(call, Call::Lookup(_)),
            _ => false,
        }
}

/// The record without the evidence of the machine's boot.
fn unseen(bench: &Bench) -> Record {
    Record { last_seen: LastSeen::default(), ..bench.node.record().clone() }
}

/// Makes a call twice and checks its effect.
fn judge(bench: &mut Bench, peer: IpAddr, shown: &AttemptKey, call: &Call) {
    let before = unseen(bench);
    let bound = before.state.attempt().and_then(|attempt| attempt.peer);
    let admitted = before.state.attempt().is_some_and(|attempt| attempt.key == *shown)
        && bound.is_none_or(|bound| bound == peer);
    let mut send_again = || {
        let key = shown.clone();
        bench.send(Event::Callback { request: 1, peer, key, call: call.clone() }).unwrap()
    };
    let reply = send_again();
    let again = send_again();
    // The first caller decides the end of the wait for a release.
    let after = unseen(bench);
    if !admitted {
        assert_eq!((reply, again), (Reply::Refused, Reply::Refused));
        assert!(after == before, "{call:?} of a stranger");
        return;
    }
    assert_eq!(after.state.attempt().and_then(|attempt| attempt.peer), Some(peer));
    let moved = format!("{:?} to {:?} by {call:?}", before.phase, after.phase);
    // The key is bound to this address now.
    let mut from = before.state.clone();
    from.attempt_mut().unwrap().peer = Some(peer);
    assert!(may_follow(&from, call, &after.state), "{moved}");
    assert_eq!(again, reply, "{moved}");
}

proptest! {
    /// Invariant (ramdisk): A ramdisk may repeat every call, and only the right one moves an
    /// attempt.
    #[test]
    fn only_the_ramdisk_with_the_key_at_its_address_moves_an_attempt_and_saying_it_twice_is_saying_it_once(
        steps in prop::collection::vec(any_step(), 0..60),
    ) {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::PoweringOn);
        for step in steps {
            match step {
                CallbackStep::Call { stranger, key: n, call } => {
                    let peer = if stranger { "192.0.2.66".parse().unwrap() } else { RAMDISK };
                    judge(&mut bench, peer, &key(n), &call);
                }
                CallbackStep::Done => {
                    if let Some((_, operation)) = bench.running.clone() {
                        bench.done(Ok(good_outcome(&operation)));
                    }
                }
                CallbackStep::Pass => bench.pass(1),
                CallbackStep::Restart => {
                    bench.restart();
                    bench.send(Event::Spec(Arc::new(spec())));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_ramdisk_says_the_record_and_the_status_stay_small(
        text in prop_oneof![1 => Just("\u{202e}\u{1b}[2J\0".repeat(20_000)), 9 => ".{0,300}"],
        disks in prop_oneof![9 => 0..40_usize, 1 => Just(2000)],
    ) {
        let Call::Lookup(good) = lookup() else { unreachable!() };
        let some = || Some(text.clone());
        let large = Disk {
            name: text.chars().take(2000).collect(), size: u64::MAX, serial: some(), wwn: some(),
            model: some(), vendor: some(), hctl: some(), ..Disk::default()
        };
        let small = Disk { name: "sda".into(), ..Disk::default() };
        for disks in [vec![small; disks], vec![large]] {
            let mut bench = Bench::with_spec();
            bench.go_to(Phase::WaitingRamdisk);
            let body = Lookup { disks, system_uuid: some(), system_serial: some(), ..good.clone() };
            bench.call(&key(1), Call::Lookup(body));
            bench.call(&key(1), deploy_info(&text));
            bench.call(&key(1), completed(&text));
            let status = toml::to_string(&bench.node.status(bench.now)).unwrap();
            let record = serde_json::to_string(bench.node.record()).unwrap();
            prop_assert!(status.len() < 16 << 10, "{}", status.len());
            prop_assert!(record.len() < 32 << 10, "{}", record.len());
            let escape = r"\u001b";
            prop_assert!(!status.to_lowercase().contains(escape) && !record.contains(escape));
        }
    }
}

/// Invariant (ramdisk): One call ends no node's attempts for good.
#[test]
fn a_lookup_of_a_machine_that_was_not_seen_booting_ends_only_its_attempt() {
    let other = IpAddr::from([192, 0, 2, 102]);
    for (fetched_by, advice) in [
        (&[][..], RetryAdvice::Backoff),
        (&[other], RetryAdvice::Backoff),
        (&[RAMDISK, other], RetryAdvice::Backoff),
        (&[RAMDISK, RAMDISK], RetryAdvice::Never),
    ] {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::WaitingRamdisk);
        for peer in fetched_by {
            bench.send(Event::Fetched(ramdisk_fetched_by(*peer)));
        }
        let Call::Lookup(mut small) = lookup() else { unreachable!() };
        small.disks[0].size = 1;
        assert!(matches!(bench.call_unseen(&key(1), Call::Lookup(small)), Reply::Failed(_)));
        let fault = bench.node.record().last_error.clone().unwrap().fault;
        assert_eq!((fault.code.as_ref(), fault.retry), ("DiskTooSmall", advice), "{fetched_by:?}");
        bench.done(Ok(Outcome::CleanedUp));
        let phase = if advice == RetryAdvice::Never { Phase::Failed } else { Phase::Pending };
        assert_eq!(bench.phase(), phase);
    }
}

/// Makes a lookup with these disks.
fn lookup_with(disks: Vec<Disk>) -> Call {
    let Call::Lookup(body) = lookup() else { unreachable!() };
    Call::Lookup(Lookup { disks, ..body })
}

/// Invariant (ramdisk): A late root device is waited for; its node is given up only after a second
/// start.
#[test]
fn a_root_device_that_appears_late_is_waited_for_and_then_installed() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    let Reply::LookupAgain(again) = bench.call(&key(1), lookup_with(Vec::new())) else { panic!() };
    assert!(again.look_again_after > 0 && again.error.ends_with("the machine has no disk"));
    assert_eq!(bench.phase(), Phase::WaitingRamdisk);
    let message = bench.message();
    assert!(message.starts_with("waiting for the root device: no disk"), "{message}");
    let deadline = |bench: &Bench| bench.node.deadline().unwrap();
    let left_s = |bench: &Bench| deadline(bench).0.duration_since(bench.now).as_secs();
    assert_eq!((left_s(&bench), deadline(&bench).1), (60, "its root device to appear"));
    bench.pass(59);
    assert!(matches!(bench.call(&key(1), lookup_with(Vec::new())), Reply::LookupAgain(_)));
    assert_eq!(left_s(&bench), 1, "asking again does not prolong the wait");
    assert!(matches!(bench.call(&key(1), lookup()), Reply::LookupAgain(_)));
    let message = bench.message();
    assert!(message.contains("appeared late; another disk that fits may follow"), "{message}");
    bench.pass(9);
    assert!(matches!(bench.call(&key(1), lookup()), Reply::LookupAgain(_)));
    bench.pass(1);
    assert!(matches!(bench.call(&key(1), lookup()), Reply::Lookup(_)));
    assert!(left_s(&bench) > 600, "the whole wait for the target");
    bench.pass(30);
    assert_eq!(bench.call(&key(1), deploy_info("")), Reply::Accepted);
}

/// Invariant (ramdisk): A late root device is waited for; its node is given up only after a second
/// start.
#[test]
fn a_root_device_that_does_not_appear_ends_the_attempt_and_in_the_next_one_all_of_them() {
    for asks_again in [true, false] {
        let mut bench = Bench::with_spec();
        for advice in [RetryAdvice::Backoff, RetryAdvice::Never] {
            bench.go_to(Phase::WaitingRamdisk);
            let none = lookup_with(Vec::new());
            assert!(matches!(bench.call(&key(1), none.clone()), Reply::LookupAgain(_)));
            if asks_again {
                bench.now += jiff::SignedDuration::from_secs(60);
                assert!(matches!(bench.call(&key(1), none), Reply::Failed(_)));
            } else {
                bench.pass(60);
            }
            let error = bench.node.record().last_error.clone().unwrap();
            assert_eq!((&*error.fault.code, error.fault.retry), ("NoRootDevice", advice));
            bench.done(Ok(Outcome::CleanedUp));
        }
        assert_eq!((bench.phase(), bench.node.record().attempt), (Phase::Failed, 2));
    }
}

/// Invariant (ramdisk): A late root device is waited for; its node is given up only after a second
/// start.
#[test]
fn a_late_disk_is_not_taken_for_the_only_one_while_others_may_follow() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    let named = |name: &str| Disk { name: name.into(), serial: Some(name.into()), ..disk() };
    for (passed_s, disks) in [(0, vec![]), (5, vec![named("vda")]), (9, vec![named("vda")])] {
        bench.pass(passed_s);
        assert!(matches!(bench.call(&key(1), lookup_with(disks)), Reply::LookupAgain(_)));
    }
    let two = lookup_with(vec![named("vda"), named("vdb")]);
    let Reply::Failed(reason) = bench.call(&key(1), two) else { panic!("a disk was chosen") };
    assert!(reason.contains("2 disks match"), "{reason}");
}

/// A lookup with disks that have been the same for this time.
fn lookup_same_for(disks: Vec<Disk>, same_for_ms: u64) -> Call {
    let Call::Lookup(body) = lookup_with(disks) else { unreachable!() };
    Call::Lookup(Lookup { disks_same_for_ms: Some(same_for_ms), ..body })
}

/// Invariant (disk): Without a hint that names one disk, none is chosen before the machine's disks
/// have been the same for 10 s.
#[test]
fn a_single_disk_is_not_taken_for_the_only_one_right_after_it_appeared() {
    let mut bench = Bench::with_spec();
    // A short wait for a missing root device does not cut this one short.
    bench.change(|spec| spec.timeouts.root_device = std::time::Duration::from_secs(1));
    bench.go_to(Phase::WaitingRamdisk);
    for (same_for_ms, passed_s, again_after_s) in [(4_000, 0, 3), (7_000, 3, 3), (9_000, 2, 1)] {
        bench.pass(passed_s);
        let lookup = lookup_same_for(vec![disk()], same_for_ms);
        let Reply::LookupAgain(again) = bench.call(&key(1), lookup) else { panic!("it is taken") };
        assert!(again.error.contains("another disk that fits may follow"), "{}", again.error);
        let message = bench.message();
        assert!(message.ends_with(&again.error), "{message}");
        assert_eq!(again.look_again_after, again_after_s);
    }
    let two = lookup_same_for(vec![disk(), Disk { name: "vdb".into(), ..disk() }], 100);
    assert!(matches!(bench.call(&key(1), two), Reply::Failed(_)), "the second one followed");
    // The agent counts on from the ramdisk's report, whatever that says later.
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    let again = |bench: &mut Bench, ms| bench.call(&key(1), lookup_same_for(vec![disk()], ms));
    assert!(matches!(again(&mut bench, 4_000), Reply::LookupAgain(_)));
    bench.pass(5);
    assert!(matches!(again(&mut bench, 0), Reply::LookupAgain(_)));
    bench.pass(1);
    assert!(matches!(again(&mut bench, 0), Reply::Lookup(_)));
}

#[test]
fn a_disk_that_nothing_may_follow_is_taken_at_once() {
    let hinted = RootDeviceHints { serial: disk().serial, ..RootDeviceHints::default() };
    let rotating = RootDeviceHints { rotational: Some(false), ..RootDeviceHints::default() };
    for (hints, same_for_ms, is_taken) in [
        (RootDeviceHints::default(), Some(10_000), true),
        (RootDeviceHints::default(), Some(u64::MAX), true),
        // An earlier version's ramdisk.
        (RootDeviceHints::default(), None, true),
        (hinted, Some(0), true),
        (rotating, Some(9_999), false),
    ] {
        let mut bench = Bench::with_spec();
        bench.change(|spec| spec.root_device = hints);
        bench.go_to(Phase::WaitingRamdisk);
        let Call::Lookup(body) = lookup() else { unreachable!() };
        let lookup = Call::Lookup(Lookup { disks_same_for_ms: same_for_ms, ..body });
        let reply = bench.call(&key(1), lookup);
        assert_eq!(matches!(reply, Reply::Lookup(_)), is_taken, "{same_for_ms:?}: {reply:?}");
    }
}

/// Invariant (ramdisk): A late root device is waited for; its node is given up only after a second
/// start.
#[test]
fn a_late_disk_that_is_another_one_than_the_hinted_neither_ends_nor_prolongs_the_wait() {
    let hinted = NodeSpec {
        root_device: RootDeviceHints { serial: Some("vdb".into()), ..RootDeviceHints::default() },
        ..spec()
    };
    let mut bench = Bench::with_spec();
    bench.send(Event::Spec(Arc::new(hinted)));
    bench.go_to(Phase::WaitingRamdisk);
    let named = |name: &str| Disk { name: name.into(), serial: Some(name.into()), ..disk() };
    assert!(matches!(bench.call(&key(1), lookup_with(vec![])), Reply::LookupAgain(_)));
    bench.pass(50);
    let other = lookup_with(vec![named("vda")]);
    assert!(matches!(bench.call(&key(1), other), Reply::LookupAgain(_)));
    let message = bench.message();
    assert!(message.contains("no disk matches") && message.contains("vda"), "{message}");
    let until = bench.node.deadline().unwrap().0;
    assert_eq!(until.duration_since(bench.now).as_secs(), 10);
    bench.pass(5);
    let both = lookup_with(vec![named("vda"), named("vdb")]);
    let Reply::Lookup(chosen) = bench.call(&key(1), both) else { panic!("it is there") };
    assert_eq!(chosen.disk, "vdb", "a serial number fits no other disk: nothing is waited for");
}

/// The status has the number of the disks, for a warning about the spec.
#[test]
fn several_disks_that_fit_are_not_waited_for_because_more_would_not_help() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    let removable = Disk { name: "sda".into(), removable: true, ..disk() };
    let two = lookup_with(vec![disk(), Disk { name: "vdb".into(), ..disk() }, removable]);
    assert!(matches!(bench.call(&key(1), two), Reply::Failed(_)));
    assert_eq!(bench.node.status(bench.now).last_seen.unwrap().disks, Some(2));
    bench.done(Ok(Outcome::CleanedUp));
    assert_eq!(bench.phase(), Phase::Pending, "the machine is switched on once more");
}

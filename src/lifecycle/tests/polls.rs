//! Tests of polls: silent BMCs delay no other node, and are polled ever less often.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::{
    lifecycle::{Event, Operation, Outcome, Policy, polls::Polls},
    model::{
        fault::RetryAdvice,
        power::PowerState,
        spec::{Goal, NodeSpec},
        status::Phase,
    },
};

use super::{rack::*, support::*};

const PLACES: usize = 8;

/// A rack of `nodes` installed machines with silent BMCs, one new machine with a good BMC, and
/// eight permits for polls.
fn silent_site(nodes: usize) -> Rack {
    let policy = Policy { polls_max: PLACES, ..POLICY };
    let mut rack = Rack::deployed_under(nodes, policy);
    for n in 0..nodes {
        rack.world.faults.insert(host(n), passing());
    }
    // Each BMC is polled once and does not answer.
    rack.now = rack.now.checked_add(SignedDuration::from_secs(300)).unwrap();
    rack.tick();
    rack.settle();
    rack
}

fn polled(rack: &Rack) -> Vec<String> {
    let poll = |job: &Job| job.operation == Operation::PollPower;
    rack.world.running.iter().filter(|job| poll(job)).map(|job| job.host.clone()).collect()
}

/// Invariant (fair): A silent BMC keeps no other machine waiting.
#[test]
fn a_poll_of_a_silent_bmc_holds_no_place_that_an_attempt_needs() {
    let mut rack = silent_site(40);
    // All polls are due again, and no BMC answers yet.
    rack.now = rack.now.checked_add(SignedDuration::from_secs(300)).unwrap();
    rack.tick();
    let silent = polled(&rack).len();
    assert!((1..=PLACES / 4).contains(&silent), "{silent} silent BMCs are asked at once");
    let mut new = spec_of(40);
    new.redeploy = None;
    rack.specs.insert(name(40), new);
    rack.scan_only();
    assert!(polled(&rack).contains(&host(40)), "{:?}", polled(&rack));
    assert!(polled(&rack).len() <= PLACES);
}

/// Invariant (fair): A silent BMC keeps no other machine waiting.
#[test]
fn a_site_of_silent_bmcs_is_polled_in_turn_and_all_get_theirs() {
    let mut rack = silent_site(40);
    rack.now = rack.now.checked_add(SignedDuration::from_secs(300)).unwrap();
    rack.tick();
    let mut requested = std::collections::BTreeSet::new();
    for _ in 0..200 {
        requested.extend(polled(&rack));
        if !rack.end_one() {
            break;
        }
    }
    assert_eq!(requested.len(), 40);
}

#[test]
fn on_a_site_of_ten_thousand_silent_bmcs_are_polled_each_half_minute() {
    let start = Timestamp::UNIX_EPOCH;
    for second in 0..60 {
        let now = start.checked_add(SignedDuration::from_secs(second)).unwrap();
        let polls = silent_polls(10_000, 20, now);
        assert_eq!(polls.next_at().as_second() % 30, 0);
        let pause = polls.next_at().duration_since(now).as_secs();
        assert!((2222..=2252).contains(&pause), "{pause}");
    }
}

/// The polls of a BMC that has missed so many of them now, on a site of so many silent ones.
fn silent_polls(silent: u32, misses: u32, now: Timestamp) -> Polls {
    let mut polls = Polls::new(&name(0), now);
    (polls.silent, polls.misses) = (silent, misses - 1);
    polls.missed(now, RetryAdvice::Backoff);
    polls
}

fn pause_s(polls: &Polls) -> u32 {
    polls.next_at().as_second().try_into().unwrap()
}

/// Invariant (bmc): A repaired BMC is seen within 90 s among up to 1350 silent ones, and at once
/// when an operator asks.
///
/// Invariant (fair): Silent BMCs, however many, get few polls a second in all.
#[test]
fn silent_bmcs_get_few_polls_in_all_and_up_to_1350_of_them_one_in_90_seconds_each() {
    let mut last = 0;
    for silent in 1..20_000 {
        let pause = pause_s(&silent_polls(silent, 20, Timestamp::UNIX_EPOCH));
        assert!(pause >= 60 && pause + 30 > last, "{pause} s among {silent}, {last} s among fewer");
        assert!(silent > 1350 || pause <= 90, "{pause} s among {silent}");
        let per_s = f64::from(silent) / f64::from(pause);
        assert!(
            per_s <= if silent < 5000 { 16.0 } else { 5.2 },
            "{silent}: {per_s} polls a second"
        );
        last = pause;
        let first = pause_s(&silent_polls(silent, 1, Timestamp::UNIX_EPOCH));
        assert!(silent / first <= 90, "{first} s among {silent}");
    }
}

/// Invariant (fair): Silent BMCs, however many, get few polls a second in all.
#[test]
fn ten_thousand_bmcs_that_fall_silent_together_are_not_polled_together_for_long() {
    let mut polled = BTreeMap::<u32, u32>::new();
    for n in 0..10_000 {
        let mut polls = Polls::new(&name(n), Timestamp::UNIX_EPOCH);
        (polls.silent, polls.misses) = (10_000, 1);
        polls.missed(Timestamp::UNIX_EPOCH, RetryAdvice::Backoff);
        *polled.entry(pause_s(&polls) / 60).or_default() += 1;
    }
    assert!(polled.values().all(|polls| *polls < 600), "in each minute: {polled:?}");
}

/// Invariant (fair): Silent BMCs, however many, get few polls a second in all.
#[test]
fn nodes_that_miss_the_same_local_file_look_for_it_few_times_a_second_in_all() {
    for (nodes, most_s) in [(30, 15), (750, 15), (10_000, 200)] {
        let mut polls = Polls::new(&name(0), Timestamp::UNIX_EPOCH);
        polls.silent = nodes;
        for _ in 0..10 {
            polls.missed(Timestamp::UNIX_EPOCH, RetryAdvice::Wait);
            assert_eq!(pause_s(&polls), most_s, "{nodes} nodes");
        }
    }
}

/// The longest pause between two polls of the first BMC, within so many ticks of 5 s.
fn longest_pause_s(rack: &mut Rack, ticks: usize) -> i64 {
    let (mut last, mut longest_s) = (None, 0);
    for _ in 0..ticks {
        rack.now = rack.now.checked_add(SignedDuration::from_secs(5)).unwrap();
        rack.tick();
        if polled(rack).contains(&host(0)) {
            let before = last.replace(rack.now).unwrap_or(rack.now);
            longest_s = longest_s.max(rack.now.duration_since(before).as_secs());
        }
        rack.settle();
    }
    longest_s
}

/// Invariant (fair): Silent BMCs, however many, get few polls a second in all.
#[test]
fn the_pauses_of_a_silent_bmc_grow_with_their_number_and_shrink_when_most_answer_again() {
    let nodes = 600;
    let mut rack = Rack::deployed_under(nodes, Policy { polls_max: 2048, ..POLICY });
    for n in 0..nodes {
        rack.world.faults.insert(host(n), passing());
    }
    // After 15, 30 and 60 s, each is polled every 90 s.
    assert_eq!(longest_pause_s(&mut rack, 120), 90);
    for n in 1..nodes {
        rack.world.faults.remove(&host(n));
    }
    longest_pause_s(&mut rack, 40);
    assert_eq!(longest_pause_s(&mut rack, 40), 60);
}

/// Invariant (bmc): A repaired BMC is seen within 90 s among up to 1350 silent ones, and at once
/// when an operator asks.
#[test]
fn a_silent_bmc_is_asked_ever_more_seldom_but_within_a_minute_and_a_half() {
    for nodes in [1, 30, 300] {
        let mut rack = Rack::deployed_under(nodes, Policy { polls_max: 2048, ..POLICY });
        rack.world.faults.insert(host(0), passing());
        let mut pauses = Vec::new();
        let mut last = None;
        // 15, 30 and 60 s, and then the longest pause.
        for _ in 0..6 {
            while !polled(&rack).contains(&host(0)) {
                rack.now = rack.now.checked_add(SignedDuration::from_secs(1)).unwrap();
                rack.tick();
                assert!(last.is_none_or(|last| rack.now.duration_since(last).as_secs() < 300));
                if !polled(&rack).contains(&host(0)) {
                    rack.settle();
                }
            }
            pauses.extend(last.map(|last| rack.now.duration_since(last).as_secs()));
            last = Some(rack.now);
            rack.settle();
        }
        assert!(pauses.is_sorted() && pauses[0] <= 15, "{pauses:?}");
        assert_eq!(pauses[4], 60, "{pauses:?}");
    }
}

#[test]
fn silent_bmcs_are_polled_together_and_never_later_than_alone() {
    let mut rack = Rack::deployed_under(40, Policy { polls_max: 2048, ..POLICY });
    for n in 0..40 {
        rack.world.faults.insert(host(n), passing());
    }
    let (step_ms, mut seen) = (333, std::collections::BTreeSet::new());
    for n in 0..800 {
        rack.now = rack.now.checked_add(SignedDuration::from_millis(step_ms)).unwrap();
        rack.tick();
        // By now each BMC has missed several polls.
        if n > 400 && !polled(&rack).is_empty() {
            assert!(
                rack.now.as_millisecond() % 5000 < step_ms,
                "{} at {}",
                polled(&rack).len(),
                rack.now
            );
            seen.extend(polled(&rack));
        }
        rack.settle();
    }
    assert_eq!(seen.len(), 40);
}

/// Invariant (bmc): A repaired BMC is seen within 90 s among up to 1350 silent ones, and at once
/// when an operator asks.
#[test]
fn an_operator_who_used_or_wants_a_silent_bmc_has_it_polled_at_once() {
    for event in [Event::PowerMayHaveChanged, Event::Retry] {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::Deployed);
        for _ in 0..6 {
            while bench.running.is_none() {
                bench.pass(1);
            }
            bench.done(Err(passing()));
        }
        bench.pass(1);
        assert!(bench.running.is_none());
        bench.send(event);
        assert!(matches!(bench.running, Some((_, Operation::PollPower))));
    }
}

/// Lets time pass until the BMC is polled, and returns the seconds.
fn until_polled(bench: &mut Bench) -> usize {
    let mut seconds = 0;
    while bench.running.is_none() {
        bench.pass(1);
        seconds += 1;
    }
    seconds
}

/// Invariant (bmc): The end of a BMC's trouble is seen within 90 s among up to 1350 BMCs in
/// trouble; refused credentials are not sent meanwhile.
#[test]
fn trouble_with_a_bmc_is_shown_and_its_end_is_seen_within_90_seconds_whatever_it_was() {
    for trouble in [passing, lasting] {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::Deployed);
        for _ in 0..8 {
            assert!(until_polled(&mut bench) <= 90);
            bench.done(Err(trouble()));
            let why = trouble().message;
            assert_eq!(bench.message(), format!("installed; its power is not known: {why}"));
        }
        assert!(until_polled(&mut bench) <= 90);
        bench.done(Ok(Outcome::Power(PowerState::On)));
        assert_eq!(bench.message(), "installed");
    }
}

#[test]
fn an_available_machine_is_called_kept_off_only_when_it_was_seen_off() {
    let mut bench = Bench::new();
    let available = NodeSpec { goal: Goal::Available, ..spec() };
    bench.send(Event::Spec(available.into()));
    assert_eq!(bench.message(), "nothing is served to it; its power is not known yet");
    until_polled(&mut bench);
    bench.done(Err(passing()));
    assert!(bench.message().contains("its power is not known: "), "{}", bench.message());
    until_polled(&mut bench);
    bench.done(Ok(Outcome::Power(PowerState::Off)));
    assert_eq!(bench.message(), "kept off; nothing is served to it");
}

/// Invariant (fair): A silent BMC keeps no other machine waiting.
#[test]
fn the_patience_with_a_poll_counts_from_its_turn_and_not_from_when_it_was_due() {
    let mut rack = silent_site(40);
    rack.now = rack.now.checked_add(SignedDuration::from_secs(300)).unwrap();
    rack.tick();
    // The holders keep their permits for hours; the others wait, and no operation is cancelled.
    for _ in 0..3 {
        rack.now = rack.now.checked_add(SignedDuration::from_hours(1)).unwrap();
        let waits = |n: &usize| {
            let node = rack.executor.fleet().node(&name(*n)).unwrap();
            node.waits_to_poll().is_some() && node.running.is_none()
        };
        assert_eq!((0..40).filter(waits).count(), 40 - PLACES / 4);
        rack.world.requested.clear();
        rack.tick();
        let is_cancel = |requested: &&Requested| matches!(requested, Requested::Cancel(_));
        assert_eq!(rack.world.requested.iter().filter(is_cancel).count(), PLACES / 4);
    }
}

#[test]
fn a_poll_that_does_not_end_is_cut_within_a_minute_whatever_the_power_timeout_is() {
    let mut bench = Bench::with_spec();
    bench.change(|spec| spec.timeouts.power = Duration::from_hours(24 * 7));
    bench.go_to(Phase::Deployed);
    until_polled(&mut bench);
    let (at, what) = bench.node.next_wake().unwrap();
    assert_eq!(what, "the BMC's answer");
    assert!(at.duration_since(bench.now) <= SignedDuration::from_mins(1), "{at}");
}

#[test]
fn a_node_that_waits_for_its_poll_is_not_woken_for_it() {
    let mut rack = silent_site(40);
    rack.now = rack.now.checked_add(SignedDuration::from_secs(300)).unwrap();
    rack.tick();
    let due = rack.executor.fleet().due(rack.now);
    assert!(due.is_empty(), "{due:?}");
}

#[test]
fn new_nodes_that_want_nothing_are_polled_one_after_the_other_and_those_to_be_installed_at_once() {
    let mut rack = Rack::new(200, POLICY);
    for n in 0..100 {
        rack.specs.get_mut(&name(n)).unwrap().goal = Goal::Unmanaged;
    }
    rack.scan_only();
    let hosts = polled(&rack);
    let installs = hosts.iter().filter(|at| **at >= host(100)).count();
    assert_eq!(installs, POLICY.polls_max.min(100) - (hosts.len() - installs));
    assert!(hosts.len() - installs <= 1, "{hosts:?}");
}

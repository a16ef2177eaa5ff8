//! Random histories: every kind of event in every order, against the reference in `site.rs`.
//!
//! `HISTORY_EVENTS=` sets the number of events; `HISTORY_SEED=` plays one history again and prints
//! it. Each run plays other seeds than the last; `HISTORY_SEED_BASE=` plays those of another run
//! again.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a run says how long it was, and with which seed it broke"
)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use jiff::SignedDuration;

use crate::{
    lifecycle::Event,
    model::{
        boot::{BootStage, Fetch},
        callback::Call,
        problem::Problem,
        spec::{BootCheck, DeployRamdisk, Goal, WantedPower},
        status::Phase,
    },
};

use super::{site::Site, support::*};

const EVENTS_DEFAULT: u64 = 200_000;
const EVENTS_PER_HISTORY: u64 = 400;

fn call(site: &mut Site) {
    let body = match site.dice.roll(10) {
        0..=2 => lookup(),
        3 | 4 => deploy_info(""),
        8 => ironic_target(),
        5 if site.dice.chance(50) => completed(""),
        5 => compared(),
        6 if site.faults && site.dice.chance(30) => {
            site.dice.pick(&[deploy_info("trouble"), completed("trouble"), differing()]).clone()
        }
        7 if site.faults && site.dice.chance(30) => {
            let Call::Lookup(mut body) = lookup() else { unreachable!() };
            match site.dice.roll(3) {
                0 => body.disks.push(disk()),
                1 => body.disks[0].size = IMAGE_BYTES - 1,
                _ => body.macs = vec!["52:54:00:00:00:77".parse().unwrap()],
            }
            Call::Lookup(body)
        }
        _ => Call::DeployState,
    };
    site.call(body);
}

fn port(port: u16) -> BootCheck {
    BootCheck::Tcp { port, address: None }
}

fn operator(site: &mut Site) {
    let problem = || vec![Problem::of_file("f", "empty")];
    match site.dice.roll(20) {
        0 => site.on[0] = !site.on[0],
        1 => site.on[1] = !site.on[1],
        2 => drop(site.send(Event::Approve)),
        3 => drop(site.send(Event::Retry)),
        4 => drop(site.send(Event::SpecProblems(problem()))),
        5 if site.dice.chance(30) => drop(site.send(Event::SpecClash(problem()))),
        6 => drop(site.send(Event::DirectoryLost("gone".into()))),
        7 if site.dice.chance(20) => drop(site.send(Event::SpecGone)),
        8 => {
            let value = site.dice.roll(1000).to_string();
            site.change(|spec| spec.redeploy = Some(value));
        }
        9 => site.change(|spec| spec.redeploy = None),
        10 => {
            let paused = site.dice.chance(30);
            site.change(|spec| spec.paused = paused);
        }
        11 => {
            let goals = [Goal::Deployed, Goal::Deployed, Goal::Available, Goal::Unmanaged];
            let goal = *site.dice.pick(&goals);
            site.change(|spec| spec.goal = goal);
        }
        12 if site.dice.chance(30) => {
            let digits = site.dice.roll(3).to_string().repeat(64);
            site.change(|spec| {
                spec.image.checksum = format!("sha256:{digits}").parse().unwrap();
            });
        }
        13 if site.dice.chance(20) => {
            let host = if site.dice.chance(50) { "192.0.2.20" } else { "192.0.2.21" };
            site.change(|spec| spec.bmc.as_mut().unwrap().move_to(host));
        }
        14 if site.dice.chance(20) => {
            let mac = if site.dice.chance(50) { "52:54:00:00:00:01" } else { "52:54:00:00:00:02" };
            site.change(|spec| spec.boot.macs = vec![mac.parse().unwrap()]);
        }
        15 => {
            let minutes = 1 + site.dice.roll(60);
            site.change(|spec| {
                spec.timeouts.ramdisk = std::time::Duration::from_secs(60 * minutes);
            });
        }
        18 => {
            let ports = [BootCheck::None, port(22), port(80)];
            let check = site.dice.pick(&ports).clone();
            site.change(|spec| spec.boot_check = check);
        }
        16 => {
            let powers = [WantedPower::On, WantedPower::Off, WantedPower::Ignore];
            let power = *site.dice.pick(&powers);
            site.change(|spec| spec.power = power);
        }
        17 if site.dice.chance(20) => {
            let ramdisks = [DeployRamdisk::Hostler, DeployRamdisk::Ironic];
            let ramdisk = *site.dice.pick(&ramdisks);
            site.change(|spec| {
                spec.boot.ramdisk = ramdisk;
                spec.boot.require_chap = ramdisk == DeployRamdisk::Hostler;
            });
        }
        _ => site.change(|_| {}),
    }
}

fn fetch(site: &mut Site) {
    let stage = if site.dice.chance(50) { BootStage::Menu } else { BootStage::Kernel };
    let fetch = Fetch {
        refused_times: 0,
        unknown_mac: None,
        node: spec().name,
        stage,
        path: "x".into(),
        peer: RAMDISK,
        sent_bytes: 1,
        complete: true,
    };
    drop(site.send(Event::Fetched(fetch)));
}

fn random_event(site: &mut Site) {
    if site.spec.is_none() {
        // A forgotten node gets no event but a new spec.
        return site.change(|_| {});
    }
    match site.dice.roll(100) {
        0..=39 => site.advance_clock(),
        40..=74 => call(site),
        75..=78 => fetch(site),
        79 => {
            let hours = site.dice.roll(72);
            site.set_clock(3600 * (i64::try_from(hours).unwrap() - 36));
        }
        80..=96 => operator(site),
        _ => site.crash(),
    }
}

/// Once the trouble stops, the node comes to rest where it should within its deadlines.
fn settle(site: &mut Site) {
    site.faults = false;
    site.on = [false; 2];
    site.change(|old| *old = spec());
    site.change(|spec| spec.redeploy = Some("the-last-word".into()));
    drop(site.send(Event::Approve));
    drop(site.send(Event::Retry));
    let start = site.now;
    for _ in 0..2000 {
        if site.node.phase() == Phase::Deployed && site.running.is_none() {
            let took = site.now.duration_since(start);
            assert!(took < SignedDuration::from_hours(12), "took {took:?}");
            return;
        }
        if site.running.is_none() {
            for body in [lookup(), deploy_info(""), Call::DeployState, compared()] {
                site.call(body);
            }
        }
        site.advance_clock();
    }
    panic!("never settled: {:?}", site.node.record().state);
}

fn play(seed: u64, trace: bool) {
    let mut site = Site::new(seed);
    site.trace = trace;
    site.change(|_| {});
    for _ in 0..EVENTS_PER_HISTORY {
        random_event(&mut site);
    }
    settle(&mut site);
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Invariant (consent): In every history a disk is written only with consent.
///
/// Invariant (attempt): A node runs one operation at a time; a clean-up waits until a cancelled
/// write has stopped.
///
/// Invariant (attempt): A stale result changes nothing.
///
/// Invariant (attempt): Once trouble stops, every node settles.
#[test]
fn no_history_breaks_a_rule() {
    if let Some(seed) = number("HISTORY_SEED") {
        return play(seed, true);
    }
    let histories = number("HISTORY_EVENTS").unwrap_or(EVENTS_DEFAULT) / EVENTS_PER_HISTORY;
    let base = number("HISTORY_SEED_BASE").unwrap_or_else(|| fastrand::u64(..1 << 40));
    for seed in (0..histories / 2).chain((base..).take(usize::try_from(histories / 2).unwrap())) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| play(seed, false))) {
            eprintln!("history {seed} broke a rule; see it with HISTORY_SEED={seed}");
            resume_unwind(panic);
        }
    }
    println!(
        "histories: {histories} seeds, half of them from {base} on, {} events, 0 violations",
        histories * EVENTS_PER_HISTORY
    );
}

//! The agent is killed at random moments of real deploys, and started again: every machine ends
//! installed, in one attempt, and without leftovers.
//!
//! `KILLS=` sets the number of kills (3); `KILL_SEED=` repeats a run's moments. The test prints
//! each kill's circumstances on standard error.

use std::{
    env, fs,
    io::{self, Write as _},
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use hostler::model::status::{Phase, Status};

use crate::{
    disks::{self, Before},
    moments::{Moment, POLL_INTERVAL, Place},
    rack::Machine,
    site::{BOOT_LIMIT, Site},
};

const KILLS_DEFAULT: usize = 3;
const KILLS_PER_DEPLOY: usize = 4;
/// Enough that the machines' writes take some seconds.
const NOISE_MIB: usize = 150;
const FIRMWARE: [&str; 2] = ["bios", "uefi"];
/// The time until the agent starts again, in ms.
const PAUSE_MS: RangeInclusive<u64> = 0..=5000;
/// One pause in so many is longer than a ramdisk waits between two calls, and perhaps than a BMC
/// keeps a silent session (60 s).
const LONG_PAUSE_ODDS: u8 = 6;
const LONG_PAUSE_MS: RangeInclusive<u64> = 16_000..=70_000;
/// Longest wait for the fetch of the module; a machine that waits there already does not delay the
/// kill.
const MODULE_LIMIT: Duration = Duration::from_secs(2);
/// A kill in the few milliseconds of the fetch of pxelinux's own module leaves pxelinux repeating
/// requests for two minutes, and waiting for five before it resets the machine; the agent does not
/// know its node yet. The full run waits for that, the short one avoids the module.
const LIMIT: Duration = BOOT_LIMIT.saturating_add(Duration::from_secs(450));

/// Invariant (attempt): An agent killed at any moment goes on in the same attempt and leaves
/// nothing behind.
#[test]
fn an_agent_killed_at_random_moments_finishes_every_deploy() {
    let number = |name| env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let full = number("KILLS").map(|kills| usize::try_from(kills).unwrap());
    let kills = full.unwrap_or(KILLS_DEFAULT);
    let seed = number("KILL_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    tell(&format!("KILLS={kills} KILL_SEED={seed}"));
    let mut dice = Rng::with_seed(seed);
    let moments = Moment::choose(&mut dice, kills, FIRMWARE.len());
    for (number, moments) in (1..).zip(moments.chunks(KILLS_PER_DEPLOY)) {
        deploy(&mut dice, number, moments, full.is_none());
    }
}

/// Prints past the test's capture, because the seed must be known in every case.
fn tell(line: &str) {
    let mut stderr = io::stderr();
    writeln!(stderr, "random_kills: {line}").unwrap();
}

/// Deploys two machines at once, with kills at these moments.
fn deploy(dice: &mut Rng, number: usize, moments: &[Moment], spares_module: bool) {
    let mut site = Site::new(&format!("random_kills-{number}"), &FIRMWARE, "1G");
    let image = site.image("large.raw", NOISE_MIB);
    let machines = site.rack.machines();
    machines.iter().for_each(disks::fill);
    let second_disks: Vec<Before> =
        machines.iter().map(|machine| Before::of(&machine.disks[1].path)).collect();
    let began = Instant::now();
    for (machine, verify) in machines.iter().zip(["full", "node"]) {
        let rest = format!(
            "[image]\nsource = \"large.raw\"\nchecksum = \"sha256:{}\"\nverify = \"{verify}\"\n\
             [root_device]\nserial = \"{}\"\n",
            image.sha256, machine.disks[0].serial
        );
        site.write_spec(machine, &rest);
    }
    let mut moments = moments.to_vec();
    moments.sort();
    // The points of the kills, for each machine.
    let mut met = vec![Vec::new(); machines.len()];
    for moment in moments {
        moment.wait(&mut site, &machines, &image, LIMIT);
        if spares_module {
            wait_for_modules(&site, &machines);
        }
        site.kill_agent();
        let places: Vec<Place> =
            machines.iter().map(|machine| Place::of(&site, machine, &image)).collect();
        let pause = pause(dice, &places);
        tell(&format!("deploy {number}: {moment}: {places:?}, away for {pause:?}"));
        thread::sleep(pause);
        // The old agent's last status is not the new one's.
        for (machine, (met, place)) in machines.iter().zip(met.iter_mut().zip(places)) {
            drop(fs::remove_file(site.status_path(&machine.name)));
            met.push(place);
        }
        site.start_agent();
    }

    for (machine, met) in machines.iter().zip(&met) {
        let status = site.wait_for_phase(&machine.name, Phase::Deployed, LIMIT);
        let took_s = began.elapsed().as_secs();
        tell(&format!("deploy {number}: {} deployed after {took_s} s", machine.name));
        assert_deployed(&site, machine, &status, met);
        disks::assert_holds(machine, &image);
        disks::assert_zeros_after(machine, image.bytes);
        site.assert_runs_image(machine);
        site.assert_boots_local_disk(machine);
    }
    second_disks.iter().for_each(Before::assert_untouched);
    site.assert_no_target_in_use();
    assert!(site.stop_agent().success());
    for (machine, met) in machines.iter().zip(&met) {
        assert_bmc_is_settled(&site, machine, met);
    }
    assert_nothing_left(&site);
}

/// Waits until no machine is between pxelinux and the menu, where it fetches pxelinux's module.
fn wait_for_modules(site: &Site, machines: &[Machine]) {
    let deadline = Instant::now() + MODULE_LIMIT;
    let fetches = |machine: &Machine| {
        let log = site.agent_log();
        let last = |path| log.rfind(&format!("peer={} path=\"{path}", machine.address));
        last("pxelinux.0") > last("pxelinux.cfg/01-")
    };
    while machines.iter().any(fetches) && Instant::now() < deadline {
        thread::sleep(POLL_INTERVAL);
    }
}

/// Chooses the pause before the agent's next start: sometimes a long one, but not while a machine
/// depends on an answer.
fn pause(dice: &mut Rng, places: &[Place]) -> Duration {
    let long = dice.u8(..LONG_PAUSE_ODDS) == 0 && !places.iter().any(|place| place.netboots());
    Duration::from_millis(dice.u64(if long { LONG_PAUSE_MS } else { PAUSE_MS }))
}

/// Asserts an installation in one attempt, in which only kills during a write caused another write.
fn assert_deployed(site: &Site, machine: &Machine, status: &Status, met: &[Place]) {
    let name = &machine.name;
    assert!(status.ready && status.last_error.is_none() && status.attempt == 1, "{status:#?}");
    let record = site.record(name).unwrap();
    assert!(record.state.attempt().is_none(), "{name}: its record has a key");
    let cut_short = count(met, |place| (Place::Imaging..=Place::Head).contains(&place));
    let log = site.agent_log();
    let written =
        log.lines().filter(|line| line.contains("image written") && line.contains(name)).count();
    assert!((1..=1 + cut_short).contains(&written), "{name}: written {written} times, {met:?}");
}

/// Asserts that the machine is on, boots from its disk persistently, had no more power changes than
/// the kills explain, and has no open sessions but those of killed agents.
fn assert_bmc_is_settled(site: &Site, machine: &Machine, met: &[Place]) {
    let Machine { name, .. } = machine;
    assert!(site.rack.machine(name).is_on);
    // A machine that was fetching its boot files starts again.
    let repeated =
        |place: Place| place.fetches() || matches!(place, Place::PoweringOn | Place::Restarting);
    let switched_on = machine.times_switched_on();
    assert!(
        (2..=2 + count(met, repeated)).contains(&switched_on),
        "{name}: on {switched_on} times, {met:?}"
    );

    let events = machine.events();
    let sessions = |open| events.iter().filter(|event| event.open == Some(open)).count();
    let uses_bmc = |place| place <= Place::PoweringOn || place >= Place::Restarting;
    let left = sessions(true) - sessions(false);
    assert!(left <= count(met, uses_bmc), "{name}: {left} sessions left, {met:?}");
    let boot = site.rack.ipmitool(machine, &["chassis", "bootparam", "get", "5"]);
    assert!(boot.contains("apply to all future boots"), "{boot}");
    assert!(boot.contains("Force Boot from default Hard-Drive"), "{boot}");
}

/// Asserts that there are neither half-written nor set aside files, and no message that needs an
/// administrator.
fn assert_nothing_left(site: &Site) {
    for dir in ["nodes", "state"] {
        for file in fs::read_dir(site.file(dir)).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with('.') && !name.contains(".bad"), "{dir}/{name}");
        }
    }
    let log = site.agent_log();
    let bad = log.lines().find(|line| line.contains("ERROR") || line.contains("panicked"));
    assert_eq!(bad, None);
}

fn count(met: &[Place], matching: impl Fn(Place) -> bool) -> usize {
    met.iter().filter(|place| matching(**place)).count()
}

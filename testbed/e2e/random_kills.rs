//! The agent killed without warning at random moments of real deploys, and started again: every
//! machine ends installed, in one attempt, and nothing is left behind.
//!
//! `KILLS=` is how many there are, 3 unless told; `KILL_SEED=` repeats a run's moments. What each
//! kill met is told on standard error.

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
/// Enough that the machines are being written for some seconds.
const NOISE_MIB: usize = 150;
const FIRMWARE: [&str; 2] = ["bios", "uefi"];
/// How long the agent is away.
const PAUSE_MS: RangeInclusive<u64> = 0..=5000;
/// One in so many times it is away for longer than a ramdisk waits between two calls, and perhaps
/// than a BMC keeps a silent session (60 s).
const LONG_PAUSE_ODDS: u8 = 6;
const LONG_PAUSE_MS: RangeInclusive<u64> = 16_000..=70_000;
/// For the module to be fetched; a machine that stands there already is not waited for.
const MODULE_LIMIT: Duration = Duration::from_secs(2);
/// A kill in the few milliseconds of pxelinux's own module leaves it asking for two minutes and
/// standing for five before it resets the machine; nobody knows yet which node it is. The full run
/// waits for that, the short one spares the module.
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

/// Past the test's own capture: the seed must be known however the run ends.
fn tell(line: &str) {
    let mut stderr = io::stderr();
    writeln!(stderr, "random_kills: {line}").unwrap();
}

/// Two machines at once, disturbed at these moments.
fn deploy(dice: &mut Rng, number: usize, moments: &[Moment], spares_module: bool) {
    let mut site = Site::new(&format!("random_kills-{number}"), &FIRMWARE, "1G");
    let image = site.image("large.raw", NOISE_MIB);
    let machines = site.rack.machines();
    machines.iter().for_each(disks::fill);
    let second_disks: Vec<Before> =
        machines.iter().map(|machine| Before::of(&machine.disks[1].path)).collect();
    let began = Instant::now();
    for machine in &machines {
        let rest = format!(
            "[image]\nsource = \"large.raw\"\nchecksum = \"sha256:{}\"\n[root_device]\n\
             serial = \"{}\"\n",
            image.sha256, machine.disks[0].serial
        );
        site.write_spec(machine, &rest);
    }
    let mut moments = moments.to_vec();
    moments.sort();
    // The moments of the kills, for each machine.
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
        // The last status of the old agent is not the new one's.
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

/// Until no machine is between pxelinux and the menu, where it fetches pxelinux's module.
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

/// How long the agent is away: now and then for longer, but not while somebody depends on an
/// answer.
fn pause(dice: &mut Rng, places: &[Place]) -> Duration {
    let long = dice.u8(..LONG_PAUSE_ODDS) == 0 && !places.iter().any(|place| place.netboots());
    Duration::from_millis(dice.u64(if long { LONG_PAUSE_MS } else { PAUSE_MS }))
}

/// Installed in one attempt, in which the disk was written once but for the kills that cut a write
/// short.
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

/// On, from its disk and for ever, with no more power switched than the kills explain, and no
/// session left but those of killed agents.
fn assert_bmc_is_settled(site: &Site, machine: &Machine, met: &[Place]) {
    let Machine { name, .. } = machine;
    assert!(site.rack.machine(name).is_on);
    // A machine that was fetching its boot files begins again.
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

/// Neither half-written files nor set aside ones, and nothing an administrator would have to look
/// into.
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

//! A hundred machines, of which thirty misbehave in ten ways, under the agent's default limits: the
//! other seventy are installed as soon as without the thirty.

use std::collections::BTreeMap;

use hostler::{
    lifecycle::Policy,
    model::{ids::NodeName, status::Phase},
};

use crate::{
    dice::Dice,
    plan::Plan,
    watch::Violation,
    world::{IMAGE_BYTES, World, machine::Quirk},
};

const MACHINES: usize = 100;
const BAD: usize = 30;
/// The defaults of `limits.waiting` and `limits.imaging`.
const WAITING: usize = 50;
const IMAGING: usize = 4;
/// A stalled write keeps its permit for `timeouts.imaging_stall` and a few seconds, one whose
/// target dies for less. Of the thirty, ten do so, in three attempts each; the permits share the
/// delay.
const TOLERANCE_S: u64 = 10 * 3 * 190 / IMAGING as u64;
/// Longest run: both runs need less.
const GIVE_UP_S: u64 = 12 * 3600;

/// Plays the site with and without the thirty, and prints the numbers.
pub(crate) fn compare() -> Vec<Violation> {
    let (without, _) = play(false);
    let (with, given_up) = play(true);
    // The order of machines is random: the first one installed is compared with the first, the last
    // with the last.
    let sorted = |times: BTreeMap<NodeName, u64>| {
        let mut times: Vec<u64> = times.into_values().collect();
        times.sort_unstable();
        times
    };
    let (without, with) = (sorted(without), sorted(with));
    let last = |times: &[u64]| times.last().copied().unwrap_or(0);
    let later = with.iter().zip(&without).map(|(with, without)| with.saturating_sub(*without));
    let worst = later.max().unwrap_or(0);
    println!(
        "sim: {} good machines are installed in {} s; beside {BAD} bad ones, of which {given_up} \
         are given up, {} in {} s; no one more than {worst} s later, {TOLERANCE_S} s allowed",
        without.len(),
        last(&without),
        with.len(),
        last(&with),
    );
    let good = MACHINES - BAD;
    if with.len() == good && without.len() == good && worst <= TOLERANCE_S {
        return Vec::new();
    }
    let rule = "a_failing_node_never_delays_another";
    let what = format!("image of {IMAGE_BYTES} bytes: see the numbers above");
    vec![Violation { rule, node: None, step: 0, what, timeline: Vec::new() }]
}

/// Plays a site; returns the time of each good machine's installation in seconds, and the number of
/// failed bad ones.
fn play(with_bad: bool) -> (BTreeMap<NodeName, u64>, usize) {
    let policy = Policy {
        attempts_max: WAITING,
        imagings_max: IMAGING,
        polls_max: 16,
        breaker: true,
        enforce_power: false,
    };
    let mut world = World::new(Plan::quiet(MACHINES, policy), Dice::new(7), false);
    let names: Vec<NodeName> = world.site.files.keys().cloned().collect();
    let is_bad = |n: usize| n % 10 < 3;
    for (n, name) in names.iter().enumerate() {
        world.site.machines[n].on = false;
        if is_bad(n) && with_bad {
            spoil(&mut world, n);
        } else if is_bad(n) {
            world.site.files.remove(name);
        }
    }
    let mut installed = BTreeMap::new();
    while world.site.t < GIVE_UP_S * 1000 && installed.len() < MACHINES - BAD {
        world.advance();
        let update = world.site.shown.values().filter(|status| status.phase == Phase::Deployed);
        let at = world.site.t / 1000;
        for status in update {
            if !installed.contains_key(&status.node) {
                installed.insert(status.node.clone(), at);
            }
        }
    }
    let given_up = world.site.shown.values().filter(|status| status.phase == Phase::Failed).count();
    (installed, given_up)
}

/// Makes the n-th machine misbehave in one of ten ways.
fn spoil(world: &mut World, n: usize) {
    let machine = &mut world.site.machines[n];
    match n / 10 {
        0 => machine.faults.silent_until = u64::MAX,
        1 => machine.faults.slow_until = u64::MAX,
        2 => machine.faults.idle_until = u64::MAX,
        3 => machine.quirk = Quirk::NeverNetboots,
        4 => machine.quirk = Quirk::RamdiskError,
        5 => machine.quirk = Quirk::StalledWrite,
        6 => machine.quirk = Quirk::TargetDies,
        7 => machine.quirk = Quirk::WrongDisks,
        8 => machine.quirk = Quirk::LateCompleted,
        _ => machine.quirk = Quirk::BootLoops,
    }
}

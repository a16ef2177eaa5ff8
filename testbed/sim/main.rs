//! The whole agent core against a simulated site, for at least a million steps: machines, BMCs,
//! ramdisks, operators, a network, a clock, a state directory, and an agent that is killed at any
//! point. A step is one event brought to the core.
//!
//! `./testbed/check sim` runs it. It first plays the seeds in `seeds`, which once failed, and then
//! others in order, from a number that differs each hour: `SIM_SEED_BASE=` repeats another run,
//! without the kept seeds. `SIM_STEPS=` sets the number of steps of the others; `SIM_SEED=` plays
//! one seed, and with `SIM_TRACE=1` prints all events. The last line is a summary; the exit code is
//! 1 if a rule was broken.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a simulation may fail like a test"
)]
#![expect(clippy::print_stdout, reason = "a run says what it found")]

mod crowd;
mod dice;
mod invariants;
mod ledger;
mod names;
mod plan;
mod play;
mod trace;
mod watch;
mod world;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;

use self::{play::Played, watch::Violation};

/// Steps of the seeds that are not kept: enough for a change of the core; a night has time for
/// fifty times as many.
const STEPS: u64 = 1_200_000;
/// Most violations that are shown in full.
const SHOWN_MAX: usize = 5;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn main() -> ExitCode {
    if let Some(seed) = number("SIM_SEED") {
        return sum_up(vec![play::play(seed, true)], Vec::new());
    }
    let steps = number("SIM_STEPS").unwrap_or(STEPS);
    let (kept, base) = match number("SIM_SEED_BASE") {
        Some(base) => (Vec::new(), base),
        None => (play::kept_seeds(), seed_base()),
    };
    let count = kept.len();
    println!("sim: {count} kept seeds, and those from {base} on; again with SIM_SEED_BASE={base}");
    let played = play_many(steps, &kept, base);
    let crowd = crowd::compare();
    let mut all = played;
    all.push(play::twice_the_same());
    sum_up(all, crowd)
}

/// The first of this hour's seeds: no two hours share a seed.
fn seed_base() -> u64 {
    let hours = Timestamp::now().as_second().div_euclid(3600);
    u64::try_from(hours).unwrap_or(0) * 1_000_000
}

/// Plays seeds on all cores: first the kept ones, then for so many steps those from `base` on.
fn play_many(steps: u64, kept: &[u64], base: u64) -> Vec<Played> {
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let take = || {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let at = usize::try_from(n).unwrap();
        let enough = done.load(Ordering::Relaxed) >= steps;
        let fresh = || (!enough).then(|| (base + n - kept.len() as u64, true));
        kept.get(at).map(|seed| (*seed, false)).or_else(fresh)
    };
    let work = || {
        let mut played = Vec::new();
        while let Some((seed, is_fresh)) = take() {
            let one = play::play(seed, false);
            for violation in &one.violations {
                println!("sim: seed {seed} breaks {}", violation.rule);
            }
            done.fetch_add(if is_fresh { one.steps } else { 0 }, Ordering::Relaxed);
            played.push(one);
        }
        played
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

fn sum_up(played: Vec<Played>, crowd: Vec<Violation>) -> ExitCode {
    let steps: u64 = played.iter().map(|one| one.steps).sum();
    let seeds = played.len();
    let found: Vec<(u64, Violation)> = played
        .into_iter()
        .flat_map(|one| one.violations.into_iter().map(move |violation| (one.seed, violation)))
        .chain(crowd.into_iter().map(|violation| (0, violation)))
        .collect();
    for (seed, violation) in found.iter().take(SHOWN_MAX) {
        show(*seed, violation);
    }
    let mut by_rule = std::collections::BTreeMap::<_, Vec<u64>>::new();
    for (seed, violation) in &found {
        by_rule.entry(violation.rule).or_default().push(*seed);
    }
    for (rule, mut seeds) in by_rule {
        let times = seeds.len();
        seeds.sort_unstable();
        seeds.dedup();
        debug_assert!(invariants::RULES.contains(&rule), "{rule} is not among the rules");
        println!("sim: {rule} is broken {times} times, by the seeds {seeds:?}");
    }
    println!("sim: {steps} steps, {seeds} seeds, {} violations", found.len());
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(seed: u64, violation: &Violation) {
    let Violation { rule, node, step, what, timeline } = violation;
    for line in timeline {
        println!("    {line}");
    }
    let node = node.as_ref().map_or("the site", |node| node.as_str());
    println!("sim: seed {seed} breaks {rule} at step {step}, {node}: {what}");
    println!("sim: play it again with SIM_SEED={seed} SIM_TRACE=1 ./testbed/check sim");
}

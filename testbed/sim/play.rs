//! Plays one seed: first with faults, and then the site must come to rest.

use hostler::model::{ids::NodeName, status::Phase};

use crate::{
    dice::Dice,
    invariants::settling,
    plan::Plan,
    watch::Violation,
    world::{LaterEdit, World},
};

/// Seeds that once broke a rule, one a line, with the fault.
const SEEDS: &str = include_str!("seeds");
/// Steps with faults in one seed, for each machine.
const STEPS_EACH: u64 = 250;
/// Most violations of one seed; more give no information.
const VIOLATIONS_MAX: usize = 3;
/// The time between two rounds of operators who release held nodes.
const ROUND_S: u64 = 1800;

/// The result of a played seed.
#[derive(Debug)]
pub(crate) struct Played {
    pub(crate) seed: u64,
    pub(crate) steps: u64,
    pub(crate) hash: u64,
    pub(crate) violations: Vec<Violation>,
}

/// The seeds kept in `seeds`.
pub(crate) fn kept_seeds() -> Vec<u64> {
    SEEDS
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| !word.starts_with('#'))
        .map(|word| word.parse().unwrap())
        .collect()
}

/// Plays a seed. A seed that breaks a rule is repeated with a trace.
pub(crate) fn play(seed: u64, traced: bool) -> Played {
    let played = play_once(seed, traced);
    if played.violations.is_empty() || traced { played } else { play_once(seed, true) }
}

fn play_once(seed: u64, traced: bool) -> Played {
    let mut dice = Dice::new(seed);
    let plan = Plan::of(seed, &mut dice);
    let trouble = STEPS_EACH * plan.machines as u64;
    let mut world = World::new(plan, dice, traced);
    while world.site.steps < trouble && world.site.watch.violations.len() < VIOLATIONS_MAX {
        world.advance();
    }
    if world.site.watch.violations.is_empty() {
        settle(&mut world);
    }
    let mut violations = std::mem::take(&mut world.site.watch.violations);
    violations.truncate(VIOLATIONS_MAX);
    Played { seed, steps: world.site.steps, hash: world.site.hash, violations }
}

/// Ends the faults, and checks that every node comes to rest in time where its spec wants it.
fn settle(world: &mut World) {
    world.site.come_to_rest();
    world.site.last_word();
    let (nodes, policy) = (world.site.machines.len(), world.site.plan.policy);
    let at_once = policy.attempts_max.min(policy.imagings_max);
    let name: NodeName = "bound".parse().unwrap();
    let bound = settling(&world.site.spec_for(&name, 0), nodes, at_once);
    let begin = world.site.t;
    let end = begin + u64::try_from(bound.as_millis()).unwrap();
    let mut round = begin + ROUND_S * 1000;
    while world.site.t < end && world.site.watch.violations.is_empty() {
        world.advance();
        if world.site.t >= round {
            if unsettled(world).is_empty() {
                break;
            }
            round += ROUND_S * 1000;
            world.do_edit(LaterEdit::LetGoOn);
        }
    }
    // A run that broke another rule has ended early.
    if !world.site.watch.violations.is_empty() {
        return;
    }
    for (node, why) in unsettled(world) {
        world.site.broken("settles", Some(&node), why);
    }
}

/// The nodes that are not where their spec wants them.
fn unsettled(world: &World) -> Vec<(NodeName, String)> {
    let Some(executor) = &world.executor else {
        return vec![("agent".parse().unwrap(), "the agent is not running".to_owned())];
    };
    let mut wrong = Vec::new();
    for name in world.site.files.keys() {
        let Some(node) = executor.fleet().node(name) else {
            wrong.push((name.clone(), "no such node".to_owned()));
            continue;
        };
        let status = node.status(world.site.now());
        // A system that called in vain does not call again.
        let in_vain = node.boot_missed();
        let there = matches!(status.phase, Phase::Deployed | Phase::Available | Phase::Unmanaged);
        let settled = (there || in_vain) && node.record().state.at_rest();
        if !settled {
            wrong.push((name.clone(), format!("{}: {}", status.phase.as_str(), status.message)));
        }
    }
    wrong
}

/// Plays the first seed twice, with the same events.
pub(crate) fn twice_the_same() -> Played {
    let (first, mut second) = (play_once(1, false), play_once(1, true));
    if first.hash != second.hash || first.steps != second.steps {
        let what = format!("{:x} and {:x}", first.hash, second.hash);
        second.violations.push(Violation {
            rule: "same_seed_same_run",
            node: None,
            step: 0,
            what,
            timeline: Vec::new(),
        });
    }
    second
}

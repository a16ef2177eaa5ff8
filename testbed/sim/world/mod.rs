//! A site: machines, their BMCs and ramdisks, the network, the spec directory and those who write
//! into it, the state directory, and a clock. Everything outside the core is in [`Site`], which is
//! the core's [`hostler::lifecycle::Effects`]; [`World`] brings the core what happens there, one
//! event after the other.

pub(crate) mod agent;
pub(crate) mod effects;
pub(crate) mod fate;
pub(crate) mod machine;
pub(crate) mod manual_power;
pub(crate) mod netboot;
pub(crate) mod operator;
pub(crate) mod ramdisk;
pub(crate) mod specs;
pub(crate) mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hostler::{
    lifecycle::{Event, Executor, Menu, Record},
    model::{
        callback::Reply,
        ids::{Digest, MacAddr, NodeName, OpId},
        secret::AttemptKey,
        status::Status,
    },
};
use jiff::Timestamp;

use crate::{
    dice::Dice,
    plan::Plan,
    trace,
    watch::{Violation, Watch},
};

use self::{
    agent::Directory,
    machine::Machine,
    operator::LaterEdit,
    ramdisk::{Message, Ramdisk},
    specs::File,
    work::{Job, JobKey},
};

/// 2026-11-22T12:00:00Z, in milliseconds.
const EPOCH_MS: i64 = 1_795_348_800_000;
/// Lines of the trace kept to explain a violation.
const TRACE_LINES: usize = 40;

/// Something that happens at its time.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// An operation makes its next move.
    Work { key: JobKey, id: u64, stamp: u64 },
    /// A machine's firmware has come up.
    Firmware { machine: usize, session: u64 },
    /// A machine has fetched this much of the deploy ramdisk, by the menu it was served.
    Fetching { machine: usize, session: u64, node: NodeName, key: AttemptKey, stage: u64 },
    /// A machine's own system has come up.
    SystemUp { machine: usize, session: u64 },
    /// A ramdisk does what it has to do.
    Ramdisk { id: usize, stamp: u64 },
    /// A call reaches the agent.
    Arrival(Box<Message>),
    /// An answer reaches its ramdisk.
    Answer { id: usize, reply: Reply },
    /// The spec directory is read.
    Scan,
    /// Fate has a whim.
    Whim,
    /// An operator does something planned.
    LaterEdit(LaterEdit),
    /// Somebody goes through the rack.
    Manual,
    /// The agent is started again.
    Start,
}

/// All that is not the core.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    /// Milliseconds since the beginning, as they really pass.
    pub(crate) t: u64,
    /// The error of the agent's clock, in milliseconds.
    pub(crate) skew_ms: i64,
    queue: BTreeMap<(u64, u64), Happening>,
    arranged: u64,
    /// No more trouble: the site is left to settle.
    pub(crate) calm: bool,
    pub(crate) machines: Vec<Machine>,
    pub(crate) ramdisks: Vec<Ramdisk>,
    pub(crate) bad_network_until: u64,
    pub(crate) jobs: BTreeMap<JobKey, Job>,
    pub(crate) jobs_begun: u64,
    pub(crate) requests: u64,
    /// Calls without an answer yet.
    pub(crate) open_requests: BTreeMap<u64, Option<usize>>,
    pub(crate) files: BTreeMap<NodeName, File>,
    pub(crate) directory: Directory,
    pub(crate) names: u64,
    /// The state directory: what outlives the agent.
    pub(crate) records: BTreeMap<NodeName, Record>,
    /// The file with the unclaimed installations.
    pub(crate) unclaimed: Option<String>,
    pub(crate) store_full_until: u64,
    /// Nodes whose last record could not be written.
    pub(crate) unsaved: BTreeSet<NodeName>,
    /// The status files.
    pub(crate) statuses: BTreeMap<NodeName, Status>,
    /// The status files as they will be in a moment.
    pub(crate) shown: BTreeMap<NodeName, Status>,
    /// The boot menus that are served, and for which NICs.
    pub(crate) menus: BTreeMap<NodeName, (Menu, Vec<MacAddr>)>,
    /// Calls of effects until the agent is killed.
    pub(crate) fuse: Option<u64>,
    pub(crate) dead: bool,
    /// The kernels and ramdisks that were verified for somebody.
    pub(crate) verified: BTreeSet<Digest>,
    pub(crate) watch: Watch,
    pub(crate) steps: u64,
    /// The hash of everything that happened: the same for the same seed.
    pub(crate) hash: u64,
    trace: Option<VecDeque<(Option<NodeName>, String)>>,
}

impl Site {
    pub(crate) fn now(&self) -> Timestamp {
        let ms = EPOCH_MS + i64::try_from(self.t).unwrap() + self.skew_ms;
        Timestamp::from_millisecond(ms).unwrap()
    }

    pub(crate) fn after_ms(&mut self, from: u64, to: u64, happening: Happening) {
        let at = self.t + self.dice.between(from, to.max(from));
        self.arranged += 1;
        self.queue.insert((at, self.arranged), happening);
    }

    pub(crate) fn after_s(&mut self, from: u64, to: u64, happening: Happening) {
        self.after_ms(from * 1000, to * 1000, happening);
    }

    /// Whether something goes wrong that goes wrong so often in a thousand times where trouble is
    /// at its worst.
    pub(crate) fn mishap(&mut self, permille: u64) -> bool {
        !self.calm && self.dice.roll(80_000) < permille * self.plan.mishap
    }

    pub(crate) fn note(&mut self, node: Option<&NodeName>, text: impl FnOnce() -> String) {
        let (t, now) = (self.t, self.now());
        if let Some(trace) = &mut self.trace {
            let line = format!("{:>9}.{:03} {now} {}", t / 1000, t % 1000, text());
            if trace::prints() {
                trace::print(&format!("{} {line}", node.map_or("-", |node| node.as_str())));
            }
            trace.push_back((node.cloned(), line));
        }
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    /// The last that happened to a node, and to the whole site.
    fn timeline(&self, node: Option<&NodeName>) -> Vec<String> {
        let lines = self.trace.iter().flatten().rev();
        let of_node = lines.filter(|(of, _)| of.is_none() || node.is_none() || of.as_ref() == node);
        let mut timeline: Vec<String> =
            of_node.take(TRACE_LINES).map(|(_, line)| line.clone()).collect();
        timeline.reverse();
        timeline
    }

    /// A rule was broken.
    pub(crate) fn broken(&mut self, rule: &'static str, node: Option<&NodeName>, what: String) {
        let timeline = self.timeline(node);
        self.note(node, || format!("BROKEN: {rule}: {what}"));
        let (step, node) = (self.steps, node.cloned());
        self.watch.violations.push(Violation { rule, node, step, what, timeline });
    }
}

/// The core and all it deals with.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) executor: Option<Executor>,
    pub(crate) site: Site,
}

impl World {
    /// A site of this kind, which nobody has touched yet.
    pub(crate) fn new(plan: Plan, mut dice: Dice, traced: bool) -> Self {
        let has_bmc = |n: usize| !(plan.manual_power && n % 5 == 2);
        let machines = (0..plan.machines)
            .map(|n| Machine::new(n, has_bmc(n), dice.permille(200)))
            .collect::<Vec<_>>();
        let mut site = Site {
            plan,
            dice,
            t: 0,
            skew_ms: 0,
            queue: BTreeMap::new(),
            arranged: 0,
            calm: false,
            machines,
            ramdisks: Vec::new(),
            bad_network_until: 0,
            jobs: BTreeMap::new(),
            jobs_begun: 0,
            requests: 0,
            open_requests: BTreeMap::new(),
            files: BTreeMap::new(),
            directory: Directory::There,
            names: 0,
            records: BTreeMap::new(),
            unclaimed: None,
            store_full_until: 0,
            unsaved: BTreeSet::new(),
            statuses: BTreeMap::new(),
            shown: BTreeMap::new(),
            menus: BTreeMap::new(),
            fuse: None,
            dead: true,
            verified: BTreeSet::new(),
            watch: Watch::default(),
            steps: 0,
            hash: 0,
            trace: traced.then(VecDeque::new),
        };
        site.write_first_specs();
        let mut world = Self { executor: None, site };
        world.start();
        world.site.after_s(1, 60, Happening::Whim);
        if world.site.plan.manual_power {
            world.site.after_s(1, 60, Happening::Manual);
        }
        world
    }

    /// Lets the next thing happen.
    pub(crate) fn advance(&mut self) {
        let happening = self.site.queue.first_key_value().map(|(at, _)| *at);
        let wake = self.wake();
        match (happening, wake) {
            (Some((at, _)), Some(wake)) if wake < at => self.tick(wake),
            (None, Some(wake)) => self.tick(wake),
            (Some(key), _) => {
                let (at, _) = key;
                self.site.t = self.site.t.max(at);
                if let Some(happening) = self.site.queue.remove(&key) {
                    self.happen(happening);
                }
            }
            (None, None) => self.site.t += 1000,
        }
    }

    /// When the core wants to be woken, as time really passes.
    fn wake(&self) -> Option<u64> {
        let executor = self.executor.as_ref()?;
        let core = executor.fleet().next_wake().map(|at| {
            let real = at.as_millisecond() - EPOCH_MS - self.site.skew_ms;
            u64::try_from(real).unwrap_or(0).max(self.site.t + 10)
        });
        let retry = executor.has_unsaved().then_some(self.site.t + 1000);
        [core, retry].into_iter().flatten().min()
    }

    fn tick(&mut self, at: u64) {
        self.site.t = self.site.t.max(at);
        let now = self.site.now();
        let Some(executor) = &mut self.executor else { return };
        let due = executor.fleet().due(now);
        self.site.note_step(due.len().max(1) as u64, 1);
        executor.tick(now, &mut self.site);
        self.check();
    }

    fn happen(&mut self, happening: Happening) {
        let site = &mut self.site;
        match happening {
            Happening::Work { key, id, stamp } => {
                if let Some((node, event)) = site.work(&key, id, stamp) {
                    self.bring_stale(&node, &event);
                    self.bring(&node, event);
                }
            }
            Happening::Firmware { machine, session } => site.firmware(machine, session),
            Happening::Fetching { machine, session, node, key, stage } => {
                let event = site.fetching(machine, session, &node, key, stage);
                if let Some(event) = event.filter(|_| self.executor.is_some()) {
                    self.bring(&node, event);
                }
            }
            Happening::SystemUp { machine, session } => site.system_up(machine, session),
            Happening::Ramdisk { id, stamp } => site.ramdisk_acts(id, stamp),
            Happening::Arrival(message) => {
                // Nobody listens while the agent is dead.
                if self.executor.is_some() {
                    let (node, event) = site.event_of(*message);
                    self.bring(&node, event);
                }
            }
            Happening::Answer { id, reply } => site.ramdisk_hears(id, &reply),
            Happening::Scan => self.scan(),
            Happening::Whim => self.whim(),
            Happening::LaterEdit(edit) => self.do_edit(edit),
            Happening::Manual => site.operator_comes(),
            Happening::Start => self.start(),
        }
    }

    /// Now and then, before the end of an operation, the end of another one that does not run.
    fn bring_stale(&mut self, node: &NodeName, event: &Event) {
        let Event::Done { op, outcome } = event else { return };
        if self.site.dice.permille(30) {
            let op = OpId(if self.site.dice.permille(500) { op.0 + 1 } else { op.0 - 1 });
            self.bring(node, Event::Done { op, outcome: outcome.clone() });
        }
    }

    /// Brings one event to the core.
    pub(crate) fn bring(&mut self, node: &NodeName, event: Event) {
        let Some(executor) = &mut self.executor else { return };
        let site = &mut self.site;
        site.note_step(1, event_number(&event));
        site.note(Some(node), || shorten(&format!("{event:?}")));
        let stale = site.stale_check(executor, node, &event);
        site.judge_event(node, &event);
        let request =
            if let Event::Callback { request, .. } = &event { Some(*request) } else { None };
        executor.step(site.now(), node, event, site);
        if let (Some(before), Some(after)) = (stale, executor.fleet().node(node))
            && !site.dead
            && before != without_clock(after.record(), &before)
        {
            site.broken("stale_result_changes_nothing", Some(node), "it did".to_owned());
        }
        if let Some(request) = request.filter(|_| !site.dead && !executor.is_unsaved(node))
            && site.open_requests.contains_key(&request)
        {
            site.broken("every_call_is_answered_once", Some(node), "no answer".to_owned());
        }
        self.check();
    }
}

impl Site {
    fn note_step(&mut self, events: u64, kind: u64) {
        self.steps += events;
        let word = self.t ^ kind << 56;
        self.mix(word);
    }
}

fn event_number(event: &Event) -> u64 {
    match event {
        Event::Spec(_) => 2,
        Event::MassChange(_) => 3,
        Event::SpecProblems(_) => 4,
        Event::SpecClash(_) => 5,
        Event::SpecGone => 6,
        Event::DirectoryLost(_) => 7,
        Event::Done { op, outcome } => 8 + op.0 * 64 + u64::from(outcome.is_ok()) * 32,
        Event::Progress { .. } => 9,
        Event::Callback { call, .. } => 10 + 64 * call.name().len() as u64,
        Event::Fetched(_) => 11,
        Event::Tick => 12,
        Event::Granted(_) => 13,
        Event::Approve => 14,
        Event::Retry => 15,
        Event::NetbootLost => 17,
        Event::PowerMayHaveChanged => 16,
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(180).collect()
}

/// A record but for what a clock that was set back moves, whatever event notices it.
fn without_clock(record: &Record, before: &Record) -> Record {
    let Record { deadline, not_before, since, power_forced_at, .. } = before;
    Record {
        deadline: *deadline,
        not_before: *not_before,
        since: *since,
        power_forced_at: *power_forced_at,
        ..record.clone()
    }
}

//! A site: machines, their BMCs and ramdisks, the network, the spec directory and its authors, the
//! state directory, and a clock. [`Site`] is everything outside of the core, and implements the
//! core's [`hostler::lifecycle::Effects`]; [`World`] brings the site's events to the core, one
//! after the other.

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

/// A scheduled event.
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
    /// A ramdisk makes its next step.
    Ramdisk { id: usize, stamp: u64 },
    /// A call reaches the agent.
    Arrival(Box<Message>),
    /// An answer reaches its ramdisk.
    Answer { id: usize, reply: Reply },
    /// The spec directory is read.
    Scan,
    /// A random fault occurs.
    Whim,
    /// An operator does something planned.
    LaterEdit(LaterEdit),
    /// An operator presses power buttons.
    Manual,
    /// The agent is started again.
    Start,
}

/// Everything outside of the core.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    /// The true time since the beginning, in milliseconds.
    pub(crate) t: u64,
    /// The error of the agent's clock, in milliseconds.
    pub(crate) skew_ms: i64,
    queue: BTreeMap<(u64, u64), Happening>,
    arranged: u64,
    /// Whether faults have ended, so that the site comes to rest.
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
    /// The records in the state directory.
    pub(crate) records: BTreeMap<NodeName, Record>,
    /// The file with the unclaimed installations.
    pub(crate) unclaimed: Option<String>,
    pub(crate) store_full_until: u64,
    /// Nodes whose last record could not be written.
    pub(crate) unsaved: BTreeSet<NodeName>,
    /// The status files.
    pub(crate) statuses: BTreeMap<NodeName, Status>,
    /// The status files that are about to be written.
    pub(crate) shown: BTreeMap<NodeName, Status>,
    /// The served boot menus, with their NICs.
    pub(crate) menus: BTreeMap<NodeName, (Menu, Vec<MacAddr>)>,
    /// Calls of effects until the agent is killed.
    pub(crate) fuse: Option<u64>,
    pub(crate) dead: bool,
    /// The verified kernels and ramdisks.
    pub(crate) verified: BTreeSet<Digest>,
    pub(crate) watch: Watch,
    pub(crate) steps: u64,
    /// The hash of all events: the same for the same seed.
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

    /// Whether a failure happens that has this probability, in thousandths, at the highest rate.
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

    /// The last events of a node, or of the whole site.
    fn timeline(&self, node: Option<&NodeName>) -> Vec<String> {
        let lines = self.trace.iter().flatten().rev();
        let of_node = lines.filter(|(of, _)| of.is_none() || node.is_none() || of.as_ref() == node);
        let mut timeline: Vec<String> =
            of_node.take(TRACE_LINES).map(|(_, line)| line.clone()).collect();
        timeline.reverse();
        timeline
    }

    /// Records a broken rule.
    pub(crate) fn broken(&mut self, rule: &'static str, node: Option<&NodeName>, what: String) {
        let timeline = self.timeline(node);
        self.note(node, || format!("BROKEN: {rule}: {what}"));
        let (step, node) = (self.steps, node.cloned());
        self.watch.violations.push(Violation { rule, node, step, what, timeline });
    }
}

/// The core and its site.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) executor: Option<Executor>,
    pub(crate) site: Site,
}

impl World {
    /// Makes a fresh site with these properties.
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

    /// Plays the next event.
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

    /// The true time of the core's next wake-up.
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
                // A dead agent gets no event.
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

    /// Sometimes brings the end of an operation that does not run before a real one.
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

/// A record without the fields that every event adjusts after a backward change of the clock.
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

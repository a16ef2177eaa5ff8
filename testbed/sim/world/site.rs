//! A site as data: machines, spec files, ramdisks, operations, the state directory, a clock, and
//! what is to happen.
//!
//! The other files of this folder change it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use hostler::{
    lifecycle::{Menu, Operation, Record},
    model::{
        callback::{Call, Reply, Then},
        fault::Fault,
        ids::{Digest, MacAddr, NodeName, OpId},
        secret::{AttemptKey, BootToken},
        spec::NodeSpec,
        status::Status,
    },
};
use jiff::Timestamp;

use super::machine::{Device, Machine};
use crate::{
    dice::Dice,
    plan::Plan,
    trace,
    watch::{Violation, Watch},
};

/// 2026-11-22T12:00:00Z, in milliseconds.
pub(super) const EPOCH_MS: i64 = 1_795_348_800_000;
/// Lines of the trace kept to explain a violation.
const TRACE_LINES: usize = 40;

/// A scheduled event.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// An operation makes its next step.
    Work { key: JobKey, id: u64, stamp: u64 },
    /// A machine's firmware has come up.
    Firmware { machine: usize, session: u64 },
    /// A machine has fetched this much of the deploy ramdisk, by the menu it was served.
    Fetching { machine: usize, session: u64, node: NodeName, key: AttemptKey, stage: u64 },
    /// A machine that is served its local disk has fetched that menu.
    LocalMenu { machine: usize, session: u64, node: NodeName },
    /// A machine's own system has come up.
    SystemUp { machine: usize, session: u64 },
    /// An installed system calls, or a stranger that imitates one.
    BootCall { node: NodeName, token: BootToken, peer: IpAddr },
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

/// The caller that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Ramdisk(usize),
    /// A ramdisk that sends its log, and whether the agent may keep that.
    Log(usize, bool),
    /// An installed system, or a stranger that imitates one: only the token tells.
    System,
    /// A stranger that imitates a ramdisk.
    Stranger,
}

/// A planned act of an operator.
#[derive(Clone, Debug)]
pub(crate) enum LaterEdit {
    /// The next file of a playbook.
    Redeploy { node: NodeName, value: String },
    /// Repairs files and directory.
    Mend,
    /// Releases every node that waits for an operator.
    LetGoOn,
}

/// A spec file.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// The spec in the file, if it is readable.
    pub(crate) spec: NodeSpec,
    /// Whether the file is unreadable.
    pub(crate) broken: bool,
    /// The machine that the spec is for.
    pub(crate) home: usize,
}

/// The spec directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Directory {
    There,
    Lost,
    Empty,
}

/// An operation that runs.
#[derive(Debug)]
pub(crate) struct Job {
    pub(super) operation: Operation,
    pub(crate) spec: Arc<NodeSpec>,
    pub(super) machine: Option<usize>,
    pub(super) moves: VecDeque<Move>,
    pub(crate) cancelled: bool,
    /// A failure that shows in its next step.
    pub(super) failure: Option<Fault>,
    pub(super) writing: Option<(usize, usize)>,
    pub(crate) id: u64,
    /// Counts its scheduled steps: only the last one counts.
    pub(super) stamp: u64,
}

/// The kinds of steps of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    Poll,
    Off,
    On,
    /// The network, for one boot.
    Netboot,
    /// The BMC sets this boot device, persistently.
    Boot(Device),
    Hash,
    Login,
    Write,
    Verify,
    /// A probe of an installed system's port.
    Probe,
}

pub(crate) type JobKey = (NodeName, OpId);

/// A boot of the ramdisk.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a list of what it is, was told and said")]
pub(crate) struct Ramdisk {
    pub(crate) machine: usize,
    pub(super) session: u64,
    pub(crate) node: NodeName,
    pub(crate) key: AttemptKey,
    pub(super) stage: Stage,
    /// Counts changes of the stage, so that an old repetition has no effect.
    pub(super) stamp: u64,
    pub(super) iqn: String,
    pub(super) secret: String,
    /// Whether it has digests to compare its disk with.
    pub(super) compares: bool,
    /// The machine's end: a restart, or off.
    pub(super) then: Then,
    /// Whether this is Ironic's ramdisk, which calls only once, waits for the agent's call after
    /// the write, and has no secret.
    pub(super) is_ironics: bool,
    /// Whether it has reported that its disk is verified.
    pub(super) said_compared: bool,
    /// Whether it has reported completed, without an error.
    pub(super) said_completed: bool,
    /// Calls refused in a row.
    pub(super) refused: u32,
}

/// The progress of a ramdisk's boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Lookup,
    Export,
    Pass,
    Poll,
    Completed,
    Over,
}

/// A call in transit to the agent.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) ramdisk: Option<usize>,
    pub(crate) node: NodeName,
    pub(crate) peer: IpAddr,
    pub(crate) key: AttemptKey,
    pub(crate) call: Call,
}

/// All that is outside of the core.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    /// The true time since the beginning, in milliseconds.
    pub(crate) t: u64,
    /// The error of the agent's clock, in milliseconds.
    pub(crate) skew_ms: i64,
    pub(super) queue: BTreeMap<(u64, u64), Happening>,
    arranged: u64,
    /// Whether faults have ended, so that the site comes to rest.
    pub(crate) calm: bool,
    pub(crate) machines: Vec<Machine>,
    pub(crate) ramdisks: Vec<Ramdisk>,
    pub(crate) bad_network_until: u64,
    pub(crate) jobs: BTreeMap<JobKey, Job>,
    pub(crate) jobs_begun: u64,
    pub(crate) requests: u64,
    /// All attempts' tokens, the newest last.
    pub(crate) tokens: Vec<(NodeName, BootToken)>,
    /// Calls without an answer yet.
    pub(crate) open_requests: BTreeMap<u64, Caller>,
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
    /// A site of this kind, without spec files.
    pub(super) fn new(plan: Plan, mut dice: Dice, traced: bool) -> Self {
        let has_bmc = |n: usize| !(plan.manual_power && n % 5 == 2);
        let machines = (0..plan.machines)
            .map(|n| Machine::new(n, has_bmc(n), dice.permille(200)))
            .collect::<Vec<_>>();
        Self {
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
            tokens: Vec::new(),
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
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        let ms = EPOCH_MS + i64::try_from(self.t).unwrap() + self.skew_ms;
        Timestamp::from_millisecond(ms).unwrap()
    }

    pub(crate) fn after_ms(&mut self, from: u64, to: u64, happening: Happening) {
        let at = self.t + self.dice.between(from, to.max(from));
        self.arranged += 1;
        self.queue.insert((at, self.arranged), happening);
    }

    /// Lets something happen half a second later. No dice are rolled for it.
    pub(crate) fn soon(&mut self, happening: Happening) {
        self.arranged += 1;
        self.queue.insert((self.t + 500, self.arranged), happening);
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

    pub(super) fn note_step(&mut self, events: u64, kind: u64) {
        self.steps += events;
        let word = self.t ^ kind << 56;
        self.mix(word);
    }
}

//! Tests of damaged, truncated and missing files, which protect the disks of a site: nothing is
//! WIPED, and the log has each loss.
//!
//! `DAMAGE_ROUNDS` and `DAMAGE_SEED` repeat a run or make a longer one; the seed of each run is
//! printed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;

use super::*;
use crate::{
    lifecycle::{Effects, Event, Executor, Hold, Node, Operation, Outcome, ReceivedLog, Specs},
    model::{
        callback::Reply,
        disk::Disk,
        ids::{Digest, MacAddr, OpId},
        machine::Machine,
        power::PowerState,
        spec::{Checksum, Goal, NodeSpec},
        status::{HistoryEntry, Installed, Phase, Status},
    },
};

mod corpus;
mod single;
mod takeover;

const POLICY: Policy = Policy {
    attempts_max: 100,
    imagings_max: 100,
    polls_max: 100,
    breaker: true,
    enforce_power: false,
};
/// Rounds of damage, unless `DAMAGE_ROUNDS` says how many: `testbed/check damage` plays more.
const ROUNDS: u64 = 250;

fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// Makes a spec for this machine.
fn spec(node: &str, machine: u8) -> NodeSpec {
    let mut spec = NodeSpec { name: name(node), ..NodeSpec::example() };
    spec.redeploy = Some("first".into());
    spec.boot.macs = vec![MacAddr::new([0x52, 0x54, 0, 0, 0, machine])];
    if let Some(bmc) = &mut spec.bmc {
        bmc.move_to(format!("192.0.2.{machine}"));
    }
    spec
}

fn deployed(spec: &NodeSpec) -> Record {
    let disk = Disk { name: "vda".into(), size: 8 << 30, ..Disk::default() };
    let installed = Installed {
        digest: spec.digest(),
        written_digest: Some(spec.identity().written),
        netboot: None,
        image: Digest::of(b"image"),
        disk,
        at: now(),
        booted: None,
        booted_at: None,
        unexpected_netboots: 0,
        unexpected_netboot_at: None,
        address: None,
        system: None,
        root_uuid: None,
        root_partuuid: None,
        redeploy: spec.redeploy.clone(),
        machine: Some(Machine::named_by(spec)),
    };
    let entry = HistoryEntry { at: now(), phase: Phase::Deployed, message: "installed".into() };
    Record {
        spec: Some(Arc::new(spec.clone())),
        phase: Phase::Deployed,
        installed: Some(installed),
        history: vec![entry],
        ..Record::new(now())
    }
}

/// Effects with real files and simulated machines, which only have a power state.
struct FakeEffects {
    store: Store,
    files: StatusFiles,
    running: VecDeque<(NodeName, OpId, Operation)>,
    /// Written when the agent ends, to save time.
    shown: BTreeMap<NodeName, Status>,
}

impl Effects for FakeEffects {
    fn save(&mut self, node: &NodeName, record: &Record) -> Result<(), String> {
        self.store.save(node, record).map_err(|error| error.to_string())
    }

    fn save_site(&mut self, unclaimed: &UnclaimedInstalls) -> Result<(), String> {
        self.store.save_site(unclaimed).map_err(|error| error.to_string())
    }

    fn serve(&mut self, _: &Node) {}

    fn start(&mut self, node: &NodeName, op: OpId, operation: Operation, _: Arc<NodeSpec>) {
        self.running.push_back((node.clone(), op, operation));
    }

    fn cancel(&mut self, _: &NodeName, _: OpId) {}

    fn reply(&mut self, _: u64, _: Reply) {}

    fn keep_log(&mut self, _: &NodeName, _: ReceivedLog) {}

    fn wake_ramdisks(&mut self) {}

    fn show(&mut self, status: Status) {
        self.shown.insert(status.node.clone(), status);
    }

    fn log_phase(&mut self, _: &Status) {}

    fn forget(&mut self, node: &NodeName) {
        self.shown.remove(node);
        self.files.remove(node).unwrap();
        self.store.remove(node).unwrap();
    }
}

/// A simulated agent with these directories.
struct Agent {
    executor: Executor,
    effects: FakeEffects,
    losses: String,
    /// The nodes with an operation other than a poll.
    touched: BTreeSet<String>,
}

impl Agent {
    fn start(dir: &Path) -> Self {
        Self::start_after(dir, false)
    }

    /// Starts the agent, after another one has acted or not.
    fn start_after(dir: &Path, overtaken: bool) -> Self {
        let mut store = loop {
            // A process that another test just forks has the lock file open for a moment.
            match Store::open(dir.join("state")) {
                Err(StoreError::InUse { .. }) => thread::yield_now(),
                store => break store.unwrap(),
            }
        };
        let files = StatusFiles::new(dir.join("nodes"));
        let recalled = recall(&mut store, &files, POLICY, overtaken, now()).unwrap();
        let losses = [recalled.losses, recalled.notes].concat().join("\n");
        let mut effects =
            FakeEffects { store, files, running: VecDeque::new(), shown: BTreeMap::new() };
        let mut executor = Executor::new(recalled.fleet);
        executor.present(&mut effects);
        Self { executor, effects, losses, touched: BTreeSet::new() }
    }

    /// Scans the directory, and answers every poll with off.
    fn scan(&mut self, specs: &[NodeSpec]) {
        let specs: Specs =
            specs.iter().map(|spec| (spec.name.clone(), Ok(Arc::new(spec.clone())))).collect();
        for (name, event) in self.executor.compare(now(), specs, &BTreeMap::new()) {
            self.executor.step(now(), &name, event, &mut self.effects);
        }
        self.settle(now());
        let later = now().checked_add(SignedDuration::from_hours(2)).unwrap();
        self.executor.tick(later, &mut self.effects);
        self.settle(later);
    }

    fn settle(&mut self, at: Timestamp) {
        while let Some((name, op, operation)) = self.effects.running.pop_front() {
            if operation == Operation::PollPower {
                let outcome = Ok(Outcome::Power(PowerState::Off));
                let event = Event::Done { op, outcome };
                self.executor.step(at, &name, event, &mut self.effects);
            } else {
                self.touched.insert(name.to_string());
            }
        }
    }

    /// Stops the agent, and checks its status files.
    fn stop(self) {
        for status in self.effects.shown.values() {
            self.effects.files.write(status).unwrap();
        }
    }

    fn held_for(&self, node: &str) -> Option<Hold> {
        self.executor.fleet().node(&name(node))?.held_for()
    }
}

/// Makes the files of a site with every kind of protection: `a` is installed; `b` is, too, and has
/// drifted; `c` is held because of a lost record; `d` is held by the breaker; `e` has no spec any
/// more.
struct Site {
    dir: TempDir,
    files: BTreeMap<PathBuf, Vec<u8>>,
    specs: Vec<NodeSpec>,
}

impl Site {
    fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let parent = if shm.is_dir() { shm.to_owned() } else { env::temp_dir() };
        let dir = TempDir::new_in(parent).unwrap();
        fs::create_dir(dir.path().join("nodes")).unwrap();
        let mut specs: Vec<NodeSpec> =
            (1..).zip(["a", "b", "c", "d", "e"]).map(|(n, node)| spec(node, n)).collect();
        let mut store = Store::open(dir.path().join("state")).unwrap();
        for spec in &specs {
            store.save(&spec.name, &deployed(spec)).unwrap();
        }
        let lost = Record {
            record_lost: true,
            installed: None,
            phase: Phase::Held,
            ..deployed(&specs[2])
        };
        let lost = Record { history: Vec::new(), ..lost };
        store.save(&specs[2].name, &lost).unwrap();
        specs[3].redeploy = Some("second".into());
        let many = Record {
            too_many_changes: true,
            spec: Some(Arc::new(specs[3].clone())),
            ..deployed(&spec("d", 4))
        };
        store.save(&specs[3].name, &many).unwrap();
        store.save_site(&UnclaimedInstalls::default()).unwrap();
        store.complete_upgrade().unwrap();
        drop(store);

        specs[1].image.checksum = Checksum::Inline(Digest::of(b"another image"));
        let gone = specs.pop().unwrap();
        let mut agent = Agent::start(dir.path());
        assert_eq!(
            agent.losses,
            "status files of 5 nodes are missing, the first of them a; they are written again"
        );
        agent.scan(&specs);
        assert_eq!(agent.touched, BTreeSet::new());
        assert_eq!(agent.held_for("c"), Some(Hold::RecordLost));
        assert_eq!(agent.held_for("d"), Some(Hold::TooManyChanges));
        agent.stop();
        // The machine comes back under another name, beside a new one.
        specs.extend([NodeSpec { name: name("f"), ..gone }, spec("new", 9)]);
        let mut site = Self { dir, files: BTreeMap::new(), specs };
        site.files = site.read();
        let names: Vec<String> = site.files.keys().map(|path| shown(path)).collect();
        assert_eq!(
            names,
            [
                "a.status.toml",
                "b.status.toml",
                "c.status.toml",
                "d.status.toml",
                "_site.json",
                "a.json",
                "b.json",
                "c.json",
                "d.json",
                "lock"
            ]
        );
        site
    }

    fn read(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let dirs = ["nodes", "state"].map(|dir| fs::read_dir(self.dir.path().join(dir)).unwrap());
        let paths = dirs.into_iter().flatten().map(|entry| entry.unwrap().path());
        paths.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
    }

    /// Restores every file.
    fn restore(&self) {
        for (path, bytes) in self.read() {
            match self.files.get(&path) {
                None => fs::remove_file(&path).unwrap(),
                Some(whole) if *whole != bytes => fs::write(&path, whole).unwrap(),
                Some(_) => {}
            }
        }
        for (path, whole) in self.files.iter().filter(|(path, _)| !path.exists()) {
            fs::write(path, whole).unwrap();
        }
    }

    /// Does one kind of damage, and returns the damaged files.
    fn damage(&self, rng: &mut Rng) -> BTreeMap<PathBuf, &'static str> {
        let pick = |rng: &mut Rng| self.files.iter().nth(rng.usize(..self.files.len())).unwrap();
        let mut damaged = BTreeMap::new();
        match rng.u8(..8) {
            0 => {
                let (path, _) = pick(rng);
                fs::remove_file(path).unwrap();
                damaged.insert(path.clone(), "gone");
            }
            1 => {
                let (path, bytes) = pick(rng);
                fs::write(path, &bytes[..rng.usize(..bytes.len())]).unwrap();
                damaged.insert(path.clone(), "cut");
            }
            _ => {
                let anywhere = rng.bool();
                let (mut path, _) = pick(rng);
                for _ in 0..rng.u8(1..=3) {
                    if anywhere {
                        (path, _) = pick(rng);
                    }
                    let mut bytes = fs::read(path).unwrap();
                    let bit = rng.usize(..8 * bytes.len());
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    fs::write(path, bytes).unwrap();
                    damaged.insert(path.clone(), "flipped");
                }
            }
        }
        // A bit that is flipped twice is unchanged.
        damaged.retain(|path, _| fs::read(path).ok().as_ref() != self.files.get(path));
        damaged
    }
}

/// Checks an agent's start on these files. The new node may go on unless a loss may concern it.
fn check(agent: &Agent, may_be_held: bool, seed: u64) {
    let mut touched: Vec<&str> = agent.touched.iter().map(String::as_str).collect();
    if may_be_held {
        touched.retain(|node| *node != "new");
        assert_eq!(touched, [""; 0], "seed {seed}:\n{}", agent.losses);
    } else {
        assert_eq!(touched, ["new"], "seed {seed}:\n{}", agent.losses);
    }
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// Invariant (state): No flipped bit, truncation or missing file wipes a machine; the log names the
/// file.
#[test]
#[expect(clippy::print_stdout, reason = "how to repeat a run that failed")]
fn whatever_bits_are_flipped_cut_off_or_files_are_gone_no_machine_is_wiped_and_each_is_told() {
    let site = Site::new();
    let first = number("DAMAGE_SEED").unwrap_or_else(|| Rng::new().u64(..1 << 40));
    let rounds = number("DAMAGE_ROUNDS").unwrap_or(ROUNDS);
    println!("DAMAGE_SEED={first} DAMAGE_ROUNDS={rounds}");
    for seed in first..first + rounds {
        let mut rng = Rng::with_seed(seed);
        let damaged = site.damage(&mut rng);
        let mut agent = Agent::start(site.dir.path());
        for (path, how) in &damaged {
            // The lock file matters only if all other files are missing.
            let file = shown(path);
            assert!(
                file == "lock" || agent.losses.contains(&reported(&file, how)),
                "seed {seed}: {file} in\n{}",
                agent.losses
            );
        }
        agent.scan(&site.specs);
        let incomplete = damaged.keys().any(|path| shown(path) == "_site.json");
        check(&agent, incomplete, seed);
        if incomplete {
            assert_eq!(agent.held_for("new"), Some(Hold::RecordLost), "seed {seed}");
        }
        // A loss stays known.
        if rng.u8(..8) == 0 {
            agent.stop();
            let mut agent = Agent::start(site.dir.path());
            agent.scan(&site.specs);
            check(&agent, true, seed);
        }
        site.restore();
    }
}

/// The text by which a loss names its file.
fn reported(file: &str, how: &str) -> String {
    match file.strip_suffix(".status.toml") {
        Some(node) if how == "gone" => format!("the first of them {node};"),
        _ => file.to_owned(),
    }
}

//! A rack of simulated machines under one executor, with durable records and operations that end at
//! once.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    lifecycle::{
        Effects, Event, Executor, Fleet, Node, Operation, Outcome, Policy, ReceivedLog, Record,
        Specs, UnclaimedInstalls,
    },
    model::{
        callback::{Call, Reply},
        fault::Fault,
        ids::{NodeName, OpId},
        power::PowerState,
        problem::Problem,
        spec::{MachineId, NodeSpec},
        status::{Phase, Status},
    },
};

use super::support::*;

/// The site: files, machines and the core.
pub(super) struct Rack {
    pub(super) now: Timestamp,
    pub(super) policy: Policy,
    pub(super) executor: Executor,
    /// The spec directory.
    pub(super) specs: BTreeMap<NodeName, NodeSpec>,
    pub(super) broken: BTreeSet<NodeName>,
    pub(super) clashes: BTreeMap<NodeName, Vec<Problem>>,
    pub(super) world: World,
}

/// The executor's effects.
#[derive(Default)]
pub(super) struct World {
    /// The state directory. [`Rack::restart`] encodes and decodes its records.
    pub(super) records: BTreeMap<NodeName, Record>,
    pub(super) unclaimed: Option<String>,
    /// The status files.
    pub(super) statuses: BTreeMap<NodeName, Status>,
    /// The BMCs of machines that are on.
    pub(super) on: BTreeSet<String>,
    /// The running operations, each with its machine.
    pub(super) story: Vec<(String, Operation)>,
    /// All effects so far, in order.
    pub(super) requested: Vec<Requested>,
    /// The logged phases.
    pub(super) logged: Vec<Phase>,
    pub(super) running: VecDeque<Job>,
    /// Silent BMCs, each with its fault.
    pub(super) faults: BTreeMap<String, Fault>,
    /// Whether no record can be written.
    pub(super) disk_full: bool,
    /// Whether only the site file cannot be written.
    pub(super) site_file_stuck: bool,
    /// Effects until the agent is killed; later ones are lost.
    pub(super) fuse: Option<usize>,
    /// The BMCs of machines whose ramdisk never calls.
    pub(super) silent: bool,
    keys: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Requested {
    Save,
    Keep,
    Serve,
    Start(OpId),
    Cancel(OpId),
    Reply(u64, Reply),
    KeepLog,
    Wake,
    Forget,
}

pub(super) struct Job {
    pub(super) node: NodeName,
    pub(super) op: OpId,
    pub(super) operation: Operation,
    pub(super) host: String,
}

impl Effects for World {
    fn save(&mut self, node: &NodeName, record: &Record) -> Result<(), String> {
        if !self.lives() {
            return Ok(());
        }
        if self.disk_full {
            return Err("no space left".into());
        }
        self.requested.push(Requested::Save);
        self.records.insert(node.clone(), record.clone());
        Ok(())
    }

    fn save_site(&mut self, unclaimed: &UnclaimedInstalls) -> Result<(), String> {
        if !self.lives() {
            return Ok(());
        }
        if self.disk_full || self.site_file_stuck {
            return Err("no space left".into());
        }
        self.requested.push(Requested::Keep);
        self.unclaimed = Some(serde_json::to_string(unclaimed).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn serve(&mut self, _: &Node) {
        self.requested.push(Requested::Serve);
    }

    fn start(&mut self, node: &NodeName, op: OpId, operation: Operation, spec: Arc<NodeSpec>) {
        if !self.lives() {
            return;
        }
        self.requested.push(Requested::Start(op));
        let bmc = spec.bmc_address();
        assert!(bmc.is_some() || !operation.needs_bmc(), "{operation:?} without a BMC");
        let host = bmc
            .map_or_else(|| spec.boot.macs[0].to_string(), |bmc| bmc.host().unwrap().host.clone());
        let node = node.clone();
        assert!(self.running.iter().all(|job| job.node != node), "two operations at once");
        self.running.push_back(Job { node, op, operation, host });
    }

    fn cancel(&mut self, _: &NodeName, op: OpId) {
        self.requested.push(Requested::Cancel(op));
    }

    fn reply(&mut self, request: u64, reply: Reply) {
        self.requested.push(Requested::Reply(request, reply));
    }

    fn keep_log(&mut self, _: &NodeName, _: ReceivedLog) {
        self.requested.push(Requested::KeepLog);
    }

    fn wake_ramdisks(&mut self) {
        self.requested.push(Requested::Wake);
    }

    fn show(&mut self, status: Status) {
        if self.fuse == Some(0) {
            return;
        }
        self.statuses.insert(status.node.clone(), status);
    }

    fn log_phase(&mut self, status: &Status) {
        self.logged.push(status.phase);
    }

    fn forget(&mut self, node: &NodeName) {
        if !self.lives() {
            return;
        }
        self.requested.push(Requested::Forget);
        self.records.remove(node);
        self.statuses.remove(node);
    }
}

/// Encodes the site file.
fn kept(unclaimed: &UnclaimedInstalls) -> String {
    serde_json::to_string(unclaimed).unwrap()
}

impl World {
    fn lives(&mut self) -> bool {
        match &mut self.fuse {
            None => true,
            Some(0) => false,
            Some(calls) => {
                *calls -= 1;
                true
            }
        }
    }

    /// Performs an operation on the simulated machine.
    fn execute(&mut self, job: &Job) -> Result<Outcome, Fault> {
        if let Some(fault) = self.faults.get(&job.host) {
            return Err(fault.clone());
        }
        if !matches!(
            job.operation,
            Operation::PollPower | Operation::ConfirmPower | Operation::Prepare
        ) {
            self.story.push((job.host.clone(), job.operation.clone()));
        }
        let is_on = self.on.contains(&job.host);
        let mut switch = |state| match state {
            PowerState::On => self.on.insert(job.host.clone()),
            PowerState::Off => self.on.remove(&job.host),
        };
        match &job.operation {
            Operation::PollPower | Operation::ConfirmPower => {
                return Ok(Outcome::Power(if is_on { PowerState::On } else { PowerState::Off }));
            }
            Operation::Prepare => {
                self.keys = self.keys.wrapping_add(1);
                return Ok(prepared(key(self.keys)));
            }
            Operation::PowerOn => switch(PowerState::On),
            Operation::CleanUp => switch(PowerState::Off),
            Operation::Restart { wanted: state } | Operation::SetPower(state) => switch(*state),
            Operation::Image { .. }
            | Operation::Release(_)
            | Operation::ProbePort { .. }
            | Operation::NetbootFiles { .. } => true,
        };
        Ok(good_outcome(&job.operation))
    }

    /// The number of writes of this BMC's machine's disk.
    pub(super) fn writes(&self, host: &str) -> usize {
        let writes = |(at, operation): &&(String, Operation)| {
            at == host && matches!(operation, Operation::Image { .. })
        };
        self.story.iter().filter(writes).count()
    }
}

pub(super) fn name(n: usize) -> NodeName {
    format!("edge-{n:03}").parse().unwrap()
}

/// The BMC of a node's first machine.
pub(super) fn host(n: usize) -> String {
    format!("bmc-{n:03}")
}

pub(super) fn spec_of(n: usize) -> NodeSpec {
    let mut spec = spec();
    spec.name = name(n);
    spec.bmc.as_mut().unwrap().move_to(host(n));
    spec.boot.macs = vec![format!("52:54:00:00:{:02x}:{:02x}", n / 256, n % 256).parse().unwrap()];
    spec
}

impl Rack {
    /// Makes a rack with unread specs.
    pub(super) fn new(nodes: usize, policy: Policy) -> Self {
        let now = Bench::new().now;
        Self {
            now,
            policy,
            executor: Executor::new(Fleet::resume(
                policy,
                BTreeMap::new(),
                UnclaimedInstalls::default(),
                BTreeMap::new(),
                now,
            )),
            specs: (0..nodes).map(|n| (name(n), spec_of(n))).collect(),
            broken: BTreeSet::new(),
            clashes: BTreeMap::new(),
            world: World {
                unclaimed: Some(kept(&UnclaimedInstalls::default())),
                ..World::default()
            },
        }
    }

    /// Makes a rack of machines that were installed long ago.
    pub(super) fn deployed(nodes: usize) -> Self {
        Self::deployed_under(nodes, POLICY)
    }

    pub(super) fn deployed_under(nodes: usize, policy: Policy) -> Self {
        let mut rack = Self::new(nodes, policy);
        rack.scan();
        assert_eq!(rack.count(Phase::Deployed), nodes);
        rack.now = rack.now.checked_add(SignedDuration::from_hours(1)).unwrap();
        rack.tick();
        rack.settle();
        rack.world.story.clear();
        rack
    }

    /// Scans the directory and ends all operations that follow at once.
    pub(super) fn scan(&mut self) {
        self.scan_only();
        self.settle();
    }

    /// Scans the directory without ending operations.
    pub(super) fn scan_only(&mut self) {
        let read = |(name, spec): (&NodeName, &NodeSpec)| {
            let problems = || vec![Problem::of_file("f", "half-written")];
            let broken = self.broken.contains(name);
            (name.clone(), if broken { Err(problems()) } else { Ok(Arc::new(spec.clone())) })
        };
        let specs: Specs = self.specs.iter().map(read).collect();
        let clashes = self.clashes_with(&specs);
        let events = self.executor.compare(self.now, specs, &clashes);
        self.executor.step_all(self.now, events, &mut self.world);
    }

    /// The clashes that a test sets, and those of effective specs with the same machine.
    fn clashes_with(&self, specs: &Specs) -> BTreeMap<NodeName, Vec<Problem>> {
        let effective = self.executor.fleet().effective_specs(specs);
        let mut claims = BTreeMap::<MachineId, BTreeSet<&NodeName>>::new();
        for spec in &effective {
            claims.entry(spec.machine()).or_default().insert(&spec.name);
        }
        let doubles = claims.into_values().filter(|names| names.len() > 1).flatten();
        let problems = || vec![Problem::of_file("f", "one machine twice")];
        let clashes = doubles.map(|name| (name.clone(), problems()));
        clashes.chain(self.clashes.clone()).collect()
    }

    /// Makes the spec directory unreadable.
    pub(super) fn lose_directory(&mut self, reason: &str) {
        for (name, event) in self.executor.fleet().hold(reason) {
            self.executor.step(self.now, &name, event, &mut self.world);
        }
    }

    pub(super) fn edit(&mut self, n: usize, edit: impl FnOnce(&mut NodeSpec)) {
        edit(self.specs.get_mut(&name(n)).unwrap());
    }

    /// Changes `redeploy` of so many nodes.
    pub(super) fn redeploy(&mut self, nodes: impl IntoIterator<Item = usize>, value: &str) {
        for n in nodes {
            self.edit(n, |spec| spec.redeploy = Some(value.into()));
        }
    }

    pub(super) fn send(&mut self, n: usize, event: Event) {
        self.executor.step(self.now, &name(n), event, &mut self.world);
    }

    pub(super) fn tick(&mut self) {
        self.executor.tick(self.now, &mut self.world);
    }

    /// Lets time pass, minute by minute or in ten steps.
    pub(super) fn pass(&mut self, seconds: i64) {
        let end = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        let step = SignedDuration::from_secs((seconds / 10).max(60));
        while self.now < end {
            self.now = self.now.checked_add(step).unwrap().min(end);
            self.tick();
            self.settle();
        }
    }

    /// Ends the operation that has waited longest.
    pub(super) fn end_one(&mut self) -> bool {
        let Some(job) = self.world.running.pop_front() else { return false };
        let outcome = self.world.execute(&job);
        let event = Event::Done { op: job.op, outcome };
        self.executor.step(self.now, &job.node, event, &mut self.world);
        true
    }

    /// Ends all operations and plays every ramdisk until nothing changes.
    pub(super) fn settle(&mut self) {
        loop {
            while self.end_one() {}
            if self.world.silent || !self.let_ramdisks_call() {
                return;
            }
        }
    }

    pub(super) fn let_ramdisks_call(&mut self) -> bool {
        let mut moved = false;
        for node in self.executor.fleet().names() {
            let known = self.executor.fleet().node(&node).unwrap();
            let (phase, spec) = (known.phase(), known.spec().cloned());
            let Some(attempt) = known.record().state.attempt().cloned() else { continue };
            let calls = match phase {
                Phase::WaitingRamdisk => vec![lookup(), deploy_info("")],
                Phase::Switching => vec![Call::DeployState],
                Phase::WaitingCompleted => vec![completed("")],
                _ => continue,
            };
            for mut call in calls {
                match &mut call {
                    Call::Lookup(body) => body.macs.clone_from(&spec.as_ref().unwrap().boot.macs),
                    Call::PassDeployInfo(info) => info.iqn = format!("iqn.2026-11.hostler:{node}"),
                    _ => {}
                }
                let key = attempt.key.clone();
                let event = Event::Callback { request: 0, peer: RAMDISK, key, call };
                self.executor.step(self.now, &node, event, &mut self.world);
            }
            moved = true;
        }
        moved
    }

    /// Kills and restarts the agent, without a scan.
    pub(super) fn restart(&mut self) {
        let records = self.world.records.iter();
        let read = records.map(|(name, record)| (name.clone(), saved_and_read(record)));
        self.start_with(read.collect());
    }

    /// Restarts the agent after the loss of the state directory.
    pub(super) fn restart_without_records(&mut self) {
        self.world.records.clear();
        self.world.unclaimed = None;
        self.start_with(BTreeMap::new());
    }

    /// Restarts the agent with these records.
    pub(super) fn start_with(&mut self, records: BTreeMap<NodeName, Record>) {
        let unknown =
            |name: &NodeName| records.get(name).is_none_or(|record: &Record| record.spec.is_none());
        let statuses = self.world.statuses.iter().filter(|(name, _)| unknown(name));
        let recovered = statuses
            .filter_map(|(name, status)| Some((name.clone(), Some(status.installed.clone()?))))
            .collect();
        let records = records.into_iter().map(|(name, record)| (name, record.into())).collect();
        self.world.running.clear();
        let unclaimed =
            self.world.unclaimed.as_ref().map(|unclaimed| serde_json::from_str(unclaimed).unwrap());
        // A new state directory beside status files.
        let is_lost = !self.world.statuses.is_empty();
        let lost =
            || if is_lost { UnclaimedInstalls::lost() } else { UnclaimedInstalls::default() };
        let unclaimed = unclaimed.unwrap_or_else(lost);
        self.world.unclaimed = Some(kept(&unclaimed));
        self.executor =
            Executor::new(Fleet::resume(self.policy, records, unclaimed, recovered, self.now));
        self.executor.present(&mut self.world);
    }

    pub(super) fn node(&self, n: usize) -> &Node {
        self.executor.fleet().node(&name(n)).unwrap()
    }

    pub(super) fn phase(&self, n: usize) -> Phase {
        self.node(n).phase()
    }

    pub(super) fn status(&self, n: usize) -> Status {
        self.node(n).status(self.now)
    }

    /// Returns a condition's status and reason.
    pub(super) fn condition(&self, n: usize, kind: &str) -> Option<(String, String)> {
        let conditions = self.status(n).conditions;
        let found = conditions.into_iter().find(|condition| condition.kind == kind)?;
        Some((found.status, found.reason))
    }

    pub(super) fn count(&self, phase: Phase) -> usize {
        let fleet = self.executor.fleet();
        fleet.names().iter().filter(|name| fleet.node(name).unwrap().phase() == phase).count()
    }

    pub(super) fn writes(&self) -> usize {
        let image =
            |(_, operation): &&(String, Operation)| matches!(operation, Operation::Image { .. });
        self.world.story.iter().filter(image).count()
    }
}

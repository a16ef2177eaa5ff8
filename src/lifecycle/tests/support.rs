//! The harness of the core's tests: one node, a clock, and the simplest performance of its actions.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use jiff::{SignedDuration, Timestamp};

use crate::{
    lifecycle::{
        Action, Event, Fleet, Menu, Node, Operation, Outcome, Permit, Policy, PreparedImage,
        ReceivedLog, Record, UnclaimedInstalls,
    },
    model::{
        boot::{BootStage, Fetch},
        callback::{Call, Completed, DeployInfo, DeployState, DiskRange, Lookup, Reply},
        disk::Disk,
        fault::Fault,
        ids::{NodeName, OpId},
        power::PowerState,
        secret::{AttemptKey, Secret},
        spec::{BootCheck, NodeSpec},
        status::{Phase, Status},
    },
};

/// The limits of tests that are about something else.
pub(super) const POLICY: Policy = Policy {
    attempts_max: 100,
    imagings_max: 100,
    polls_max: 100,
    breaker: true,
    enforce_power: false,
};
pub(super) const IMAGE_BYTES: u64 = 64 << 20;
pub(super) const RAMDISK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 101));

/// The phases in which an attempt has its key.
pub(super) const WITH_KEY: [Phase; 6] = [
    Phase::PoweringOn,
    Phase::WaitingRamdisk,
    Phase::Imaging,
    Phase::Switching,
    Phase::WaitingCompleted,
    Phase::Restarting,
];

pub(super) fn spec() -> NodeSpec {
    let mut spec = NodeSpec::example();
    spec.image.checksum = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    spec
}

/// Adds a check of port 22 to a spec.
pub(super) fn check_port(spec: &mut NodeSpec) {
    spec.boot_check = BootCheck::Tcp { port: 22, address: None };
}

/// The outcome of a preparation.
pub(super) fn prepared(key: AttemptKey) -> Outcome {
    let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let image = PreparedImage {
        digest,
        disk_bytes: IMAGE_BYTES,
        root_uuid: None,
        root_partuuid: None,
        netboot: None,
        boot_token: None,
    };
    Outcome::Prepared { image, key, system_guid: None, stages: Vec::new() }
}

/// The outcome of imaging, without ranges to compare.
pub(super) fn imaged() -> Outcome {
    Outcome::Imaged {
        verify: Vec::new(),
        disk_bytes: disk().size,
        root_partuuid: None,
        stages: Vec::new(),
    }
}

/// The outcome of imaging, with ranges for the ramdisk to compare.
pub(super) fn imaged_unverified() -> Outcome {
    let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let verify = vec![DiskRange { from: 0, bytes: IMAGE_BYTES, digest, salt: None }];
    Outcome::Imaged { verify, disk_bytes: disk().size, root_partuuid: None, stages: Vec::new() }
}

pub(super) fn disk() -> Disk {
    Disk { name: "vda".into(), size: 8 << 30, serial: Some("root-1".into()), ..Disk::default() }
}

pub(super) fn lookup() -> Call {
    Call::Lookup(Lookup {
        macs: spec().boot.macs,
        disks_same_for_ms: None,
        system_uuid: None,
        system_serial: None,
        disks: vec![disk()],
        memory: 0,
        cpus: 1,
    })
}

pub(super) fn deploy_info(error: &str) -> Call {
    Call::PassDeployInfo(DeployInfo {
        address: Some(RAMDISK),
        port: 3260,
        lun: 0,
        iqn: "iqn.2026-11.hostler:edge-07".into(),
        chap_username: "user".into(),
        chap_password: Some(Secret::new("chap-secret".into())),
        error: error.into(),
        knows_salt: true,
    })
}

/// The target's description by Ironic's ramdisk.
pub(super) fn ironic_target() -> Call {
    Call::IronicDeployInfo(DeployInfo {
        address: Some(RAMDISK),
        port: 3260,
        lun: 1,
        iqn: "iqn.2026-11.hostler:edge-07".into(),
        chap_username: String::new(),
        chap_password: None,
        error: String::new(),
        knows_salt: false,
    })
}

pub(super) fn completed(error: &str) -> Call {
    Call::Completed(Completed { error: error.into(), ..Completed::default() })
}

/// A completed notice of a disk that differs from the image.
pub(super) fn differing() -> Call {
    Call::Completed(Completed { error: "it differs".into(), verified: true, verify_ms: 1234 })
}

/// The last evidence of a machine that boots the deploy ramdisk.
pub(super) fn ramdisk_fetched_by(peer: IpAddr) -> Fetch {
    Fetch {
        node: spec().name,
        stage: BootStage::Ramdisk,
        path: "initramfs".to_owned(),
        peer,
        sent_bytes: 1,
        complete: true,
        refused_times: 0,
        unknown_mac: None,
    }
}

pub(super) fn key(n: u8) -> AttemptKey {
    // Unlike every digest in these tests.
    AttemptKey::from_bytes(&std::array::from_fn(|i| if i % 2 == 0 { n } else { !n }))
}

pub(super) fn passing() -> Fault {
    Fault::passing(crate::model::fault::Step::Imaging, "Test", "it broke", "mend it")
}

pub(super) fn lasting() -> Fault {
    Fault::lasting(crate::model::fault::Step::Imaging, "Test", "it is wrong", "change it")
}

/// Encodes a record and decodes it, as the state directory does.
pub(super) fn saved_and_read(record: &Record) -> Record {
    serde_json::from_str(&serde_json::to_string(record).unwrap()).unwrap()
}

/// Passes an event to a node, and checks that settling the node again changes nothing.
pub(super) fn step(node: &mut Node, now: Timestamp, event: Event) -> Vec<Action> {
    let actions = node.step(now, event);
    // A forgotten node is not settled again.
    if !actions.contains(&Action::Forget) {
        let before = node.clone();
        let mut again = Vec::new();
        node.settle(now, &mut again);
        assert_eq!((&again, &*node), (&Vec::new(), &before), "it was not settled");
    }
    actions
}

/// A node with a clock and its last actions.
pub(super) struct Bench {
    pub(super) node: Node,
    pub(super) now: Timestamp,
    pub(super) running: Option<(OpId, Operation)>,
    /// The spec of the last operation.
    pub(super) started_for: Option<Arc<NodeSpec>>,
    pub(super) cancelled: Vec<OpId>,
    pub(super) forgotten: bool,
    pub(super) logs: Vec<ReceivedLog>,
    /// Whether the node gets no permit.
    pub(super) crowded: bool,
}

impl Bench {
    pub(super) fn new() -> Self {
        let now = "2026-11-22T12:00:00Z".parse().unwrap();
        let node = Node::new(spec().name, POLICY, now);
        Self {
            node,
            now,
            running: None,
            started_for: None,
            cancelled: Vec::new(),
            forgotten: false,
            logs: Vec::new(),
            crowded: false,
        }
    }

    /// A node with its spec, during its first poll.
    pub(super) fn with_spec() -> Self {
        let mut bench = Self::new();
        bench.send(Event::Spec(Arc::new(spec())));
        bench
    }

    pub(super) fn phase(&self) -> Phase {
        self.node.phase()
    }

    /// Passes an event to the node, and returns the reply of a callback.
    pub(super) fn send(&mut self, event: Event) -> Option<Reply> {
        let mut answer = None;
        let mut actions = step(&mut self.node, self.now, event);
        if let Some((permit, _)) = self.node.waits_to_poll() {
            actions.append(&mut step(&mut self.node, self.now, Event::Granted(permit)));
        }
        if !self.crowded
            && let Some((permit, _)) = self.node.waits_for()
        {
            actions.append(&mut step(&mut self.node, self.now, Event::Granted(permit)));
        }
        for action in actions {
            match action {
                Action::Start { op, operation, spec } => {
                    assert!(
                        self.running.is_none(),
                        "{operation:?} started while {:?} runs",
                        self.running
                    );
                    self.running = Some((op, operation));
                    self.started_for = Some(spec);
                }
                Action::Cancel(op) => self.cancelled.push(op),
                Action::Reply { reply, .. } => answer = Some(reply),
                Action::KeepLog(log) => self.logs.push(*log),
                Action::Forget => self.forgotten = true,
            }
        }
        answer
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut NodeSpec)) {
        let mut spec = NodeSpec::clone(self.node.spec().unwrap());
        change(&mut spec);
        self.send(Event::Spec(Arc::new(spec)));
    }

    pub(super) fn done(&mut self, outcome: Result<Outcome, Fault>) {
        let (op, _) = self.running.take().expect("an operation runs");
        self.send(Event::Done { op, outcome });
    }

    pub(super) fn call(&mut self, key: &AttemptKey, call: Call) -> Reply {
        if self.phase() == Phase::WaitingRamdisk {
            self.send(Event::Fetched(ramdisk_fetched_by(RAMDISK)));
        }
        self.call_unseen(key, call)
    }

    /// Makes a call from a machine that was not seen to fetch the deploy ramdisk.
    pub(super) fn call_unseen(&mut self, key: &AttemptKey, call: Call) -> Reply {
        let event = Event::Callback { request: 1, peer: RAMDISK, key: key.clone(), call };
        self.send(event).expect("every callback is answered")
    }

    pub(super) fn status(&self) -> Status {
        self.node.status(self.now)
    }

    pub(super) fn pass(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        self.send(Event::Tick);
    }

    /// Leads the node by successes from its present phase to `phase`.
    pub(super) fn go_to(&mut self, phase: Phase) {
        for _ in 0..20 {
            if self.phase() == phase {
                return;
            }
            self.good_step();
        }
        panic!("never came to {phase:?}, stuck in {:?}", self.node.record().state);
    }

    fn good_step(&mut self) {
        match (self.running.clone(), self.phase()) {
            (Some((_, operation)), _) => self.done(Ok(good_outcome(&operation))),
            (None, Phase::WaitingRamdisk) => {
                assert!(matches!(self.call(&key(1), lookup()), Reply::Lookup(_)));
                assert_eq!(self.call(&key(1), deploy_info("")), Reply::Accepted);
            }
            (None, Phase::Switching) => {
                assert_eq!(
                    self.call(&key(1), Call::DeployState),
                    Reply::State(DeployState::Release.into())
                );
            }
            (None, Phase::WaitingCompleted) => {
                assert_eq!(self.call(&key(1), completed("")), Reply::Accepted);
            }
            (None, _) => self.pass(60),
        }
    }

    /// Kills and restarts the agent, without a scan.
    pub(super) fn restart(&mut self) {
        let record = self.node.record().clone();
        self.resume(&record);
    }

    /// Restarts the agent with this record.
    pub(super) fn resume(&mut self, record: &Record) {
        self.node = Node::resume(spec().name, saved_and_read(record), POLICY, self.now);
        self.running = None;
    }

    /// Ends the node's next poll with `observed`.
    pub(super) fn poll(&mut self, observed: PowerState) {
        if self.running.is_none() {
            let (at, _) = self.node.next_wake().expect("a node at rest looks at the power state");
            self.now = self.now.max(at);
            self.send(Event::Tick);
        }
        let operation = self.running.as_ref().map(|(_, operation)| operation);
        assert!(
            matches!(operation, Some(Operation::PollPower | Operation::ConfirmPower)),
            "{operation:?}"
        );
        self.done(Ok(Outcome::Power(observed)));
    }

    pub(super) fn message(&self) -> String {
        self.node.status(self.now).message
    }

    pub(super) fn menu(&self) -> Menu {
        self.node.menu()
    }
}

pub(super) fn good_outcome(operation: &Operation) -> Outcome {
    match operation {
        Operation::PollPower | Operation::ConfirmPower => Outcome::Power(PowerState::Off),
        Operation::Prepare => prepared(key(1)),
        Operation::PowerOn => Outcome::PoweredOn,
        Operation::Image { .. } => imaged(),
        Operation::Release(_) => Outcome::Released,
        Operation::Restart { wanted } => Outcome::Restarted(*wanted),
        Operation::ProbePort { .. } => Outcome::PortAnswered { address: RAMDISK, ssh_banner: None },
        Operation::SetPower(wanted) => Outcome::PowerSet(*wanted),
        Operation::CleanUp => Outcome::CleanedUp,
        Operation::NetbootFiles { served, .. } => Outcome::NetbootFiles(served.clone()),
    }
}

/// A fleet without nodes.
pub(super) fn empty_fleet() -> Fleet {
    Fleet::resume(
        POLICY,
        BTreeMap::new(),
        UnclaimedInstalls::default(),
        BTreeMap::new(),
        Bench::new().now,
    )
}

/// Passes an event to a node of a fleet, and grants every poll at once.
pub(super) fn step_fleet(
    fleet: &mut Fleet,
    now: Timestamp,
    name: &NodeName,
    event: Event,
) -> Vec<Action> {
    let mut actions = fleet.step(now, name, event).unwrap();
    while let Some((name, permit @ Permit::Poll)) = fleet.next_permit() {
        actions.extend(fleet.step(now, &name, Event::Granted(permit)).unwrap());
    }
    actions
}

//! A record of the state directory, and a node that continues from it: record, NUL, script.
#![no_main]

use std::{fs, net::IpAddr, sync::LazyLock};

use hostler::{
    lifecycle::{Action, Event, Node, Operation, Outcome, Record, format_1},
    model::{
        boot::{BootStage, Fetch},
        callback::{Call, Completed, DeployInfo, Lookup},
        disk::Disk,
        fault::{Fault, Step},
        ids::OpId,
        power::PowerState,
        problem::Problem,
        secret::{AttemptKey, Secret},
    },
    store::Store,
};
use hostler_fuzz::{NOW, POLICY, SPEC, check_node, check_shown, halves, path, step};
use jiff::{SignedDuration, Timestamp};
use libfuzzer_sys::fuzz_target;

static STORE: LazyLock<Store> = LazyLock::new(|| Store::open(path("state")).unwrap());
const RAMDISK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 101));
const STEPS_MAX: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let (record, script) = match halves(bytes) {
        (Some(record), script) => (record, script),
        (None, record) => (record, &[][..]),
    };
    let read = serde_json::from_slice::<Record>(record).ok();
    let old = || format_1::record(serde_json::from_slice(record).ok()?).ok();
    let record = read.or_else(old).unwrap_or_else(|| damaged(record));
    live(Node::resume(SPEC.name.clone(), record, POLICY, *NOW), script);
});

/// Makes the record of unreadable bytes, which the store never accepts as a record.
fn damaged(bytes: &[u8]) -> Record {
    LazyLock::force(&STORE);
    fs::write(path("state/edge-07.json"), bytes).unwrap();
    let loaded = STORE.load_all(format_1::record).unwrap();
    assert!(loaded.records.is_empty());
    check_shown(&loaded.damaged[&SPEC.name].to_string());
    fs::remove_file(path("state/edge-07.json.bad-1")).unwrap();
    Record::distrusted(*NOW)
}

fn live(mut node: Node, script: &[u8]) {
    let mut now = *NOW;
    let mut running = None;
    check_node(&node, now);
    for &byte in script.iter().take(STEPS_MAX) {
        if byte & 0x80 != 0 {
            now = jump(now, byte);
        }
        let Some(event) = event(&node, &mut running, byte & 0x7f) else { continue };
        let actions = step(&mut node, now, event);
        check_node(&node, now);
        for action in actions {
            match action {
                Action::Start { op, operation, .. } => {
                    assert_eq!(running.replace((op, operation)), None, "two operations at once");
                }
                Action::Cancel(op) => assert_eq!(running.as_ref().map(|job| job.0), Some(op)),
                Action::Forget => return,
                Action::Reply { .. } | Action::KeepLog(_) => {}
            }
        }
    }
    // The node must rest until an event or a later time, and not spin.
    for _ in 0..4 {
        if node.step(now, Event::Tick).contains(&Action::Forget) {
            return;
        }
    }
    assert_eq!(node.step(now, Event::Tick), []);
    assert!(node.next_wake().is_none_or(|(at, _)| at > now), "{:?} at {now}", node.next_wake());
}

/// Jumps from a second to weeks, forward or back, within the clock's range.
fn jump(now: Timestamp, byte: u8) -> Timestamp {
    let seconds = 1_i64 << ((byte >> 1) & 0x3f).min(24);
    let seconds = if byte & 1 == 0 { seconds } else { -seconds };
    now.checked_add(SignedDuration::from_secs(seconds)).unwrap()
}

fn event(node: &Node, running: &mut Option<(OpId, Operation)>, byte: u8) -> Option<Event> {
    let done = |job: Option<(OpId, Operation)>, fault: Option<Fault>| {
        let (op, operation) = job?;
        let outcome = fault.map_or_else(|| Ok(outcome(operation, byte)), Err);
        Some(Event::Done { op, outcome })
    };
    let call = |call| {
        let key = node.record().state.attempt()?.key.clone();
        Some(Event::Callback { request: 1, peer: RAMDISK, key, call })
    };
    let problems = || vec![Problem::of_file("edge-07.toml", "fuzzed")];
    Some(match byte & 0x0f {
        0 => Event::Tick,
        1 => Event::Spec(SPEC.clone()),
        2 if byte & 0x10 == 0 => Event::Spec(node.spec()?.clone()),
        2 => Event::MassChange(SPEC.clone()),
        3 => Event::SpecProblems(problems()),
        4 => Event::SpecClash(problems()),
        5 => Event::SpecGone,
        6 => Event::DirectoryLost("fuzzed".to_owned()),
        7 => done(running.take(), None)?,
        8 => done(running.take(), Some(Fault::passing(Step::Imaging, "A", "b", "c")))?,
        9 => done(running.take(), Some(Fault::lasting(Step::Imaging, "A", "b", "c")))?,
        10 => call(Call::Lookup(lookup()))?,
        11 => call(Call::PassDeployInfo(deploy_info()))?,
        12 => call(Call::DeployState)?,
        13 => call(Call::Completed(Completed { verified: true, ..Completed::default() }))?,
        14 if byte & 0x10 == 0 => Event::Approve,
        14 => Event::Retry,
        15 if byte & 0x10 == 0 => Event::PowerMayHaveChanged,
        _ => Event::Fetched(Fetch {
            refused_times: 0,
            unknown_mac: None,
            node: SPEC.name.clone(),
            stage: BootStage::Kernel,
            path: "vmlinuz".to_owned(),
            peer: RAMDISK,
            sent_bytes: 1,
            complete: true,
        }),
    })
}

fn outcome(operation: Operation, byte: u8) -> Outcome {
    match operation {
        Operation::PollPower | Operation::ConfirmPower if byte & 0x10 == 0 => {
            Outcome::Power(PowerState::Off)
        }
        Operation::PollPower | Operation::ConfirmPower => Outcome::Power(PowerState::On),
        Operation::Prepare => hostler_fuzz::prepared(AttemptKey::from_bytes(&[7; 32])),
        Operation::PowerOn => Outcome::PoweredOn,
        Operation::Image { .. } => hostler_fuzz::imaged(),
        Operation::Release(_) => Outcome::Released,
        Operation::Restart { wanted } => Outcome::Restarted(wanted),
        Operation::ProbePort { .. } => {
            Outcome::PortAnswered { address: RAMDISK, ssh_banner: Some("SSH-2.0-x".to_owned()) }
        }
        Operation::SetPower(wanted) => Outcome::PowerSet(wanted),
        Operation::CleanUp => Outcome::CleanedUp,
        Operation::NetbootFiles { served, .. } => Outcome::NetbootFiles(served),
    }
}

fn lookup() -> Lookup {
    let serial = SPEC.root_device.serial.clone();
    let disk = Disk { name: "vda".into(), size: 480_000_000_000, serial, ..Disk::default() };
    Lookup {
        macs: SPEC.boot.macs.clone(),
        disks_same_for_ms: None,
        system_uuid: None,
        system_serial: None,
        disks: vec![disk],
        memory: 0,
        cpus: 1,
    }
}

fn deploy_info() -> DeployInfo {
    DeployInfo {
        address: Some(RAMDISK),
        port: 3260,
        lun: 0,
        iqn: "iqn.2026-11.hostler:edge-07".into(),
        chap_username: "user".into(),
        chap_password: Some(Secret::new("secret".into())),
        knows_salt: true,
        error: String::new(),
    }
}

//! Tests of the promises to readers of status files.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _};

use expect_test::expect_file;
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::model::{
    boot::BootStage,
    disk::Disk,
    fault::{Fault, Step},
    ids::{Digest, DigestAlgorithm},
    machine::Machine,
    netboot::NetbootFiles,
    power::PowerState,
    problem::Problem,
    spec::BmcAddress,
    status::{
        Booted, Condition, HistoryEntry, ImagingStage, Installed, InstalledSystem, LastError,
        LastSeen, Phase, Power, Progress, STATUS_VERSION,
    },
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_795_300_000 + second).unwrap()
}

fn digest(byte: u8) -> Digest {
    Digest::from_bytes(DigestAlgorithm::Sha256, &[byte; 32]).unwrap()
}

fn least(node: &str) -> Status {
    Status {
        version: STATUS_VERSION,
        node: node.parse().unwrap(),
        phase: Phase::Pending,
        ready: false,
        message: "waiting".to_owned(),
        spec_valid: true,
        spec_digest: None,
        installed_digest: None,
        since: at(0),
        deadline: None,
        deadline_reason: None,
        attempt: 0,
        next_attempt_at: None,
        updated: at(1),
        progress: None,
        machine: None,
        power: None,
        installed: None,
        last_error: None,
        last_seen: None,
        durations: BTreeMap::new(),
        problems: Vec::new(),
        conditions: Vec::new(),
        history: Vec::new(),
    }
}

/// A status in which every field has a value.
fn full() -> Status {
    Status {
        phase: Phase::Imaging,
        message: "writing vda (8.0 GiB, serial \"root\")".to_owned(),
        spec_digest: Some(digest(1)),
        installed_digest: Some(digest(2)),
        deadline: Some(at(7200)),
        deadline_reason: Some("imaging".to_owned()),
        attempt: 2,
        next_attempt_at: Some(at(60)),
        progress: Some(Progress {
            stage: ImagingStage::Write,
            done_bytes: 1 << 30,
            total_bytes: 2 << 30,
            rate_bytes: 1 << 27,
            remaining_s: None,
        }),
        machine: Some(machine()),
        power: Some(Power { observed: PowerState::On, observed_at: at(2) }),
        installed: Some(installed()),
        last_error: Some(LastError {
            at: at(4),
            attempt: 1,
            fault: Fault::passing(
                Step::Ramdisk,
                "RamdiskTimeout",
                "no callback",
                "look at the console",
            ),
        }),
        last_seen: Some(LastSeen {
            fetched: Some(BootStage::Kernel),
            fetched_path: Some("deploy/x86_64/vmlinuz".to_owned()),
            fetched_at: Some(at(5)),
            address: Some("2001:db8::7".parse().unwrap()),
            callback: Some("lookup".to_owned()),
            callback_at: Some(at(6)),
            refused: 3,
            refused_reason: Some("wrong key".to_owned()),
            ..LastSeen::default()
        }),
        durations: BTreeMap::from([("powering-on_ms".to_owned(), 4500)]),
        problems: vec![Problem {
            file: "edge-07.toml".to_owned(),
            at: Some((12, 3)),
            key: "image.checksum".to_owned(),
            message: "63 hex digits, sha256 needs 64".to_owned(),
            ..Problem::default()
        }],
        conditions: vec![Condition {
            kind: "Ready".to_owned(),
            status: "False".to_owned(),
            reason: "Imaging".to_owned(),
            message: "50 %".to_owned(),
        }],
        history: vec![HistoryEntry {
            at: at(0),
            phase: Phase::Imaging,
            message: "target answers".to_owned(),
        }],
        ..least("edge-07")
    }
}

fn machine() -> Machine {
    Machine {
        bmc: Some(BmcAddress::at("192.0.2.20", 623)),
        macs: vec!["52:54:00:00:00:01".parse().unwrap()],
    }
}

fn installed() -> Installed {
    Installed {
        digest: digest(2),
        image: digest(3),
        disk: Disk {
            name: "vda".to_owned(),
            size: 8 << 30,
            serial: Some("root-1".to_owned()),
            logical_block_size: 512,
            ..Disk::default()
        },
        at: at(3),
        booted: Some(Booted::Up),
        booted_at: Some(at(4)),
        unexpected_netboots: 2,
        unexpected_netboot_at: Some(at(5)),
        address: Some("192.0.2.51".parse().unwrap()),
        written_digest: Some(digest(4)),
        root_uuid: None,
        root_partuuid: None,
        netboot: Some(NetbootFiles {
            kernel: "vmlinuz-6.12".to_owned(),
            kernel_digest: Some(digest(5)),
            ramdisk: "initrd-6.12".to_owned(),
            ramdisk_digest: Some(digest(6)),
            kernel_args: vec!["ro".to_owned()],
        }),
        redeploy: Some("2026-11-22-a".to_owned()),
        machine: Some(machine()),
        system: Some(InstalledSystem {
            address: Some("192.0.2.51".parse().unwrap()),
            ssh_banner: Some("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7".to_owned()),
            hostname: Some("edge-07".to_owned()),
            instance_id: Some("cd1f7d92-8163-8693-8176-68e351ef6430".to_owned()),
            ssh_host_keys: vec![
                "ssh-ed25519 SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU".to_owned(),
            ],
        }),
    }
}

#[test]
fn a_full_status_reads_like_this_with_the_flat_keys_first() {
    let dir = tempfile::tempdir().unwrap();
    let files = StatusFiles::new(dir.path());
    files.write(&full()).unwrap();
    let path = files.path(&full().node);
    expect_file!["full.status.toml"].assert_eq(&fs::read_to_string(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn what_is_written_is_read_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let files = StatusFiles::new(dir.path());
    for status in [least("edge-07"), full()] {
        files.write(&status).unwrap();
        assert_eq!(read(&files.path(&status.node)).unwrap(), status);
    }
    files.remove(&full().node).unwrap();
    files.remove(&full().node).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_was_removed_or_changed_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let files = StatusFiles::new(dir.path());
    let path = files.path(&full().node);
    for spoil in [
        |path: &Path| fs::remove_file(path).unwrap(),
        |path: &Path| fs::write(path, "").unwrap(),
        |path: &Path| fs::write(path, fs::read_to_string(path).unwrap() + "\n").unwrap(),
        |path: &Path| fs::write(path, [0xff]).unwrap(),
        // In place, of the same size, and so soon that the clock may not have ticked.
        |path: &Path| {
            let text = fs::read_to_string(path).unwrap();
            fs::write(path, text.replace("ready", "ReadY")).unwrap();
        },
        |path: &Path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
    ] {
        let wanted = files.render(&full()).unwrap();
        let mut shown = files.put(&wanted).unwrap().unwrap();
        assert!(files.is_unchanged(&full().node, &mut shown) && shown.has(&wanted));
        // An agent that did not write the file finds it, too.
        let later = Status { updated: Timestamp::UNIX_EPOCH, ..full() };
        assert!(files.find(&files.render(&later).unwrap()).is_some());
        let other = files.render(&Status { attempt: 3, ..full() }).unwrap();
        assert!(files.find(&other).is_none() && !shown.has(&other));
        spoil(&path);
        assert!(!files.is_unchanged(&full().node, &mut shown));
        assert!(files.find(&wanted).is_none());
    }
}

#[test]
fn one_bad_file_hides_no_other_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let files = StatusFiles::new(dir.path());
    files.write(&least("c")).unwrap();
    files.write(&least("a")).unwrap();
    fs::write(dir.path().join("b.status.toml"), r#"version = "\u001b[31m""#).unwrap();
    for other in ["a.toml", "README", ".a.status.toml.tmp", "UPPER.status.toml"] {
        fs::write(dir.path().join(other), "not a status").unwrap();
    }
    let all = files.read_all().unwrap();
    let shown: Vec<String> = all
        .iter()
        .map(|result| match result {
            Ok(status) => status.node.to_string(),
            Err(error) => error.to_string(),
        })
        .collect();
    assert_eq!((shown.len(), shown[0].as_str(), shown[2].as_str()), (3, "a", "c"));
    assert!(
        shown[1].contains("b.status.toml: ") && !shown[1].contains(char::is_control),
        "{}",
        shown[1]
    );
}

#[test]
fn a_directory_that_vanished_is_an_error_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let files = StatusFiles::new(dir.path().join("gone"));
    let error = files.write(&full()).unwrap_err().to_string();
    assert!(error.contains("gone/edge-07.status.toml"), "{error}");
    assert!(files.read_all().unwrap_err().to_string().contains("gone"));
}

proptest! {
    #[test]
    fn never_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.status.toml");
        fs::write(&path, &bytes).unwrap();
        prop_assert!(read(&path).is_err());
    }
}

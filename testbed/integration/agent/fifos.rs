//! A FIFO, socket, device or directory in place of a file: it is reported at once, and no process
//! waits for it.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    process::Command,
};

use hostler::model::status::Phase;

use super::{
    NODE,
    site::{Site, Spec, answer, hostler},
};

/// A short rescan interval, so that no test waits for a minute.
const RESCAN: &str = "rescan = \"1s\"\n";
const KINDS: [&str; 4] = ["a FIFO", "a socket", "a device", "a directory"];

/// Replaces a file by something else.
fn replace(path: &Path, kind: &str) {
    if path.exists() {
        fs::remove_file(path).or_else(|_| fs::remove_dir(path)).unwrap();
    }
    match kind {
        "a FIFO" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "a socket" => drop(UnixListener::bind(path).unwrap()),
        "a device" => symlink("/dev/zero", path).unwrap(),
        _ => fs::create_dir(path).unwrap(),
    }
}

/// Runs a command that must not wait; returns its answer.
fn at_once(command: &Command) -> (i32, String) {
    let mut limited = Command::new("timeout");
    limited.arg("20").arg(command.get_program()).args(command.get_args());
    let (code, said, errors) = answer(limited.env_remove("HOSTLER_LOG"));
    assert_ne!(code, 124, "{command:?} hangs: {said}{errors}");
    (code, format!("{said}{errors}"))
}

/// A spec of a machine without a BMC.
fn spec(site: &Site, number: u8) -> Spec {
    Spec::new([
        ("boot.mac", format!("\"52:54:01:00:00:{number:02x}\"")),
        ("bmc.driver", "\"none\"".to_owned()),
        ("image.source", "\"disk.raw\"".to_owned()),
        ("image.checksum", format!("{:?}", site.checksum())),
        ("retry.attempts", "1".to_owned()),
    ])
}

/// Invariant (fair): A FIFO, socket, device or directory in place of a file is named, and nobody
/// waits for it.
#[test]
fn no_command_waits_for_what_lies_where_a_file_should_be() {
    let site = Site::new();
    let status = site.path(&format!("nodes/{NODE}.status.toml"));
    let file = site.path(&format!("nodes/{NODE}.toml"));
    let attached = site.path("nodes/user-data");
    let defaults = site.path("nodes/_defaults.toml");
    let config = site.path("hostler.toml");
    let nodes = site.path("nodes").display().to_string();
    let node = &["--dir", &nodes, NODE];
    let good = spec(&site, 1).with("config_drive.user_data_file", "user-data");
    let with = |words: &[&str]| hostler(&[words, node].concat());
    for kind in KINDS {
        let expect = |path: &Path, command: &Command| {
            let (_, said) = at_once(command);
            let named = path.file_name().unwrap().to_str().unwrap();
            assert!(said.contains(named) && said.contains(kind), "{kind} {command:?}: {said}");
        };
        fs::write(&attached, "#cloud-config\n").unwrap();
        site.write(NODE, &good);
        replace(&status, kind);
        expect(&status, &hostler(&["status", &nodes]));
        expect(&status, &with(&["explain"]));
        expect(&status, &with(&["wait", "--timeout", "1s"]));
        expect(&status, &hostler(&["plan", &nodes]));
        fs::remove_file(&status).or_else(|_| fs::remove_dir(&status)).unwrap();

        let readers = [
            with(&["show"]),
            hostler(&["check", &nodes]),
            hostler(&["digest", file.to_str().unwrap()]),
            hostler(&["plan", &nodes]),
        ];
        for path in [&attached, &file, &defaults] {
            if kind == "a device" && path == &attached {
                // A link to such a file leads out of the directory.
                continue;
            }
            replace(path, kind);
            for reader in &readers {
                expect(path, reader);
            }
            fs::remove_file(path).or_else(|_| fs::remove_dir(path)).unwrap();
            fs::write(&attached, "#cloud-config\n").unwrap();
            site.write(NODE, &good);
        }

        replace(&config, kind);
        for words in [&["run"][..], &["status"], &["cache", "list"], &["approve", NODE]] {
            expect(&config, &site.hostler(words));
        }
        fs::remove_file(&config).or_else(|_| fs::remove_dir(&config)).unwrap();
        site.configure("");
    }
}

/// Invariant (fair): A FIFO, socket, device or directory in place of a file is named, and nobody
/// waits for it.
#[test]
fn a_status_file_that_something_else_replaces_is_soon_one_again_and_keeps_nobody_waiting() {
    let site = Site::new();
    site.configure(RESCAN);
    let path = site.path(&format!("nodes/{NODE}.status.toml"));
    replace(&path, "a FIFO");
    let agent = site.start();
    site.write(NODE, &spec(&site, 1).with("state", "unmanaged"));
    site.until_regular(&path);
    for (number, kind) in [(2, "a FIFO"), (3, "a socket"), (4, "a device")] {
        replace(&path, kind);
        let other = format!("other-{number}");
        site.write(&other, &spec(&site, number).with("state", "unmanaged"));
        site.until_phase(&other, Phase::Unmanaged);
        site.until_regular(&path);
    }
    assert!(agent.terminate().0.success());
}

#[test]
fn a_record_that_is_a_fifo_is_a_damaged_one() {
    let site = Site::new();
    fs::create_dir(site.path("state")).unwrap();
    replace(&site.path(&format!("state/{NODE}.json")), "a FIFO");
    let _agent = site.start();
    site.write(NODE, &spec(&site, 1));
    site.until_phase(NODE, Phase::Held);
    assert!(site.log().contains("a FIFO, not a regular file"), "{}", site.log());
}

/// Invariant (fair): A FIFO, socket, device or directory in place of a file is named, and nobody
/// waits for it.
#[test]
fn what_an_attempt_needs_is_missed_at_once_if_something_else_lies_in_its_place() {
    let site = Site::new();
    replace(&site.path("images/image-fifo"), "a FIFO");
    replace(&site.path("images/SUMS"), "a FIFO");
    replace(&site.path("images/kernel"), "a socket");
    let own = spec(&site, 5).with("boot.after", "network").with("image.kind", "partition");
    let own = own.with("image.kernel", "kernel").with("image.ramdisk", "kernel");
    replace(&site.path("secrets/zero.bmc"), "a device");
    replace(&site.path("secrets/fifo.bmc"), "a FIFO");
    let bmc = |number: u8, file: &str| {
        let spec = spec(&site, number).without("bmc.").with("bmc.password_file", file);
        spec.with("bmc.address", &format!("127.0.0.{number}:9"))
    };
    let _agent = site.start();
    for (node, spec, named) in [
        ("image", spec(&site, 1).with("image.source", "image-fifo"), "image-fifo"),
        ("list", spec(&site, 2).with("image.checksum", "SUMS"), "SUMS"),
        ("zero", bmc(3, "zero.bmc"), "zero.bmc: a device"),
        ("fifo", bmc(4, "fifo.bmc"), "fifo.bmc: a FIFO"),
        ("own", own, "image.kernel kernel: a socket"),
        ("deploy", spec(&site, 6), "vmlinuz: a FIFO"),
    ] {
        if node == "deploy" {
            replace(&site.path("vmlinuz"), "a FIFO");
        }
        site.write(node, &spec);
        let status = site.until(node, "failed", |status| status.last_error.is_some());
        let said = status.last_error.unwrap().fault.message;
        assert!(said.contains(named) && said.contains("not a regular file"), "{node}: {said}");
    }
    // The request for this file is refused, and the next one served.
    replace(&site.path("loaders/grubx64.efi"), "a FIFO");
    assert_eq!(site.fetch("none"), None);
}

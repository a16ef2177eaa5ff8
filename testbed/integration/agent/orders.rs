//! Orders of operators to a running agent: consent, retries, and faults of the socket.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use hostler::model::{fault::Step, status::Phase};

use super::{
    DEPLOYED, NODE, ends_deployed, ends_failed,
    machine::Machine,
    site::{Site, answer},
};
use crate::ipmi::simulators::{PASSWORD, USER};

/// The agent's socket, in the site.
const SOCKET: &str = "run/admin.sock";

/// The result of a command: exit code, standard output, standard error.
type Said = (i32, String, String);

fn said(code: i32, out: &str, errors: &str) -> Said {
    (code, out.to_owned(), errors.to_owned())
}

fn order(site: &Site, words: &[&str]) -> Said {
    answer(&mut site.hostler(words))
}

#[test]
fn an_approval_before_the_specs_can_be_read_is_refused_with_the_reason() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let agent = site.start();
    site.write(NODE, &machine.spec(&site));
    site.until_phase(NODE, Phase::Held);
    agent.terminate();
    let (specs, elsewhere) = (site.path("nodes"), site.path("elsewhere"));
    fs::rename(&specs, &elsewhere).unwrap();
    let _agent = site.start();
    let is_refused = || {
        let (code, _, errors) = order(&site, &["approve", NODE]);
        code == 1 && errors.contains("its spec has not been read since the agent started")
    };
    site.await_that("refused", is_refused);
    fs::rename(&elsewhere, &specs).unwrap();
    let approved = || order(&site, &["approve", NODE]).0 == 0;
    site.await_that("approved", approved);
    machine.deploy(&site);
    ends_deployed(&site, &machine);
}

/// Invariant (consent): An order counts only at a node that waits for it, is logged, and outlives a
/// crash.
#[test]
fn a_machine_that_is_on_is_wiped_once_an_operator_approves() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let status = site.until_phase(NODE, Phase::Held);
    assert!(status.message.contains("hostler approve"), "{}", status.message);
    assert!(machine.story().is_empty());

    let approved = order(&site, &["approve", NODE]);
    assert_eq!(approved, said(0, "edge-07: will be WIPED and installed\n", ""));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), [&["off"][..], &DEPLOYED[..]].concat());
    // The log names the user who consented.
    let log = site.log();
    let line = log.lines().find(|line| line.contains("order=\"approve\"")).unwrap();
    let uid = format!("uid={}", rustix::process::getuid().as_raw());
    for part in [&uid, " pid=", "node=edge-07", "counted=true"] {
        assert!(line.contains(part), "no {part} in {line}");
    }

    let record = site.record_but_netboots(NODE);
    let again = order(&site, &["approve", NODE]);
    let nothing = "error: edge-07: is deployed; there is nothing to approve\n";
    assert_eq!(again, said(1, "", nothing));
    assert_eq!(site.record_but_netboots(NODE), record);
    let (code, out, errors) = order(&site, &["approve", "--all"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{out}");
    assert!(out.contains("nothing to approve"), "{out}");
}

/// Invariant (consent): An order counts only at a node that waits for it, is logged, and outlives a
/// crash.
#[test]
fn a_failed_node_is_not_approved_but_tried_again() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let image = site.path("images/disk.raw");
    fs::remove_file(&image).unwrap();
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let failed = ends_failed(&site, &machine, Step::Image, "ImageUnreadable");

    let (code, out, errors) = order(&site, &["approve", NODE, "edge-99"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        errors.contains("edge-07: is failed; there is nothing to approve; run `hostler retry"),
        "{errors}"
    );
    assert!(errors.contains("edge-99: no such node"), "{errors}");
    let (_, out, _) = order(&site, &["approve", "--all"]);
    assert!(out.contains("nothing to approve"), "{out}");
    assert_eq!(site.status(NODE).unwrap().since, failed.since);

    fs::write(&image, &site.image).unwrap();
    assert_eq!(order(&site, &["retry", NODE]), said(0, "edge-07: will be tried again\n", ""));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    let (code, _, errors) = order(&site, &["retry", NODE]);
    assert_eq!(
        (code, errors.as_str()),
        (1, "error: edge-07: is deployed; there is nothing to retry\n")
    );
    assert_eq!(machine.story(), DEPLOYED);
}

#[test]
fn a_machine_that_is_somebodys_has_to_be_named_and_all_means_those_that_wait() {
    let site = Site::new();
    let held = ["rack-1", "rack-2"].map(|node| Machine::with_bmc(&site, node, &["--on"]));
    let broken = Machine::new(&site, "rack-3");
    let _agent = site.start();
    for machine in &held {
        site.write(&machine.node, &machine.spec(&site));
    }
    site.write("rack-3", &broken.spec(&site).with("image.source", "other.raw"));
    for machine in &held {
        site.until_phase(&machine.node, Phase::Held);
    }
    let failed = site.until_phase("rack-3", Phase::Failed);

    let (code, out, _) = order(&site, &["approve", "--all"]);
    assert!(code == 0 && out.contains("nothing to approve"), "{out}");
    for machine in &held {
        assert_eq!(site.status(&machine.node).unwrap().phase, Phase::Held);
    }
    let approved = "rack-1: will be WIPED and installed\nrack-2: will be WIPED and installed\n";
    assert_eq!(order(&site, &["approve", "rack-1", "rack-2"]), said(0, approved, ""));
    for machine in &held {
        machine.deploy(&site);
        ends_deployed(&site, machine);
    }
    let status = site.status("rack-3").unwrap();
    assert_eq!((status.phase, status.since), (Phase::Failed, failed.since));

    let records = held.each_ref().map(|machine| site.record_but_netboots(&machine.node));
    assert_eq!(order(&site, &["retry", "--all"]), said(0, "rack-3: will be tried again\n", ""));
    site.until("rack-3", "failed again", |status| {
        status.phase == Phase::Failed && status.since > failed.since
    });
    let after = held.each_ref().map(|machine| site.record_but_netboots(&machine.node));
    assert_eq!(after, records);
}

/// Invariant (consent): An order counts only at a node that waits for it, is logged, and outlives a
/// crash.
#[test]
fn consent_that_was_answered_outlives_a_killed_agent() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let agent = site.start();
    site.write(NODE, &machine.spec(&site));
    site.until_phase(NODE, Phase::Held);
    machine.bmc.signal("-STOP");
    assert_eq!(order(&site, &["approve", NODE]).0, 0);
    agent.kill();
    machine.bmc.signal("-CONT");

    let _agent = site.start();
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    // The killed agent's socket was still there.
    assert_eq!(order(&site, &["retry", "--all"]).0, 0);
}

#[test]
fn consent_whose_record_cannot_be_written_starts_nothing_and_says_so() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    site.until_phase(NODE, Phase::Held);
    let record = site.path("state/edge-07.json");
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    let (code, out, _) = order(&site, &["approve", NODE]);
    assert_eq!(code, 0);
    assert!(out.contains("nothing is started until"), "{out}");
    assert!(machine.story().is_empty());
    fs::remove_dir(&record).unwrap();
    machine.deploy(&site);
    ends_deployed(&site, &machine);
}

#[test]
fn without_an_agent_an_order_says_where_it_knocked() {
    let site = Site::new();
    let socket = site.path(SOCKET);
    let unheard = format!("error: no agent is listening at {}; ", socket.display());
    let (code, out, errors) = order(&site, &["approve", NODE]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(errors.starts_with(&unheard), "{errors}");

    // Started as by systemd, with a umask that denies the group everything.
    let mut sh = Command::new("sh");
    sh.args(["-c", "umask 0077; exec \"$0\" run --config \"$1\""]);
    let agent = site.start_as(sh.arg(env!("CARGO_BIN_EXE_hostler")).arg(site.path("hostler.toml")));
    site.await_that("running", || site.log().contains("running"));
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o660, 0o750));
    assert_eq!(order(&site, &["retry", "--all"]).0, 0);
    assert!(agent.terminate().0.success());
    assert!(!socket.exists());
    let (_, _, errors) = order(&site, &["approve", NODE]);
    assert!(errors.starts_with(&unheard), "{errors}");

    for words in [&["approve"][..], &["approve", NODE, "--all"]] {
        let (code, _, errors) = order(&site, words);
        assert_eq!((code, errors.contains("<NODE|--all|--new-machines>")), (1, true), "{errors}");
    }
    let (code, _, errors) = order(&site, &["approve", "Edge_07"]);
    assert_eq!((code, errors.contains("RFC 1123")), (1, true), "{errors}");
}

#[test]
fn consent_under_a_broken_spec_waits_until_the_spec_is_whole_again() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let _agent = site.start();
    let spec = machine.spec(&site);
    site.write(NODE, &spec);
    site.until_phase(NODE, Phase::Held);
    fs::write(site.path("nodes/edge-07.toml"), "half a li").unwrap();
    site.until(NODE, "invalid", |status| !status.spec_valid);
    let (code, out, _) = order(&site, &["approve", NODE]);
    assert_eq!(code, 0);
    assert!(out.starts_with("edge-07: will be WIPED and installed, but not yet: "), "{out}");
    assert!(out.contains("nodes/edge-07.toml:1:"), "{out}");
    assert!(machine.story().is_empty());
    site.write(NODE, &spec);
    machine.deploy(&site);
    ends_deployed(&site, &machine);
}

/// Invariant (fair): A living agent's socket is not taken, and misbehaving clients stop nobody.
#[test]
fn clients_that_misbehave_keep_neither_the_agent_nor_operators_from_working() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    site.until_phase(NODE, Phase::Held);
    let connect = || UnixStream::connect(site.path(SOCKET)).unwrap();
    let silent: Vec<UnixStream> = (0..40).map(|_| connect()).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for noise in
            [&b"\n"[..], b"\xff\x00[[[[{{{{", b"{\"version\":2,\"body\":{\"approve\":\"all\"}"]
        {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut stream = connect();
                    while stream.write_all(noise).is_ok() {}
                }
            });
        }
        let approved = order(&site, &["approve", NODE]);
        assert_eq!(approved, said(0, "edge-07: will be WIPED and installed\n", ""));
        machine.deploy(&site);
        ends_deployed(&site, &machine);
        over.store(true, Ordering::Relaxed);
    });
    drop(silent);
    assert_eq!(site.log().matches("order=").count(), 1);
}

#[test]
fn a_second_agent_does_not_take_the_first_ones_socket() {
    let site = Site::new();
    let agent = site.start();
    site.await_that("running", || site.log().contains("running"));
    let other = Site::new();
    let config = fs::read_to_string(other.path("hostler.toml")).unwrap();
    let socket = |site: &Site| site.path(SOCKET).display().to_string();
    let config = config.replace(&socket(&other), &socket(&site));
    fs::write(other.path("hostler.toml"), config).unwrap();
    let second = other.start();
    other.await_that("running", || other.log().contains("running"));
    assert!(other.log().contains("another agent is listening"), "{}", other.log());
    assert!(second.terminate().0.success());
    assert_eq!(order(&site, &["retry", "--all"]).0, 0);
    assert!(agent.terminate().0.success());
}

#[test]
fn an_agent_that_cannot_have_its_socket_says_so_and_goes_on() {
    let site = Site::new();
    let (from, to) = (site.path(SOCKET), site.path("vmlinuz/admin.sock"));
    let config = fs::read_to_string(site.path("hostler.toml")).unwrap();
    let config = config.replace(from.to_str().unwrap(), to.to_str().unwrap());
    fs::write(site.path("hostler.toml"), config).unwrap();
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    site.write(NODE, &machine.spec(&site));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    let log = site.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    for part in [to.to_str().unwrap(), "[admin] socket", "approve"] {
        assert!(warnings[0].contains(part), "no {part} in {}", warnings[0]);
    }
    assert!(agent.terminate().0.success());
}

#[test]
fn a_node_that_waits_for_its_next_attempt_is_tried_at_once() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let image = site.path("images/disk.raw");
    fs::remove_file(&image).unwrap();
    let _agent = site.start();
    let spec = machine.spec(&site).with_number("retry.attempts", 2).with("retry.backoff", "1h");
    site.write(NODE, &spec);
    site.until(NODE, "waiting", |status| status.next_attempt_at.is_some());
    let (_, out, _) = order(&site, &["retry", "--all"]);
    assert!(out.contains("nothing to retry"), "{out}");
    fs::write(&image, &site.image).unwrap();
    assert_eq!(order(&site, &["retry", NODE]), said(0, "edge-07: will be tried again\n", ""));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
}

#[test]
fn a_machine_to_be_kept_off_is_switched_off_once_an_operator_approves() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let _agent = site.start();
    let spec = machine.spec(&site).with("state", "available");
    site.write(NODE, &spec);
    site.until_phase(NODE, Phase::Held);
    assert!(machine.story().is_empty());
    assert_eq!(order(&site, &["approve", NODE]), said(0, "edge-07: will be switched off\n", ""));
    site.until(NODE, "off", |status| status.phase == Phase::Available && status.ready);
    assert_eq!(machine.story(), ["shut down"]);
    assert!(machine.disk.disk().iter().all(|byte| *byte == 0));
}

#[test]
fn many_reinstalls_at_once_wait_until_an_operator_approves() {
    let site = Site::new();
    let machines = ["rack-1", "rack-2", "rack-3"].map(|node| Machine::new(&site, node));
    let agent = site.start();
    for machine in &machines {
        site.write(&machine.node, &machine.spec(&site));
    }
    for machine in &machines {
        machine.deploy(&site);
        ends_deployed(&site, machine);
    }
    // All changes in one scan.
    agent.terminate();
    for machine in &machines {
        site.write(&machine.node, &machine.spec(&site).with("redeploy", "now"));
    }
    let _agent = site.start();
    for machine in &machines {
        let status = site.until_phase(&machine.node, Phase::Held);
        assert!(status.message.contains("hostler approve --all"), "{}", status.message);
        assert_eq!(machine.story(), DEPLOYED);
    }
    let approved = said(0, "rack-1: will be WIPED and installed\n", "");
    assert_eq!(order(&site, &["approve", "rack-1"]), approved);
    let installed = site.status("rack-1").unwrap().installed_digest;
    let ramdisk = machines[0].boot(&site, 2);
    ramdisk.export();
    ramdisk.finish();
    ends_deployed(&site, &machines[0]);
    assert_ne!(site.status("rack-1").unwrap().installed_digest, installed);
    for machine in &machines[1..] {
        assert_eq!(site.status(&machine.node).unwrap().phase, Phase::Held);
        assert_eq!(machine.story(), DEPLOYED);
    }
    let rest = "rack-2: will be WIPED and installed\nrack-3: will be WIPED and installed\n";
    assert_eq!(order(&site, &["approve", "--all"]), said(0, rest, ""));
}

#[test]
fn a_machine_that_somebody_switched_off_is_switched_on_again_when_an_operator_says_so() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    site.write(NODE, &machine.spec(&site));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    // A starting agent polls at once; a running one within a minute.
    agent.kill();
    let bmc = machine.bmc.port.to_string();
    let mut ipmitool = Command::new("ipmitool");
    ipmitool.args(["-I", "lanplus", "-H", "127.0.0.1", "-p", &bmc, "-U", USER, "-P", PASSWORD]);
    assert!(ipmitool.args(["chassis", "power", "off"]).status().unwrap().success());
    let _agent = site.start();
    site.until(NODE, "off", |status| status.message.contains("its spec wants it on"));
    assert!(!machine.is_on());
    assert_eq!(
        order(&site, &["retry", "--all"]).1,
        "no node waits for this: there is nothing to retry\n"
    );
    assert_eq!(order(&site, &["retry", NODE]), said(0, "edge-07: will be switched on\n", ""));
    site.await_that("on", || machine.is_on());
    assert!(machine.has_image(&site));
}

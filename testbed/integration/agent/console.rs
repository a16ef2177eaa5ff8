//! `bmc.console`: the output of a machine whose attempt fails is kept.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
};

use hostler::model::{fault::Step, status::Phase};

use super::{
    NODE, ends_deployed, ends_failed,
    machine::{Machine, Ramdisk},
    site::{Site, Spec, answer},
};

/// Makes a machine with a serial line, and a spec that records it.
fn talkative(site: &Site, node: &str) -> (Machine, Spec) {
    let line = line(site, node);
    File::create(&line).unwrap();
    let machine = Machine::with_bmc(site, node, &["--console", line.to_str().unwrap()]);
    let spec = machine.spec(site).with_flag("bmc.console", true);
    (machine, spec)
}

fn line(site: &Site, node: &str) -> PathBuf {
    site.path(&format!("{node}.line"))
}

/// Makes the machine print a text.
fn print(site: &Site, node: &str, text: &str) {
    let mut line = File::options().append(true).open(line(site, node)).unwrap();
    line.write_all(text.as_bytes()).unwrap();
}

fn kept(site: &Site, node: &str) -> Option<String> {
    fs::read_to_string(site.path(&format!("nodes/{node}.console.log"))).ok()
}

/// Fails the attempt by the ramdisk's error; returns the kept console.
fn fails(site: &Site, machine: &Machine, ramdisk: &Ramdisk) -> String {
    assert_eq!(ramdisk.look_up(1 << 20).0, 409);
    ends_failed(site, machine, Step::Ramdisk, "DiskTooSmall");
    site.await_that("kept", || kept(site, &machine.node).is_some());
    let (_, output, _) = answer(&mut site.hostler(&["explain", &machine.node]));
    assert!(output.contains(&format!("nodes/{}.console.log\n", machine.node)), "{output}");
    kept(site, &machine.node).unwrap()
}

/// Waits until the BMC has passed on everything printed so far.
fn is_passed_on(site: &Site, machine: &Machine) {
    let printed = fs::metadata(line(site, &machine.node)).unwrap().len();
    site.await_that("passed on", || machine.bmc.printed_bytes() == printed);
}

fn hangs_up(site: &Site, machine: &Machine) {
    site.await_that("closed", || machine.bmc.open_sessions().is_empty());
}

fn is_recorded(site: &Site, times: usize) {
    site.await_that("recorded", || site.log().matches("its console is recorded").count() >= times);
}

#[test]
fn what_a_machine_printed_is_kept_if_its_attempt_fails_and_goes_with_the_next_good_one() {
    let site = Site::new();
    let (machine, spec) = talkative(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &spec);
    let ramdisk = machine.boot(&site, 1);
    is_recorded(&site, 1);
    let key = ramdisk.key();
    let text =
        format!("\x1b[2J\x1b]0;title\x07Command line: hostler.key={key} quiet\r\nno such disk");
    print(&site, NODE, &text);
    print(&site, NODE, "\r\nend of line\r\n");
    is_passed_on(&site, &machine);
    assert_eq!(kept(&site, NODE), None, "the attempt is not over");

    let log = fails(&site, &machine, &ramdisk);
    let (header, said) = log.split_once('\n').unwrap();
    assert!(header.starts_with("# edge-07, attempt 1: its serial console from 2"), "{header}");
    assert_eq!(said, "Command line: hostler.key=<key> quiet\nno such disk\nend of line\n");
    let path = site.path("nodes/edge-07.console.log");
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o640);
    hangs_up(&site, &machine);

    // The console's file is no spec, and wakes no scan.
    let status = site.status(NODE).unwrap();
    assert!(status.spec_valid && !site.log().contains("console.log"), "{}", site.log());
    site.write(NODE, &spec.with("redeploy", "a larger disk"));
    let ramdisk = machine.boot(&site, 2);
    is_recorded(&site, 2);
    print(&site, NODE, "all is well");
    ramdisk.export();
    ramdisk.finish();
    let status = site.until(NODE, "over", |status| status.ready);
    assert_eq!(status.phase, Phase::Deployed);
    site.await_that("removed", || kept(&site, NODE).is_none());
    hangs_up(&site, &machine);
}

#[test]
fn a_killed_agents_console_is_taken_over_and_a_node_that_goes_takes_its_log_with_it() {
    let site = Site::new();
    let (machine, spec) = talkative(&site, NODE);
    let agent = site.start();
    site.write(NODE, &spec);
    let ramdisk = machine.boot(&site, 1);
    is_recorded(&site, 1);
    agent.kill();
    let _agent = site.start();
    is_recorded(&site, 2);
    print(&site, NODE, "after the crash");
    is_passed_on(&site, &machine);
    let log = fails(&site, &machine, &ramdisk);
    assert!(log.ends_with("\nafter the crash\n"), "{log}");
    // An empty directory would not remove its nodes.
    let other = machine.spec(&site).without("bmc.").with("bmc.driver", "none");
    site.write("other", &other.with("boot.mac", "52:54:00:00:ff:01"));
    fs::remove_file(site.path("nodes/edge-07.toml")).unwrap();
    site.await_that("gone", || kept(&site, NODE).is_none() && site.status(NODE).is_none());
}

/// Invariant (bmc): A console changes nothing about an attempt, delays no power command, and is
/// closed.
#[test]
fn a_console_that_cannot_be_had_changes_nothing_and_the_log_says_why() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with_flag("bmc.console", true));
    let ramdisk = machine.boot(&site, 1);
    let log = fails(&site, &machine, &ramdisk);
    let why = log.lines().nth(1).unwrap();
    assert!(why.starts_with("# bmc 127.0.0.1:") && why.contains("serial over LAN is"), "{log}");
    assert_eq!(site.log().matches("its console cannot be recorded").count(), 1, "{}", site.log());
    site.write(NODE, &machine.spec(&site).with("redeploy", "now without"));
    let ramdisk = machine.boot(&site, 2);
    ramdisk.export();
    ramdisk.finish();
    ends_deployed(&site, &machine);
    site.await_that("removed", || kept(&site, NODE).is_none());
}

/// Invariant (bmc): A console changes nothing about an attempt, delays no power command, and is
/// closed.
#[test]
fn an_agent_that_stops_closes_its_consoles() {
    let site = Site::new();
    let (machine, spec) = talkative(&site, NODE);
    let agent = site.start();
    site.write(NODE, &spec);
    machine.boot(&site, 1);
    is_recorded(&site, 1);
    let (status, _) = agent.terminate();
    assert_eq!(status.code(), Some(0), "{}", site.log());
    hangs_up(&site, &machine);
    assert_eq!(kept(&site, NODE), None, "the attempt is not over");
}

//! The deploy ramdisk's log, sent to the agent by hostler's ramdisk and by a hostile machine.

use std::{collections::BTreeSet, fs, io::Write as _, os::unix::fs::PermissionsExt as _};

use hostler::{
    model::{fault::Step, status::Phase},
    ramdisk::{self, Log},
};
use serde_json::json;

use super::{
    NODE, ends_failed,
    machine::{Machine, Ramdisk},
    site::{Site, answer},
};

const KEPT: &str = "nodes/edge-07.ramdisk.log";

fn kept(site: &Site) -> Option<String> {
    fs::read_to_string(site.path(KEPT)).ok()
}

/// Sends this text as the ramdisk's log, with this machine's kernel log, as the deploy ramdisk
/// does.
fn send(ramdisk: &Ramdisk, text: &str) {
    let mut log = Log::default();
    log.write_all(text.as_bytes()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(ramdisk::send_log(ramdisk.args().clone(), log)).unwrap();
}

#[test]
fn what_a_ramdisk_logged_is_kept_until_another_attempt_brings_a_log_and_goes_with_its_node() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    let spec = machine.spec(&site);
    site.write(NODE, &spec);
    let ramdisk = machine.boot(&site, 1);
    send(&ramdisk, "booted\n");
    site.await_that("kept", || kept(&site).is_some_and(|text| text.ends_with("\nbooted\n")));
    assert_eq!(ramdisk.look_up(1 << 20).0, 409);
    send(&ramdisk, &format!("booted\nno disk, \x1b[31mhostler.key={}\n", ramdisk.key()));
    ends_failed(&site, &machine, Step::Ramdisk, "DiskTooSmall");
    site.await_that("its end", || kept(&site).is_some_and(|text| text.contains("no disk")));

    let text = kept(&site).unwrap();
    let header = "# edge-07, attempt 1: its deploy ramdisk's log, from 127.0.0.1 at 2";
    assert!(text.starts_with(header), "{text:.200}");
    assert!(text.contains("\n# the kernel\n"), "{text:.200}");
    let end = "\n# the deploy ramdisk\nbooted\nno disk, hostler.key=<key>\n";
    assert!(text.ends_with(end) && !text.contains(ramdisk.key()), "{text}");
    assert_eq!(fs::metadata(site.path(KEPT)).unwrap().permissions().mode() & 0o777, 0o640);
    let (_, output, _) = answer(&mut site.hostler(&["explain", NODE]));
    assert!(output.contains(&format!("{KEPT}\n")), "{output}");
    assert!(site.status(NODE).unwrap().spec_valid && !site.log().contains("ramdisk.log"));

    site.write(NODE, &spec.with("redeploy", "a larger disk"));
    let ramdisk = machine.boot(&site, 2);
    assert_eq!(kept(&site), Some(text), "until another comes");
    ramdisk.export();
    ramdisk.wait_for("release");
    send(&ramdisk, "all is well\n");
    ramdisk.complete();
    site.until_phase(NODE, Phase::Deployed);
    site.await_that("replaced", || kept(&site).is_some_and(|text| text.contains("all is well")));
    assert!(!kept(&site).unwrap().contains("no disk"));

    // The agent forgets no node because of an empty directory.
    let other = machine.spec(&site).without("bmc.").with("bmc.driver", "none");
    site.write("other", &other.with("boot.mac", "52:54:00:00:ff:01"));
    fs::remove_file(site.path("nodes/edge-07.toml")).unwrap();
    site.await_that("gone", || kept(&site).is_none() && site.status(NODE).is_none());
}

/// Invariant (ramdisk): A ramdisk's log changes nothing about its attempt, comes with the attempt's
/// key, and only so often.
#[test]
fn a_hostile_machine_cannot_bloat_the_kept_log_or_disturb_its_attempt_with_it() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    let (status, _) = ramdisk.post("log", &json!({"kernel": "x".repeat(10 << 20)}));
    // The machine gets the status 413, or none after 100 (Continue) because the agent closes the
    // connection.
    assert!([413, 100, 0].contains(&status), "{status}");
    assert_eq!(ramdisk.post("log", &json!({"kernel": 1})).0, 400);
    assert_eq!(kept(&site), None);

    let bad = format!("\x1b[2J\x1b]0;title\x07\u{202e}\r{} forged\n", ramdisk.key()).repeat(400);
    let body = json!({"kernel": bad, "ramdisk": format!("{bad}end\n")});
    assert_eq!(ramdisk.post("log", &body).0, 202);
    site.await_that("kept", || kept(&site).is_some());
    let text = kept(&site).unwrap();
    assert!(text.len() < 130 << 10 && text.ends_with(" forged\nend\n"), "{}", text.len());
    assert!(!text.contains(ramdisk.key()) && !text.contains(|c: char| c.is_control() && c != '\n'));
    assert!(!site.log().contains(ramdisk.key()) && !site.log().contains("forged"));

    let answers = ramdisk.post_often("log", &json!({"ramdisk": "again\n"}), 1000);
    let taken = answers.iter().filter(|status| **status == 202).count();
    assert_eq!((answers.len(), taken), (1000, 7), "{answers:?}");
    // 0: the agent closed the connection, or accepted no more of them.
    let others: BTreeSet<u16> = answers.into_iter().collect();
    assert!(others.is_subset(&BTreeSet::from([0, 202, 404, 429])), "{others:?}");

    // The machine continues once the agent accepts its address again.
    site.await_that("listened to", || ramdisk.call("GET", "deploy_state", &json!(null)).0 == 200);
    ramdisk.export();
    ramdisk.finish();
    site.until_phase(NODE, Phase::Deployed);
}

//! Two agents over one directory, and a dead agent.

use std::fs;

use hostler::{
    model::{agent_mark::AgentMark, status::Phase},
    status_file::MarkFile,
};
use serde_json::Value;

use super::{
    DEPLOYED, NODE, ends_deployed,
    machine::Machine,
    site::{Site, answer},
};
use crate::ipmi::simulators::PASSWORD;

/// Makes a site that shares only the directory of specs.
fn over_the_specs_of(site: &Site) -> Site {
    let other = Site::new();
    let config = fs::read_to_string(other.path("hostler.toml")).unwrap();
    let nodes = |site: &Site| site.path("nodes").display().to_string();
    fs::write(other.path("hostler.toml"), config.replace(&nodes(&other), &nodes(site))).unwrap();
    fs::write(other.path(&format!("secrets/{NODE}.bmc")), format!("{PASSWORD}\n")).unwrap();
    other
}

fn mark(site: &Site) -> Option<AgentMark> {
    MarkFile::in_dir(&site.path("nodes")).read().unwrap()
}

fn status(site: &Site) -> (i32, Value) {
    let (code, said, _) = answer(&mut site.hostler(&["status", "-o", "json"]));
    (code, serde_json::from_str(&said).unwrap())
}

/// Invariant (agents): One of two agents over a status directory acts; the other touches nothing
/// and names it.
#[test]
fn a_second_agent_over_one_directory_touches_nothing_until_the_first_has_stopped() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let first = site.start();
    site.await_that("marked", || mark(&site).is_some_and(|mark| mark.pid == first.id()));
    let other = over_the_specs_of(&site);
    let second = other.start();
    other.await_that("standing by", || other.log().contains("stands by"));
    assert!(other.log().contains(&format!("process {} on host", first.id())), "{}", other.log());

    site.write(NODE, &machine.spec(&site));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
    assert!(!other.log().contains("phase"), "{}", other.log());
    let files = fs::read_dir(other.path("state")).unwrap().map(|file| file.unwrap().file_name());
    let mut files: Vec<_> = files.map(|name| name.into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["another-agent", "lock", "state-id"]);
    assert!(mark(&site).is_some_and(|mark| mark.pid == first.id()));

    let (ended, _) = first.terminate();
    assert!(ended.success());
    other.await_that("running", || mark(&site).is_some_and(|mark| mark.pid == second.id()));
    // All its knowledge is from the status file.
    let installed = site.until(NODE, "polled again", |status| {
        status.phase == Phase::Deployed
            && status.ready
            && status.power.is_some()
            && other.record(NODE).contains("installed")
    });
    assert!(installed.installed.is_some());
    assert_eq!(machine.story(), DEPLOYED);
    let (code, shown) = status(&other);
    assert_eq!((code, &shown["agent"]["pid"]), (0, &second.id().into()));
    assert_eq!(shown["agent"]["alive"], true);
}

/// Invariant (agents): One of two agents over a status directory acts; the other touches nothing
/// and names it.
#[test]
fn an_agent_whose_mark_was_taken_over_stops_and_stands_by() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let first = site.start();
    site.await_that("marked", || mark(&site).is_some());
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    site.until_phase(NODE, Phase::WaitingRamdisk);
    let anothers = |stopped| AgentMark {
        state_id: "another".to_owned(),
        run_id: "another".to_owned(),
        boot_id: String::new(),
        stopped,
        ..mark(&site).unwrap()
    };
    let file = MarkFile::in_dir(&site.path("nodes"));
    file.replace(&anothers(None)).unwrap();
    site.await_that("standing by", || {
        site.log().contains("another agent has taken over") && site.log().contains("stands by")
    });
    assert_eq!(ramdisk.look_up(machine.disk.disk_bytes).0, 0, "the first agent still answers");
    first.terminate();

    let other = over_the_specs_of(&site);
    let second = other.start();
    other.await_that("standing by", || other.log().contains("stands by"));
    file.replace(&anothers(Some(jiff::Timestamp::now()))).unwrap();
    other.await_that("running", || other.log().contains("running"));
    assert!(mark(&site).is_some_and(|mark| mark.pid == second.id()));
    // No agent continues the first one's attempts without an order.
    let held = site.until(NODE, "held", |status| status.phase == Phase::Held);
    assert_eq!(held.installed, None);
    assert_eq!(machine.story(), DEPLOYED[..2]);
    // A machine that this agent has never seen does not count as new.
    site.write("edge-new", &Machine::new(&site, "edge-new").spec(&site));
    let held = site.until("edge-new", "held", |status| status.phase == Phase::Held);
    assert!(held.conditions.iter().any(|one| one.reason == "RecordLost"), "{held:?}");
}

/// Invariant (agents): A missing or damaged mark releases nobody, and makes nobody a stranger to
/// itself.
#[test]
fn a_cleaned_status_directory_releases_nobody_and_the_agent_that_acts_marks_it_again() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let first = site.start();
    site.await_that("marked", || mark(&site).is_some());
    site.write(NODE, &machine.spec(&site).with_flag("paused", true));
    site.until_phase(NODE, Phase::Paused);
    let other = over_the_specs_of(&site);
    let path = site.path("nodes/_agent.status.toml");
    // Removed while one agent starts, and one stands by.
    fs::remove_file(&path).unwrap();
    let _second = other.start();
    other.await_that("standing by", || other.log().contains("stands by"));
    for _ in 0..3 {
        fs::remove_file(&path).unwrap();
        fs::remove_file(site.path(&format!("nodes/{NODE}.status.toml"))).unwrap_or_default();
        site.await_that("marked again", || mark(&site).is_some());
        assert!(mark(&site).is_some_and(|mark| mark.pid == first.id()));
    }
    assert!(!site.log().contains("taken over"), "{}", site.log());
    assert!(!other.log().contains("running"), "{}", other.log());
}

/// Invariant (agents): A dead agent is told from a quiet one.
#[test]
fn a_dead_agent_is_told_from_a_quiet_one() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    // Before the first agent's start, no agent runs.
    let (code, shown) = status(&site);
    assert_eq!((code, &shown["agent"]), (6, &Value::Null));
    let agent = site.start();
    site.write(NODE, &machine.spec(&site).with_flag("paused", true));
    site.until_phase(NODE, Phase::Paused);
    let (code, shown) = status(&site);
    assert_eq!((code, &shown["agent"]["alive"]), (0, &true.into()));
    assert_eq!(shown["nodes"][0]["node"], NODE);

    agent.kill();
    let last = mark(&site).unwrap();
    site.await_that("found dead", || status(&site).0 == 6);
    let (code, said, _) = answer(&mut site.hostler(&["status"]));
    assert_eq!(code, 6, "{said}");
    let since = format!("no agent since {:.0}", last.heartbeat);
    assert!(said.contains(&since[..since.len() - 4]), "{since}: {said}");
    assert!(said.contains("gives no sign of life") && said.contains(NODE), "{said}");
    let (code, said, _) = answer(&mut site.hostler(&["explain", NODE]));
    assert!(code == 0 && said.contains("no agent since"), "{said}");

    // Its successor on the same state directory starts at once.
    let agent = site.start();
    site.await_that("alive", || status(&site).0 == 0);
    assert!(!site.log().contains("stands by"), "{}", site.log());
    agent.terminate();
    let (code, said, _) = answer(&mut site.hostler(&["status"]));
    assert!(code == 6 && said.contains("was stopped"), "{said}");
}

//! The spec directory during installations: edits, removals, a lost directory, clashes.

use std::{fs, time::Duration};

use hostler::model::status::Phase;

use super::{
    DEPLOYED, NODE, SWITCHED_OFF,
    disk_faults::caught_in_the_middle,
    ends_deployed,
    machine::Machine,
    site::{Site, wait_at_most},
};

#[test]
fn a_half_written_edit_is_told_and_the_attempt_goes_on() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    let spec = machine.spec(&site).to_toml();
    fs::write(site.path("nodes/edge-07.toml"), &spec).unwrap();
    let ramdisk = machine.boot(&site, 1);
    machine.disk.signal("-STOP");
    ramdisk.export();
    site.until_phase(NODE, Phase::Imaging);
    fs::write(site.path("nodes/edge-07.toml"), &spec[..spec.len() / 2]).unwrap();
    let status = site.until(NODE, "invalid", |status| !status.spec_valid);
    assert_eq!(status.phase, Phase::Imaging);
    assert!(status.problems.iter().all(|problem| problem.file.ends_with("nodes/edge-07.toml")));
    assert!(!status.problems.is_empty());
    machine.disk.signal("-CONT");

    ramdisk.finish();
    let status = site.until_phase(NODE, Phase::Deployed);
    assert_eq!((status.ready, status.spec_valid), (false, false));
    fs::write(site.path("nodes/edge-07.toml"), &spec).unwrap();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
}

#[test]
fn a_spec_removed_while_its_disk_is_written_stops_everything() {
    let (site, machine, _agent, ramdisk) = caught_in_the_middle(NODE, &[]);
    // The write must not end before the removal counts.
    machine.disk.signal("-STOP");
    // Without another spec, the directory would be empty.
    fs::write(site.path("nodes/other.toml"), "").unwrap();
    fs::remove_file(site.path("nodes/edge-07.toml")).unwrap();
    site.await_that("stopped", || site.log().contains("the spec is gone"));
    machine.disk.signal("-CONT");
    site.await_that("forgotten", || {
        site.status(NODE).is_none() && !site.path("state/edge-07.json").exists()
    });
    assert!(machine.disk.sessions().is_empty());
    assert!(machine.disk.disk()[..1 << 20].iter().all(|byte| *byte == 0), "half an image boots");
    assert_eq!(machine.story(), SWITCHED_OFF);
    assert_eq!(machine.menu(&site), None);
    assert_eq!(ramdisk.look_up(1 << 30).0, 404);
    assert!(!site.log().contains("ERROR"), "{}", site.log());
}

#[test]
fn while_the_directory_is_away_nothing_starts_and_what_is_under_way_goes_on() {
    let site = Site::new();
    site.configure(&format!("status_dir = \"{}\"", site.path("status").display()));
    let machine = Machine::new(&site, NODE);
    let other = Machine::new(&site, "edge-08");
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let wrong = format!("sha256:{}", "0".repeat(64));
    let failing =
        other.spec(&site).with("image.checksum", &wrong).with_number("retry.attempts", 99);
    site.write("edge-08", &failing);
    let ramdisk = machine.boot(&site, 1);
    site.until("edge-08", "waiting for its next attempt", |status| {
        status.next_attempt_at.is_some()
    });

    fs::rename(site.path("nodes"), site.path("away")).unwrap();
    let held = site.until("edge-08", "held", |status| status.message.contains("holding still"));
    assert!(held.message.contains("no such directory"), "{}", held.message);
    assert_eq!(held.next_attempt_at, None);
    ramdisk.export();
    ramdisk.finish();
    let status = site.until_phase(NODE, Phase::Deployed);
    assert!(status.message.contains("holding still"), "{}", status.message);
    assert_eq!(site.status("edge-08").unwrap().attempt, held.attempt);

    fs::rename(site.path("away"), site.path("nodes")).unwrap();
    ends_deployed(&site, &machine);
    site.until("edge-08", "trying again", |status| status.attempt > held.attempt);
}

#[test]
fn an_empty_directory_forgets_nobody() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    let wrong = format!("sha256:{}", "0".repeat(64));
    site.write(NODE, &machine.spec(&site).with("image.checksum", &wrong));
    site.until_phase(NODE, Phase::Failed);
    fs::remove_file(site.path("nodes/edge-07.toml")).unwrap();
    let status = site.until(NODE, "held", |status| status.message.contains("holding still"));
    assert!(status.message.contains("empty"), "{}", status.message);
    assert!(machine.boots_its_disk(&site));
}

#[test]
fn two_specs_for_one_machine_are_both_invalid_and_it_is_not_touched() {
    let site = Site::new();
    let machine = Machine::new(&site, "rack-1");
    let bystander = Machine::new(&site, "rack-2");
    let other = Machine::new(&site, "rack-3");
    site.write("rack-1", &machine.spec(&site));
    site.write("rack-3", &other.spec(&site).with("boot.mac", &machine.mac));
    site.write("rack-2", &bystander.spec(&site));
    let _agent = site.start();
    for (node, named) in [("rack-1", "rack-3.toml"), ("rack-3", "rack-1.toml")] {
        let status = site.until_phase(node, Phase::Invalid);
        assert!(!status.spec_valid);
        for named in [named, &machine.mac] {
            assert!(status.message.contains(named), "{}", status.message);
        }
    }
    bystander.deploy(&site);
    ends_deployed(&site, &bystander);
    assert_eq!((machine.bmc.sessions(), other.bmc.sessions()), (0, 0));
    assert_eq!(machine.menu(&site), None);

    site.write("rack-3", &other.spec(&site));
    site.until("rack-3", "good", |status| status.phase != Phase::Invalid);
    site.until("rack-1", "good", |status| status.phase != Phase::Invalid);
}

#[test]
fn a_machine_that_is_on_is_held_until_somebody_consents() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let _agent = site.start();
    let spec = machine.spec(&site).with("redeploy", "from long ago");
    site.write(NODE, &spec);
    let status = site.until_phase(NODE, Phase::Held);
    for way_out in ["switch it off", "redeploy"] {
        assert!(status.message.contains(way_out), "{}", status.message);
    }
    assert!(machine.boots_its_disk(&site));
    assert!(machine.story().is_empty());

    site.write(NODE, &spec.with("redeploy", "now"));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), [&["off"][..], &DEPLOYED[..]].concat());
}

#[test]
fn what_a_forgotten_nodes_bmc_says_is_not_said_of_its_successor() {
    let site = Site::new();
    let old = Machine::new(&site, NODE);
    let new = Machine::with_bmc(&site, NODE, &["--on"]);
    for machine in [&old, &new] {
        machine.bmc.signal("-STOP");
    }
    fs::write(site.path("nodes/other.toml"), "").unwrap();
    let _agent = site.start();
    site.write(NODE, &old.spec(&site));
    site.until_phase(NODE, Phase::Pending);
    fs::remove_file(site.path("nodes/edge-07.toml")).unwrap();
    site.await_that("forgotten", || site.status(NODE).is_none());
    site.write(NODE, &new.spec(&site));
    site.until_phase(NODE, Phase::Pending);
    // The machine is off, and so may be installed; but it is another machine.
    old.bmc.signal("-CONT");
    let moved = || site.status(NODE).is_some_and(|status| status.phase != Phase::Pending);
    wait_at_most(Duration::from_secs(3), || moved().then_some(()));
    new.bmc.signal("-CONT");
    site.until_phase(NODE, Phase::Held);
    assert_eq!((old.bmc.sessions(), new.story()), (0, vec![]));
}

//! Faults of the target during a write, and the administrator's view of them.

use std::fs;

use hostler::model::{fault::Step, status::Phase};
use serde_json::json;

use super::{
    DEPLOYED, NODE, SWITCHED_OFF, ends_deployed, ends_failed,
    machine::{Machine, Ramdisk, holds, iqn},
    site::{Agent, Site, allocated_bytes},
};
use crate::iscsi::tgtd::Tgtd;

/// Bytes of an image that is large enough to be caught in the middle of its write.
pub(super) const LARGE_IMAGE_BYTES: usize = 96 << 20;
/// Bytes on the disk that count as the middle.
const MIDDLE_BYTES: u64 = 8 << 20;

/// Makes a machine whose disk is being written.
pub(super) fn caught_in_the_middle(
    node: &str,
    keys: &[(&str, &str)],
) -> (Site, Machine, Agent, Ramdisk) {
    let site = Site::with_image(LARGE_IMAGE_BYTES);
    let machine = Machine::new(&site, node);
    let agent = site.start();
    let spec = keys.iter().fold(machine.spec(&site), |spec, (key, value)| spec.with(key, value));
    site.write(node, &spec);
    let ramdisk = machine.boot(&site, 1);
    ramdisk.export();
    let disk = machine.disk.disk_file();
    site.await_that("writing", || allocated_bytes(&disk) > MIDDLE_BYTES);
    (site, machine, agent, ramdisk)
}

#[test]
fn a_target_that_dies_in_the_middle_of_the_image() {
    let (site, machine, _agent, _ramdisk) =
        caught_in_the_middle(NODE, &[("timeouts.imaging_stall", "2s")]);
    machine.disk.signal("-KILL");
    let status = ends_failed(&site, &machine, Step::Imaging, "TargetUnreachable");
    assert!(status.message.contains("could not be wiped"), "{}", status.message);
    assert_eq!(machine.story(), SWITCHED_OFF);
}

#[test]
fn a_connection_that_breaks_in_the_middle_of_the_image_is_made_anew_in_the_same_attempt() {
    let (site, machine, _agent, ramdisk) = caught_in_the_middle(NODE, &[]);
    machine.disk.delete_connections();
    ramdisk.finish();
    assert_eq!(ends_deployed(&site, &machine).attempt, 1);
    assert_eq!(machine.story(), DEPLOYED);
}

#[test]
fn a_target_that_falls_silent_in_the_middle_of_the_image() {
    let (site, machine, _agent, _ramdisk) =
        caught_in_the_middle(NODE, &[("timeouts.imaging_stall", "1s")]);
    machine.disk.signal("-STOP");
    let status = ends_failed(&site, &machine, Step::Imaging, "ImagingStalled");
    assert!(status.message.contains("no progress for 1 s"), "{}", status.message);
    assert_eq!(machine.story(), SWITCHED_OFF);
}

/// Makes a machine whose ramdisk compares during the write, and stops its target in the middle.
fn stopped_in_the_middle() -> (Site, Machine, Agent, Ramdisk) {
    let site = Site::with_image(144 << 20);
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let mut ramdisk = machine.boot(&site, 1);
    ramdisk.target.as_object_mut().unwrap().insert("knows_salt".to_owned(), true.into());
    ramdisk.export();
    let disk = machine.disk.disk_file();
    // At most 48 MiB of that are not flushed.
    site.await_that("writing", || allocated_bytes(&disk) > 72 << 20);
    machine.disk.signal("-STOP");
    (site, machine, agent, ramdisk)
}

#[test]
fn a_ramdisk_learns_during_the_write_what_its_disk_holds_and_need_not_compare_it_after_it() {
    let (site, machine, _agent, ramdisk) = stopped_in_the_middle();
    let flushed = ramdisk.flushed();
    assert!(!flushed.is_empty());
    let disk = fs::File::open(machine.disk.disk_file()).unwrap();
    assert!(flushed.iter().all(|range| range.salt.is_some() && holds(&disk, range)), "{flushed:?}");
    machine.disk.signal("-CONT");
    ramdisk.wait_for("release");
    assert!(ramdisk.still_holds(&flushed));
    assert_eq!(ramdisk.flushed(), [], "the write has ended");
    ramdisk.complete();
    assert_eq!(ends_deployed(&site, &machine).attempt, 1);
}

#[test]
fn a_disk_that_differs_already_during_its_write_ends_the_attempt() {
    let (site, machine, _agent, ramdisk) = stopped_in_the_middle();
    let notice = json!({"error": "vda does not hold the image", "verified": true});
    assert_eq!(ramdisk.post("completed", &notice).0, 202);
    machine.disk.signal("-CONT");
    let status = ends_failed(&site, &machine, Step::Completed, "DiskLies");
    assert!(status.message.contains("vda does not hold the image"), "{}", status.message);
    assert_eq!(machine.story(), SWITCHED_OFF);
}

#[test]
fn a_target_with_another_secret_than_was_passed() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let mut ramdisk = machine.boot(&site, 1);
    ramdisk.target["chap_password"] = "another secret".into();
    ramdisk.export();
    let status = ends_failed(&site, &machine, Step::Imaging, "LoginRefused");
    assert!(!status.message.contains("another secret"));
    assert_eq!(machine.story(), SWITCHED_OFF);
}

#[test]
fn a_target_that_lets_anybody_in_is_not_written() {
    let site = Site::new();
    let disk = Tgtd::serve(&iqn(NODE), 64 << 20);
    let machine = Machine::with_disk(&site, NODE, &[], disk);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    machine.boot(&site, 1).export();
    let status = ends_failed(&site, &machine, Step::Imaging, "LoginRefused");
    assert!(status.message.contains("CHAP"), "{}", status.message);
    assert!(machine.disk.disk().iter().all(|byte| *byte == 0));
    assert_eq!(machine.story(), SWITCHED_OFF);
}

#[test]
fn an_open_target_is_written_only_if_the_spec_allows_it_and_no_secret_was_made_for_it() {
    let site = Site::new();
    let disk = Tgtd::serve(&iqn(NODE), 160 << 20);
    let machine = Machine::with_disk(&site, NODE, &[], disk);
    let _agent = site.start();
    let open = machine.spec(&site).with_flag("boot.require_chap", false);
    site.write(NODE, &open);
    let ramdisk = machine.boot(&site, 1);
    ramdisk.export();
    let status = ends_failed(&site, &machine, Step::Imaging, "LoginRefused");
    assert!(status.message.contains("does not ask for CHAP"), "{}", status.message);
    assert!(machine.disk.disk().iter().all(|byte| *byte == 0));

    site.write(NODE, &open.with("redeploy", "again"));
    let mut ramdisk = machine.boot(&site, 2);
    for name in ["chap_username", "chap_password"] {
        ramdisk.target.as_object_mut().unwrap().remove(name);
    }
    ramdisk.export();
    ramdisk.finish();
    assert_eq!(site.until(NODE, "deployed", |status| status.ready).phase, Phase::Deployed);
    assert!(machine.has_image(&site));
}

#[test]
fn a_disk_of_another_size_than_was_reported_is_not_written() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    assert_eq!(ramdisk.look_up(1 << 30).0, 200);
    assert_eq!(ramdisk.post("pass_deploy_info", &ramdisk.target).0, 202);
    let status = ends_failed(&site, &machine, Step::Imaging, "WrongDisk");
    for named in ["160.0 MiB (167772160 bytes)", "1.0 GiB (1073741824 bytes)"] {
        assert!(status.message.contains(named), "{}", status.message);
    }
    assert!(machine.disk.disk().iter().all(|byte| *byte == 0));
    assert_eq!(machine.story(), SWITCHED_OFF);
}

#[test]
fn a_disk_smaller_than_the_image_is_not_asked_for() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    let (code, said) = ramdisk.look_up(1 << 20);
    assert_eq!(code, 409, "{said}");
    ends_failed(&site, &machine, Step::Ramdisk, "DiskTooSmall");
    assert_eq!(machine.story(), SWITCHED_OFF);
}

#[test]
fn an_agent_that_is_stopped_in_the_middle_leaves_nothing_bootable_and_goes_on_later() {
    let (site, machine, agent, ramdisk) = caught_in_the_middle(NODE, &[]);
    let (status, _) = agent.terminate();
    assert_eq!(status.code(), Some(0), "{}", site.log());
    assert!(machine.disk.disk()[..1 << 20].iter().all(|byte| *byte == 0));
    assert_eq!(site.status(NODE).unwrap().phase, Phase::Imaging);
    let _again = site.start();
    ramdisk.finish();
    ends_deployed(&site, &machine);
}

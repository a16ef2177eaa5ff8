//! Faults before or after the write of the disk, and the administrator's view of them.

use hostler::model::{
    fault::{RetryAdvice, Step},
    status::{Phase, Status},
};
use serde_json::{Value, json};

use super::{
    DEPLOYED, NODE, ends_deployed, ends_failed,
    machine::{self, Machine},
    netboot::root,
    site::{Site, answer},
};

#[test]
fn an_image_with_another_checksum_touches_no_machine() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    let wrong = format!("sha256:{}", "0".repeat(64));
    site.write(NODE, &machine.spec(&site).with("image.checksum", &wrong));
    let status = ends_failed(&site, &machine, Step::Image, "ChecksumMismatch");
    for named in ["disk.raw", &wrong, &site.checksum()] {
        assert!(status.message.contains(named), "{}", status.message);
    }
    assert!(machine.story().is_empty());
}

#[test]
fn a_missing_image_is_named_with_its_directory() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with("image.source", "other.raw"));
    let status = ends_failed(&site, &machine, Step::Image, "ImageUnreadable");
    let path = site.path("images/other.raw");
    assert!(status.message.contains(path.to_str().unwrap()), "{}", status.message);
}

/// Invariant (image): A file that is no disk is never installed as one, and the machine is not
/// touched for it.
#[test]
fn an_image_that_is_no_disk_is_refused_before_the_machine_is_touched() {
    let mut image = root();
    image[510..512].fill(0);
    let site = Site::of_image(image);
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let status = ends_failed(&site, &machine, Step::Image, "ImageUnusable");
    let said =
        "but is the file system ext4 without a partition table; use image.kind = \"partition\"";
    assert!(status.message.ends_with(said), "{}", status.message);
    assert!(machine.story().is_empty());
}

/// Invariant (disk): The smallest disk named as enough is enough; impossible images are refused
/// before power-on.
#[test]
fn a_disk_without_room_for_the_config_drive_is_refused_at_the_lookup_with_its_bytes() {
    // A Linux partition up to the last block of the machine's disk.
    let mut image = vec![0; 2 << 20];
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image[450] = 0x83;
    let blocks = u32::try_from(machine::DISK_BYTES / 512 - 2048).unwrap();
    image[454..458].copy_from_slice(&2048_u32.to_le_bytes());
    image[458..462].copy_from_slice(&blocks.to_le_bytes());
    let site = Site::of_image(image);
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with("config_drive.label", "config-2"));
    let ramdisk = machine.boot(&site, 1);
    assert_eq!(ramdisk.look_up(machine::DISK_BYTES).0, 409);
    let status = ends_failed(&site, &machine, Step::Ramdisk, "DiskTooSmall");
    for named in ["which has 224.0 MiB", "the disk has 160.0 MiB"] {
        assert!(status.message.contains(named), "{}", status.message);
    }
}

/// Invariant (log): A node that is given up is a warning in the log.
#[test]
fn giving_up_is_a_warning_and_a_phase_that_goes_on_is_none() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with("image.source", "other.raw"));
    ends_failed(&site, &machine, Step::Image, "ImageUnreadable");
    assert_eq!(site.levels(Phase::Preparing), ["INFO"], "{}", site.log());
    assert_eq!(site.levels(Phase::Failed), ["WARN"], "{}", site.log());
}

#[test]
fn a_silent_bmc_is_named_with_what_to_look_at() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    machine.bmc.signal("-STOP");
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with("timeouts.power", "2s"));
    let status = ends_failed(&site, &machine, Step::Preflight, "BmcSilent");
    let address = format!("127.0.0.1:{}", machine.bmc.port);
    assert!(status.message.contains(&address), "{}", status.message);
}

#[test]
fn an_ipmitool_that_is_not_installed_is_named() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start_as(site.hostler(&["run"]).env("PATH", site.path("")));
    site.write(NODE, &machine.spec(&site).with("bmc.driver", "ipmitool"));
    let fault = waits_for(&site, "IpmitoolMissing").last_error.unwrap().fault;
    assert!(fault.hint.contains("install ipmitool"), "{fault:?}");
}

#[test]
fn a_wrong_password_is_tried_in_one_attempt_only() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    std::fs::write(site.path("secrets/edge-07.bmc"), "wrong\n").unwrap();
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with_number("retry.attempts", 3));
    let status = ends_failed(&site, &machine, Step::Preflight, "BmcPasswordWrong");
    assert_eq!(status.attempt, 1);
    assert_eq!(status.last_error.unwrap().fault.retry, RetryAdvice::Never);
    assert_eq!(machine.bmc.sessions(), 0);
    assert!(!site.log().contains("wrong\n"));

    // The act in the hint.
    std::fs::write(site.path("secrets/edge-07.bmc"), "correct-horse\n").unwrap();
    site.write(NODE, &machine.spec(&site).with("redeploy", "password corrected"));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
}

/// Waits until the node waits for the missing file, without a used attempt.
pub(super) fn waits_for(site: &Site, code: &str) -> Status {
    let has_code =
        |status: &Status| status.last_error.as_ref().is_some_and(|error| error.fault.code == code);
    let status = site.until(NODE, code, |s| s.phase == Phase::Pending && has_code(s));
    let fault = &status.last_error.as_ref().unwrap().fault;
    assert_eq!((status.attempt, fault.retry), (0, RetryAdvice::Wait), "{status:?}");
    assert!(status.message.starts_with("waiting for what is missing: "), "{}", status.message);
    assert!(status.message.contains(&fault.message), "{}", status.message);
    status
}

/// Invariant (bmc): Only a plausible secret is sent, and a missing local file uses up no attempt.
#[test]
fn a_password_file_is_waited_for_and_what_cannot_be_a_password_is_never_sent() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let file = site.path("secrets/edge-07.bmc");
    std::fs::remove_file(&file).unwrap();
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let status = waits_for(&site, "PasswordUnreadable");
    assert!(status.message.contains("secrets/edge-07.bmc"), "{}", status.message);
    for (content, why) in [
        (&b""[..], "is empty"),
        (b"\xef\xbb\xbfcorrect-horse\n", "byte order mark"),
        (b"$ANSIBLE_VAULT;1.1;AES256\n6162\n", "IPMI 2.0 allows 20"),
    ] {
        std::fs::write(&file, content).unwrap();
        site.until(NODE, why, |status| status.message.contains(why));
    }
    assert_eq!(machine.bmc.sessions(), 0);
    std::fs::write(&file, "correct-horse\n").unwrap();
    machine.deploy(&site);
    assert_eq!(ends_deployed(&site, &machine).attempt, 1);
}

/// Invariant (bmc): Only a plausible secret is sent, and a missing local file uses up no attempt.
#[test]
fn a_deploy_ramdisk_is_waited_for() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    std::fs::rename(site.path("initramfs"), site.path("initramfs.new")).unwrap();
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let status = waits_for(&site, "BootFilesMissing");
    assert!(status.message.contains("initramfs"), "{}", status.message);
    std::fs::rename(site.path("initramfs.new"), site.path("initramfs")).unwrap();
    machine.deploy(&site);
    assert_eq!(ends_deployed(&site, &machine).attempt, 1);
    assert_eq!(machine.story(), DEPLOYED);
}

/// Invariant (bmc): A refusal that may pass ends no attempt, and one that stays is final after few
/// tries.
#[test]
fn a_bmc_that_refuses_for_seconds_after_each_power_change_costs_no_attempt() {
    let site = Site::new();
    let habits = ["--user-gone", "6", "--refuse-after-power", "0001=ff*1"];
    let machine = Machine::with_bmc(&site, NODE, &habits);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    machine.deploy(&site);
    assert_eq!(ends_deployed(&site, &machine).attempt, 1);
    assert_eq!(machine.story(), DEPLOYED);
}

#[test]
fn a_bmc_key_is_read_from_its_file_and_named_while_it_is_missing() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--kg", "site-bmc-key"]);
    let _agent = site.start();
    let spec = machine.spec(&site);
    site.write(NODE, &spec);
    let status = ends_failed(&site, &machine, Step::Preflight, "BmcKeyWrong");
    assert!(status.last_error.unwrap().fault.hint.contains("bmc.kg_file"));

    let spec = spec.with("bmc.kg_file", "site.kg").with("redeploy", "with a key");
    site.write(NODE, &spec);
    waits_for(&site, "BmcKeyUnreadable");
    std::fs::write(site.path("secrets/site.kg"), "0x736974652d626d632d6b6579\n").unwrap();
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    assert!(!site.log().contains("736974652d") && !site.log().contains("site-bmc-key"));
}

#[test]
fn a_password_may_be_a_credential_that_the_service_manager_gives_the_agent() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    std::fs::create_dir(site.path("given")).unwrap();
    std::fs::rename(site.path("secrets/edge-07.bmc"), site.path("given/bmc-7")).unwrap();
    let spec = machine.spec(&site).without("bmc.password_file");
    let spec = spec.with("bmc.password_credential", "bmc-7");
    let agent = site.start();
    site.write(NODE, &spec);
    let status = waits_for(&site, "PasswordUnreadable");
    let why = "bmc.password_credential bmc-7: the agent was started without credentials";
    assert!(status.message.contains(why), "{}", status.message);

    agent.terminate();
    let given = site.path("given");
    let _agent = site.start_as(site.hostler(&["run"]).env("CREDENTIALS_DIRECTORY", given));
    site.write(NODE, &spec.with("redeploy", "with credentials"));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
}

/// Invariant (netboot): A missing boot file that a machine asks for is named where its node's time
/// is over.
#[test]
fn a_boot_file_that_is_not_among_the_loaders_is_named_in_the_log_and_when_the_time_is_over() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with("timeouts.ramdisk", "5s"));
    site.until_phase(NODE, Phase::WaitingRamdisk);
    for _ in 0..3 {
        assert_eq!(site.fetch("lpxelinux.0"), None);
    }
    let named = "127.0.0.1 asked 3 times for lpxelinux.0, which is not among the loaders";
    let status = ends_failed(&site, &machine, Step::Ramdisk, "RamdiskTimeout");
    assert!(status.message.contains(named), "{}", status.message);
    assert_eq!(status.last_seen.unwrap().missing_loader.as_deref(), Some("lpxelinux.0"));
    let named = " INFO a machine asks for a boot file that is not among the loaders";
    assert!(site.log().contains(named), "{}", site.log());
}

/// Invariant (netboot): A network interface in no spec is named at the nodes that wait, a few times
/// only.
#[test]
fn a_network_interface_that_no_spec_names_is_named_while_its_machine_is_waited_for() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with("timeouts.ramdisk", "5s"));
    site.until_phase(NODE, Phase::WaitingRamdisk);
    assert_eq!(site.fetch("pxelinux.cfg/01-52-54-00-00-09-09"), None);
    let named = "52:54:00:00:09:09, which no spec names, asked for a boot menu";
    let waiting = site.until(NODE, named, |status| status.message.contains(named));
    assert_eq!(waiting.phase, Phase::WaitingRamdisk);
    let (_, output, _) = answer(&mut site.hostler(&["explain", NODE]));
    assert!(output.contains("asked for by 52:54:00:00:09:09"), "{output}");
    let status = ends_failed(&site, &machine, Step::Ramdisk, "RamdiskTimeout");
    assert!(status.message.ends_with(named), "{}", status.message);
    assert!(status.last_error.unwrap().fault.hint.contains("correct boot.mac"));
}

#[test]
fn a_machine_that_never_netboots_is_switched_off_again() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with("timeouts.ramdisk", "1s"));
    let status = ends_failed(&site, &machine, Step::Ramdisk, "RamdiskTimeout");
    assert!(status.message.contains("never fetched anything"), "{}", status.message);
    assert_eq!(machine.story(), super::SWITCHED_OFF);
}

#[test]
fn without_a_matching_disk_every_disk_is_named_to_both_sides() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    let spec = machine.spec(&site).with("root_device.serial", "root-9");
    site.write(NODE, &spec.with("timeouts.root_device", "1s"));
    let ramdisk = machine.boot(&site, 1);
    let (code, said) = ramdisk.look_up(machine.disk.disk_bytes);
    assert_eq!(code, 409);
    assert!(said["error"].as_str().unwrap().contains("root-1"), "{said}");
    ramdisk.wait_for("abort");
    let status = ends_failed(&site, &machine, Step::Ramdisk, "NoRootDevice");
    assert!(status.message.contains("root-1") && status.message.contains("root-9"));
    assert_eq!(machine.story(), super::SWITCHED_OFF);
}

#[test]
fn a_ramdisk_that_gives_up_is_quoted() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    assert_eq!(ramdisk.look_up(machine.disk.disk_bytes).0, 200);
    let words = "vda: Input/output error";
    assert_eq!(ramdisk.post("pass_deploy_info", &json!({"error": words})).0, 202);
    ramdisk.wait_for("abort");
    let status = ends_failed(&site, &machine, Step::Ramdisk, "RamdiskFailed");
    assert!(status.message.contains(words), "{}", status.message);
    assert_eq!(machine.story(), super::SWITCHED_OFF);
}

#[test]
fn a_ramdisk_that_cannot_stop_its_target_is_not_restarted_into_the_image() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    ramdisk.export();
    ramdisk.wait_for("release");
    assert_eq!(ramdisk.post("completed", &json!({"error": "flush: EIO"})).0, 202);
    let status = ends_failed(&site, &machine, Step::Ramdisk, "RamdiskFailed");
    assert!(status.message.contains("flush: EIO"), "{}", status.message);
    assert_eq!(machine.story(), super::SWITCHED_OFF);
}

#[test]
fn a_target_at_another_address_than_the_callers_is_refused_and_told() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with("timeouts.ramdisk", "10s"));
    site.until_phase(NODE, Phase::WaitingRamdisk);
    let mut ramdisk = machine.boot(&site, 1);
    assert_eq!(ramdisk.look_up(machine.disk.disk_bytes).0, 200);
    ramdisk.target["address"] = json!("127.0.0.2");
    assert_eq!(ramdisk.post("pass_deploy_info", &ramdisk.target).0, 404);
    let status = ends_failed(&site, &machine, Step::Ramdisk, "RamdiskTimeout");
    let seen = status.last_seen.unwrap();
    assert_eq!(seen.refused, 1);
    assert!(status.message.contains("not the caller's own"), "{}", status.message);
    assert!(seen.refused_reason.unwrap().contains("not the caller's own"));
    assert_eq!(machine.story(), super::SWITCHED_OFF);
}

#[test]
fn a_completed_notice_that_never_comes_ends_the_attempt() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    // The notice of a ramdisk that compares its disk has as long as the disk's write besides.
    let spec = machine.spec(&site).with("image.verify", "none");
    site.write(NODE, &spec.with("timeouts.completed", "1s"));
    let ramdisk = machine.boot(&site, 1);
    ramdisk.export();
    ramdisk.wait_for("release");
    ends_failed(&site, &machine, Step::Completed, "CompletedTimeout");
    assert_eq!(machine.story(), super::SWITCHED_OFF);
    // The machine's ramdisk arrives after all.
    assert_eq!(ramdisk.post("completed", &json!({"error": ""})).0, 404);
    assert_eq!(site.status(NODE).unwrap().phase, Phase::Failed);
}

#[test]
fn a_late_ramdisk_of_an_old_attempt_changes_nothing_in_the_next() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    let spec = machine.spec(&site).with_number("retry.attempts", 2);
    site.write(NODE, &spec);
    let late = machine.boot(&site, 1);
    assert_eq!(late.post("pass_deploy_info", &json!({"error": "too early"})).0, 202);

    let ramdisk = machine.boot(&site, 2);
    assert_ne!(ramdisk.key(), late.key());
    let is_refused = |call: &str, body: &Value| assert_eq!(late.post(call, body).0, 404, "{call}");
    let empty = json!({"macs": [], "disks": []});
    is_refused("lookup", &empty);
    is_refused("pass_deploy_info", &late.target);
    is_refused("completed", &json!({}));
    assert_eq!(late.call("GET", "deploy_state", &json!(null)).0, 404);
    ramdisk.export();
    is_refused("completed", &json!({"error": "from the past"}));
    ramdisk.wait_for("release");
    ramdisk.complete();

    let status = ends_deployed(&site, &machine);
    assert_eq!(status.attempt, 2);
    assert_eq!(status.last_seen.unwrap().refused, 5);
    assert_eq!(machine.story(), [&super::SWITCHED_OFF[..], &DEPLOYED[..]].concat());
}

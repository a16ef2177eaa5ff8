//! What goes wrong before the disk is written or after it, and how the administrator sees it.

use hostler::model::{
    fault::{RetryAdvice, Step},
    status::Phase,
};
use serde_json::{Value, json};

use super::{DEPLOYED, NODE, ends_deployed, ends_failed, machine::Machine, site::Site};

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
    let status = ends_failed(&site, &machine, Step::Preflight, "IpmitoolMissing");
    assert!(status.last_error.unwrap().fault.hint.contains("install ipmitool"));
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

    // As the hint says.
    std::fs::write(site.path("secrets/edge-07.bmc"), "correct-horse\n").unwrap();
    site.write(NODE, &machine.spec(&site).with("redeploy", "password corrected"));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
}

#[test]
fn a_missing_password_file_is_named() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    std::fs::remove_file(site.path("secrets/edge-07.bmc")).unwrap();
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let status = ends_failed(&site, &machine, Step::Preflight, "PasswordUnreadable");
    assert!(status.message.contains("secrets/edge-07.bmc"), "{}", status.message);
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
    let status = ends_failed(&site, &machine, Step::Preflight, "PasswordUnreadable");
    let why = "bmc.password_credential bmc-7: the agent was started without credentials";
    assert!(status.message.contains(why), "{}", status.message);

    agent.terminate();
    let given = site.path("given");
    let _agent = site.start_as(site.hostler(&["run"]).env("CREDENTIALS_DIRECTORY", given));
    site.write(NODE, &spec.with("redeploy", "with credentials"));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
}

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
    let told = "127.0.0.1 asked 3 times for lpxelinux.0, which is not among the loaders";
    let status = ends_failed(&site, &machine, Step::Ramdisk, "RamdiskTimeout");
    assert!(status.message.contains(told), "{}", status.message);
    assert_eq!(status.last_seen.unwrap().missing_loader.as_deref(), Some("lpxelinux.0"));
    let told = " INFO a machine asks for a boot file that is not among the loaders";
    assert!(site.log().contains(told), "{}", site.log());
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
    site.write(NODE, &machine.spec(&site).with("timeouts.completed", "1s"));
    let ramdisk = machine.boot(&site, 1);
    ramdisk.export();
    ramdisk.wait_for("release");
    ends_failed(&site, &machine, Step::Completed, "CompletedTimeout");
    assert_eq!(machine.story(), super::SWITCHED_OFF);
    // It comes after all.
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

//! Faults that hostler finds before it switches a machine on. All at one site: no node may disturb
//! another.

use hostler::model::{fault::Step, status::Status};

use crate::{
    disks::{self, Before},
    rack::Machine,
    site::{SOON, Site},
};

const WRONG_SHA256: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn a_bad_image_or_bmc_is_named_and_the_machine_is_never_switched_on() {
    let mut site = Site::new("faults_before_power", &["bios"; 4], "128M");
    let image = site.image("disk.raw", 0);
    let machines = site.rack.machines();
    let before = disks::fill_and_note(&machines);
    let [wrong_checksum, silent_bmc, wrong_password, no_image] = machines.try_into().unwrap();

    let right = format!("[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n", image.sha256);
    let wrong = right.replace(&image.sha256, WRONG_SHA256);
    site.write_spec(&wrong_checksum, &format!("{wrong}[retry]\nattempts = 1\n"));
    site.rack.tell(&["bmc-stop", &silent_bmc.name]);
    let timeouts = "[timeouts]\npower = \"4s\"\n";
    site.write_spec(&silent_bmc, &format!("{right}{timeouts}[retry]\nattempts = 1\n"));
    site.write_password(&wrong_password, "not the password");
    // Attempts remain, but BMCs lock users out after repeated wrong passwords.
    site.write_spec(&wrong_password, &format!("{right}[retry]\nattempts = 3\n"));
    let missing = right.replace("disk.raw", "never-copied.raw");
    site.write_spec(&no_image, &format!("{missing}[retry]\nattempts = 1\n"));

    let error = site.wait_for_failure(&wrong_checksum.name, SOON);
    assert_eq!((error.fault.step, &*error.fault.code), (Step::Image, "ChecksumMismatch"));
    for named in [WRONG_SHA256, &image.sha256, "disk.raw"] {
        assert!(error.fault.message.contains(named), "{error:#?}");
    }
    let error = site.wait_for_failure(&silent_bmc.name, SOON);
    assert_eq!((error.fault.step, &*error.fault.code), (Step::Preflight, "BmcSilent"));
    assert!(error.fault.message.contains(&silent_bmc.bmc.address), "{error:#?}");
    let error = site.wait_for_failure(&wrong_password.name, SOON);
    assert_eq!((error.fault.step, &*error.fault.code), (Step::Preflight, "BmcPasswordWrong"));
    assert_eq!(error.attempt, 1);
    let error = site.wait_for_failure(&no_image.name, SOON);
    assert_eq!((error.fault.step, &*error.fault.code), (Step::Image, "ImageUnreadable"));
    assert!(error.fault.message.contains("never-copied.raw"), "{error:#?}");

    for machine in [&wrong_checksum, &silent_bmc, &wrong_password, &no_image] {
        assert_never_touched(machine, &site.status(&machine.name).unwrap());
    }
    before.iter().for_each(Before::assert_untouched);
}

/// Asserts that neither power nor boot device was changed, and that the status reports none.
fn assert_never_touched(machine: &Machine, status: &Status) {
    const CHASSIS: Option<u8> = Some(0);
    const GET_CHASSIS_STATUS: Option<u8> = Some(1);
    for event in machine.events() {
        let only_polled = event.netfn != CHASSIS || event.command == GET_CHASSIS_STATUS;
        assert!(event.event != "power" && only_polled, "{}: {event:?}", machine.name);
    }
    assert!(!status.message.contains("switched off"), "{}", status.message);
}

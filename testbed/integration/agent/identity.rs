//! `bmc.match_system_uuid`: the machine that runs the ramdisk must be the one behind the spec's
//! BMC.

use hostler::model::{fault::Step, status::Phase};

use super::{
    DEPLOYED, NODE, SWITCHED_OFF, ends_deployed, ends_failed,
    machine::Machine,
    site::{Site, Spec},
};

const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";
/// The UUID in IPMI's byte order.
const GUID: &str = "ffeeddccbbaa99887766554433221100";

fn matching(machine: &Machine, site: &Site) -> Spec {
    machine.spec(site).with_flag("bmc.match_system_uuid", true)
}

#[test]
fn the_machine_that_the_bmc_belongs_to_is_installed() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--guid", GUID]);
    let _agent = site.start();
    site.write(NODE, &matching(&machine, &site));
    let mut ramdisk = machine.boot(&site, 1);
    ramdisk.uuid = Some(UUID);
    ramdisk.export();
    ramdisk.finish();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
}

/// Invariant (machine): Where the UUID is to match, another machine is not written.
#[test]
fn another_machine_than_the_bmc_belongs_to_is_not_written() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--guid", GUID]);
    let _agent = site.start();
    site.write(NODE, &matching(&machine, &site));
    let mut ramdisk = machine.boot(&site, 1);
    ramdisk.uuid = Some("99112233-4455-6677-8899-aabbccddeeff");
    let (code, said) = ramdisk.look_up(1 << 30);
    assert_eq!(code, 409, "{said}");
    let status = ends_failed(&site, &machine, Step::Ramdisk, "WrongMachine");
    for named in ["its UUID is 99112233-4455-6677-8899-aabbccddeeff", UUID] {
        assert!(status.message.contains(named), "{}", status.message);
    }
    assert!(machine.disk.disk().iter().all(|byte| *byte == 0));
    assert_eq!(machine.story(), SWITCHED_OFF);
}

#[test]
fn a_bmc_that_does_not_know_its_machine_is_told_apart_before_that_is_switched_on() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &matching(&machine, &site));
    let status = ends_failed(&site, &machine, Step::Preflight, "NoSystemUuid");
    assert!(status.message.contains("does not say its system's UUID"), "{}", status.message);
    let hint = &status.last_error.unwrap().fault.hint;
    assert!(hint.contains("bmc.match_system_uuid = false"), "{hint}");
    assert!(machine.story().is_empty());
}

/// Invariant (machine): Two specs for one BMC under two names are a clash, and switch no machine.
#[test]
fn one_bmc_under_two_names_is_a_clash_and_no_machine_is_switched_by_it() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let spec = machine.spec(&site);
    let other = spec.clone().with("boot.mac", "52:54:00:00:00:aa");
    let other = other.with("bmc.address", &format!("localhost:{}", machine.bmc.port));
    site.write(NODE, &spec);
    site.write("edge-08", &other);
    let _agent = site.start();
    for node in [NODE, "edge-08"] {
        let status = site.until(node, "a clash", |status| {
            status.phase == Phase::Invalid && !status.problems.is_empty()
        });
        assert!(status.message.contains("so is the BMC of"), "{}", status.message);
    }
    assert!(machine.story().is_empty());

    // One of the two addresses is corrected.
    site.write("edge-08", &other.with("bmc.address", "192.0.2.20"));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
}

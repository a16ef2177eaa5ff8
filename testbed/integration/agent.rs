//! The real agent, from spec to installed machine, against pyghmi for the BMC, tgtd for the disk
//! and curl for the deploy ramdisk.
//!
//! Kernels and firmware are tested in the virtual rack; here a whole deploy takes seconds, so that
//! every fault has a test.

mod bmc;
mod check;
mod clock;
mod commands;
mod consent;
mod console;
mod decay;
mod deploys;
mod directory;
mod disk_faults;
mod faults;
mod fifos;
mod first_boot;
mod flood;
mod identity;
mod ironic;
mod log;
mod looking;
mod machine;
mod mounts;
mod netboot;
mod orders;
mod program;
mod ramdisk_log;
mod restarts;
mod seccomp;
mod silent;
mod site;
mod specs;
mod statuses;
mod surroundings;
mod terminal;
mod two_agents;

use hostler::model::{
    fault::Step,
    status::{Phase, Status},
};

use self::{machine::Machine, site::Site};

/// The node of most tests.
const NODE: &str = "edge-07";

/// The BMC's acts in a successful attempt.
const DEPLOYED: [&str; 5] = ["network once", "on from network", "off", "disk always", "on from hd"];
/// The BMC's acts in an attempt that fails after the machine was switched on.
const SWITCHED_OFF: [&str; 4] = ["network once", "on from network", "off", "disk always"];

/// Waits until the node is deployed, and checks everything that an administrator sees.
fn ends_deployed(site: &Site, machine: &Machine) -> Status {
    let status =
        site.until(&machine.node, "over", |status| status.ready || status.phase == Phase::Failed);
    show(&status);
    assert_eq!((status.phase, status.ready), (Phase::Deployed, true), "{}", site.log());
    assert_eq!(status.last_error, None);
    assert_eq!(status.spec_digest, status.installed_digest);
    assert!(machine.has_image(site), "the disk differs from the image");
    assert!(machine.boots_its_disk(site));
    assert!(machine.is_on());
    assert!(machine.disk.sessions().is_empty(), "a session is left at the target");
    assert!(!site.record(&machine.node).contains("\"key\""), "the key outlives the attempt");
    status
}

/// Waits until the node has failed with this fault, and checks that the machine boots its own disk
/// and is off, if it was ever switched on.
fn ends_failed(site: &Site, machine: &Machine, step: Step, code: &str) -> Status {
    let status =
        site.until(&machine.node, "over", |status| status.ready || status.phase == Phase::Failed);
    show(&status);
    let error = status.last_error.clone().unwrap().fault;
    assert_eq!((status.phase, status.ready), (Phase::Failed, false));
    assert_eq!((error.step, error.code.as_ref()), (step, code), "{error:?}");
    assert!(status.message.contains(&error.message), "{}", status.message);
    assert!(!error.hint.is_empty());
    assert_eq!(status.installed_digest, None);
    assert!(machine.boots_its_disk(site));
    let story = machine.story();
    assert!(story.is_empty() || story == SWITCHED_OFF, "{story:?}");
    status
}

/// Prints a status for readers of `--nocapture`.
#[expect(clippy::print_stdout, reason = "the captured output of a test")]
fn show(status: &Status) {
    println!("{}", toml::to_string(status).unwrap());
}

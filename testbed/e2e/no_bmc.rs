//! Machines without a BMC in their specs: the test switches them on, and they restart or end by
//! themselves.

use std::{
    thread,
    time::{Duration, Instant},
};

use hostler::model::status::{Phase, Status};

use crate::{
    disks,
    rack::Machine,
    site::{BOOT_LIMIT, SOON, Site},
};

const WHAT_TO_DO: &str = "switch the machine on, or restart it, so that it boots from the \
                          network: hostler will WIPE and install it";
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The busy phases of such an attempt: only the machine itself restarts it.
const PHASES: [Phase; 7] = [
    Phase::Preparing,
    Phase::PoweringOn,
    Phase::WaitingRamdisk,
    Phase::Imaging,
    Phase::Switching,
    Phase::WaitingCompleted,
    Phase::Deployed,
];

#[test]
fn machines_without_a_bmc_are_installed_when_somebody_switches_them_on_and_leave_themselves_as_wanted()
 {
    let mut site = Site::new("no_bmc", &["uefi", "bios"], "1G");
    let image = site.image("disk.raw", 0);
    let [stays_on, goes_off] = <[Machine; 2]>::try_from(site.rack.machines()).unwrap();
    for machine in [&stays_on, &goes_off] {
        disks::fill(machine);
        machine.boots_network_first();
    }
    let rest = |machine: &Machine| {
        format!(
            "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n[root_device]\n\
             serial = \"{}\"\n",
            image.sha256, machine.disks[0].serial
        )
    };
    site.write_spec_without_bmc(&stays_on, "on", &rest(&stays_on));
    site.write_spec_without_bmc(&goes_off, "off", &rest(&goes_off));

    for machine in [&stays_on, &goes_off] {
        let status = site.wait_for_phase(&machine.name, Phase::PoweringOn, SOON);
        assert_eq!((status.message.as_str(), status.power), (WHAT_TO_DO, None));
        let waiting = status.conditions.iter().find(|one| one.kind == "WaitingForPerson");
        assert!(waiting.is_some_and(|waiting| waiting.message == WHAT_TO_DO), "{status:#?}");
        assert!(status.deadline.is_some());
        assert!(
            machine.events().is_empty(),
            "nobody has spoken to its BMC: {:?}",
            machine.events()
        );
        site.rack.ipmitool(machine, &["chassis", "power", "on"]);
    }
    for machine in [&stays_on, &goes_off] {
        let up = |status: &Status| status.phase == Phase::WaitingRamdisk;
        let status = site.wait(&machine.name, "its boot menu to be fetched", BOOT_LIMIT, up);
        assert!(status.message.contains("it fetched its"), "{status:#?}");
    }
    for machine in [&stays_on, &goes_off] {
        let status = site.wait_for_phase(&machine.name, Phase::Deployed, BOOT_LIMIT);
        assert!(status.ready && status.attempt == 1 && status.power.is_none(), "{status:#?}");
        assert!(status.message.starts_with("installed; without a BMC"), "{status:#?}");
        let phases: Vec<Phase> = status.history.iter().map(|entry| entry.phase).collect();
        assert!(phases.ends_with(&PHASES), "{phases:?}");
    }

    // One boots its own system: its firmware tries the network first, and gets the menu of the
    // local disk. The other goes off.
    site.assert_runs_image(&stays_on);
    assert!(site.rack.machine(&stays_on.name).is_on);
    let soon = Instant::now() + SOON;
    while site.rack.machine(&goes_off.name).is_on {
        assert!(Instant::now() < soon, "it does not switch itself off");
        thread::sleep(POLL_INTERVAL);
    }
    for machine in [&stays_on, &goes_off] {
        disks::assert_holds(machine, &image);
        assert_eq!(machine.times_switched_on(), 1, "only by the test");
        site.assert_boots_local_disk(machine);
    }
}

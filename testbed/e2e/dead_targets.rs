//! iSCSI targets that die while they are written to: one machine loses its power, another hangs.

use hostler::model::{
    fault::Step,
    status::{ImagingStage, Phase},
};

use crate::{
    disks::{self, Before},
    rack::Machine,
    site::{BOOT_LIMIT, SOON, Site},
};

/// Enough that both machines are being written for several seconds.
const NOISE_MIB: usize = 400;

#[test]
fn a_target_that_dies_in_the_middle_fails_the_node_and_leaves_nothing_that_boots() {
    let mut site = Site::new("dead_targets", &["bios", "bios"], "1G");
    let image = site.image("large.raw", NOISE_MIB);
    let machines = site.rack.machines();
    machines.iter().for_each(disks::fill);
    let second_disks: Vec<Before> =
        machines.iter().map(|machine| Before::of(&machine.disks[1].path)).collect();
    for machine in &machines {
        let rest = format!(
            "[image]\nsource = \"large.raw\"\nchecksum = \"sha256:{}\"\n[root_device]\nserial = \"{}\"\n\
             [timeouts]\nimaging_stall = \"15s\"\n[retry]\nattempts = 1\n",
            image.sha256, machine.disks[0].serial
        );
        site.write_spec(machine, &rest);
    }
    for (machine, fault) in machines.iter().zip(["kill", "stop"]) {
        wait_for_the_middle(&mut site, machine);
        site.rack.tell(&[fault, &machine.name]);
    }

    for machine in &machines {
        let error = site.wait_for_failure(&machine.name, SOON);
        assert_eq!(error.fault.step, Step::Imaging, "{error:#?}");
        let codes = ["TargetGone", "TargetSilent", "ImagingStalled"];
        assert!(codes.contains(&&*error.fault.code), "{error:#?}");
        assert!(!site.rack.machine(&machine.name).machine_running);
        disks::assert_wiped(machine);
    }
    second_disks.iter().for_each(Before::assert_untouched);
}

/// Waits until the body of the image is being written.
fn wait_for_the_middle(site: &mut Site, machine: &Machine) {
    site.wait(&machine.name, "the middle of the write", BOOT_LIMIT, |status| {
        let writing = |progress| matches!(progress, Some(ImagingStage::Write));
        let progress = status.progress.filter(|progress| progress.done_bytes > 0);
        status.phase == Phase::Imaging && writing(progress.map(|progress| progress.stage))
    });
}

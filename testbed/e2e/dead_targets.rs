//! iSCSI targets that die during a write: one machine loses its power, another hangs. The output of
//! both is kept.

use std::{collections::BTreeMap, fs, time::Duration};

use hostler::model::fault::Step;

use crate::{
    disks::{self, Before},
    rack::Machine,
    site::Site,
};

/// Enough that the writes of both machines take several seconds.
const NOISE_MIB: usize = 400;
/// Time until the agent has noticed the silence, has tried to wipe over a new connection, and has
/// switched the machine off.
const NOTICED: Duration = Duration::from_secs(150);

#[test]
fn a_target_that_dies_in_the_middle_fails_the_node_and_leaves_nothing_that_boots() {
    let mut site = Site::new("dead_targets", &["bios", "bios"], "1G");
    let image = site.image("large.raw", NOISE_MIB);
    let machines = site.rack.machines();
    machines.iter().for_each(disks::fill);
    let second_disks: Vec<Before> =
        machines.iter().map(|machine| Before::of(&machine.disks[1].path)).collect();
    // The fault, the stall limit, and the error code: a silence is noticed after 20 s, and then the
    // agent reconnects until the limit.
    let faults = [("kill", "40s", "TargetUnreachable"), ("stop", "12s", "ImagingStalled")];
    for (machine, (_, stall, _)) in machines.iter().zip(faults) {
        let rest = format!(
            "console = true\n[image]\nsource = \"large.raw\"\nchecksum = \"sha256:{}\"\n\
             [root_device]\nserial = \"{}\"\n\
             [timeouts]\nimaging_stall = \"{stall}\"\n[retry]\nattempts = 1\n",
            image.sha256, machine.disks[0].serial
        );
        site.write_spec_loudly(machine, &rest);
    }
    let mut keys = BTreeMap::new();
    let mut waiting: Vec<_> = machines.iter().zip(faults).collect();
    while !waiting.is_empty() {
        let names: Vec<&str> = waiting.iter().map(|(machine, _)| &*machine.name).collect();
        let which = site.wait_for_the_middle_of_a_write(&names);
        let (machine, (fault, ..)) = waiting.remove(which);
        let record = site.record(&machine.name).unwrap();
        keys.insert(&machine.name, record.state.attempt().unwrap().key.expose().to_owned());
        site.rack.tell(&[fault, &machine.name]);
    }

    let mut consoles = String::new();
    for (machine, (.., code)) in machines.iter().zip(faults) {
        let error = site.wait_for_failure(&machine.name, NOTICED);
        assert_eq!((error.fault.step, &*error.fault.code), (Step::Imaging, code), "{error:#?}");
        assert!(!site.rack.machine(&machine.name).is_on);
        disks::assert_wiped(machine);
        consoles.push_str(&console_kept(&site, machine, &keys[&machine.name]));
    }
    assert!(consoles.contains("hostler.key=<key>"), "no kernel printed its command line");
    second_disks.iter().for_each(Before::assert_untouched);
}

/// Checks the output of boot loader, kernel and ramdisk, and that it holds no secret. Each expected
/// line is short: in a long burst QEMU's serial port may drop characters.
fn console_kept(site: &Site, machine: &Machine, key: &str) -> String {
    let kept = site.file(&format!("nodes/{}.console.log", machine.name));
    let kept = fs::read_to_string(kept).unwrap();
    for line in ["hostler: booting the deploy ramdisk", "db_root: cannot", "the disk is exported"] {
        assert!(kept.contains(line), "no {line:?} in\n{kept}");
    }
    assert!(!kept.contains(key), "{kept}");
    assert!(!kept.contains('\u{1b}') && machine.console().contains('\u{1b}'), "{kept}");
    kept
}

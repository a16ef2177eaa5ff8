//! Machines on which it is not sure which disk to write, or not possible.

use hostler::model::fault::Step;

use crate::{
    disks::{self, Before},
    site::{BOOT_LIMIT, Site},
};

#[test]
fn without_exactly_one_disk_that_fits_no_disk_is_written() {
    let mut site = Site::new("root_devices", &["bios"; 3], "128M");
    let image = site.image("disk.raw", 0);
    let machines = site.rack.machines();
    let before = disks::fill_and_note(&machines);
    let hints =
        ["[root_device]\nserial = \"in-no-machine\"\n", "", "[root_device]\nserial = \"data-3\"\n"];
    for (machine, hint) in machines.iter().zip(hints) {
        let rest = format!(
            "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n{hint}",
            image.sha256
        );
        site.write_spec(machine, &rest);
    }

    let expected = [
        // The hint, and every disk it might have meant.
        ("NoRootDevice", vec!["in-no-machine", "root-1", "data-1", "128.0 MiB", "16.0 MiB"]),
        ("NoRootDevice", vec!["2 disks match an empty [root_device]", "root-2", "data-2"]),
        ("DiskTooSmall", vec!["data-3", "16.0 MiB", "64.0 MiB"]),
    ];
    for (machine, (code, named)) in machines.iter().zip(expected) {
        let error = site.wait_for_failure(&machine.name, BOOT_LIMIT);
        assert_eq!((error.fault.step, &*error.fault.code), (Step::Ramdisk, code), "{error:#?}");
        for word in named {
            assert!(error.fault.message.contains(word), "{word:?}: {error:#?}");
        }
        // Attempts are left, but the next one would find the same disks.
        assert_eq!(error.attempt, 1);
        assert!(!site.rack.machine(&machine.name).is_on);
        assert_eq!(machine.times_switched_on(), 1);
    }
    before.iter().for_each(Before::assert_untouched);
}

//! Machines whose root device is ambiguous, missing or late.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
};

use hostler::model::{
    fault::Step,
    status::{Phase, Status},
};

use crate::{
    disks::{self, Before},
    rack::Machine,
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
            "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n{hint}\
             [timeouts]\nroot_device = \"5s\"\n[retry]\nbackoff = \"1s\"\n",
            image.sha256
        );
        site.write_spec(machine, &rest);
    }

    let expected = [
        // The hint, and every disk of the machine.
        ("NoRootDevice", 2, vec!["in-no-machine", "root-1", "data-1", "128.0 MiB", "16.0 MiB"]),
        ("NoRootDevice", 2, vec!["2 disks match an empty [root_device]", "root-2", "data-2"]),
        ("DiskTooSmall", 1, vec!["data-3", "16.0 MiB", "63.0 MiB"]),
    ];
    for (machine, (code, attempts, named)) in machines.iter().zip(expected) {
        let error = site.wait_for_failure(&machine.name, BOOT_LIMIT);
        assert_eq!((error.fault.step, &*error.fault.code), (Step::Ramdisk, code), "{error:#?}");
        for word in named {
            assert!(error.fault.message.contains(word), "{word:?}: {error:#?}");
        }
        // Attempts remain. A disk may miss one start, and another netboot finds the same.
        assert_eq!(error.attempt, attempts);
        assert!(!site.rack.machine(&machine.name).is_on);
        assert_eq!(machine.times_switched_on(), usize::try_from(attempts).unwrap());
        tells_of_its_boot(&site.ramdisk_log(&machine.name), machine, attempts);
    }
    before.iter().for_each(Before::assert_untouched);
}

/// Asserts that the deploy ramdisk's log arrived, begins before its network, and holds no secret.
fn tells_of_its_boot(log: &str, machine: &Machine, attempt: u32) {
    let header = format!("# {}, attempt {attempt}: its deploy ramdisk's log, ", machine.name);
    assert!(log.starts_with(&header), "{log:.200}");
    for said in ["] Linux version ", "hostler.key=<key>", "\n# the deploy ramdisk\n", "found disk="]
    {
        assert!(log.contains(said), "{said:?}: {log}");
    }
    let long_hex = |word: &str| word.len() >= 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words = log.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| long_hex(word));
    let pin = log.split("hostler.pin=").nth(1).and_then(|rest| rest.get(..64)).unwrap();
    assert_eq!(words.filter(|word| *word != pin).count(), 0, "{log}");
}

/// Simulates a RAID controller that shows its volumes long after the load of its driver.
#[test]
fn a_disk_that_appears_while_the_ramdisk_looks_for_it_is_installed() {
    let mut site = Site::new("late_disk", &["bios"], "128M");
    let image = site.image("disk.raw", 0);
    let [machine] = site.rack.machines().try_into().unwrap();
    let before = disks::fill_and_note(std::slice::from_ref(&machine));
    let rest = format!(
        "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n[root_device]\n\
         serial = \"late\"\n",
        image.sha256
    );
    site.write_spec(&machine, &rest);
    let waits = |status: &Status| status.message.starts_with("waiting for the root device");
    site.wait(&machine.name, "the ramdisk to miss its disk", BOOT_LIMIT, waits);
    let late = machine.console_log.with_file_name("late.raw");
    File::create(&late).unwrap().set_len(128 << 20).unwrap();
    plug_in(&machine, &late);
    site.wait_for_phase(&machine.name, Phase::Deployed, BOOT_LIMIT);
    assert!(machine.console().contains("appeared disk=vdc"), "{}", machine.console());
    assert_eq!(machine.times_switched_on(), 2, "to be installed, and into its own system");
    let [written, wanted] = [&late, &site.file("images/disk.raw")].map(|p| fs::read(p).unwrap());
    // The image's own table, except for the place of its backup.
    assert!(written[1 << 20..].starts_with(&wanted[1 << 20..wanted.len() - (1 << 20)]));
    before.iter().for_each(Before::assert_untouched);
}

/// Gives a running machine a third disk, with the serial number `late`.
fn plug_in(machine: &Machine, disk: &Path) {
    let mut socket = UnixStream::connect(machine.console_log.with_file_name("qmp.sock")).unwrap();
    let mut answers = BufReader::new(socket.try_clone().unwrap()).lines();
    answers.next().unwrap().unwrap();
    let file = format!(
        r#""driver":"raw","node-name":"late","file":{{"driver":"file","filename":{disk:?}}}"#
    );
    for (command, arguments) in [
        ("qmp_capabilities", String::new()),
        ("blockdev-add", file),
        ("device_add", r#""driver":"virtio-blk-pci","drive":"late","serial":"late""#.to_owned()),
    ] {
        writeln!(socket, r#"{{"execute":"{command}","arguments":{{{arguments}}}}}"#).unwrap();
        let answer = answers.next().unwrap().unwrap();
        assert!(answer.contains(r#""return""#), "{command}: {answer}");
    }
}

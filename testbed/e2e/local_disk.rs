//! Machines that ignore the BMC's boot device and try the network first, and have a bootable disk:
//! each reaches it by the menu of its boot loader, in one boot, and is not installed a second time.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use hostler::model::status::Phase;

use crate::{
    disks::{self, Before, mtool},
    rack::Machine,
    site::{BOOT_LIMIT, SOON, Site, booted_line},
};

const DISK_BYTES: u64 = 128 << 20;
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Invariant (netboot): A machine that netboots unasked comes to its own disk and is not installed
/// again.
#[test]
fn a_machine_that_always_netboots_comes_to_its_own_disk_and_is_installed_once() {
    let loaders = "pxelinux.0,grub.pxe,pxelinux.0,grubx64.efi";
    let more = ["--always-network", "--loader", loaders];
    let mut site = Site::with("local_disk", &["bios", "bios", "bios", "uefi"], "128M", &more);
    let image = site.image("disk.raw", 0);
    let [installed, held, stranger, vendors] = site.rack.machines().try_into().unwrap();
    for machine in [&held, &stranger, &vendors] {
        fs::copy(&image.path, &machine.disks[0].path).unwrap();
        let disk = File::options().write(true).open(&machine.disks[0].path).unwrap();
        disk.set_len(DISK_BYTES).unwrap();
    }
    leave_only_a_vendors_loader(&vendors.disks[0].path);
    let before: Vec<Before> = [&held, &stranger, &vendors]
        .iter()
        .map(|machine| Before::of(&machine.disks[0].path))
        .collect();
    let rest = |machine: &Machine| {
        format!(
            "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n[root_device]\n\
             serial = \"{}\"\n",
            image.sha256, machine.disks[0].serial
        )
    };

    site.write_spec(&installed, &rest(&installed));
    for machine in [&held, &stranger, &vendors] {
        site.rack.ipmitool(machine, &["chassis", "power", "on"]);
    }
    // The machine must not request its menu before the agent knows its node.
    site.rack.tell(&["stop", &held.name]);
    site.write_spec(&held, &rest(&held));
    site.wait_for_phase(&held.name, Phase::Held, SOON);
    site.rack.tell(&["cont", &held.name]);

    let status = site.wait_for_phase(&installed.name, Phase::Deployed, BOOT_LIMIT);
    assert_eq!(status.attempt, 1, "{status:#?}");
    for machine in [&installed, &held, &stranger, &vendors] {
        wait_for_its_own_system(machine);
    }
    let menu = |dir: &str, machine: &Machine| format!("{dir}01-{}", machine.mac.replace(':', "-"));
    let (its_menu, pxelinux) = (menu("pxelinux.cfg/", &installed), ["pxelinux.0", "ldlinux.c32"]);
    // Kernel and ramdisk come over HTTP.
    let script = format!("{}.ipxe", menu("ipxe/", &installed));
    let menu_and_ipxe = [&its_menu, "ipxe.lkrn", &script];
    let deploy_and_local = [&pxelinux[..], &menu_and_ipxe, &pxelinux, &[&its_menu]].concat();
    assert_eq!(fetched(&site, &installed), deploy_and_local);
    assert_eq!(fetched(&site, &held), ["grub.pxe", &menu("grub/grub.cfg-", &held)]);
    assert_eq!(fetched(&site, &stranger), [&pxelinux[..], &["pxelinux.cfg/default"]].concat());
    assert_eq!(fetched(&site, &vendors), ["grubx64.efi", "grub/grub.cfg"]);

    let status = site.status(&held.name).unwrap();
    assert_eq!((status.phase, status.attempt), (Phase::Held, 0));
    before.iter().for_each(Before::assert_untouched);
    disks::assert_holds(&installed, &image);
    assert_eq!(site.status(&installed.name).unwrap().attempt, 1);
}

/// Removes the loader at the removable-media path, as some installers do.
fn leave_only_a_vendors_loader(disk: &Path) {
    let esp = format!("{}@@2M", disk.display());
    let moved = disk.with_extension("efi");
    let moved = moved.to_str().unwrap();
    mtool(&["mcopy", "-i", &esp, "::/EFI/BOOT/BOOTX64.EFI", moved]);
    mtool(&["mdeltree", "-i", &esp, "::/EFI/BOOT"]);
    mtool(&["mmd", "-i", &esp, "::/EFI/debian"]);
    mtool(&["mcopy", "-i", &esp, moved, "::/EFI/debian/grubx64.efi"]);
}

/// Waits until the system reports on the console that it runs, once.
fn wait_for_its_own_system(machine: &Machine) {
    let deadline = Instant::now() + BOOT_LIMIT;
    while !machine.console().contains(&booted_line()) {
        assert!(Instant::now() < deadline, "{} does not come to its disk", machine.name);
        thread::sleep(POLL_INTERVAL);
    }
    assert_eq!(machine.console().matches(&booted_line()).count(), 1, "{}", machine.name);
}

/// The files sent to the machine over TFTP, in order, without repetitions.
fn fetched(site: &Site, machine: &Machine) -> Vec<String> {
    let peer = format!("peer={}", machine.address);
    let log = site.agent_log();
    let sent = log.lines().filter(|line| line.contains("TFTP file sent"));
    let mine = sent.filter(|line| line.split([' ', ':']).any(|word| word == peer));
    let path =
        |line: &str| line.split("path=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let mut paths: Vec<String> = mine.map(path).collect();
    paths.dedup();
    paths
}

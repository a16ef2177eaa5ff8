//! Machines that ignore the BMC's boot device and try the network first, and have a bootable disk:
//! each reaches it by the menu of its boot loader, in one boot, and is not installed a second time.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use hostler::model::status::{Booted, Phase, Status};
use jiff::{SignedDuration, Timestamp};

use crate::{
    disks::{self, Before, mtool},
    rack::Machine,
    site::{BOOT_LIMIT, SOON, Site, assert_boots_once_more, booted_line},
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

    let check = "[boot_check]\nby = \"tcp\"\nport = 80\n";
    site.write_spec(&installed, &(rest(&installed) + check));
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
    assert_next_netboot_is_counted(&mut site, &installed);
}

/// Asserts that the netboot after hostler's own restart is evidence, and that the next one, after a
/// reset by somebody else, is counted.
fn assert_next_netboot_is_counted(site: &mut Site, machine: &Machine) {
    let status = site.status(&machine.name).unwrap();
    let installed = status.installed.unwrap();
    assert_eq!((installed.booted, installed.unexpected_netboots), (Some(Booted::Up), 0));
    let own = status.last_seen.unwrap().netbooted_at.unwrap();
    let next_boot = own.checked_add(SignedDuration::from_secs(30)).unwrap();
    while Timestamp::now() < next_boot {
        thread::sleep(POLL_INTERVAL);
    }
    site.rack.ipmitool(machine, &["chassis", "power", "reset"]);
    let is_counted =
        |status: &Status| status.installed.as_ref().is_some_and(|it| it.unexpected_netboots == 1);
    let status = site.wait(&machine.name, "a counted netboot", BOOT_LIMIT, is_counted);
    assert_eq!((status.phase, status.attempt, status.ready), (Phase::Deployed, 1, true));
    assert_boots_once_more(machine);
    assert!(site.agent_log().contains("netboots instead of booting its disk"));
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

//! Real operating systems in other layouts: roots on XFS and btrfs from the network, a root on LVM,
//! and unified kernel images with two roots.
//!
//! Not in CI, because each machine takes minutes: `testbed/check real` runs these tests. Their
//! images are made by `testbed/real/build all`.

use std::{process::Command, time::Duration};

use hostler::model::status::{Booted, Phase};

use crate::{
    disks,
    rack::Machine,
    real_systems::{MEMORY, REAL_LIMIT, cloud_init, real_image},
    site::{Image, Site},
};

/// The marker of a system, with its root's file system and device.
const MARKER: &str = "HOSTLER-ROOT";
/// From power on to the call of the installed system.
const SYSTEM_LIMIT: Duration = Duration::from_secs(1200);

/// Invariant (attempt): A root on any file system that hostler makes partitions for boots its own
/// kernel from the network.
#[test]
fn debian_boots_from_the_network_with_its_root_on_xfs_and_in_a_subvolume_of_btrfs() {
    let mut site = Site::with("real_roots", &["bios", "uefi"], "3G", &MEMORY);
    let machines = <[Machine; 2]>::try_from(site.rack.machines()).unwrap();
    let roots =
        [("root.xfs", "", "xfs /dev/vda2"), ("root.btrfs", "subvol=@", "btrfs /dev/vda2[/@]")];
    for ((machine, (name, flags, _)), host) in machines.iter().zip(roots).zip(51..) {
        let image = real_image(&site, name);
        for more in ["vmlinuz", "initrd"] {
            real_image(&site, &format!("{name}.{more}"));
        }
        let flags =
            if flags.is_empty() { String::new() } else { format!(", \"rootflags={flags}\"") };
        let rest = format!(
            "[image]\nsource = \"{name}\"\nchecksum = \"sha256:{}\"\nkind = \"partition\"\n\
             verify = \"node\"\nkernel = \"{name}.vmlinuz\"\nramdisk = \"{name}.initrd\"\n\
             kernel_args = [\"ro\", \"console=ttyS0,115200n8\"{flags}]\n{}",
            image.sha256,
            cloud_init(&site, machine, &address(host), &marker())
        );
        site.write_spec_after(machine, "network", &rest);
    }
    for ((machine, (name, _, root)), host) in machines.iter().zip(roots).zip(51..) {
        let status = site.wait_for_phase(&machine.name, Phase::Deployed, REAL_LIMIT);
        let installed = status.installed.unwrap();
        assert_eq!(installed.booted, Some(Booted::Up), "{name}");
        assert_eq!(installed.system.unwrap().address.unwrap().to_string(), address(host));
        assert_runs_root(machine, root);
    }
    assert!(site.stop_agent().success());
}

/// Invariant (disk): A whole disk is on the machine bit for bit before its own system first
/// runs, with LVM or several roots in it too.
#[test]
fn disks_with_lvm_and_with_unified_kernels_for_two_roots_are_installed_bit_for_bit_and_boot() {
    let mut site = Site::with("real_layouts", &["uefi", "uefi"], "4G", &MEMORY);
    let machines = <[Machine; 2]>::try_from(site.rack.machines()).unwrap();
    let layouts = [("lvm.qcow2", "ext4 /dev/mapper/system-root"), ("ab.qcow2", "ext4 /dev/vda2")];
    let write_specs = |site: &Site, images: &[Image], power: &str| {
        for (((machine, image), (name, _)), host) in
            machines.iter().zip(images).zip(layouts).zip(51..)
        {
            let rest = format!(
                "[image]\nsource = \"{name}\"\nchecksum = \"sha256:{}\"\n{}",
                image.sha256,
                cloud_init(site, machine, &address(host), &marker())
            );
            site.write_spec_with_power(machine, power, &rest);
        }
    };
    let images: Vec<Image> = layouts.iter().map(|(name, _)| real_image(&site, name)).collect();
    write_specs(&site, &images, "off");
    for (machine, image) in machines.iter().zip(&images) {
        let status = site.wait_for_phase(&machine.name, Phase::Deployed, REAL_LIMIT);
        assert_eq!(status.installed.unwrap().booted, Some(Booted::Unchecked));
        assert!(!site.rack.machine(&machine.name).is_on);
        let raw = site.file("images/as-it-is.raw");
        let args = ["convert", "-O", "raw"];
        let made = Command::new("qemu-img").args(args).args([&image.path, &raw]).status();
        assert!(made.unwrap().success());
        disks::assert_has_partitions_of(machine, &raw);
    }
    write_specs(&site, &images, "on");
    for (machine, (name, root)) in machines.iter().zip(layouts) {
        site.rack.ipmitool(machine, &["chassis", "power", "on"]);
        let called = |booted| booted == Some(Booted::Up);
        site.wait(&machine.name, "its system's call", SYSTEM_LIMIT, |status| {
            status.installed.as_ref().is_some_and(|installed| called(installed.booted))
        });
        assert_runs_root(machine, root);
        assert!(!name.starts_with("ab") || machine.console().contains("root=PARTLABEL=root-a"));
    }
    assert!(site.stop_agent().success());
}

fn address(host: u8) -> String {
    format!("192.0.2.{host}")
}

fn marker() -> String {
    format!("echo {MARKER} $(findmnt -rno FSTYPE,SOURCE /) >/dev/ttyS0")
}

fn assert_runs_root(machine: &Machine, root: &str) {
    let console = machine.console();
    assert!(console.contains(&format!("{MARKER} {root}")), "{}: no {root}", machine.name);
}

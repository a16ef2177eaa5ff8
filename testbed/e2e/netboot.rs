//! `boot.after = "network"`: a machine whose disk has no boot loader is installed, and boots its own kernel from hostler.

use std::{fs, thread, time::Duration};

use hostler::model::status::Phase;

use crate::{
    rack::{Machine, repository},
    site::{BOOT_LIMIT, Site},
};

/// A soft shutdown is not what the machine is asked for: it is switched off and on.
const OFF_FOR: Duration = Duration::from_secs(2);

#[test]
fn machines_without_a_boot_loader_boot_their_own_kernel_from_the_network_for_good() {
    let mut site = Site::new("netboot", &["bios", "uefi"], "256M");
    let image = site.copy_image("disk.netboot", "root.raw");
    for (from, to) in [("disk.vmlinuz", "vmlinuz"), ("disk.initramfs", "initramfs")] {
        site.copy_image(from, to);
    }
    fs::write(site.file("nodes/_defaults.toml"), "[boot]\nafter = \"network\"\n").unwrap();
    let machines = site.rack.machines();
    for machine in &machines {
        let rest = format!(
            r#"
            [image]
            source = "root.raw"
            checksum = "sha256:{}"
            kernel = "vmlinuz"
            ramdisk = "initramfs"
            kernel_args = ["console=ttyS0,115200n8", "panic=10", "root=UUID={}"]
            [root_device]
            serial = "{}"
            "#,
            image.sha256,
            root_uuid(),
            machine.disks[0].serial
        );
        site.write_spec(machine, &rest);
    }
    for machine in &machines {
        site.wait_for_phase(&machine.name, Phase::Deployed, BOOT_LIMIT);
        assert_boots_own_kernel(&site, machine);
        site.assert_runs_image(machine);
    }
    let status = site.status("node-1").unwrap();
    let fetched = status.last_seen.unwrap().fetched_path.unwrap();
    assert_eq!(fetched, "deploy/initramfs", "an installed machine that boots is no evidence");

    // The choice of the network was for good.
    for machine in &machines {
        site.rack.ipmitool(machine, &["chassis", "power", "off"]);
        thread::sleep(OFF_FOR);
        site.rack.ipmitool(machine, &["chassis", "power", "on"]);
    }
    for machine in &machines {
        site.assert_boots_once_more(machine);
    }
}

fn root_uuid() -> String {
    let text = fs::read_to_string(repository().join("target/testbed/image/disk.uuid")).unwrap();
    text.trim().to_owned()
}

fn assert_boots_own_kernel(site: &Site, machine: &Machine) {
    for menu in site.rack.menus(machine) {
        assert!(menu.contains("the installed system's own kernel"), "{menu}");
        assert!(menu.contains(&format!("node/{}/kernel", machine.name)), "{menu}");
        assert!(menu.contains(&format!("root=UUID={}", root_uuid())), "{menu}");
        assert!(!menu.contains("deploy") && !menu.contains("key"), "{menu}");
    }
}

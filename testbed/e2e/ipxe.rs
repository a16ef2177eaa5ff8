//! Machines that boot by iPXE: the first one's NIC has it built in, the second one loads it. Kernel
//! and ramdisk come over HTTP.

use std::fs;

use hostler::model::{boot::BootStage, status::Phase};

use crate::{
    disks,
    rack::{HOST, Machine},
    site::{BOOT_LIMIT, Site},
};

#[test]
fn ipxe_takes_kernel_and_ramdisk_over_http_and_both_machines_are_installed() {
    let mut site = Site::new("ipxe", &["bios+ipxe", "uefi+ipxe"], "1G");
    let image = site.image("disk.raw", 0);
    let machines = site.rack.machines();
    machines.iter().for_each(disks::fill);
    fs::write(site.file("nodes/_defaults.toml"), "boot.loader = \"ipxe\"\n").unwrap();
    for machine in &machines {
        let rest = format!(
            "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n[root_device]\n\
             serial = \"{}\"\n",
            image.sha256, machine.disks[0].serial
        );
        site.write_spec(machine, &rest);
    }

    for machine in &machines {
        site.wait(&machine.name, "its key", BOOT_LIMIT, |status| {
            status.phase == Phase::WaitingRamdisk
        });
        assert_only_ipxe_gets_the_key(&site, machine);
    }
    for machine in &machines {
        let status = site.wait(&machine.name, "its ramdisk", BOOT_LIMIT, |status| {
            let fetched = status.last_seen.as_ref().and_then(|seen| seen.fetched);
            fetched == Some(BootStage::Ramdisk)
        });
        assert_eq!(status.last_seen.unwrap().address.unwrap().to_string(), machine.address);
    }
    for machine in &machines {
        let status = site.wait_for_phase(&machine.name, Phase::Deployed, BOOT_LIMIT);
        assert_eq!(status.attempt, 1, "{status:#?}");
        disks::assert_holds(machine, &image);
        site.assert_runs_image(machine);
        site.assert_boots_local_disk(machine);
        assert!(script(&site, machine, "http").contains("booting the local disk"));
        assert_came_over_http(&site, machine);
    }
}

/// Asserts that during an attempt only one boot loader's menu holds the key.
fn assert_only_ipxe_gets_the_key(site: &Site, machine: &Machine) {
    for menu in site.rack.menus(machine) {
        assert!(menu.contains("handing over to iPXE") && !menu.contains("hostler.key"), "{menu}");
    }
    let scripts = ["tftp", "http"].map(|scheme| script(site, machine, scheme));
    assert_eq!(scripts[0], scripts[1]);
    assert!(scripts[0].contains("hostler.key="));
    let kernel = format!("http://{HOST}:8069/deploy/vmlinuz ");
    assert!(scripts[0].contains(&kernel), "{kernel}");
}

/// Fetches the machine's script as iPXE does.
fn script(site: &Site, machine: &Machine, scheme: &str) -> String {
    let port = if scheme == "http" { ":8069" } else { "" };
    let url = format!("{scheme}://{HOST}{port}/ipxe/01-{}.ipxe", machine.mac.replace(':', "-"));
    let output = site.rack.inside(&["curl", "-sSf", "--max-time", "20", &url]).output().unwrap();
    assert!(output.status.success(), "{url}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn assert_came_over_http(site: &Site, machine: &Machine) {
    let log = site.agent_log();
    for name in ["deploy/vmlinuz", "deploy/initramfs"] {
        let sent = |protocol: &str| {
            log.lines().any(|line| {
                line.contains(&format!("{protocol} file sent"))
                    && line.contains(&format!("{name:?}"))
                    && line.contains(&machine.address)
            })
        };
        assert!(sent("HTTP") && !sent("TFTP"), "{name} for {}", machine.name);
    }
}

//! Machines with 64-bit Arm processors, from their specs to their systems' first calls, with
//! hostler's own ramdisk for them.
//!
//! Only `testbed/check arm` runs it: it builds the ramdisk first, and emulated Arm
//! processors are slow.

use std::{fs, time::Duration};

use hostler::model::status::{Booted, Phase};

use crate::{
    aarch64::give_boot_files,
    disks::Before,
    rack::{Machine, repository},
    site::{Image, Site},
};

/// From power on to the system's call, twice as long as it takes beside other work.
const ARM_LIMIT: Duration = Duration::from_secs(1800);

/// Invariant (attempt): A machine with 64-bit Arm processors is installed as any other, from a
/// whole disk and from a partition image, and deployed once its system has called.
#[test]
fn arm_machines_are_installed_until_their_systems_call() {
    // Debian's signed GRUB, which knows TFTP only, and one that fetches by HTTP.
    let loaders = [("site/grubaa64.efi", "grubaa64.efi"), ("grubaa64.efi", "grub-http.efi")];
    let more = ["--loader", &loaders.map(|(_, to)| to).join(",")];
    let mut site = Site::with("arm", &["uefi+aarch64"; 2], "512M", &more);
    site.kill_agent();
    give_boot_files(&mut site, &loaders, "site");
    let machines = site.rack.machines();
    let data = machines.iter().map(|machine| Before::of(&machine.disks[1].path));
    let data: Vec<Before> = data.collect();
    let defaults = "[boot]\narch = \"aarch64\"\nkernel_args = [\"console=ttyAMA0\"]\n\
                    [boot_check]\nby = \"call\"\n[config_drive]\nlabel = \"cidata\"\n";
    fs::write(site.file("nodes/_defaults.toml"), defaults).unwrap();
    let whole = "[image]\nsource = \"arm.raw\"\nverify = \"node\"\n";
    let partition = "[partitions]\nswap = \"16MiB\"\n[image]\nsource = \"arm.root\"\n\
                     kind = \"partition\"\n";
    for (machine, (name, image)) in
        machines.iter().zip([("arm.raw", whole), ("arm.root", partition)])
    {
        write_spec(&site, machine, name, image);
    }

    let id = fs::read_to_string(repository().join("target/testbed/aarch64/arm.id")).unwrap();
    let booted = format!("HOSTLER-IMAGE-BOOTED id={} disk=vda", id.trim());
    for machine in &machines {
        let status = site.wait_for_phase(&machine.name, Phase::Deployed, ARM_LIMIT);
        let installed = status.installed.unwrap();
        assert_eq!(installed.booted, Some(Booted::Up));
        let system = installed.system.unwrap();
        assert_eq!(system.hostname.as_deref(), Some(&*machine.name));
        assert_eq!(system.address.unwrap().to_string(), machine.address);
        let console = machine.console();
        for line in [&*booted, "HOSTLER-AARCH64 aarch64 runs hostler "] {
            assert!(console.contains(line), "{} never said {line}", machine.name);
        }
        // A line that only Arm's kernel prints.
        let log = site.ramdisk_log(&machine.name);
        assert!(log.contains("Booting Linux on physical CPU"), "{log}");
        assert_eq!(machine.times_switched_on(), 2);
    }
    data.iter().for_each(Before::assert_untouched);
    site.assert_no_target_in_use();
    assert!(site.stop_agent().success());
}

/// Writes a spec of this image, which begins as `image` says.
fn write_spec(site: &Site, machine: &Machine, built: &str, image: &str) {
    let Machine { name, mac, bmc, .. } = machine;
    let path = site.file(&format!("images/{built}"));
    fs::copy(repository().join("target/testbed/aarch64").join(built), &path).unwrap();
    let spec = format!(
        "boot.mac = \"{mac}\"\nroot_device.serial = \"{}\"\n\
         [bmc]\naddress = \"{}\"\nusername = \"{}\"\npassword_file = \"{name}.bmc\"\n\
         {image}checksum = \"sha256:{}\"\n",
        machine.disks[0].serial,
        bmc.address,
        bmc.username,
        Image::at(path).sha256,
    );
    fs::write(site.file(&format!("nodes/{name}.toml")), spec).unwrap();
}

//! A machine whose firmware runs only signed programs: installed through Debian's shim, GRUB and
//! kernel, and then booted from its disk by the same.

use std::{fs, path::Path};

use hostler::model::status::Phase;

use crate::{
    disks::{self, mtool},
    site::{BOOT_LIMIT, Image, Site, image_id},
};

const SHIM: &str = "/usr/lib/shim/shimx64.efi.signed";
/// GRUB for the network and for a disk; each reads its configuration only from its signed place.
const NETWORK_GRUB: &str = "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed";
const DISK_GRUB: &str = "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed";
/// A line that a kernel's EFI stub prints unless it has `quiet`.
const SECURE: &str = "EFI stub: UEFI Secure Boot is enabled";

/// Invariant (netboot): A machine that netboots unasked comes to its own disk and is not installed
/// again.
#[test]
fn a_machine_with_secure_boot_is_installed_and_boots_its_disk_by_signed_programs_alone() {
    let more = ["--secure-boot", "--always-network", "--loader", "shimx64.efi"];
    let mut site = Site::with("secure_boot", &["uefi"], "128M", &more);
    for (signed, name) in [(SHIM, "shimx64.efi"), (NETWORK_GRUB, "grubx64.efi")] {
        fs::copy(signed, site.file("tftp").join(name)).unwrap();
    }
    let image = signed_image(&site);
    let machine = site.rack.machine("node-1");
    site.write_spec_loudly(
        &machine,
        &format!(
            "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n[root_device]\n\
             serial = \"{}\"\n",
            image.sha256, machine.disks[0].serial
        ),
    );
    let status = site.wait_for_phase(&machine.name, Phase::Deployed, BOOT_LIMIT);
    assert_eq!(status.attempt, 1);
    site.assert_runs_image(&machine);
    disks::assert_holds(&machine, &image);
    assert_eq!(machine.console().matches(SECURE).count(), 2, "not both kernels ran securely");
}

/// Makes the test image with a shim and a GRUB before its kernel, which Debian has signed too.
fn signed_image(site: &Site) -> Image {
    let image = site.image("disk.raw", 0);
    let esp = format!("{}@@2M", image.path.display());
    let config = site.file("grub.cfg");
    let linux = format!("linux /vmlinuz console=ttyS0,115200n8 panic=10 image={}", image_id());
    fs::write(&config, format!("{linux}\ninitrd /initramfs\nboot\n")).unwrap();
    mtool(&["mmd", "-i", &esp, "::/EFI/debian"]);
    mtool(&["mdel", "-i", &esp, "::/EFI/BOOT/BOOTX64.EFI"]);
    for (from, to) in [
        (Path::new(SHIM), "::/EFI/BOOT/BOOTX64.EFI"),
        (Path::new(DISK_GRUB), "::/EFI/BOOT/grubx64.efi"),
        (&config, "::/EFI/debian/grub.cfg"),
    ] {
        mtool(&["mcopy", "-i", &esp, from.to_str().unwrap(), to]);
    }
    Image::at(image.path)
}

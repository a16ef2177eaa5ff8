//! The deploy ramdisk, built from Debian's own kernel package, and with an unpacked firmware
//! package beside it.

use std::{fs, os::unix::fs::symlink, process::Command};

use crate::rack::repository;

/// Invariant (ramdisk): The builder names the drivers and firmware that its ramdisk lacks.
#[test]
fn debians_kernel_gives_the_drivers_of_edge_machines_and_what_lacks_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let target = repository().join("target");
    symlink(target.join("testbed/kernel"), dir.path().join("linked")).unwrap();
    let packages = dir.path().join("packages");
    let firmware = packages.join("firmware-bnx2x/usr/lib/firmware/bnx2x");
    fs::create_dir_all(&firmware).unwrap();
    for version in ["7.13.15.0", "7.13.21.0"] {
        for chip in ["e1", "e1h", "e2"] {
            fs::write(firmware.join(format!("bnx2x-{chip}-{version}.fw")), "firmware").unwrap();
        }
    }
    let built = target.join("x86_64-unknown-linux-gnu/release");
    let build = |package: &str, more: &[&str]| {
        let output = Command::new(built.join("hostler"))
            .args(["ramdisk", "build", "--kernel-package", package, "--binary"])
            .arg(built.join("hostler-ramdisk"))
            .arg("--out")
            .arg(dir.path().join("out"))
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = build(dir.path().join("linked").to_str().unwrap(), &["--module", "usb-storage"]);
    for driver in ["mpi3mr", "dwmac_intel", "lan743x", "sfc", "iavf", "gve", "mana", "alx", "r8152"]
    {
        assert!(said.split_whitespace().any(|word| word == driver), "{driver} in\n{said}");
    }
    for text in ["xhci_pci", "usb_storage", "bnx2x, firmware-bnx2x of Debian:", "bnx2x-e2-7.13"] {
        assert!(said.contains(text), "{text} in\n{said}");
    }
    let copied = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(target.join("testbed/kernel"))
        .arg(packages.join("linux-image"))
        .status();
    assert!(copied.unwrap().success());
    let said = build(packages.to_str().unwrap(), &[]);
    assert!(said.contains("firmware: bnx2x/bnx2x-e1-7.13.15.0.fw"), "{said}");
    assert!(!said.contains("  bnx2x,") && !said.contains("usb_storage"), "{said}");
}

//! `boot.after = "network"`: the installed machine boots its own kernel from the agent.

use std::{fs, process::Command};

use hostler::model::status::Phase;

use super::{NODE, machine::Machine, site::Site};

const UUID: &str = "0a1b2c3d-0000-4000-8000-000000000001";
const OTHER: &str = "edge-08";
const IMAGE_BYTES: u64 = 8 << 20;

/// One ext4 file system.
fn root() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(IMAGE_BYTES).unwrap();
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-U", UUID]).arg(file.path());
    assert!(mke2fs.status().unwrap().success());
    fs::read(file.path()).unwrap()
}

#[test]
fn an_installed_machine_boots_its_own_kernel_and_root_and_nobody_else_is_served_them() {
    let site = Site::of_image(root());
    for own in ["kernel", "ramdisk"] {
        fs::write(site.path(&format!("images/own-{own}")), format!("the own {own}")).unwrap();
    }
    let [machine, other] = [NODE, OTHER].map(|node| Machine::new(&site, node));
    let spec = machine
        .spec(&site)
        .with("boot.after", "network")
        .with("image.kind", "partition")
        .with("image.kernel", "own-kernel")
        .with("image.ramdisk", "own-ramdisk");
    let _agent = site.start();
    site.write(NODE, &spec);
    machine.deploy(&site);
    site.until_phase(NODE, Phase::Deployed);
    site.write(OTHER, &other.spec(&site));
    other.deploy(&site);
    site.until_phase(OTHER, Phase::Deployed);

    let story = ["network once", "on from network", "off", "network always", "on from network"];
    assert_eq!(machine.story(), story);
    assert!(machine.disk.disk()[1 << 20..].starts_with(&site.image));
    let menu = machine.menu(&site).unwrap();
    for (key, own) in [("KERNEL", "kernel"), ("INITRD", "ramdisk")] {
        let line = format!("{key} ::node/{NODE}/{own}\n");
        assert!(menu.contains(&line), "{menu}");
        let fetched = site.fetch(&format!("node/{NODE}/{own}")).unwrap();
        assert_eq!(fetched, format!("the own {own}").into_bytes());
    }
    assert!(menu.contains(&format!("APPEND root=UUID={UUID}\n")), "{menu}");

    assert!(other.boots_its_disk(&site));
    assert_eq!(site.fetch(&format!("node/{OTHER}/kernel")), None);
    for unknown in ["pxelinux.cfg/01-52-54-00-00-ff-ff", "grub/grub.cfg-01-52:54:00:00:ff:ff"] {
        assert_eq!(site.fetch(unknown), None, "{unknown}");
    }
}

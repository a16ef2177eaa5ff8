//! `boot.after = "network"`: the installed machine boots its own kernel from the agent.

use std::{fs, process::Command};

use hostler::model::status::Phase;

use super::{
    NODE,
    machine::Machine,
    site::{Agent, Site, Spec},
};

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

/// What the BMC did until the machine was installed.
const STORY: [&str; 5] =
    ["network once", "on from network", "off", "network always", "on from network"];

/// A machine that is installed, and its spec.
fn installed() -> (Site, Machine, Agent, Spec) {
    let site = Site::of_image(root());
    for own in ["kernel", "ramdisk"] {
        fs::write(site.path(&format!("images/own-{own}")), format!("the own {own}")).unwrap();
    }
    let machine = Machine::new(&site, NODE);
    let spec = machine
        .spec(&site)
        .with("boot.after", "network")
        .with("image.kind", "partition")
        .with("image.kernel", "own-kernel")
        .with("image.ramdisk", "own-ramdisk");
    let agent = site.start();
    site.write(NODE, &spec);
    machine.deploy(&site);
    site.until_phase(NODE, Phase::Deployed);
    (site, machine, agent, spec)
}

#[test]
fn an_installed_machine_boots_its_own_kernel_and_root_and_nobody_else_is_served_them() {
    let (site, machine, _agent, _) = installed();
    assert_eq!(machine.story(), STORY);
    assert!(machine.disk.disk()[1 << 20..].starts_with(&site.image));
    let menu = machine.menu(&site).unwrap();
    for (key, own) in [("KERNEL", "kernel"), ("INITRD", "ramdisk")] {
        assert!(menu.contains(&format!("{key} ::node/{NODE}/{own}\n")), "{menu}");
        let fetched = site.fetch(&format!("node/{NODE}/{own}")).unwrap();
        assert_eq!(fetched, format!("the own {own}").into_bytes());
    }
    assert!(menu.contains(&format!("APPEND root=UUID={UUID}\n")), "{menu}");

    let other = Machine::new(&site, OTHER);
    site.write(OTHER, &other.spec(&site));
    other.deploy(&site);
    site.until_phase(OTHER, Phase::Deployed);
    assert!(other.boots_its_disk(&site));
    assert_eq!(site.fetch(&format!("node/{OTHER}/kernel")), None);
    for unknown in ["pxelinux.cfg/01-52-54-00-00-ff-ff", "grub/grub.cfg-01-52:54:00:00:ff:ff"] {
        assert_eq!(site.fetch(unknown), None, "{unknown}");
    }
}

#[test]
fn a_machine_that_is_switched_off_and_on_again_is_told_to_boot_the_network() {
    let (site, machine, _agent, spec) = installed();
    for (power, on) in [("off", false), ("on", true)] {
        site.write(NODE, &spec.clone().with("power", power));
        site.await_that(power, || machine.is_on() == on);
    }
    let again = ["shut down", "network always", "on from network"];
    assert_eq!(machine.story(), [&STORY[..], &again].concat());
}

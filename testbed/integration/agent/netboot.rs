//! `boot.after = "network"`: the installed machine boots its own kernel from the agent.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use hostler::model::status::Phase;
use sha2::{Digest as _, Sha256};

use super::{
    NODE,
    machine::Machine,
    site::{Agent, Site, Spec, answer, hex, hostler, signed},
};

const UUID: &str = "0a1b2c3d-0000-4000-8000-000000000001";
const OTHER: &str = "edge-08";
const IMAGE_BYTES: u64 = 8 << 20;

/// Makes an ext4 file system, with a boot signature so that it can also be a whole disk.
pub(super) fn root() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(IMAGE_BYTES).unwrap();
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-U", UUID]).arg(file.path());
    assert!(mke2fs.status().unwrap().success());
    signed(fs::read(file.path()).unwrap())
}

/// The last partition's name for `PARTUUID=`, by sfdisk.
fn root_partuuid(disk: &Path) -> String {
    let output = Command::new("sfdisk").arg("--json").arg(disk).output().unwrap();
    let table: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let partitions = table.pointer("/partitiontable/partitions").unwrap().as_array().unwrap();
    partitions.last().unwrap()["uuid"].as_str().unwrap().to_lowercase()
}

/// The BMC's acts up to the installation.
const STORY: [&str; 5] =
    ["network once", "on from network", "off", "network always", "on from network"];

/// Makes an installed machine, with its spec.
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

/// Invariant (netboot): The system's own kernel is served from the moment the disk is written.
///
/// Invariant (netboot): A served kernel finds the root written last; an old root device is
/// reported.
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
    let partition = root_partuuid(&machine.disk.disk_file());
    assert!(menu.contains(&format!("APPEND root=PARTUUID={partition}\n")), "{menu}");

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

/// Invariant (netboot): The system's own kernel is served from the moment the disk is written.
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

/// Changes a file's byte as a failing disk does.
fn decay(path: &Path) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 3).unwrap();
    file.set_modified(modified).unwrap();
}

/// The path of this content in the cache.
fn cached(site: &Site, content: &str) -> PathBuf {
    site.path(&format!("cache/sha256-{}-file.raw", hex(&Sha256::digest(content))))
}

fn served(site: &Site, own: &str) -> Option<String> {
    site.fetch(&format!("node/{NODE}/{own}")).map(|bytes| String::from_utf8(bytes).unwrap())
}

/// Invariant (netboot): An installed machine is served the verified files of its record until new
/// ones are verified.
#[test]
fn a_changed_kernel_is_served_once_it_is_verified_and_the_old_one_until_then() {
    let (site, machine, _agent, spec) = installed();
    let good = site.until(NODE, "ready", |status| status.ready);
    let changed = spec.clone().with("image.kernel", "new-kernel");
    site.write(NODE, &changed);
    let status = site.until(NODE, "told", |status| status.message.contains("new-kernel"));
    assert_eq!((status.phase, status.ready), (Phase::Deployed, false));
    assert!(status.message.contains("served its kernel and ramdisk from before"), "{status:?}");
    let drifted = status.conditions.iter().find(|condition| condition.kind == "Drifted").unwrap();
    assert_eq!((drifted.status.as_str(), drifted.reason.as_str()), ("True", "NetbootChanged"));
    assert_eq!(status.installed_digest, good.installed_digest);
    assert_ne!(status.spec_digest, good.spec_digest);
    assert_eq!(served(&site, "kernel").as_deref(), Some("the own kernel"));

    let (_, plan, _) = answer(&mut site.hostler(&["plan"]));
    assert!(plan.contains("netboot"), "{plan}");
    let digest = answer(hostler(&["digest"]).arg(site.path(&format!("nodes/{NODE}.toml")))).1;
    assert_eq!(Some(digest.trim()), status.spec_digest.map(|it| it.to_string()).as_deref());

    // A wrong file counts as a missing one.
    let other = "0".repeat(64);
    fs::write(site.path("images/new-kernel"), "a newer kernel").unwrap();
    site.write(NODE, &changed.clone().with("image.kernel_checksum", &format!("sha256:{other}")));
    site.until(NODE, "refused", |status| status.message.contains("its checksum is"));
    assert_eq!(served(&site, "kernel").as_deref(), Some("the own kernel"));

    let right = format!("sha256:{}", hex(&Sha256::digest("a newer kernel")));
    site.write(NODE, &changed.with("image.kernel_checksum", &right));
    let status = site.until(NODE, "ready", |status| status.ready);
    assert_eq!(status.installed_digest, status.spec_digest);
    assert_ne!(status.installed_digest, good.installed_digest);
    let netboot = status.installed.unwrap().netboot.unwrap();
    assert_eq!(netboot.kernel_digest.unwrap().to_string(), right);
    assert_eq!(served(&site, "kernel").as_deref(), Some("a newer kernel"));
    assert_eq!(served(&site, "ramdisk").as_deref(), Some("the own ramdisk"));
    assert_eq!(machine.story(), STORY, "nothing was switched for that");

    site.write(NODE, &spec);
    site.until(NODE, "back", |status| {
        status.ready && status.installed_digest == good.installed_digest
    });
    assert_eq!(served(&site, "kernel").as_deref(), Some("the own kernel"), "and back");
}

/// Invariant (netboot): An installed machine is served the verified files of its record until new
/// ones are verified.
#[test]
fn what_is_served_is_what_was_installed_whatever_becomes_of_the_files_it_came_from() {
    let (site, machine, agent, _) = installed();
    fs::write(site.path("images/own-kernel"), "another one under its name").unwrap();
    fs::remove_file(site.path("images/own-ramdisk")).unwrap();
    assert!(agent.terminate().0.success());
    let (code, ..) = answer(&mut site.hostler(&["cache", "prune", "--all"]));
    assert_eq!(code, 0);
    let agent = site.start();
    site.until(NODE, "ready", |status| status.ready);
    agent.kill();
    let _agent = site.start();
    site.await_that("the menu is served", || machine.menu(&site).is_some());
    for own in ["kernel", "ramdisk"] {
        assert_eq!(served(&site, own), Some(format!("the own {own}")));
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail"]).arg(site.http_url(&format!("node/{NODE}/{own}")));
        assert_eq!(answer(&mut curl), (0, format!("the own {own}"), String::new()));
    }
}

/// Invariant (netboot): An installed machine is served the verified files of its record until new
/// ones are verified.
#[test]
fn a_kernel_that_decayed_in_the_cache_is_not_served_but_fetched_again() {
    let (site, _machine, _agent, _) = installed();
    site.until(NODE, "ready", |status| status.ready);
    decay(&cached(&site, "the own kernel"));
    assert_eq!(served(&site, "kernel"), None);
    site.await_that("served again", || {
        served(&site, "kernel").as_deref() == Some("the own kernel")
    });

    // A missing file is reported.
    fs::remove_file(site.path("images/own-ramdisk")).unwrap();
    decay(&cached(&site, "the own ramdisk"));
    assert_eq!(served(&site, "ramdisk"), None);
    let status = site.until(NODE, "told", |status| status.message.contains("own-ramdisk"));
    assert_eq!((status.phase, status.ready), (Phase::Deployed, false));
    fs::write(site.path("images/own-ramdisk"), "the own ramdisk").unwrap();
    assert_eq!(answer(&mut site.hostler(&["retry", NODE])).0, 0);
    site.until(NODE, "ready", |status| status.ready);
    assert_eq!(served(&site, "ramdisk").as_deref(), Some("the own ramdisk"));
}

//! An image that decays in the cache, one byte at the same size and time: the next read detects it,
//! and it is never installed.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use hostler::model::fault::Step;

use super::{NODE, ends_deployed, machine::Machine, site::Site};

/// Large enough that much of the disk is written before the image's end is read.
const IMAGE_BYTES: usize = 24 << 20;
/// The offset of the changed byte: after the first few flushes, and not at the disk's ends, which
/// are read first or last.
const PLACE: u64 = 20 << 20;
/// The node that fetches the image into the cache.
const FIRST: &str = "edge-01";

fn cached(site: &Site) -> PathBuf {
    let files = fs::read_dir(site.path("cache")).unwrap();
    let mut paths = files.map(|file| file.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|extension| extension == "raw")).unwrap()
}

fn decay(site: &Site) {
    let path = cached(site);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, PLACE).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], PLACE).unwrap();
    file.set_modified(modified).unwrap();
}

/// Makes a site whose cache has the image of an installed machine.
fn with_cached_image() -> Site {
    let site = Site::with_image(IMAGE_BYTES);
    let machine = Machine::new(&site, FIRST);
    let agent = site.start();
    site.write(FIRST, &machine.spec(&site));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    assert!(agent.terminate().0.success());
    site
}

/// Invariant (image): A cached image that has decayed is noticed at its reading and never
/// installed.
#[test]
fn an_image_that_decays_while_the_agent_runs_is_fetched_again_and_written_anew_in_the_same_attempt()
{
    let site = Site::with_image(IMAGE_BYTES);
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    // The image is verified, and the machine is booting.
    let ramdisk = machine.boot(&site, 1);
    decay(&site);
    ramdisk.export();
    ramdisk.finish();
    let status = ends_deployed(&site, &machine);
    assert_eq!(status.attempt, 1);
    assert_eq!(machine.story(), super::DEPLOYED);
    let log = site.log();
    assert_eq!(log.matches("an image decayed in the cache and is discarded").count(), 1, "{log}");
    assert!(log.contains("the block at byte 20971520 is not what was verified"), "{log}");
    assert!(fs::read(cached(&site)).unwrap() == site.image);
}

/// Invariant (image): A cached image that has decayed is noticed at its reading and never
/// installed.
#[test]
fn an_image_that_decayed_between_two_runs_is_not_installed() {
    let site = with_cached_image();
    decay(&site);
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    machine.deploy(&site);
    assert_eq!(ends_deployed(&site, &machine).attempt, 1);
    assert!(fs::read(cached(&site)).unwrap() == site.image);
}

/// Invariant (image): A cached image that has decayed is noticed at its reading and never
/// installed.
#[test]
fn an_image_that_decayed_and_cannot_be_fetched_again_ends_the_attempt_and_leaves_a_wiped_disk() {
    let site = with_cached_image();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    decay(&site);
    fs::remove_file(site.path("images/disk.raw")).unwrap();
    ramdisk.export();
    let status = super::ends_failed(&site, &machine, Step::Image, "ImageUnreadable");
    let message = status.last_error.unwrap().fault.message;
    assert!(message.contains("is not what was verified"), "{message}");
    assert!(message.contains("; fetching it again: image "), "{message}");
    let disk = machine.disk.disk();
    assert!(disk[..1 << 20].iter().all(|byte| *byte == 0), "half an image would boot");
}

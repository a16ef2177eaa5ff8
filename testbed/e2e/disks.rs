//! What is on a machine's disk, seen from outside.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{rack::Machine, site::Image};

const MIB: usize = 1024 * 1024;

/// A disk as it was, to be compared with what it has become.
pub(crate) struct Before {
    disk: PathBuf,
    copy: PathBuf,
}

impl Before {
    pub(crate) fn of(disk: &Path) -> Self {
        let copy = disk.with_extension("before.raw");
        // reflink and sparse where it can: the disks are mostly holes.
        let copied = Command::new("cp").arg("--sparse=always").args([disk, &copy]).status();
        assert!(copied.unwrap().success());
        Self { disk: disk.to_owned(), copy }
    }

    pub(crate) fn assert_untouched(&self) {
        let compared = Command::new("cmp").args([&self.disk, &self.copy]).output().unwrap();
        assert!(compared.status.success(), "{compared:?}");
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        fs::remove_file(&self.copy).unwrap();
    }
}

/// Puts somebody's data on both ends of the machine's root disk, so that there is something to be spared or to be wiped.
pub(crate) fn fill(machine: &Machine) {
    let data = b"somebody's data\n".repeat(MIB / 16);
    let disk = File::options().write(true).open(&machine.disks[0].path).unwrap();
    let end = disk.metadata().unwrap().len() - MIB as u64;
    disk.write_all_at(&data, 0).unwrap();
    disk.write_all_at(&data, end).unwrap();
}

/// Fills every machine's root disk and notes what every disk holds.
pub(crate) fn fill_and_note(machines: &[Machine]) -> Vec<Before> {
    machines.iter().for_each(fill);
    machines.iter().flat_map(|machine| &machine.disks).map(|disk| Before::of(&disk.path)).collect()
}

/// That the root disk holds the image, bit for bit.
pub(crate) fn assert_holds(machine: &Machine, image: &Image) {
    let compared = Command::new("cmp")
        .args(["-n", &image.bytes.to_string()])
        .args([&machine.disks[0].path, &image.path])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}: {compared:?}", machine.name);
}

/// That nothing follows the image: what was at the disk's end is wiped, and no write went past the image's.
pub(crate) fn assert_zeros_after(machine: &Machine, image_bytes: u64) {
    let path = &machine.disks[0].path;
    let rest = fs::metadata(path).unwrap().len() - image_bytes;
    let compared = Command::new("cmp")
        .args(["-n", &rest.to_string(), "-i", &format!("{image_bytes}:0")])
        .args([path, Path::new("/dev/zero")])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}: {compared:?}", machine.name);
}

/// That no firmware finds anything to boot: MBR and both copies of the partition table are zeros.
pub(crate) fn assert_wiped(machine: &Machine) {
    let disk = File::open(&machine.disks[0].path).unwrap();
    let mut edge = vec![0xff; MIB];
    for at in [0, disk.metadata().unwrap().len() - MIB as u64] {
        disk.read_exact_at(&mut edge, at).unwrap();
        assert!(edge.iter().all(|byte| *byte == 0), "{}: not wiped at {at}", machine.name);
    }
}

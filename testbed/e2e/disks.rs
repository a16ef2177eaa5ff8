//! Checks of a machine's disks from outside.

use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{rack::Machine, site::Image};

const MIB: usize = 1024 * 1024;

/// An earlier content of a disk, for a later comparison.
pub(crate) struct Before {
    disk: PathBuf,
    copy: PathBuf,
}

impl Before {
    pub(crate) fn of(disk: &Path) -> Self {
        let copy = disk.with_extension("before.raw");
        // reflink and sparse copies if possible: the disks are mostly holes.
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

/// Writes foreign data to both ends of the machine's root disk, which a test expects to be kept or
/// wiped.
pub(crate) fn fill(machine: &Machine) {
    let data = b"somebody's data\n".repeat(MIB / 16);
    let disk = File::options().write(true).open(&machine.disks[0].path).unwrap();
    let end = disk.metadata().unwrap().len() - MIB as u64;
    disk.write_all_at(&data, 0).unwrap();
    disk.write_all_at(&data, end).unwrap();
}

/// Fills every machine's root disk, and copies the content of every disk.
pub(crate) fn fill_and_note(machines: &[Machine]) -> Vec<Before> {
    machines.iter().for_each(fill);
    machines.iter().flat_map(|machine| &machine.disks).map(|disk| Before::of(&disk.path)).collect()
}

/// Bytes of a backup partition table: 32 blocks of entries, and its header.
const BACKUP_TABLE_BYTES: u64 = 33 * 512;
/// The three entries of the test image's table.
const ENTRIES_BYTES: u64 = 3 * 128;
const PARTITIONS_BEGIN: u64 = 1 << 20;
/// The end of the test image's own backup table.
const TABLES_END: u64 = 64 << 20;

/// Asserts that the root disk holds the image, bit for bit, except for its partition table, which
/// is extended to this disk.
pub(crate) fn assert_holds(machine: &Machine, image: &Image) {
    let disk = &machine.disks[0].path;
    // The compared ranges: boot code; the image's own partitions, in the table and on the disk; the
    // bytes after the backup.
    let partitions = PARTITIONS_BEGIN..TABLES_END - BACKUP_TABLE_BYTES;
    for range in [0..440, 1024..1024 + ENTRIES_BYTES, partitions, TABLES_END..image.bytes] {
        assert_same(disk, &image.path, range);
    }
    let verified = Command::new("sgdisk").arg("--verify").arg(disk).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(said.contains("No problems found"), "{}: {said}", machine.name);
}

/// Asserts that only the backup table at the very end follows the image: the old end of the disk is
/// wiped, and no write went astray.
pub(crate) fn assert_zeros_after(machine: &Machine, image_bytes: u64) {
    let disk = &machine.disks[0].path;
    let end = fs::metadata(disk).unwrap().len() - BACKUP_TABLE_BYTES;
    let compared = Command::new("cmp")
        .args(["-n", &(end - image_bytes).to_string(), "-i", &format!("{image_bytes}:0")])
        .args([disk, Path::new("/dev/zero")])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}: {compared:?}", machine.name);
}

/// Asserts that the last partition begins with the image of a file system, bit for bit.
pub(crate) fn assert_root_is(machine: &Machine, image: &Image) {
    let disk = &machine.disks[0].path;
    let root = partitions(disk).pop().unwrap();
    let compared = Command::new("cmp")
        .args(["-n", &image.bytes.to_string(), "-i", &format!("{}:0", root.start)])
        .args([disk, &image.path])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}: {compared:?}", machine.name);
}

/// Asserts that the machine's disk has the partitions of a raw image where the image has them, bit
/// for bit.
pub(crate) fn assert_has_partitions_of(machine: &Machine, raw: &Path) {
    let disk = &machine.disks[0].path;
    let (wanted, found) = (partitions(raw), partitions(disk));
    assert!(!wanted.is_empty() && found.starts_with(&wanted), "{found:?} for {wanted:?}");
    wanted.into_iter().for_each(|partition| assert_same(disk, raw, partition));
}

/// The partitions in the order of the disk, by sfdisk, in bytes.
pub(crate) fn partitions(disk: &Path) -> Vec<Range<u64>> {
    let output = Command::new("sfdisk").arg("--json").arg(disk).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let table: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let partitions = table.pointer("/partitiontable/partitions").unwrap().as_array().unwrap();
    let bytes = |partition: &serde_json::Value, key: &str| partition[key].as_u64().unwrap() * 512;
    partitions
        .iter()
        .map(|partition| {
            let start = bytes(partition, "start");
            start..start + bytes(partition, "size")
        })
        .collect()
}

fn assert_same(one: &Path, other: &Path, range: Range<u64>) {
    let (bytes, from) = (range.end - range.start, range.start);
    let compared = Command::new("cmp")
        .args(["-n", &bytes.to_string(), "-i", &from.to_string()])
        .args([one, other])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{range:?}: {compared:?}");
}

/// Asserts that firmware finds no boot loader: MBR and both copies of the partition table are
/// zeros.
pub(crate) fn assert_wiped(machine: &Machine) {
    let disk = File::open(&machine.disks[0].path).unwrap();
    let mut edge = vec![0xff; MIB];
    for at in [0, disk.metadata().unwrap().len() - MIB as u64] {
        disk.read_exact_at(&mut edge, at).unwrap();
        assert!(edge.iter().all(|byte| *byte == 0), "{}: not wiped at {at}", machine.name);
    }
}

/// Runs a program of mtools on an EFI system partition.
pub(crate) fn mtool(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}

//! Images and disks as sparse files, and the tools that make and check them.

use std::{
    fs::{self, File},
    io::Write as _,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use bytes::Bytes;
use hostler::imaging::{Content, Geometry, ImageFile, Layout};
use tempfile::TempDir;

pub(super) const MIB: u64 = 1 << 20;

/// A directory of images and disks.
pub(super) struct Bench {
    dir: TempDir,
}

/// A partition as a tool sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// The partition's bytes on the disk.
    pub(super) bytes: Range<u64>,
    /// Type, UUID, attributes and name: the table's other fields.
    pub(super) rest: serde_json::Value,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Makes a file of zeros.
    pub(super) fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    /// Makes a disk of zeros with the layout on it.
    pub(super) fn disk(&self, layout: &Layout, disk: Geometry) -> PathBuf {
        let path = self.file("disk", disk.bytes);
        apply(layout, &path);
        path
    }

    /// Makes a file system in a file, by a tool like `mkfs.ext4 -L root`.
    pub(super) fn filesystem(
        &self,
        name: &str,
        bytes: u64,
        tool: &str,
        options: &[&str],
    ) -> PathBuf {
        let path = self.file(name, bytes);
        run(tool, options, &path, "");
        path
    }

    /// Makes a FAT file system of so many bytes with a label, like a config drive.
    pub(super) fn drive(&self, bytes: u64) -> Bytes {
        let path = self.filesystem("drive", bytes, "mkfs.vfat", &["-n", "config-2"]);
        fs::read(path).unwrap().into()
    }
}

pub(super) fn geometry(bytes: u64) -> Geometry {
    Geometry { bytes, block_bytes: 512, optimal_bytes: 0 }
}

pub(super) fn image(path: &Path) -> ImageFile {
    ImageFile::new(Arc::new(File::open(path).unwrap()), path).unwrap()
}

/// Deterministic GUIDs in place of random ones.
pub(super) fn guids() -> impl FnMut() -> [u8; 16] {
    let mut random = fastrand::Rng::with_seed(7);
    move || std::array::from_fn(|_| random.u8(..))
}

/// Writes a layout as the pipeline does: both ends are wiped first.
pub(super) fn apply(layout: &Layout, disk: &Path) {
    let disk = File::options().write(true).open(disk).unwrap();
    let bytes = disk.metadata().unwrap().len();
    for at in [0, bytes - MIB] {
        disk.write_all_at(&vec![0; 1 << 20], at).unwrap();
    }
    for segment in layout.segments() {
        let bytes = match &segment.content {
            Content::Made(made) => made.to_vec(),
            Content::Zeros(bytes) => vec![0; usize::try_from(*bytes).unwrap()],
            Content::File { file, offset, bytes } => {
                let mut buffer = vec![0; usize::try_from(*bytes).unwrap()];
                File::open(file.path()).unwrap().read_exact_at(&mut buffer, *offset).unwrap();
                buffer
            }
        };
        disk.write_all_at(&bytes, segment.at).unwrap();
    }
}

/// Runs a tool on a file and returns what it prints; it must succeed.
pub(super) fn run(tool: &str, options: &[&str], file: &Path, input: &str) -> String {
    let mut child = Command::new(tool)
        .args(options)
        .arg(file)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{tool}: {error}; see testbed/install"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{tool} {options:?}: {text}");
    text
}

/// The partitions of a disk of 512-byte blocks.
pub(super) fn partitions(disk: &Path) -> Vec<Partition> {
    let text = run("sfdisk", &["--json"], disk, "");
    let mut table: serde_json::Value = serde_json::from_str(&text).unwrap();
    let partitions = table.pointer_mut("/partitiontable/partitions").unwrap().take();
    let serde_json::Value::Array(partitions) = partitions else { panic!("{text}") };
    let number = |partition: &mut serde_json::Value, key: &str| {
        partition.as_object_mut().unwrap().remove(key).unwrap().as_u64().unwrap() * 512
    };
    partitions
        .into_iter()
        .map(|mut rest| {
            let (start, size) = (number(&mut rest, "start"), number(&mut rest, "size"));
            // The device's name is the file's, which differs.
            rest.as_object_mut().unwrap().remove("node");
            Partition { bytes: start..start + size, rest }
        })
        .collect()
}

/// Asserts that sgdisk and sfdisk accept a GUID partition table for 512-byte blocks.
pub(super) fn assert_good_gpt(disk: &Path) {
    let verdict = run("sgdisk", &["--verify"], disk, "");
    assert!(verdict.contains("No problems found"), "{verdict}");
    let verdict = run("sfdisk", &["--verify"], disk, "");
    assert!(verdict.contains("No errors detected"), "{verdict}");
}

/// Asserts that fdisk, which supports other block sizes, accepts a GUID partition table; returns
/// its list of partitions.
pub(super) fn listed_by_fdisk(disk: &Path, block_bytes: &str) -> String {
    let verdict = run("fdisk", &["-b", block_bytes], disk, "v\nq\n");
    assert!(verdict.contains("No errors detected"), "{verdict}");
    assert!(!verdict.contains("corrupt"), "{verdict}");
    let columns = "Start,End,Type-UUID,UUID,Name,Attrs";
    let list = run("fdisk", &["-b", block_bytes, "-l", "-o", columns], disk, "");
    let (_, rows) = list.split_once("Attrs").unwrap();
    rows.lines().map(str::trim).collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// Runs blkid on a part of a disk; returns one `KEY=value` a line.
pub(super) fn probe(disk: &Path, bytes: &Range<u64>) -> String {
    let (offset, size) = (bytes.start.to_string(), (bytes.end - bytes.start).to_string());
    let output = Command::new("blkid")
        .args(["--probe", "--output", "export", "--offset", &offset, "--size", &size])
        .arg(disk)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Reads a part of a file.
pub(super) fn bytes_of(file: &Path, bytes: &Range<u64>) -> Vec<u8> {
    let mut buffer = vec![0; usize::try_from(bytes.end - bytes.start).unwrap()];
    File::open(file).unwrap().read_exact_at(&mut buffer, bytes.start).unwrap();
    buffer
}

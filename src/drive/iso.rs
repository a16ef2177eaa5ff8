//! ISO 9660 file systems (ECMA-119) with Joliet names, of a few files in directories of one sector.
//!
//! Config drives use it. The primary tree has the standard's capital names, the Joliet tree the
//! given names; both share the files' sectors. The output holds no time.

#![expect(clippy::cast_possible_truncation, reason = "a handful of short names and two MiB")]

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{DriveFile, split};

/// Bytes of a sector (ECMA-119 §6.1.2); the file system cannot be mounted from a disk with larger
/// blocks.
pub(super) const SECTOR_BYTES: u32 = 2048;
/// Sectors that the standard leaves to the system (§6.2.1).
const SYSTEM_SECTORS: u32 = 16;
/// Sectors of volume descriptors: two, and the terminator (§8).
const DESCRIPTORS: u32 = 3;
/// Sectors of path tables: two trees, in both byte orders.
const PATH_TABLES: u32 = 4;
/// Bytes of a directory record before the name (§9.1).
const RECORD_BYTES: usize = 33;

/// The recording date of every file (§9.1.5): 1980-01-01, as in FAT config drives.
const RECORDED: [u8; 7] = [80, 1, 1, 0, 0, 0, 0];

/// Makes a file system of `files`, whose paths have at most two directories. `seed` becomes the
/// volume time, from which Linux derives the UUID.
pub(super) fn make(label: &str, seed: u128, files: &[DriveFile<'_>]) -> Bytes {
    let plan = Plan::of(files);
    let mut image = vec![0; (SYSTEM_SECTORS * SECTOR_BYTES) as usize];
    for tree in [Tree::Plain, Tree::Joliet] {
        sector(&mut image, plan.descriptor(tree, label, seed));
    }
    // The descriptor set terminator (§8.3).
    sector(&mut image, b"\xffCD001\x01".to_vec());
    for tree in [Tree::Plain, Tree::Joliet] {
        sector(&mut image, plan.path_table(tree, u32::to_le_bytes, u16::to_le_bytes));
        sector(&mut image, plan.path_table(tree, u32::to_be_bytes, u16::to_be_bytes));
    }
    for tree in [Tree::Plain, Tree::Joliet] {
        for folder in &plan.folders {
            sector(&mut image, plan.folder(tree, folder));
        }
    }
    for ((_, content), _) in &plan.files {
        sector(&mut image, content.to_vec());
    }
    image.into()
}

/// One of the two directory trees.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tree {
    Plain,
    Joliet,
}

/// The sectors of all files and directories.
struct Plan<'a> {
    /// Paths of all directories, each after its parent; the root's is empty.
    folders: Vec<&'a str>,
    /// The files with their first sectors, by path.
    files: Vec<(&'a DriveFile<'a>, u32)>,
    /// The total number of sectors.
    sectors: u32,
}

impl<'a> Plan<'a> {
    fn of(files: &'a [DriveFile<'a>]) -> Self {
        let parents = files
            .iter()
            .flat_map(|(path, _)| path.match_indices('/').filter_map(|(at, _)| path.get(..at)));
        let folders: BTreeSet<&str> = std::iter::once("").chain(parents).collect();
        let mut sectors = SYSTEM_SECTORS + DESCRIPTORS + PATH_TABLES + 2 * folders.len() as u32;
        let mut by_path: Vec<&DriveFile<'_>> = files.iter().collect();
        by_path.sort_by_key(|(path, _)| *path);
        let place = |file: &'a DriveFile<'a>| {
            let first = sectors;
            sectors += (file.1.len() as u32).div_ceil(SECTOR_BYTES);
            (file, first)
        };
        let files = by_path.into_iter().map(place).collect();
        Self { folders: folders.into_iter().collect(), files, sectors }
    }

    /// The sector of a directory.
    fn sector_of(&self, tree: Tree, folder: &str) -> u32 {
        let before = if tree == Tree::Joliet { self.folders.len() } else { 0 };
        SYSTEM_SECTORS + DESCRIPTORS + PATH_TABLES + (before + self.number_of(folder)) as u32
    }

    fn number_of(&self, folder: &str) -> usize {
        self.folders.iter().position(|known| *known == folder).unwrap_or(0)
    }

    /// Encodes a primary (§8.4) or a supplementary volume descriptor (§8.5).
    fn descriptor(&self, tree: Tree, label: &str, seed: u128) -> Vec<u8> {
        let number = if tree == Tree::Plain { 1 } else { 2 };
        let mut bytes = vec![number];
        bytes.extend(b"CD001\x01\0");
        bytes.extend(tree.text("", 32));
        bytes.extend(tree.text(label, 32));
        bytes.extend([0; 8]);
        bytes.extend(both32(self.sectors));
        let mut escapes = [0; 32];
        if tree == Tree::Joliet {
            // The escape sequence of UCS-2 level 3.
            escapes.iter_mut().zip(b"%/E").for_each(|(to, from)| *to = *from);
        }
        bytes.extend(escapes);
        bytes.extend([both16(1), both16(1), both16(SECTOR_BYTES as u16)].concat());
        bytes
            .extend(both32(self.path_table(tree, u32::to_le_bytes, u16::to_le_bytes).len() as u32));
        let table = SYSTEM_SECTORS + DESCRIPTORS + if tree == Tree::Joliet { 2 } else { 0 };
        bytes.extend(table.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend((table + 1).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.record(tree, &[0], "", None));
        // Empty: volume set, publisher, preparer, application, and three file names.
        bytes.extend(tree.text("", 4 * 128 + 3 * 37));
        let time = time_of(seed);
        bytes
            .extend([time, time, [b'0'; 16], time].map(|time| [&time[..], &[0]].concat()).concat());
        bytes.push(1);
        bytes
    }

    /// Encodes a path table: all directories with their parents (§9.4).
    fn path_table(
        &self,
        tree: Tree,
        long: fn(u32) -> [u8; 4],
        short: fn(u16) -> [u8; 2],
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        for folder in &self.folders {
            let (parent, name) = split(folder);
            let name = if name.is_empty() { vec![0] } else { tree.name(name, false) };
            bytes.extend([name.len() as u8, 0]);
            bytes.extend(long(self.sector_of(tree, folder)));
            bytes.extend(short(self.number_of(parent) as u16 + 1));
            bytes.extend(&name);
            bytes.extend(vec![0; name.len() % 2]);
        }
        bytes
    }

    fn folder(&self, tree: Tree, folder: &str) -> Vec<u8> {
        let mut records = vec![
            self.record(tree, &[0], folder, None),
            self.record(tree, &[1], split(folder).0, None),
        ];
        let inside = |path: &str| !path.is_empty() && split(path).0 == folder;
        for path in self.folders.iter().filter(|path| inside(path)) {
            records.push(self.record(tree, &tree.name(split(path).1, false), path, None));
        }
        for place in self.files.iter().filter(|((path, _), _)| inside(path)) {
            let name = tree.name(split(place.0.0).1, true);
            records.push(self.record(tree, &name, "", Some(place)));
        }
        records.concat()
    }

    /// Encodes the record of a file or directory (§9.1).
    fn record(
        &self,
        tree: Tree,
        name: &[u8],
        folder: &str,
        file: Option<&(&DriveFile<'_>, u32)>,
    ) -> Vec<u8> {
        let (sector, bytes, flags) = match file {
            Some(((_, content), first)) => (*first, content.len() as u32, 0),
            None => (self.sector_of(tree, folder), SECTOR_BYTES, 2),
        };
        let length = (RECORD_BYTES + name.len()).next_multiple_of(2);
        let mut record = vec![length as u8, 0];
        record.extend(both32(sector));
        record.extend(both32(bytes));
        record.extend(RECORDED);
        record.extend([flags, 0, 0]);
        record.extend(both16(1));
        record.push(name.len() as u8);
        record.extend(name);
        record.resize(length, 0);
        record
    }
}

impl Tree {
    /// Encodes a name in a directory; a file's name with its version (§7.5, Joliet §3).
    fn name(self, name: &str, is_file: bool) -> Vec<u8> {
        let version = if is_file { ";1" } else { "" };
        match self {
            Self::Joliet => utf16(&format!("{name}{version}")),
            Self::Plain => {
                let dot = if is_file && !name.contains('.') { "." } else { "" };
                let plain = name.to_ascii_uppercase().replace('-', "_");
                format!("{plain}{dot}{version}").into_bytes()
            }
        }
    }

    /// Encodes a text of so many bytes, padded with spaces.
    fn text(self, text: &str, bytes: usize) -> Vec<u8> {
        let mut field = match self {
            Self::Joliet => utf16(&format!("{text:<bytes$}")),
            Self::Plain => format!("{text:<bytes$}").into_bytes(),
        };
        field.truncate(bytes);
        field
    }
}

/// Appends content, padded to whole sectors with zeros.
fn sector(image: &mut Vec<u8>, content: Vec<u8>) {
    image.extend(content);
    image.resize(image.len().next_multiple_of(SECTOR_BYTES as usize), 0);
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// Encodes a number in both byte orders (§7.3.3).
fn both32(number: u32) -> [u8; 8] {
    (u64::from(number) | u64::from(number.swap_bytes()) << 32).to_le_bytes()
}

/// Encodes a number in both byte orders (§7.2.3).
fn both16(number: u16) -> [u8; 4] {
    (u32::from(number) | u32::from(number.swap_bytes()) << 16).to_le_bytes()
}

/// A time in the past as 16 digits, derived from the seed (§8.4.26.1).
fn time_of(seed: u128) -> [u8; 16] {
    let mut rest = seed;
    let mut of = |from: u128, count: u128| {
        let digit = from + rest % count;
        rest /= count;
        digit
    };
    let (year, month, day) = (of(1980, 20), of(1, 12), of(1, 28));
    let (hour, minute, second, hundredth) = (of(0, 24), of(0, 60), of(0, 60), of(0, 100));
    let text = format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}{hundredth:02}");
    text.as_bytes().first_chunk().copied().unwrap_or([b'0'; 16])
}

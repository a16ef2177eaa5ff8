//! FAT file systems (Microsoft's FAT32 File System Specification, version 1.03), made in one pass.
//!
//! Config drives and EFI system partitions use it. Files are contiguous, in the given order, and
//! the output holds no time. The code is hostler's own, because the crate `fatfs` gives `.` and
//! `..` long names, which checkers report as errors.

#![expect(
    clippy::cast_possible_truncation,
    reason = "small tables; what files have is counted with care"
)]

use std::{
    collections::BTreeSet,
    io::{self, Error},
};

use bytes::Bytes;

use super::{
    DriveError,
    fat_name::{Name, Names, RECORD_BYTES},
    split,
};

/// Smallest and largest sector, in bytes (§3.1).
const SECTOR_BYTES: (u32, u32) = (512, 4096);
/// Records of a FAT12 root directory, which has a fixed place (§3.1).
const ROOT_RECORDS: u16 = 512;
/// Most clusters that FAT12 has, and least that FAT32 has (§3.5).
const FAT12_CLUSTERS_MAX: u32 = 4084;
const FAT32_CLUSTERS_MIN: u32 = 65_525;
/// Copies of the cluster table.
const TABLES: u32 = 2;
/// The number of the first cluster.
const FIRST_CLUSTER: u32 = 2;

/// Parameters of an empty file system. A cluster is one sector.
pub(super) struct FatFormat {
    /// The volume label, at most 11 bytes, in its given case: cloud-init looks for `config-2`.
    pub label: &'static str,
    /// The volume id, which Linux shows as the UUID.
    pub id: u32,
    /// FAT12 or FAT32.
    pub kind: FatKind,
    /// Least room for files and directories, in bytes.
    pub bytes_min: u32,
    /// Bytes of a sector.
    pub sector_bytes: u16,
}

/// Width of the table's entries; it also decides the place of the root directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FatKind {
    Fat12,
    Fat32,
}

/// The sector size for a disk's block size. Linux refuses a file system whose sectors are smaller
/// than the disk's.
pub(super) fn sector_bytes(block_bytes: u32) -> Result<u16, DriveError> {
    let (least, most) = SECTOR_BYTES;
    let fits = |bytes: &u16| u32::from(*bytes) <= most;
    u16::try_from(block_bytes.max(least)).ok().filter(fits).ok_or(DriveError::Blocks {
        filesystem: "vfat",
        block_bytes,
        bytes_max: most,
        hint: "",
    })
}

/// Makes a file system with files of these paths and lengths, and their directories. `read` gets
/// the number of each file and the buffer for its content.
pub(super) fn make(
    format: &FatFormat,
    files: &[(&str, u32)],
    mut read: impl FnMut(usize, &mut [u8]) -> io::Result<()>,
) -> io::Result<Bytes> {
    let tree = Tree::of(format, files)?;
    let shape = Shape::of(format, tree.end)?;
    let mut volume = vec![0; shape.sectors() as usize * shape.sector];
    for at in shape.boot_sectors() {
        put(&mut volume, at * shape.sector, &boot_sector(format, &shape))?;
        if format.kind == FatKind::Fat32 {
            put(&mut volume, (at + 1) * shape.sector, &info_sector(&shape, tree.end))?;
        }
    }
    let table = tree.table(format.kind);
    for number in 0..TABLES {
        let at = (shape.reserved + number * shape.table) as usize * shape.sector;
        put(&mut volume, at, &table)?;
    }
    for node in &tree.folders {
        put(&mut volume, shape.place(node.first), &tree.folder(format, node))?;
    }
    for (number, node) in tree.files.iter().enumerate() {
        let from = shape.place(node.first);
        let to = volume.get_mut(from..from + node.bytes as usize).ok_or_else(misplaced)?;
        read(number, to)?;
    }
    Ok(volume.into())
}

/// A file or a directory.
struct FatNode<'a> {
    path: &'a str,
    name: Name,
    bytes: u32,
    /// The first cluster; 0 for a FAT12 root directory and for an empty file.
    first: u32,
}

/// All files and directories, with their clusters.
struct Tree<'a> {
    /// The directories, each after its parent, the root first.
    folders: Vec<FatNode<'a>>,
    files: Vec<FatNode<'a>>,
    /// The first free cluster.
    end: u32,
}

impl<'a> Tree<'a> {
    fn of(format: &FatFormat, files: &[(&'a str, u32)]) -> io::Result<Self> {
        let parents = files
            .iter()
            .flat_map(|(path, _)| path.match_indices('/').filter_map(|(at, _)| path.get(..at)));
        let folders: BTreeSet<&str> = std::iter::once("").chain(parents).collect();
        let mut names = Names::default();
        let mut node = |path: &'a str, bytes| -> io::Result<FatNode<'a>> {
            let (parent, name) = split(path);
            let name = if path.is_empty() { Name::default() } else { names.take(parent, name)? };
            Ok(FatNode { path, name, bytes, first: 0 })
        };
        let mut tree = Self {
            folders: folders.into_iter().map(|path| node(path, 0)).collect::<io::Result<_>>()?,
            files: files
                .iter()
                .map(|(path, bytes)| node(path, *bytes))
                .collect::<io::Result<_>>()?,
            end: FIRST_CLUSTER,
        };
        let lengths: Vec<u32> = tree.folders.iter().map(|folder| tree.records(folder)).collect();
        let cluster = u32::from(format.sector_bytes);
        let mut end = tree.end;
        for (folder, bytes) in tree.folders.iter_mut().zip(lengths) {
            folder.bytes = bytes;
        }
        for node in tree.folders.iter_mut().chain(&mut tree.files) {
            let has_place = node.path.is_empty() && format.kind == FatKind::Fat12;
            if has_place && node.bytes > u32::from(ROOT_RECORDS) * RECORD_BYTES as u32 {
                return Err(too_much());
            }
            if node.bytes > 0 && !has_place {
                node.first = end;
                end = end.checked_add(node.bytes.div_ceil(cluster)).ok_or_else(too_much)?;
            }
        }
        tree.end = end;
        Ok(tree)
    }

    /// The size of a directory's records in bytes.
    fn records(&self, folder: &FatNode<'_>) -> u32 {
        let own = if folder.path.is_empty() { 1 } else { 2 };
        let names = self.inside(folder).map(|(node, _)| node.name.records());
        ((own + names.sum::<usize>()) * RECORD_BYTES) as u32
    }

    /// The entries of a directory, with a flag for subdirectories.
    fn inside(&self, folder: &FatNode<'_>) -> impl Iterator<Item = (&FatNode<'a>, bool)> {
        let folders = self.folders.iter().map(|node| (node, true));
        let files = self.files.iter().map(|node| (node, false));
        folders
            .chain(files)
            .filter(move |(node, _)| !node.path.is_empty() && split(node.path).0 == folder.path)
    }

    /// Encodes a directory (§6).
    fn folder(&self, format: &FatFormat, folder: &FatNode<'_>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(folder.bytes as usize);
        if folder.path.is_empty() {
            bytes.extend(record(label(format), VOLUME, 0, 0));
        } else {
            let parent = split(folder.path).0;
            let parent = self.folders.iter().find(|node| node.path == parent && !parent.is_empty());
            bytes.extend(record(*b".          ", FOLDER, folder.first, 0));
            bytes.extend(record(*b"..         ", FOLDER, parent.map_or(0, |node| node.first), 0));
        }
        for (node, is_folder) in self.inside(folder) {
            let (kind, length) = if is_folder { (FOLDER, 0) } else { (FILE, node.bytes) };
            bytes.extend(node.name.long_records());
            bytes.extend(record(node.name.short, kind, node.first, length));
        }
        bytes
    }

    /// Encodes the cluster table (§4): each entry names the next cluster of its file, or marks the
    /// last.
    fn table(&self, kind: FatKind) -> Vec<u8> {
        let mut entries: Vec<u32> = (1..=self.end).collect();
        let mut set = |cluster: u32, value: u32| {
            if let Some(entry) = entries.get_mut(cluster as usize) {
                *entry = value;
            }
        };
        set(0, 0x0fff_fff8);
        set(1, LAST);
        // The beginning of a file ends the chain before it.
        for node in self.folders.iter().chain(&self.files).filter(|node| node.first > FIRST_CLUSTER)
        {
            set(node.first - 1, LAST);
        }
        if self.end > FIRST_CLUSTER {
            set(self.end - 1, LAST);
        }
        match kind {
            FatKind::Fat32 => entries.into_iter().flat_map(u32::to_le_bytes).collect(),
            FatKind::Fat12 => entries
                .chunks(2)
                .flat_map(|pair| {
                    let both = |entry: usize| pair.get(entry).map_or(0, |entry| entry & 0xfff);
                    let [a, b, c, _] = (both(0) | both(1) << 12).to_le_bytes();
                    [a, b, c]
                })
                .collect(),
        }
    }
}

/// Entry of the last cluster of a chain (§4).
const LAST: u32 = 0x0fff_ffff;

/// Sizes of a volume's parts, in sectors.
struct Shape {
    /// Bytes of a sector.
    sector: usize,
    kind: FatKind,
    reserved: u32,
    table: u32,
    root: u32,
    clusters: u32,
}

impl Shape {
    fn of(format: &FatFormat, end: u32) -> io::Result<Self> {
        let sector = u32::from(format.sector_bytes);
        let clusters = (end - FIRST_CLUSTER).max(format.bytes_min / sector);
        let (clusters, bits, reserved, root) = match format.kind {
            FatKind::Fat12 if clusters > FAT12_CLUSTERS_MAX => return Err(too_much()),
            FatKind::Fat12 => (clusters, 12, 1, u32::from(ROOT_RECORDS) * RECORD_BYTES as u32),
            FatKind::Fat32 => (clusters.max(FAT32_CLUSTERS_MIN), 32, 32, 0),
        };
        let table = (u64::from(clusters + FIRST_CLUSTER) * bits).div_ceil(8 * u64::from(sector));
        let table = u32::try_from(table).map_err(|_| too_much())?;
        let root = root.div_ceil(sector);
        Ok(Self { sector: sector as usize, kind: format.kind, reserved, table, root, clusters })
    }

    fn sectors(&self) -> u32 {
        self.reserved + TABLES * self.table + self.root + self.clusters
    }

    /// The offset of a cluster in bytes; 0 stands for the FAT12 root directory.
    fn place(&self, cluster: u32) -> usize {
        let root = self.reserved + TABLES * self.table;
        let sector =
            cluster.checked_sub(FIRST_CLUSTER).map_or(root, |after| root + self.root + after);
        sector as usize * self.sector
    }

    /// The sectors of the boot sector and of FAT32's copy.
    fn boot_sectors(&self) -> impl Iterator<Item = usize> {
        std::iter::once(0).chain((self.kind == FatKind::Fat32).then_some(6))
    }
}

/// Encodes the boot sector (§3).
fn boot_sector(format: &FatFormat, shape: &Shape) -> Vec<u8> {
    let is_small = format.kind == FatKind::Fat12;
    let sectors = shape.sectors();
    let short = u16::try_from(sectors).ok().filter(|_| is_small).unwrap_or(0);
    let table = if is_small { shape.table as u16 } else { 0 };
    let mut sector = if is_small { b"\xeb\x3c\x90".to_vec() } else { b"\xeb\x58\x90".to_vec() };
    sector.extend(b"MSWIN4.1");
    sector.extend(format.sector_bytes.to_le_bytes());
    sector.push(1);
    sector.extend((shape.reserved as u16).to_le_bytes());
    sector.push(TABLES as u8);
    sector.extend(if is_small { ROOT_RECORDS } else { 0 }.to_le_bytes());
    sector.extend(short.to_le_bytes());
    sector.push(0xf8);
    sector.extend(table.to_le_bytes());
    // 63 sectors per track, 255 heads, no hidden sectors.
    sector.extend([63, 0, 255, 0, 0, 0, 0, 0]);
    sector.extend(if short == 0 { sectors } else { 0 }.to_le_bytes());
    if !is_small {
        sector.extend(shape.table.to_le_bytes());
        sector.extend([0; 4]);
        sector.extend(FIRST_CLUSTER.to_le_bytes());
        sector.extend([1, 0, 6, 0]);
        sector.extend([0; 12]);
    }
    sector.extend([0x80, 0, 0x29]);
    sector.extend(format.id.to_le_bytes());
    sector.extend(label(format));
    sector.extend(if is_small { b"FAT12   " } else { b"FAT32   " });
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// Encodes FAT32's information sector: the free clusters (§5).
fn info_sector(shape: &Shape, end: u32) -> Vec<u8> {
    let mut sector = b"RRaA".to_vec();
    sector.resize(484, 0);
    sector.extend(b"rrAa");
    sector.extend((shape.clusters + FIRST_CLUSTER - end).to_le_bytes());
    sector.extend(end.to_le_bytes());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// Attributes of a record (§6).
const VOLUME: u8 = 0x08;
const FOLDER: u8 = 0x10;
const FILE: u8 = 0x20;

/// Encodes a directory record (§6), dated 1980-01-01, the first date of FAT.
fn record(name: [u8; 11], kind: u8, first: u32, bytes: u32) -> [u8; RECORD_BYTES] {
    const DAY: [u8; 2] = [0x21, 0];
    let [low, more, high, most] = first.to_le_bytes();
    let parts: [&[u8]; 8] = [
        &name,
        &[kind, 0, 0, 0, 0],
        &DAY,
        &DAY,
        &[high, most, 0, 0],
        &DAY,
        &[low, more],
        &bytes.to_le_bytes(),
    ];
    let mut record = [0; RECORD_BYTES];
    record.iter_mut().zip(parts.concat()).for_each(|(to, from)| *to = from);
    record
}

fn label(format: &FatFormat) -> [u8; 11] {
    let mut label = [b' '; 11];
    label.iter_mut().zip(format.label.bytes()).for_each(|(to, from)| *to = from);
    label
}

fn put(volume: &mut [u8], at: usize, bytes: &[u8]) -> io::Result<()> {
    volume.get_mut(at..at + bytes.len()).ok_or_else(misplaced)?.copy_from_slice(bytes);
    Ok(())
}

fn misplaced() -> Error {
    Error::other("a part lies outside of the file system")
}

fn too_much() -> Error {
    Error::other("too much for a FAT file system")
}

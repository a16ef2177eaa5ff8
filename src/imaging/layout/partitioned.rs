//! A disk around one file system: hostler makes the table and all partitions.
//!
//! Their order is ESP, swap, ephemeral, config drive, root: the root partition is last so that it
//! can grow.

use std::ops::Range;

use bytes::Bytes;

use super::{
    ALIGNMENT_BYTES, Content, Geometry, Layout, LayoutError,
    drive::{CONFIG_DRIVE_BYTES, Drive},
};
use crate::{
    imaging::{
        ImageFile,
        table::{
            gpt::{self, Gpt},
            mbr::{self, Mbr},
        },
    },
    model::{
        boot::Arch,
        spec::{PartitionTable, Partitions},
    },
};

/// Bytes at a partition's beginning that are zeroed if its content does not cover them, so that no
/// probe finds the disk's old content. Signatures are in the first MiB, except for the last copy of
/// a LUKS2 header at 4 MiB.
const STALE_HEAD_BYTES: u64 = 5 << 20;
/// Bytes at a partition's end that are zeroed for the same reason: RAID members, ZFS labels and
/// backups of tables are in the last MiB.
const STALE_TAIL_BYTES: u64 = 1 << 20;
/// Most primary partitions of an msdos table.
const MSDOS_PARTITIONS_MAX: usize = 4;

/// Contents of the partitions besides the root file system.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// The processors of the root's system, which the type of its partition names.
    pub arch: Arch,
    /// An EFI system partition; the partition has this size, rounded up to the alignment.
    pub esp: Option<Content>,
    /// Header of the swap space, for a partition of [`Partitions::swap_bytes`].
    pub swap: Option<Bytes>,
    /// A file system for the partition of [`Partitions::ephemeral_bytes`].
    pub ephemeral: Option<ImageFile>,
    /// A file system of at most [`CONFIG_DRIVE_BYTES`].
    pub config_drive: Option<Bytes>,
}

/// The smallest disk for these partitions with a root file system of so many bytes, in bytes.
pub fn needed_bytes(
    root_image_bytes: u64,
    partitions: &Partitions,
    esp_bytes: Option<u64>,
    config_drive: bool,
) -> u64 {
    let drive_bytes = config_drive.then_some(CONFIG_DRIVE_BYTES);
    let root_bytes = partitions.root_bytes.or(Some(root_image_bytes));
    let sizes =
        [esp_bytes, partitions.swap_bytes, partitions.ephemeral_bytes, drive_bytes, root_bytes];
    total_bytes(partitions.table, sizes.into_iter().flatten(), ALIGNMENT_BYTES)
}

/// Lays out a table, the spec's partitions and their contents.
///
/// The root partition takes the rest of the disk unless the spec gives its size; its file system
/// keeps its size in the image. `guid` returns random bytes.
pub fn partitioned(
    root: &ImageFile,
    disk: Geometry,
    partitions: &Partitions,
    parts: Parts,
    guid: &mut dyn FnMut() -> [u8; 16],
) -> Result<Layout, LayoutError> {
    let disk = disk.checked()?;
    let wanted = wanted(root, partitions, parts);
    let places = places(disk, partitions, &wanted)?;
    let with_places = || wanted.iter().zip(&places);
    let mut layout = Layout::new([]);
    for (partition, place) in with_places() {
        layout = partition.fill(layout, disk, place)?;
    }
    let root_partuuid;
    match partitions.table {
        PartitionTable::Gpt => {
            let mut gpt = Gpt::empty(disk.block_size(), guid());
            for (partition, place) in with_places() {
                gpt.add(partition.gpt_kind, guid(), &disk.in_blocks(place), partition.name)
                    .ok_or(LayoutError::TooManyPartitions(wanted.len()))?;
            }
            // The root is the last partition.
            root_partuuid = gpt.partitions().last().map(|root| gpt::written(root.guid));
            let protective = Mbr::protective(disk.block_size(), disk.blocks());
            layout = layout.with_mbr(disk, protective).with_gpt(disk, &gpt);
        }
        PartitionTable::Msdos => {
            // A disk without an identity gives its partitions none either.
            let [a, b, c, d, ..] = guid();
            let id = [a | 1, b, c, d];
            let mut mbr = Mbr::empty(disk.block_size(), id);
            // As Linux's `msdos_partition`: the disk's identity, and the number of the partition.
            let (id, number) = (u32::from_le_bytes(id), wanted.len());
            root_partuuid = Some(format!("{id:08x}-{number:02x}"));
            for (partition, place) in with_places() {
                mbr.add(partition.mbr_kind, &disk.in_blocks(place))
                    .ok_or(LayoutError::TooManyPartitions(wanted.len()))?;
            }
            layout = layout.with_mbr(disk, mbr);
        }
    }
    layout.root_partuuid = root_partuuid;
    layout.checked(disk)
}

/// A partition before its placement.
#[derive(Debug)]
struct Wanted {
    name: &'static str,
    gpt_kind: &'static gpt::Guid,
    mbr_kind: u8,
    bytes: u64,
    content: Option<Content>,
}

/// The partitions in the order of the disk.
fn wanted(root: &ImageFile, partitions: &Partitions, parts: Parts) -> Vec<Wanted> {
    let esp = parts.esp.map(|content| Wanted {
        name: "esp",
        gpt_kind: &gpt::ESP,
        mbr_kind: mbr::ESP,
        bytes: content.bytes(),
        content: Some(content),
    });
    let swap = partitions.swap_bytes.map(|bytes| Wanted {
        name: "swap",
        gpt_kind: &gpt::SWAP,
        mbr_kind: mbr::SWAP,
        bytes,
        content: parts.swap.map(Content::Made),
    });
    let ephemeral = partitions.ephemeral_bytes.map(|bytes| Wanted {
        name: "ephemeral",
        gpt_kind: &gpt::LINUX,
        mbr_kind: mbr::LINUX,
        bytes,
        content: parts.ephemeral.map(Content::of_file),
    });
    let config_drive = parts.config_drive.map(Drive).map(|drive| Wanted {
        name: drive.name(),
        gpt_kind: drive.gpt_kind(),
        mbr_kind: drive.mbr_kind(),
        bytes: CONFIG_DRIVE_BYTES,
        content: Some(Content::Made(drive.0)),
    });
    let root = Wanted {
        name: "root",
        gpt_kind: match parts.arch {
            Arch::X86_64 => &gpt::ROOT_X86_64,
            Arch::Aarch64 => &gpt::ROOT_AARCH64,
        },
        mbr_kind: mbr::LINUX,
        bytes: partitions.root_bytes.unwrap_or(root.bytes()),
        content: Some(Content::of_file(root.clone())),
    };
    [esp, swap, ephemeral, config_drive, Some(root)].into_iter().flatten().collect()
}

/// Places the partitions one after the other; the last one, the root, reaches to the end unless it
/// has a size. Uses the disk's own alignment if there is room for it, else a MiB.
fn places(
    disk: Geometry,
    partitions: &Partitions,
    wanted: &[Wanted],
) -> Result<Vec<Range<u64>>, LayoutError> {
    let aligned = |alignment| aligned_places(disk, partitions, wanted, alignment);
    aligned(disk.alignment_bytes()).or_else(|_| aligned(ALIGNMENT_BYTES))
}

fn aligned_places(
    disk: Geometry,
    partitions: &Partitions,
    wanted: &[Wanted],
    alignment: u64,
) -> Result<Vec<Range<u64>>, LayoutError> {
    let sizes = wanted.iter().map(|partition| partition.bytes);
    disk.takes(total_bytes(partitions.table, sizes, alignment))?;
    let mut places: Vec<Range<u64>> = Vec::with_capacity(wanted.len());
    for partition in wanted {
        let start = places.last().map_or(alignment, |last| last.end);
        places.push(start..start.saturating_add(aligned(partition.bytes, alignment)));
    }
    let mut end = disk.bytes.saturating_sub(tail_bytes(partitions.table));
    if partitions.table == PartitionTable::Msdos {
        if wanted.len() > MSDOS_PARTITIONS_MAX {
            return Err(LayoutError::TooManyPartitions(wanted.len()));
        }
        let limit_bytes = disk.in_bytes(&(0..mbr::BLOCKS_MAX)).end;
        let needed_bytes = places.last().map_or(0, |last| last.end);
        if needed_bytes > limit_bytes {
            return Err(LayoutError::PastMsdos { limit_bytes, needed_bytes });
        }
        end = end.min(limit_bytes);
    }
    if let (Some(root), None) = (places.last_mut(), partitions.root_bytes) {
        root.end = end / alignment * alignment;
    }
    Ok(places)
}

/// The total size of a disk with these partitions.
fn total_bytes(table: PartitionTable, sizes: impl Iterator<Item = u64>, alignment: u64) -> u64 {
    let ends = [alignment, tail_bytes(table)].into_iter();
    let all = ends.chain(sizes.map(|bytes| aligned(bytes, alignment)));
    all.fold(0, u64::saturating_add)
}

/// Bytes at the disk's end that are kept for the table's backup.
fn tail_bytes(table: PartitionTable) -> u64 {
    match table {
        PartitionTable::Gpt => ALIGNMENT_BYTES,
        PartitionTable::Msdos => 0,
    }
}

fn aligned(bytes: u64, alignment: u64) -> u64 {
    bytes.max(1).div_ceil(alignment).saturating_mul(alignment)
}

impl Wanted {
    /// Adds the partition's content, and zeros where old content could pass for a file system.
    fn fill(
        &self,
        layout: Layout,
        disk: Geometry,
        place: &Range<u64>,
    ) -> Result<Layout, LayoutError> {
        let partition_bytes = place.end - place.start;
        let head = STALE_HEAD_BYTES.min(partition_bytes);
        let tail = STALE_TAIL_BYTES.min(partition_bytes);
        let layout = layout.cover(disk, place.start, Content::Zeros(head)).cover(
            disk,
            place.end - tail,
            Content::Zeros(tail),
        );
        let Some(content) = self.content.clone() else { return Ok(layout) };
        let content_bytes = content.bytes();
        if content_bytes > partition_bytes {
            return Err(LayoutError::ContentTooBig {
                name: self.name,
                content_bytes,
                partition_bytes,
            });
        }
        Ok(layout.cover(disk, place.start, content))
    }
}

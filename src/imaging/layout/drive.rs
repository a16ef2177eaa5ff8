//! Places the config drive on a disk that already has partitions.
//!
//! Whole-disk layouts use it. It must never choose a partition's range, unless the partition is
//! meant for a config drive.

use std::ops::Range;

use bytes::Bytes;

use super::{ALIGNMENT_BYTES, Content, Geometry, Layout, LayoutError, blocks::read};
use crate::imaging::{
    ImageFile,
    table::{gpt, mbr},
};

/// Size of a config drive's partition that hostler makes, in bytes; cloud-init's tools use the
/// same.
pub const CONFIG_DRIVE_BYTES: u64 = 64 << 20;

/// Labels of file systems, and names of partitions, that are meant for a config drive.
const LABELS: [&str; 2] = ["config-2", "cidata"];

/// Offset of the first volume descriptor of an ISO 9660 file system (ECMA-119 §6.7.1).
pub(super) const ISO_AT: usize = 32 << 10;
pub(super) const ISO_ID: &[u8] = b"\x01CD001\x01";

/// A partition of the image.
#[derive(Clone, Debug)]
pub(super) struct Area {
    /// The partition's number, from 1 on.
    pub(super) number: usize,
    /// The partition's bytes on the disk.
    pub(super) bytes: Range<u64>,
    /// The partition's name; empty if the table has no names.
    pub(super) name: String,
}

/// The config drive: a file system for cloud-init.
#[derive(Clone, Debug)]
pub(super) struct Drive(pub(super) Bytes);

impl Drive {
    fn is_iso(&self) -> bool {
        self.0.get(ISO_AT..).is_some_and(|descriptor| descriptor.starts_with(ISO_ID))
    }

    /// The partition's name in a GUID partition table: the label of the file system, by which tools
    /// look for it.
    pub(super) fn name(&self) -> &'static str {
        let [usual, _] = LABELS;
        label_in(&self.0).unwrap_or(usual)
    }

    pub(super) fn gpt_kind(&self) -> &'static gpt::Guid {
        if self.is_iso() { &gpt::LINUX } else { &gpt::BASIC_DATA }
    }

    pub(super) fn mbr_kind(&self) -> u8 {
        if self.is_iso() { mbr::LINUX } else { mbr::FAT }
    }

    /// Puts the file system at the partition's beginning, and zeros over its other bytes.
    pub(super) fn onto(
        self,
        layout: Layout,
        disk: Geometry,
        place: &Range<u64>,
    ) -> Result<Layout, LayoutError> {
        let drive_bytes = self.0.len() as u64;
        let partition_bytes = place.end - place.start;
        if drive_bytes > partition_bytes {
            return Err(LayoutError::DriveTooBig { drive_bytes, partition_bytes });
        }
        Ok(layout.cover(disk, place.start, Content::Zeros(partition_bytes)).cover(
            disk,
            place.start,
            Content::Made(self.0),
        ))
    }
}

/// Chooses the bytes of the config drive's partition: one that is meant for it, or a new one at the
/// end of the disk, which `add` adds to the table. `limit` is the end of the table's reach.
pub(super) fn place(
    image: &ImageFile,
    disk: Geometry,
    areas: &[Area],
    limit: u64,
    add: impl FnOnce(&Range<u64>) -> Option<()>,
) -> Result<Range<u64>, LayoutError> {
    if let Some(waiting) = waiting(image, areas)? {
        return Ok(waiting);
    }
    let place = at_the_end(disk, areas, limit)?;
    add(&place).ok_or(LayoutError::TableFull { entries: areas.len() })?;
    Ok(place)
}

/// The least reach of the table on the smallest disk that holds a config drive after these
/// partitions, which end at `end`. `add` tries whether the table has an unused entry.
pub(super) fn least_end(
    image: &ImageFile,
    areas: &[Area],
    end: u64,
    add: impl FnOnce(&Range<u64>) -> Option<()>,
) -> Result<u64, LayoutError> {
    if waiting(image, areas)?.is_some() {
        return Ok(end);
    }
    let start = free_from(areas, ALIGNMENT_BYTES);
    let place = start..start.saturating_add(CONFIG_DRIVE_BYTES);
    add(&place).ok_or(LayoutError::TableFull { entries: areas.len() })?;
    Ok(end.max(place.end))
}

/// Finds the image's partition that is meant for a config drive.
fn waiting(image: &ImageFile, areas: &[Area]) -> Result<Option<Range<u64>>, LayoutError> {
    // An image of one file system may have a table that names the whole image.
    for area in areas.iter().filter(|area| area.bytes.start > 0) {
        let is_named = LABELS.iter().any(|label| area.name.eq_ignore_ascii_case(label));
        if is_named || label_in(&read(image, area.bytes.start, ISO_AT + 512)?).is_some() {
            return Ok(Some(area.bytes.clone()));
        }
    }
    Ok(None)
}

/// Places a new partition at the end of the disk.
fn at_the_end(disk: Geometry, areas: &[Area], limit: u64) -> Result<Range<u64>, LayoutError> {
    aligned_at_the_end(areas, limit, disk.alignment_bytes())
        .or_else(|_| aligned_at_the_end(areas, limit, ALIGNMENT_BYTES))
}

fn aligned_at_the_end(
    areas: &[Area],
    limit: u64,
    alignment: u64,
) -> Result<Range<u64>, LayoutError> {
    let free = free_from(areas, alignment);
    match limit.checked_sub(CONFIG_DRIVE_BYTES).map(|start| start / alignment * alignment) {
        Some(start) if start >= free => Ok(start..start + CONFIG_DRIVE_BYTES),
        _ => Err(LayoutError::NoRoom {
            needed_bytes: CONFIG_DRIVE_BYTES,
            free_bytes: limit.saturating_sub(free),
        }),
    }
}

/// The first aligned byte after all partitions.
fn free_from(areas: &[Area], alignment: u64) -> u64 {
    let last_end = areas.iter().map(|area| area.bytes.end).max().unwrap_or_default();
    last_end.max(1).checked_next_multiple_of(alignment).unwrap_or(u64::MAX)
}

/// Reads the label of a FAT or ISO 9660 file system from its first bytes; `None` unless it is a
/// config drive's.
fn label_in(bytes: &[u8]) -> Option<&'static str> {
    let text = |range: Range<usize>| bytes.get(range).unwrap_or_default();
    let signed = text(510..512) == [0x55, 0xaa];
    let label = if text(ISO_AT..ISO_AT + ISO_ID.len()) == ISO_ID {
        text(ISO_AT + 40..ISO_AT + 72)
    } else if signed && text(54..57) == b"FAT" {
        text(43..54)
    } else if signed && text(82..87) == b"FAT32" {
        text(71..82)
    } else {
        &[]
    };
    let label = label.trim_ascii_end();
    LABELS.into_iter().find(|wanted| label.eq_ignore_ascii_case(wanted.as_bytes()))
}

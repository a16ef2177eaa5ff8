//! A whole-disk image on a disk of another size: the image's bytes, with tables corrected for the
//! disk, and optionally a config drive.

use std::ops::Range;

use bytes::Bytes;

use super::{
    Content, Geometry, Layout, LayoutError, Segment,
    blocks::{BLOCK_BYTES, read},
    drive::{self, Area, CONFIG_DRIVE_BYTES, Drive},
    image_table::{GptImage, ImageTable},
};
use crate::imaging::{
    ImageFile,
    table::{
        gpt::{self, Gpt},
        mbr::{self, Mbr},
    },
};

/// Lays out the image's bytes, its tables corrected for the disk, and the config drive in a new
/// partition or in one that is meant for it.
///
/// - GUID partition table: the backup moves to the disk's end, and the old one is zeroed if it lies
///   between partitions. If only the backup is intact, it is taken.
/// - Master boot record: as it is. Where a partition reaches past the image's end, zeros follow.
/// - No table: as it is, if it fits.
///
/// With a table, a disk smaller than the image is enough if the partitions fit.
///
/// `guid` returns random bytes. The function blocks, because it reads the image.
pub fn whole_disk(
    image: &ImageFile,
    disk: Geometry,
    config_drive: Option<Bytes>,
    guid: &mut dyn FnMut() -> [u8; 16],
) -> Result<Layout, LayoutError> {
    let disk = disk.checked()?;
    let config_drive = config_drive.map(Drive);
    if let Some(Drive(bytes)) = &config_drive
        && bytes.len() as u64 > CONFIG_DRIVE_BYTES
    {
        let drive_bytes = bytes.len() as u64;
        return Err(LayoutError::DriveTooBig { drive_bytes, partition_bytes: CONFIG_DRIVE_BYTES });
    }
    let layout = match (ImageTable::of(image, disk)?, config_drive) {
        (ImageTable::Gpt(table), drive) => with_gpt(image, disk, table, drive, guid)?,
        (ImageTable::Mbr(table), drive) => with_mbr(image, disk, table, drive)?,
        (ImageTable::None, None) => as_it_is(image, disk)?,
        (ImageTable::None, Some(_)) => return Err(LayoutError::NoTable),
    };
    layout.checked(disk)
}

/// The smallest disk for such a layout, in bytes, with any block size; the config drive's own size
/// does not matter, because its partition has a fixed one. Fails if the image itself allows no
/// layout.
pub fn whole_disk_needs(image: &ImageFile, config_drive: bool) -> Result<u64, LayoutError> {
    let of_blocks = |block_bytes| needs_of_blocks(image, config_drive, block_bytes);
    let [usual, _] = BLOCK_BYTES;
    match of_blocks(usual) {
        Err(LayoutError::OtherBlocks { image: block_bytes, .. }) => of_blocks(block_bytes),
        needs => needs,
    }
}

fn needs_of_blocks(
    image: &ImageFile,
    config_drive: bool,
    block_bytes: u32,
) -> Result<u64, LayoutError> {
    let disk = Geometry { bytes: u64::MAX, block_bytes, optimal_bytes: 0 };
    match ImageTable::of(image, disk)? {
        ImageTable::Gpt(GptImage { mut gpt, .. }) => {
            let areas = gpt_areas(&gpt, image, disk)?;
            if areas.is_empty() {
                return Err(LayoutError::NoPartitions);
            }
            let mut end = gpt_end(&gpt, &areas, image, disk)?;
            if config_drive {
                end = drive::least_end(image, &areas, end, |place| {
                    gpt.add(&gpt::LINUX, [1; 16], &disk.in_blocks(place), "")
                })?;
            }
            Ok(end.saturating_add(disk.in_bytes(&(0..gpt.tail_blocks())).end))
        }
        ImageTable::Mbr(mut mbr) => {
            let areas = mbr_areas(&mbr, disk);
            let mut end = content_end(&areas, image)?;
            if config_drive {
                end = drive::least_end(image, &areas, end, |place| {
                    mbr.add(mbr::LINUX, &disk.in_blocks(place))
                })?;
            }
            Ok(end)
        }
        ImageTable::None if config_drive => Err(LayoutError::NoTable),
        ImageTable::None => Ok(image.bytes()),
    }
}

fn as_it_is(image: &ImageFile, disk: Geometry) -> Result<Layout, LayoutError> {
    disk.takes(disk.padded(image.bytes()))?;
    Ok(Layout::of_file(image.clone()))
}

/// A layout of the image's bytes, cut at the disk's end.
fn kept(image: &ImageFile, disk: Geometry) -> Layout {
    Layout::new([Segment { at: 0, content: Content::of_file(image.clone()).take(disk.bytes) }])
}

/// The end of the image's necessary content: its last partition, and an ISO 9660 file system, which
/// partitions need not cover.
fn content_end(areas: &[Area], image: &ImageFile) -> Result<u64, LayoutError> {
    let iso_end = iso_bytes(image)?.min(image.bytes());
    Ok(areas.iter().map(|area| area.bytes.end).chain([iso_end]).max().unwrap_or_default())
}

/// Bytes of an ISO 9660 file system that begins with the image's first byte (ECMA-119 §8.4.8); 0
/// without one.
fn iso_bytes(image: &ImageFile) -> Result<u64, LayoutError> {
    let descriptor = read(image, drive::ISO_AT as u64, 84)?;
    let blocks = descriptor.get(80..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; 4]);
    let is_iso = descriptor.starts_with(drive::ISO_ID);
    Ok(if is_iso { u64::from(u32::from_le_bytes(blocks)) << 11 } else { 0 })
}

fn with_gpt(
    image: &ImageFile,
    disk: Geometry,
    table: GptImage,
    drive: Option<Drive>,
    guid: &mut dyn FnMut() -> [u8; 16],
) -> Result<Layout, LayoutError> {
    let GptImage { mut gpt, mut mbr, stale } = table;
    let areas = gpt_areas(&gpt, image, disk)?;
    let tail = disk.in_bytes(&(0..gpt.tail_blocks())).end;
    disk.takes(gpt_end(&gpt, &areas, image, disk)?.saturating_add(tail))?;
    let mut layout = kept(image, disk);
    // Zeroed first: later segments go over the zeros.
    for stale in stale.iter().map(|blocks| disk.in_bytes(blocks)) {
        let apart = |area: &Area| area.bytes.end <= stale.start || stale.end <= area.bytes.start;
        if areas.iter().all(apart) && stale.end <= disk.bytes {
            layout = layout.cover(disk, stale.start, Content::Zeros(stale.end - stale.start));
        }
    }
    if let Some(drive) = drive {
        let limit = disk.in_bytes(&gpt.usable(disk.blocks())).end;
        let place = drive::place(image, disk, &areas, limit, |place| {
            gpt.add(drive.gpt_kind(), guid(), &disk.in_blocks(place), drive.name())
        })?;
        layout = drive.onto(layout, disk, &place)?;
    }
    mbr.grow(disk.blocks());
    Ok(layout.with_mbr(disk, mbr).with_gpt(disk, &gpt))
}

fn with_mbr(
    image: &ImageFile,
    disk: Geometry,
    mut mbr: Mbr,
    drive: Option<Drive>,
) -> Result<Layout, LayoutError> {
    let areas = mbr_areas(&mbr, disk);
    disk.takes(content_end(&areas, image)?)?;
    let image_end = disk.padded(image.bytes());
    // The disk's old content must not become part of a partition. An image that ends before a GUID
    // partition is refused, because no tool makes one; images for routers end with their file
    // system.
    let layout = areas.iter().fold(kept(image, disk), |layout, area| {
        let from = area.bytes.start.max(image_end);
        let missing = area.bytes.end.saturating_sub(from);
        layout.cover(disk, from, Content::Zeros(missing))
    });
    let Some(drive) = drive else { return Ok(layout) };
    let limit = disk.bytes.min(disk.in_bytes(&(0..mbr::BLOCKS_MAX)).end);
    let place = drive::place(image, disk, &areas, limit, |place| {
        mbr.add(drive.mbr_kind(), &disk.in_blocks(place))
    })?;
    Ok(drive.onto(layout, disk, &place)?.with_mbr(disk, mbr))
}

fn mbr_areas(mbr: &Mbr, disk: Geometry) -> Vec<Area> {
    mbr.records()
        .map(|record| Area {
            number: record.index + 1,
            bytes: disk.in_bytes(&record.blocks),
            name: String::new(),
        })
        .collect()
}

/// Reads the partitions, and checks that the image holds all of them.
fn gpt_areas(gpt: &Gpt, image: &ImageFile, disk: Geometry) -> Result<Vec<Area>, LayoutError> {
    let image_bytes = disk.padded(image.bytes());
    let areas: Vec<Area> = gpt
        .partitions()
        .map(|partition| Area {
            number: partition.number,
            bytes: disk.in_bytes(&partition.blocks),
            name: partition.name,
        })
        .collect();
    if let Some(area) = areas.iter().find(|area| area.bytes.end > image_bytes) {
        let Area { number, bytes: Range { end: end_bytes, .. }, .. } = *area;
        return Err(LayoutError::CutShort { image_bytes, number, end_bytes });
    }
    Ok(areas)
}

/// The first possible block of the table's backup.
fn gpt_end(
    gpt: &Gpt,
    areas: &[Area],
    image: &ImageFile,
    disk: Geometry,
) -> Result<u64, LayoutError> {
    let first_usable = disk.in_bytes(&gpt.usable(u64::MAX)).start;
    // A hybrid image's file system may include the old backup, which is left out; it is after the
    // last file.
    let end = areas.iter().map(|area| area.bytes.end).max().unwrap_or_default();
    let iso_end = if iso_bytes(image)? > 0 { content_end(areas, image)? } else { end };
    let backup = disk.in_bytes(&(0..gpt.tail_blocks())).end;
    Ok(end.max(iso_end.min(image.bytes().saturating_sub(backup))).max(first_usable))
}

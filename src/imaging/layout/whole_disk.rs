//! A whole-disk image on a disk that is not of its size: its bytes, with its tables made right for the disk, and perhaps a config drive.

use std::ops::Range;

use bytes::Bytes;

use super::{
    Content, Geometry, Layout, LayoutError, Segment,
    drive::{self, Area, CONFIG_DRIVE_BYTES, Drive},
    image_table::{GptImage, ImageTable},
};
use crate::imaging::{
    ImageFile,
    table::{
        gpt::Gpt,
        mbr::{self, Mbr},
    },
};

/// The image's bytes, its tables corrected for the disk, and the config drive in a partition of its own or in one that waits for it.
///
/// - GUID partition table: the backup moves to the disk's end, and the old one is zeroed if it lies between partitions. If only the backup
///   is intact, it is taken. A disk smaller than the image will do if the partitions fit.
/// - Master boot record, or no table: as it is, if it fits.
///
/// `guid` gives random bytes. Reads the image, so that it must be called where blocking is allowed.
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

fn as_it_is(image: &ImageFile, disk: Geometry) -> Result<Layout, LayoutError> {
    disk.takes(disk.padded(image.bytes()))?;
    Ok(Layout::of_file(image.clone()))
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
    let kept = Content::of_file(image.clone()).take(disk.bytes);
    let mut layout = Layout::new([Segment { at: 0, content: kept }]);
    // Zeroed first: whatever else goes there, goes over it.
    for stale in stale.iter().map(|blocks| disk.in_bytes(blocks)) {
        let apart = |area: &Area| area.bytes.end <= stale.start || stale.end <= area.bytes.start;
        if areas.iter().all(apart) && stale.end <= disk.bytes {
            layout = layout.cover(disk, stale.start, Content::Zeros(stale.end - stale.start));
        }
    }
    if let Some(drive) = drive {
        let limit = disk.in_bytes(&gpt.usable(disk.blocks())).end;
        let place = drive::place(image, disk, &areas, limit, |place| {
            gpt.add(drive.gpt_kind(), guid(), &disk.in_blocks(place), drive::NAME)
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
    let areas: Vec<Area> = mbr
        .records()
        .map(|record| Area {
            number: record.index + 1,
            bytes: disk.in_bytes(&record.blocks),
            name: String::new(),
        })
        .collect();
    disk.takes(areas.iter().map(|area| area.bytes.end).max().unwrap_or_default())?;
    let layout = as_it_is(image, disk)?;
    let Some(drive) = drive else { return Ok(layout) };
    let limit = disk.bytes.min(disk.in_bytes(&(0..mbr::BLOCKS_MAX)).end);
    let place = drive::place(image, disk, &areas, limit, |place| {
        mbr.add(drive.mbr_kind(), &disk.in_blocks(place))
    })?;
    Ok(drive.onto(layout, disk, &place)?.with_mbr(disk, mbr))
}

/// The partitions, all of which are in the image and have room on the disk.
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
    let tail = disk.in_bytes(&(0..gpt.tail_blocks())).end;
    let ends = areas.iter().map(|area| area.bytes.end);
    let end = ends.chain([disk.in_bytes(&gpt.usable(u64::MAX)).start]).max().unwrap_or_default();
    disk.takes(end.saturating_add(tail))?;
    Ok(areas)
}

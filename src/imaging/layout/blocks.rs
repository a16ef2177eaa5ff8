//! Detects the block size of a master boot record, which does not state it.
//!
//! The reader of an image's table uses it. It compares the content at the partitions' possible
//! beginnings, because a record read with the wrong block size names ranges without the image's
//! partitions.

use super::{Geometry, LayoutError};
use crate::imaging::{ImageFile, table::mbr::Mbr};

/// Block sizes that images are made for.
pub(super) const BLOCK_BYTES: [u32; 2] = [512, 4096];
/// Enough of a partition for the first superblock of any usual file system.
const HEAD_BYTES: usize = 66 << 10;

/// Signatures of file systems at fixed offsets of partitions.
const SIGNATURES: [(usize, &[u8]); 13] = [
    // FAT, NTFS, exFAT, and an extended partition's table.
    (510, b"\x55\xaa"),
    // ext2 to ext4, F2FS, EROFS.
    (1024 + 0x38, b"\x53\xef"),
    (1024, b"\x10\x20\xf5\xf2"),
    (1024, b"\xe2\xe1\xf5\xe0"),
    (0, b"XFSB"),
    ((64 << 10) + 0x40, b"_BHRfS_M"),
    (0, b"hsqs"),
    (4086, b"SWAPSPACE2"),
    (0, b"LUKS\xba\xbe"),
    (512, b"LABELONE"),
    // A member of a Linux RAID.
    (4096, b"\xfc\x4e\x2b\xa9"),
    ((32 << 10) + 1, b"CD001"),
    (0, b"-rom1fs-"),
];

/// The content at a possible beginning of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Nothing,
    Bytes,
    FileSystem,
}

/// The block size of the record, as far as the image shows it; else that of the disk.
pub(super) fn counted_by(image: &ImageFile, mbr: &Mbr, disk: Geometry) -> Result<u32, LayoutError> {
    let [usual, large] = BLOCK_BYTES;
    let starts: Vec<u64> =
        mbr.records().map(|record| record.blocks.start).filter(|start| *start > 0).collect();
    let mut finds = Vec::with_capacity(starts.len());
    for start in &starts {
        let [small, big] = BLOCK_BYTES.map(|block_bytes| start.saturating_mul(block_bytes.into()));
        finds.push((found(image, small)?, found(image, big)?));
    }
    let at_first = |threshold: Found| {
        finds.iter().find_map(|(small, big)| match (*small >= threshold, *big >= threshold) {
            (true, false) => Some(usual),
            (false, true) => Some(large),
            _ => None,
        })
    };
    let by_content = match at_first(Found::FileSystem) {
        None if has_loader_behind(image)? => Some(usual),
        None => at_first(Found::Bytes),
        sure => sure,
    };
    if let Some(block_bytes) = by_content {
        // No image has blocks of other sizes: on other disks, only an image for 512-byte blocks is
        // recognized.
        let is_known = BLOCK_BYTES.contains(&disk.block_bytes) || block_bytes == usual;
        return Ok(if is_known { block_bytes } else { disk.block_bytes });
    }
    // Empty partitions: decided by the usual beginning of partitions, and by the image's size.
    let end = mbr.records().map(|record| record.blocks.end).max().unwrap_or_default();
    let fits = |block_bytes: u32| end * u64::from(block_bytes) <= disk.padded(image.bytes());
    let begins_as_usual = !starts.is_empty()
        && (starts.iter().all(|start| start.is_multiple_of(2048))
            || starts.iter().any(|start| *start < 256));
    let is_usual = begins_as_usual || (!fits(disk.block_bytes) && fits(usual));
    Ok(if usual < disk.block_bytes && is_usual { usual } else { disk.block_bytes })
}

fn found(image: &ImageFile, at: u64) -> Result<Found, LayoutError> {
    if at >= image.bytes() {
        return Ok(Found::Nothing);
    }
    let head = read(image, at, HEAD_BYTES)?;
    let has =
        |(at, magic): &(usize, &[u8])| head.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    Ok(if SIGNATURES.iter().any(has) {
        Found::FileSystem
    } else if head.iter().any(|byte| *byte != 0) {
        Found::Bytes
    } else {
        Found::Nothing
    })
}

/// Whether data follows the first 512 bytes directly: with small blocks, a boot loader has its core
/// there; a larger block holds only the record.
fn has_loader_behind(image: &ImageFile) -> Result<bool, LayoutError> {
    let [usual, large] = BLOCK_BYTES;
    let behind = read(image, usual.into(), (large - usual) as usize)?;
    Ok(behind.iter().any(|byte| *byte != 0))
}

/// Reads bytes of the image; zeros follow its end.
pub(super) fn read(image: &ImageFile, at: u64, bytes: usize) -> Result<Vec<u8>, LayoutError> {
    image
        .read_at(at, bytes)
        .map_err(|source| LayoutError::File { path: image.path().to_path_buf(), source })
}

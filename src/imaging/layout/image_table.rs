//! Reads the partition table of an image as a disk's firmware would.

use std::ops::Range;

use super::{
    Geometry, LayoutError,
    blocks::{self, BLOCK_BYTES, read},
};
use crate::imaging::{
    ImageFile,
    table::{
        gpt::{self, Damaged, Gpt, Header},
        mbr::Mbr,
    },
};

/// The partition table of an image.
#[derive(Debug)]
pub(super) enum ImageTable {
    /// A GUID partition table behind a protective or hybrid master boot record.
    Gpt(GptImage),
    /// A master boot record alone.
    Mbr(Mbr),
    /// Neither: a bare file system, or a format that only its own boot loader knows.
    None,
}

/// An image with a GUID partition table.
#[derive(Debug)]
pub(super) struct GptImage {
    pub(super) mbr: Mbr,
    pub(super) gpt: Gpt,
    /// Blocks of the image that hold its backup.
    pub(super) stale: Vec<Range<u64>>,
}

impl ImageTable {
    /// Reads the table of an image for this disk.
    pub(super) fn of(image: &ImageFile, disk: Geometry) -> Result<Self, LayoutError> {
        let Some(mbr) = Mbr::parse(read(image, 0, disk.block_size())?) else {
            return Ok(Self::None);
        };
        if mbr.is_protective() {
            return GptImage::read(image, disk, mbr).map(Self::Gpt);
        }
        match blocks::counted_by(image, &mbr, disk)? {
            counted if counted == disk.block_bytes => Ok(Self::Mbr(mbr)),
            counted => Err(LayoutError::OtherBlocks { image: counted, disk: disk.block_bytes }),
        }
    }
}

impl GptImage {
    fn read(image: &ImageFile, disk: Geometry, mbr: Mbr) -> Result<Self, LayoutError> {
        let copy = read_copy(image, disk, gpt::PRIMARY_LBA)?;
        let primary = match copy.and_then(Gpt::into_primary) {
            Ok(gpt) => {
                let backup = read_copy(image, disk, gpt.alternate_lba())?;
                let stale = backup.map(|backup| backup.own_blocks()).into_iter().flatten();
                return Ok(Self { mbr, stale: stale.collect(), gpt });
            }
            Err(primary) => primary,
        };
        for block_bytes in BLOCK_BYTES.into_iter().filter(|bytes| *bytes != disk.block_bytes) {
            if gpt::is_header(&read(image, block_bytes.into(), 8)?) {
                return Err(LayoutError::OtherBlocks {
                    image: block_bytes,
                    disk: disk.block_bytes,
                });
            }
        }
        let last_lba = (image.bytes() / u64::from(disk.block_bytes)).saturating_sub(1);
        let backup = match read_copy(image, disk, last_lba)? {
            Ok(backup) => from_backup(image, disk, backup)?,
            Err(damaged) => Err(damaged),
        };
        match backup {
            Ok((stale, gpt)) => {
                tracing::warn!(
                    image = %image.path().display(), %primary,
                    "the image's first partition table is damaged; its backup is used"
                );
                Ok(Self { mbr, gpt, stale: stale.into() })
            }
            Err(backup) => Err(LayoutError::Damaged {
                primary: primary.to_string(),
                backup: backup.to_string(),
            }),
        }
    }
}

/// The blocks of a backup table, and the primary table made from it.
type Restored = ([Range<u64>; 2], Gpt);

/// Makes a primary table from the backup, and returns the backup's blocks. The entries go to the
/// place of the damaged ones, or to free blocks: before the first partition there may be a boot
/// loader, which single-board computers load from the block after the header.
fn from_backup(
    image: &ImageFile,
    disk: Geometry,
    backup: Gpt,
) -> Result<Result<Restored, Damaged>, LayoutError> {
    let at = |lba: u64| lba.saturating_mul(disk.block_bytes.into());
    let own_blocks = backup.own_blocks();
    let header = read(image, at(gpt::PRIMARY_LBA), disk.block_size())?;
    let places = backup.primary_places(&header);
    // An intact header is trusted: only its entries are damaged.
    let sound = Header::parse(header, gpt::PRIMARY_LBA).ok().map(|header| header.entries_lba());
    let [mut same, mut empty] = [None; 2];
    for place in places.iter().copied() {
        let there = read(image, at(place), backup.entries().len())?;
        if there == backup.entries() {
            same = same.or(Some(place));
        } else if there.iter().all(|byte| *byte == 0) {
            empty = empty.or(Some(place));
        }
    }
    // Only the entries fit before the partitions.
    let only = match places.as_slice() {
        [first, rest @ ..] if rest.iter().all(|place| place == first) => Some(*first),
        _ => None,
    };
    let place = sound.or(same).or(only).or(empty);
    Ok(match place {
        Some(place) => backup.into_primary_at(place).map(|gpt| (own_blocks, gpt)),
        None => Err(Damaged::NO_PLACE),
    })
}

/// Reads the copy of a table whose header is at `lba`.
fn read_copy(
    image: &ImageFile,
    disk: Geometry,
    lba: u64,
) -> Result<Result<Gpt, Damaged>, LayoutError> {
    let at = |lba: u64| lba.saturating_mul(disk.block_bytes.into());
    let header = match Header::parse(read(image, at(lba), disk.block_size())?, lba) {
        Ok(header) => header,
        Err(damaged) => return Ok(Err(damaged)),
    };
    let entries = read(image, at(header.entries_lba()), header.entries_bytes())?;
    Ok(Gpt::new(header, entries))
}

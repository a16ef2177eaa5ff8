//! Reads the partition table of an image the way the disk's firmware would.

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

/// The partition table at an image's begin.
#[derive(Debug)]
pub(super) enum ImageTable {
    /// A GUID partition table behind a protective or hybrid master boot record.
    Gpt(GptImage),
    /// A master boot record of its own.
    Mbr(Mbr),
    /// Neither: a bare file system, or something that only its own boot loader knows.
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
    /// The table of an image for this disk.
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
        let copy = read_copy(image, disk, last_lba)?;
        match copy.and_then(|copy| Ok((copy.own_blocks(), copy.into_primary()?))) {
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

/// One of the two copies of a table: the one whose header is at `lba`.
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

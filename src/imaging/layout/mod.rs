//! The content of a disk: runs of bytes from files and memory, and zeros.
//!
//! The agent makes a layout from the image, the disk's size and the spec, before it writes, on a
//! thread that may block; the pipeline writes it, and decides the order. A layout must never exceed
//! the disk, and no two of its segments may share a block.

mod blocks;
mod drive;
mod error;
mod fingerprint;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod image_table;
mod partitioned;
#[cfg(test)]
mod tests;
mod whole_disk;

use std::ops::Range;

use bytes::{Buf as _, Bytes};

pub use self::{
    drive::CONFIG_DRIVE_BYTES,
    error::LayoutError,
    partitioned::{Parts, needed_bytes, partitioned},
    whole_disk::{whole_disk, whole_disk_needs},
};
use super::{
    ImageFile,
    table::{gpt::Gpt, mbr::Mbr},
};

/// Alignment of partitions: a MiB, as in all current tools, because disks have inner blocks of 4096
/// bytes and more.
const ALIGNMENT_BYTES: u64 = 1 << 20;
/// Largest accepted alignment: enough for twelve disks with chunks of a MiB.
const ALIGNMENT_BYTES_MAX: u64 = 64 << 20;

/// A disk's size and blocks, as its target reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes, a multiple of the block size.
    pub bytes: u64,
    /// Bytes of a logical block: a power of two from 512 to 65536.
    pub block_bytes: u32,
    /// Optimal transfer length in bytes (SBC-3 §6.5.3); 0 if the target reports none. Any number.
    pub optimal_bytes: u32,
}

/// The content of a disk. Ranges without a segment keep their old bytes, except for the disk's
/// ends, which are always wiped first.
#[derive(Clone, Debug)]
pub struct Layout {
    segments: Vec<Segment>,
    root_partuuid: Option<String>,
}

/// A run of bytes on the disk, all with one kind of content.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Offset in bytes; a multiple of the block size.
    pub at: u64,
    /// The content. Zeros fill its last block.
    pub content: Content,
}

/// The content of a segment.
#[derive(Clone, Debug)]
pub enum Content {
    /// Bytes of a file from an offset on.
    File {
        /// The file.
        file: ImageFile,
        /// Offset in the file, in bytes, of the first byte to be written.
        offset: u64,
        /// Number of bytes.
        bytes: u64,
    },
    /// Bytes in memory: tables, headers, small file systems.
    Made(Bytes),
    /// A number of zeros.
    Zeros(u64),
}

impl Geometry {
    /// The best alignment of partitions on this disk, in bytes: a multiple of a MiB and of the
    /// optimal transfer length.
    ///
    /// Many disks report their maximum transfer length as the optimal one: 65535 blocks, or 8191 of
    /// 4096 bytes. Such numbers have no small multiple in whole MiB, and are ignored. A RAID's
    /// stripe has one: three chunks of 64 KiB make 3 MiB.
    pub fn alignment_bytes(self) -> u64 {
        let pieces = u64::from(self.optimal_bytes);
        (ALIGNMENT_BYTES..=ALIGNMENT_BYTES_MAX)
            .step_by(1 << 20)
            .find(|bytes| bytes.is_multiple_of(pieces))
            .unwrap_or(ALIGNMENT_BYTES)
    }

    /// Refuses blocks that hostler cannot work with.
    fn checked(self) -> Result<Self, LayoutError> {
        let valid = self.block_bytes.is_power_of_two() && (512..=65536).contains(&self.block_bytes);
        if valid { Ok(self) } else { Err(LayoutError::Blocks(self.block_bytes)) }
    }

    /// Refuses a need of more bytes than the disk has.
    fn takes(self, needed_bytes: u64) -> Result<(), LayoutError> {
        let disk_bytes = self.bytes;
        if needed_bytes <= disk_bytes {
            Ok(())
        } else {
            Err(LayoutError::TooBig { needed_bytes, disk_bytes })
        }
    }

    fn blocks(self) -> u64 {
        self.bytes / u64::from(self.block_bytes)
    }

    fn block_size(self) -> usize {
        self.block_bytes as usize
    }

    /// Rounds bytes up to whole blocks.
    fn padded(self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.block_bytes)).saturating_mul(u64::from(self.block_bytes))
    }

    /// Converts a run of blocks to bytes.
    fn in_bytes(self, blocks: &Range<u64>) -> Range<u64> {
        let block_bytes = u64::from(self.block_bytes);
        blocks.start.saturating_mul(block_bytes)..blocks.end.saturating_mul(block_bytes)
    }

    /// Converts a run of bytes to whole blocks.
    fn in_blocks(self, bytes: &Range<u64>) -> Range<u64> {
        let block_bytes = u64::from(self.block_bytes);
        bytes.start / block_bytes..bytes.end / block_bytes
    }
}

impl Content {
    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } | Self::Zeros(bytes) => *bytes,
            Self::Made(made) => made.len() as u64,
        }
    }

    /// A whole file.
    pub fn of_file(file: ImageFile) -> Self {
        Self::File { bytes: file.bytes(), file, offset: 0 }
    }

    /// The content without its first bytes.
    fn skip(self, skipped: u64) -> Self {
        match self {
            Self::File { file, offset, bytes } => Self::File {
                file,
                offset: offset.saturating_add(skipped),
                bytes: bytes.saturating_sub(skipped),
            },
            Self::Made(mut made) => {
                made.advance(usize::try_from(skipped).map_or(made.len(), |n| n.min(made.len())));
                Self::Made(made)
            }
            Self::Zeros(bytes) => Self::Zeros(bytes.saturating_sub(skipped)),
        }
    }

    /// The content's first bytes.
    fn take(self, most: u64) -> Self {
        match self {
            Self::File { file, offset, bytes } => {
                Self::File { file, offset, bytes: bytes.min(most) }
            }
            Self::Made(mut made) => {
                made.truncate(usize::try_from(most).unwrap_or(usize::MAX));
                Self::Made(made)
            }
            Self::Zeros(bytes) => Self::Zeros(bytes.min(most)),
        }
    }
}

impl Layout {
    /// Sorts segments and drops those without bytes.
    pub fn new(segments: impl IntoIterator<Item = Segment>) -> Self {
        let mut segments: Vec<Segment> =
            segments.into_iter().filter(|segment| segment.content.bytes() > 0).collect();
        segments.sort_by_key(|segment| segment.at);
        Self { segments, root_partuuid: None }
    }

    /// A layout of one whole file at the disk's beginning.
    pub fn of_file(file: ImageFile) -> Self {
        Self::new([Segment { at: 0, content: Content::of_file(file) }])
    }

    /// The segments, by offset.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The `PARTUUID=` of the root partition for a kernel's command line; `None` if hostler did not
    /// make the partition. No other disk has the same.
    pub fn root_partuuid(&self) -> Option<&str> {
        self.root_partuuid.as_deref()
    }

    /// The end of the last segment, in bytes.
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, |last| last.at.saturating_add(last.content.bytes()))
    }

    /// Returns the layout if it is sound for this disk: every segment begins at a block, no two
    /// share one, and none exceeds the disk.
    pub fn checked(self, disk: Geometry) -> Result<Self, LayoutError> {
        let disk = disk.checked()?;
        let mut free = 0;
        for Segment { at, content } in &self.segments {
            let unsound = |what| Err(LayoutError::Unsound { at: *at, what });
            if !at.is_multiple_of(u64::from(disk.block_bytes)) {
                return unsound("begins inside a block");
            }
            if *at < free {
                return unsound("shares a block with the one before");
            }
            let Some(end) = at.checked_add(disk.padded(content.bytes())) else {
                return unsound("has no end");
            };
            if end > disk.bytes {
                return unsound("reaches past the end of the disk");
            }
            free = end;
        }
        Ok(self)
    }

    /// Puts a segment over the others, whose parts in its blocks are cut away.
    fn cover(self, disk: Geometry, at: u64, content: Content) -> Self {
        let end = at.saturating_add(disk.padded(content.bytes()));
        let around = self.segments.into_iter().flat_map(|Segment { at: from, content }| {
            let before = content.clone().take(at.saturating_sub(from));
            let skipped = end.saturating_sub(from);
            let behind =
                Segment { at: from.saturating_add(skipped), content: content.skip(skipped) };
            [Segment { at: from, content: before }, behind]
        });
        Self::new(around.chain([Segment { at, content }]))
    }

    /// Adds a master boot record as the first block.
    fn with_mbr(self, disk: Geometry, mbr: Mbr) -> Self {
        self.cover(disk, 0, Content::Made(mbr.into_block().into()))
    }

    /// Adds both copies of a table.
    fn with_gpt(self, disk: Geometry, gpt: &Gpt) -> Self {
        gpt.placed(disk.blocks()).into_iter().fold(self, |layout, (block, bytes)| {
            let at = block.saturating_mul(u64::from(disk.block_bytes));
            layout.cover(disk, at, Content::Made(bytes.into()))
        })
    }
}

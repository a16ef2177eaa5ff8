//! Errors of disk layouts.

use std::{io, path::PathBuf};

use crate::model::size::show_bytes;

/// A disk cannot be laid out. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The image cannot be read.
    #[error("image {}: {source}", path.display())]
    File {
        /// The image.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The disk has an invalid block size.
    #[error("the disk claims blocks of {0} bytes; must be a power of two from 512 to 65536")]
    Blocks(u32),
    /// The disk is too small for the layout.
    #[error(
        "the disk has {disk_bytes} bytes ({}), {needed_bytes} are needed ({})",
        show_bytes(*disk_bytes), show_bytes(*needed_bytes)
    )]
    TooBig {
        /// The smallest sufficient disk, in bytes.
        needed_bytes: u64,
        /// Bytes of the disk.
        disk_bytes: u64,
    },
    /// The image's table is for blocks of another size.
    #[error(
        "the image has a partition table for {image}-byte blocks, the disk has {disk}-byte blocks; \
         take an image made for {disk}-byte blocks, or a partition image, which fits any"
    )]
    OtherBlocks {
        /// Bytes of a block in the image.
        image: u32,
        /// Bytes of a block on the disk.
        disk: u32,
    },
    /// Neither copy of the image's partition table is intact.
    #[error(
        "the image's GUID partition table cannot be used: {primary}; its backup at the \
         image's end: {backup}"
    )]
    Damaged {
        /// The fault of the first copy.
        primary: String,
        /// The fault of the second copy.
        backup: String,
    },
    /// The image has no partition to boot from.
    #[error("the image's GUID partition table has no partitions")]
    NoPartitions,
    /// The image ends before a partition of its table.
    #[error(
        "the image ends at {image_bytes} bytes, its partition {number} at {end_bytes}; it was cut \
         short"
    )]
    CutShort {
        /// Bytes of the image.
        image_bytes: u64,
        /// The partition's number, from 1 on.
        number: usize,
        /// End of the partition in bytes.
        end_bytes: u64,
    },
    /// The image has no partition table for another partition.
    #[error(
        "the image has no partition table that a config drive could be added to; \
         take an image with one, or `kind = \"partition\"` if it is a bare file system"
    )]
    NoTable,
    /// The table has no unused entry.
    #[error(
        "all {entries} entries of the image's partition table are in use; the config \
         drive needs one"
    )]
    TableFull {
        /// Number of entries.
        entries: usize,
    },
    /// The disk has no room for the config drive's partition.
    #[error(
        "the config drive needs {} at the end of the disk, only {} are free there",
        show_bytes(*needed_bytes), show_bytes(*free_bytes)
    )]
    NoRoom {
        /// The size of the config drive's partition, in bytes.
        needed_bytes: u64,
        /// Free bytes after the last partition, from an aligned offset on.
        free_bytes: u64,
    },
    /// The config drive is larger than its partition.
    #[error("the config drive has {drive_bytes} bytes, its partition only {partition_bytes}")]
    DriveTooBig {
        /// Bytes of the config drive.
        drive_bytes: u64,
        /// Bytes of the partition.
        partition_bytes: u64,
    },
    /// A content is larger than the partition in the spec.
    #[error(
        "what goes into the {name} partition has {content_bytes} bytes, the partition only \
         {partition_bytes}"
    )]
    ContentTooBig {
        /// The partition's name.
        name: &'static str,
        /// Bytes of the content.
        content_bytes: u64,
        /// Bytes of the partition.
        partition_bytes: u64,
    },
    /// The msdos table has only four records.
    #[error("an msdos table has room for four partitions, {0} are wanted; use `table = \"gpt\"`")]
    TooManyPartitions(usize),
    /// The msdos table cannot reach so far: it counts blocks in 32 bits.
    #[error(
        "an msdos table reaches to {} of a disk, {} are needed; use `table = \"gpt\"`",
        show_bytes(*limit_bytes), show_bytes(*needed_bytes)
    )]
    PastMsdos {
        /// Reach of the table in bytes.
        limit_bytes: u64,
        /// End of the last partition in bytes.
        needed_bytes: u64,
    },
    /// Two segments share a block, or a segment exceeds the disk.
    #[error("the layout is unsound: the segment at {at} {what}")]
    Unsound {
        /// Begin of the segment in bytes.
        at: u64,
        /// The fault of the segment.
        what: &'static str,
    },
}

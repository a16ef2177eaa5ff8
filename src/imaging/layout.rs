//! What a disk is to hold: runs of bytes from files, bytes made here, and zeros.
//!
//! Made before the disk is touched, from the image, the disk's size and what the spec says; written by the pipeline, which decides the order.
//! A layout must never reach past the disk's end, and no two of its segments may touch the same block.

use bytes::Bytes;

use super::ImageFile;

/// A disk's size and blocks, as its target says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes in all, whole blocks.
    pub bytes: u64,
    /// Bytes of a logical block: a power of two from 512 to 65536.
    pub block_bytes: u32,
}

/// What a disk is to hold. What no segment covers stays as it is, but for the disk's ends, which are always wiped first.
#[derive(Clone, Debug)]
pub struct Layout {
    segments: Vec<Segment>,
}

/// One run of bytes.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Where it begins, in bytes; at the begin of a block.
    pub at: u64,
    /// What is there. If it does not end at the end of a block, zeros fill that.
    pub content: Content,
}

/// What a segment holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// So many bytes of a file, from an offset on.
    File {
        /// The file.
        file: ImageFile,
        /// Its first byte to be written.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Bytes made here: tables, headers, small file systems.
    Made(Bytes),
    /// So many zeros.
    Zeros(u64),
}

impl Content {
    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } | Self::Zeros(bytes) => *bytes,
            Self::Made(made) => made.len() as u64,
        }
    }
}

impl Layout {
    /// Of segments in any order; segments without bytes are left out.
    pub fn new(segments: impl IntoIterator<Item = Segment>) -> Self {
        let mut segments: Vec<Segment> =
            segments.into_iter().filter(|segment| segment.content.bytes() > 0).collect();
        segments.sort_by_key(|segment| segment.at);
        Self { segments }
    }

    /// A whole file from the disk's begin on.
    pub fn of_file(file: ImageFile) -> Self {
        let bytes = file.bytes();
        Self::new([Segment { at: 0, content: Content::File { file, offset: 0, bytes } }])
    }

    /// The segments, by where they begin.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The end of the last of them, in bytes.
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, |last| last.at.saturating_add(last.content.bytes()))
    }
}

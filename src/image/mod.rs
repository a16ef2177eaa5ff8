//! Turns `[image]` of a spec into a raw file that can be written to a disk.
//!
//! The agent calls it before it touches a machine. The library fetches a published image, compares
//! its checksum, and decodes it once into a content-addressed cache of sparse raw files, which all
//! nodes share. Published bytes are untrusted input until the comparison, and their format stays
//! untrusted. This module must never open a file outside of the directories of local images, run a
//! program on an image, exceed its limit of written bytes, or return a file that it has not
//! completely checked.

mod advice;
mod decode;
mod fetch;
mod library;

use std::{io, path::PathBuf, time::Duration};

#[cfg(fuzzing)]
pub use self::fetch::fuzz as fuzz_checksums;
pub use self::{
    decode::{DecodeError, DecodeLimits, Inspection, decode, inspect, scratch_bytes_max},
    fetch::{Directories, FetchError, Sources},
    library::{Entry, Kept, Library, LibraryOptions, Pruned},
};
use crate::model::size::show_bytes;

/// A failure to provide an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The fetch of the image failed.
    #[error("image {0}")]
    Fetch(FetchError),
    /// The fetch of its list of checksums failed.
    #[error("list of checksums {0}")]
    List(FetchError),
    /// The file cannot be decoded.
    #[error("image {source_text}: {error}")]
    Decode {
        /// The text of `image.source` in the spec.
        source_text: String,
        /// The cause.
        error: DecodeError,
    },
    /// The cache has too little space.
    #[error(
        "image {source_text}: {} has {} left for images, and this one needs {}",
        dir.display(), show_bytes(*free_bytes), more(*needed_bytes)
    )]
    NoSpace {
        /// The text of `image.source` in the spec.
        source_text: String,
        /// The cache.
        dir: PathBuf,
        /// Bytes missing; 0 if that is unknown.
        needed_bytes: u64,
        /// Free bytes, without the reserve for other uses.
        free_bytes: u64,
    },
    /// The cache itself cannot be used.
    #[error("image cache {}: {error}", path.display())]
    Cache {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The fetch or decoding made no progress within the stall limit.
    #[error("image {source_text}: no progress for {} s", after.as_secs())]
    Stalled {
        /// The text of `image.source` in the spec.
        source_text: String,
        /// The limit.
        after: Duration,
    },
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
}

fn more(bytes: u64) -> String {
    if bytes == 0 { "more".to_owned() } else { format!("{} more", show_bytes(bytes)) }
}

//! Turns `[image]` of a spec into a raw file that can be written to a disk.
//!
//! Called by the agent before a machine is touched. An image is fetched as it was published, its
//! checksum compared, and then decoded once into a content-addressed cache of sparse raw files,
//! which all nodes share. What is published is untrusted input until its checksum has been
//! compared, and its format afterwards: this module must never open anything outside the
//! directories images may come from, never run a program on an image, never write more than it was
//! allowed to, and never give out a file it has not seen whole.

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
        /// `image.source`.
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
        /// `image.source`.
        source_text: String,
        /// The cache.
        dir: PathBuf,
        /// Bytes missing; 0 if that is unknown.
        needed_bytes: u64,
        /// Bytes free, besides those kept free for other things.
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
    /// No progress for too long.
    #[error("image {source_text}: no progress for {} s", after.as_secs())]
    Stalled {
        /// `image.source`.
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

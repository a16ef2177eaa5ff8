//! The image library: from `[image]` in a spec to a raw file that can be written to a disk.
//!
//! Called by the agent before a machine is touched. An image is fetched as it was published, its checksum compared, and then decoded once
//! into a content-addressed cache of sparse raw files, which all nodes share. What is published is untrusted input until its checksum has
//! been compared, and its format afterwards: this module must never open anything outside the directories images may come from, never run a
//! program on an image, never write more than it was allowed to, and never give out a file it has not seen whole.

mod advice;
mod decode;
mod fetch;
mod library;
mod source;

use std::{io, path::PathBuf, time::Duration};

#[cfg(fuzzing)]
pub use self::fetch::fuzz as fuzz_checksums;
pub use self::{
    decode::{DecodeError, Limits, Look, decode, inspect, scratch_bytes_max},
    fetch::{FetchError, Sources},
    library::{Entry, Kept, Library, Options, Pruned},
    source::Directories,
};
use crate::model::size::show_bytes;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be fetched: says of what and why.
    #[error("image {0}")]
    Fetch(FetchError),
    /// Its checksum cannot be had from the list: says of which and why.
    #[error("list of checksums {0}")]
    List(FetchError),
    /// It is not what can be decoded.
    #[error("image {source_text}: {error}")]
    Decode {
        /// `image.source`.
        source_text: String,
        /// Why.
        error: DecodeError,
    },
    /// The cache does not have the space.
    #[error(
        "image {source_text}: {} has {} left for images, and this one needs {}",
        dir.display(), show_bytes(*free_bytes), more(*needed_bytes)
    )]
    NoSpace {
        /// `image.source`.
        source_text: String,
        /// The cache.
        dir: PathBuf,
        /// How much more it takes; 0 is not known.
        needed_bytes: u64,
        /// How much there is, besides what is kept free for other things.
        free_bytes: u64,
    },
    /// The cache itself cannot be used.
    #[error("image cache {}: {error}", path.display())]
    Cache {
        /// The file or directory.
        path: PathBuf,
        /// Why.
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
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
}

fn more(bytes: u64) -> String {
    if bytes == 0 { "more".to_owned() } else { format!("{} more", show_bytes(bytes)) }
}

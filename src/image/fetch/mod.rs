//! Fetches an image as published, from a local file or a web server, and compares its checksum.
//!
//! The library passes an open file to fill. [`source::ImageSource`] lists the places that files
//! come from. This module must never report a file without comparing its digest.

mod directories;
mod error;
mod hash;
mod http;
mod listing;
mod local;
mod sink;
mod source;
mod web;

use std::{fs::File, sync::Arc};

pub(super) use self::hash::Hash;
#[cfg(fuzzing)]
pub use self::listing::fuzz;
pub use self::{directories::Directories, error::FetchError};
use self::{sink::Sink, source::ImageSource};
use crate::{model::ids::Digest, progress::Watch};

/// Largest file of checksums, in bytes. Debian's list of all cloud images has 4 KiB.
const LIST_BYTES_MAX: usize = 1 << 20;

/// Fetches from directories and web servers.
///
/// For https it trusts the system's certificate authorities, or those in `SSL_CERT_FILE` and
/// `SSL_CERT_DIR`. It honours the variables `http_proxy`, `https_proxy`, `all_proxy` and
/// `no_proxy`.
#[derive(Clone, Debug)]
pub struct Sources {
    directories: Directories,
}

/// The file that a fetch fills, and its limits.
#[derive(Clone, Copy, Debug)]
struct FetchOrder<'a> {
    /// The digest in the spec. A source may fetch again from the first byte if the result has
    /// another digest.
    wanted: &'a Digest,
    into: &'a Arc<File>,
    /// Bytes that `into` holds from an earlier fetch. The source passes them to the sink first.
    known_bytes: u64,
    bytes_max: u64,
}

/// A completely fetched file.
#[derive(Debug)]
struct Fetched {
    digest: Digest,
    /// Text after `; ` in the message about a wrong digest: the server's description of the file.
    /// Empty for a local file.
    came: String,
}

impl Sources {
    /// Fetches sources without a URL scheme from these directories.
    pub fn new(directories: Directories) -> Self {
        Self { directories }
    }

    /// The text to show and log for a source: a URL loses its credentials and query, and a
    /// malformed URL is not shown.
    pub fn shown(source: &str) -> String {
        ImageSource::shown_text(source)
    }

    /// Opens a local file of at most `bytes_max` bytes and returns it with its size in bytes.
    pub async fn open(
        &self,
        path: &str,
        bytes_max: u64,
        watch: &Watch<'_>,
    ) -> Result<(File, u64), FetchError> {
        local::LocalFile::new(&self.directories, path).open_limited(bytes_max, watch).await
    }

    /// Size of a source in bytes, without the holes of a local file; `None` if its server does not
    /// report it.
    pub async fn size(&self, source: &str, watch: &Watch<'_>) -> Result<Option<u64>, FetchError> {
        ImageSource::parse(source, &self.directories)?.size(watch).await
    }

    /// Checks that the source has the file: its size, as [`Sources::size`] returns it, or else its
    /// beginning.
    pub async fn find(&self, source: &str, watch: &Watch<'_>) -> Result<Option<u64>, FetchError> {
        let source = ImageSource::parse(source, &self.directories)?;
        let size = source.size(watch).await?;
        if size.is_none() {
            source.read_small(1, watch).await?;
        }
        Ok(size)
    }

    /// Fills `into` with the published file, and compares its digest.
    ///
    /// Bytes in `into` count as the beginning of the file if the source can send the rest alone.
    /// The result is as sparse as possible, and not synced. `into` never exceeds `bytes_max`.
    ///
    /// After an error, another call may resume from the bytes in `into`; after a wrong checksum
    /// they are worthless.
    pub async fn fetch(
        &self,
        source: &str,
        wanted: &Digest,
        into: &Arc<File>,
        bytes_max: u64,
        watch: &Watch<'_>,
    ) -> Result<(), FetchError> {
        let parsed = ImageSource::parse(source, &self.directories)?;
        let known_bytes = match into.metadata() {
            Ok(metadata) if parsed.can_resume() && metadata.len() <= bytes_max => metadata.len(),
            _ => 0,
        };
        let mut sink = Sink::new(into, known_bytes, wanted.algorithm());
        let order = FetchOrder { wanted, into, known_bytes, bytes_max };
        let fetched = parsed.fetch(&order, &mut sink, watch).await;
        sink.stop().await;
        let Fetched { digest: found, came } = fetched?;
        if found == *wanted {
            Ok(())
        } else {
            let place = Self::shown(source);
            let (wanted, found) = (Box::new(wanted.clone()), Box::new(found));
            Err(FetchError::Checksum { place, wanted, found, came })
        }
    }

    /// Looks up the digest of `source` in the file of checksums at `place`, a path or URL.
    pub async fn listed(
        &self,
        place: &str,
        source: &str,
        watch: &Watch<'_>,
    ) -> Result<Digest, FetchError> {
        let list = ImageSource::parse(place, &self.directories)?;
        let text = list.read_small(LIST_BYTES_MAX, watch).await?;
        let found = if text.len() > LIST_BYTES_MAX {
            Err("larger than 1 MiB, so no file of checksums".to_owned())
        } else {
            let image = ImageSource::parse(source, &self.directories)?;
            listing::find(&text, &image.listed_path(), &list.listed_path())
        };
        found.map_err(|reason| FetchError::NotListed { place: list.shown(), reason })
    }
}

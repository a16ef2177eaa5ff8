//! Fetches images into the cache of raw images, and lends its entries.
//!
//! The agent calls it for each attempt, and `hostler cache` does. It must never return a file that
//! was not completely fetched, compared and decoded.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OnceCell;

use self::{
    cache::{Cache, Lock, Name},
    session::Session,
    shared_fetch::SharedFetches,
    watched::{on_thread, watched},
};
use super::{
    ImageError,
    fetch::{Directories, FetchError, Hash, Sources},
};
use crate::{
    checked_file::CheckedFile,
    model::{
        ids::{Digest, DigestAlgorithm},
        spec::{self, ImageFormat},
        status::ImagingStage,
    },
    progress::{Interrupted, Watch},
};

mod cache;
mod content;
mod making;
mod prune;
mod session;
mod shared_fetch;
#[cfg(test)]
mod tests;
mod watched;

pub use prune::{Kept, Pruned};

/// Bytes read at once to hash a file.
const HASHED_BYTES: usize = 1 << 20;
/// How often a file may decay directly after it was stored before the library gives up.
const KEEP_TRIES: usize = 3;

/// Directories and limits of the library.
#[derive(Clone, Debug)]
pub struct LibraryOptions {
    /// Directory of relative sources.
    pub dir: PathBuf,
    /// Directories of absolute sources, besides `dir`.
    pub allowed_dirs: Vec<PathBuf>,
    /// The cache's own directory.
    pub cache_dir: PathBuf,
    /// Most bytes of blocks of the cache; images in use may exceed it.
    pub cache_bytes: u64,
    /// Largest published file in bytes.
    pub published_bytes_max: u64,
    /// Largest raw image in bytes, holes included.
    pub raw_bytes_max: u64,
}

/// The image library. Several processes may use the same cache.
#[derive(Clone, Debug)]
pub struct Library(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sources: Sources,
    cache: Cache,
    cache_bytes: u64,
    published_bytes_max: u64,
    raw_bytes_max: u64,
    shared_fetches: SharedFetches,
    /// Held during the removal of an entry, so that it removes the right one.
    discarding: Mutex<()>,
    /// Starts at the first use of the cache. Its end, with the library's last user, is a clean end.
    session: OnceCell<Session>,
}

/// An image in the cache, which keeps it as long as this is held.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The digest of the file as published.
    pub digest: Digest,
    /// The raw bytes; each read compares their checksums. Holes are zeros.
    pub file: CheckedFile,
    /// Path of the raw file.
    pub path: PathBuf,
    /// Number of raw bytes.
    pub bytes: u64,
    name: Name,
    _lock: Arc<Lock>,
}

/// A request for an entry of the cache.
#[derive(Clone, Debug)]
struct EntryOrder {
    name: Name,
    digest: Digest,
    /// Format to unpack; `None` keeps the file as published.
    format: Option<ImageFormat>,
    source: String,
    /// The source without credentials and query.
    shown: String,
}

impl Library {
    /// Makes a library. It makes the cache's directory at the first use.
    pub fn new(options: LibraryOptions) -> Self {
        let directories = Directories::new(options.dir, options.allowed_dirs);
        Self(Arc::new(Inner {
            sources: Sources::new(directories),
            cache: Cache { dir: options.cache_dir },
            cache_bytes: options.cache_bytes,
            published_bytes_max: options.published_bytes_max,
            raw_bytes_max: options.raw_bytes_max,
            shared_fetches: SharedFetches::default(),
            discarding: Mutex::default(),
            session: OnceCell::new(),
        }))
    }

    /// The digest of a spec's image, looked up in its list if the spec names one.
    pub async fn digest(
        &self,
        image: &spec::Image,
        watch: &Watch<'_>,
    ) -> Result<Digest, ImageError> {
        match &image.checksum {
            spec::Checksum::Inline(digest) => Ok(digest.clone()),
            spec::Checksum::Listed(place) => {
                let listed = self.0.sources.listed(place, &image.source, watch).await;
                listed.map_err(|error| match error {
                    FetchError::Interrupted(why) => {
                        of_interrupted(&Sources::shown(place), watch, why)
                    }
                    error => ImageError::List(error),
                })
            }
        }
    }

    /// Checks that an image's source has the file and that it is not too large. Returns its size in
    /// bytes, without the holes of a local file; `None` if its server does not report it.
    pub async fn published_bytes(
        &self,
        image: &spec::Image,
        watch: &Watch<'_>,
    ) -> Result<Option<u64>, ImageError> {
        let (source, bytes_max) = (&image.source, self.0.published_bytes_max);
        let found = self.0.sources.find(source, watch).await.map_err(|error| match error {
            FetchError::Interrupted(why) => of_interrupted(&Sources::shown(source), watch, why),
            error => ImageError::Fetch(error),
        })?;
        let too_large = |bytes| {
            let place = Sources::shown(source);
            ImageError::Fetch(FetchError::TooLarge { place, bytes, is_all: true, bytes_max })
        };
        match found.filter(|bytes| *bytes > bytes_max) {
            Some(bytes) => Err(too_large(bytes)),
            None => Ok(found),
        }
    }

    /// Returns the image with this digest, from the cache or else from its source. Concurrent
    /// callers for the same image share one fetch and its error. The first caller's stall limit
    /// applies.
    pub async fn get(
        &self,
        image: &spec::Image,
        digest: &Digest,
        watch: &Watch<'_>,
    ) -> Result<Entry, Arc<ImageError>> {
        let order = EntryOrder {
            name: Name::new(digest, image.format),
            digest: digest.clone(),
            format: Some(image.format),
            source: image.source.clone(),
            shown: Sources::shown(&image.source),
        };
        self.obtain(order, watch).await
    }

    async fn obtain(&self, order: EntryOrder, watch: &Watch<'_>) -> Result<Entry, Arc<ImageError>> {
        let (inner, stall) = (Arc::clone(&self.0), watch.stall);
        let fetch = self.0.shared_fetches.join(
            (order.name.clone(), order.source.clone()),
            |meter, cancel| async move {
                inner.obtain(&order, &Watch { cancel, stall, meter: &meter }).await
            },
        );
        fetch.outcome(&self.0.cache.dir, watch).await
    }

    /// The digest of a local file, such as a kernel or ramdisk.
    pub async fn hash(&self, path: &str, watch: &Watch<'_>) -> Result<Digest, ImageError> {
        let opened = self.0.sources.open(path, self.0.published_bytes_max, watch).await;
        let (mut file, bytes) = opened.map_err(|error| match error {
            FetchError::Interrupted(why) => of_interrupted(path, watch, why),
            error => ImageError::Fetch(error),
        })?;
        watch.meter.begin(ImagingStage::Fetch, 0, bytes);
        let hashing = watched(watch, move |heartbeat| {
            let mut hash = Hash::new(DigestAlgorithm::Sha256);
            let (mut buffer, mut done_bytes) = (vec![0; HASHED_BYTES], 0);
            loop {
                let read = file.read(&mut buffer)?;
                hash.update(buffer.get(..read).unwrap_or_default());
                done_bytes += read as u64;
                if read == 0 {
                    return Ok(Some(hash.finish()));
                }
                if heartbeat(done_bytes).is_break() {
                    return Ok(None);
                }
            }
        });
        let hashed = hashing.await.map_err(|why| of_interrupted(path, watch, why))?;
        hashed.map_err(|error| of_file(path, error))?.ok_or(ImageError::Cancelled)
    }

    /// Stores a file with this digest unchanged in the cache, fetched from its local path unless it
    /// is already there.
    pub async fn keep(
        &self,
        path: &str,
        digest: &Digest,
        watch: &Watch<'_>,
    ) -> Result<(), Arc<ImageError>> {
        let mut tries = 0;
        loop {
            let order = EntryOrder {
                name: Name::of_plain(digest),
                digest: digest.clone(),
                format: None,
                source: path.to_owned(),
                shown: path.to_owned(),
            };
            let entry = self.obtain(order, watch).await?;
            tries += 1;
            let library = self.clone();
            let checked = on_thread(move || {
                let checked = entry.file.check();
                if checked.is_err() {
                    library.discard(&entry).map_err(io::Error::other)?;
                }
                Ok(checked)
            });
            match checked.await.and_then(|checked| checked) {
                Ok(()) => return Ok(()),
                Err(_) if tries < KEEP_TRIES => {}
                Err(error) => return Err(Arc::new(of_cache(&self.0.cache.dir, error))),
            }
        }
    }

    /// Opens a file that [`Library::keep`] stored, after a full read. A decayed file is removed,
    /// and counts as missing. Blocks during the read.
    pub fn open_kept(&self, digest: &Digest) -> io::Result<File> {
        let name = Name::of_plain(digest);
        let file = self.0.cache.unchecked(&name)?.ok_or(io::ErrorKind::NotFound)?;
        if let Err(error) = file.check() {
            let _alone = self.0.discarding.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.cache.discard(&name, file.file())?;
            return Err(error);
        }
        let mut file = file.file().try_clone()?;
        file.rewind()?;
        Ok(file)
    }

    /// Removes files that [`Library::keep`] stored and that are not `needed` any more. Blocks as
    /// long as the file system does.
    pub fn prune_kept(&self, needed: &BTreeSet<Digest>) -> Result<(), ImageError> {
        let cache = &self.0.cache;
        cache.prune_plain(needed).map_err(|error| of_cache(&cache.dir, error))
    }

    /// Removes a decayed entry, so that the next request fetches it again. Other readers detect the
    /// decay themselves. Blocks as long as the file system does.
    pub fn discard(&self, entry: &Entry) -> Result<(), ImageError> {
        let _alone = self.0.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        let discarded = self.0.cache.discard(&entry.name, entry.file.file());
        discarded.map_err(|error| of_cache(&entry.path, error))
    }

    /// Lists the images in the cache, least recently used first. Blocks as long as the file system
    /// does.
    pub fn list(&self) -> Result<Vec<Kept>, ImageError> {
        self.0.cache.list().map_err(|error| of_cache(&self.0.cache.dir, error))
    }

    /// Removes the least recently used images until the cache takes at most so many bytes, but none
    /// in use. Blocks as long as the file system does.
    pub fn prune(&self, to_bytes: u64) -> Result<Pruned, ImageError> {
        let cache = &self.0.cache;
        let pruned = cache.sweep().and_then(|()| cache.prune(to_bytes));
        pruned.map_err(|error| of_cache(&cache.dir, error))
    }
}

fn of_file(path: &str, source: io::Error) -> ImageError {
    ImageError::Fetch(FetchError::File { path: PathBuf::from(path), source })
}

fn of_cache(path: &Path, error: io::Error) -> ImageError {
    ImageError::Cache { path: path.to_owned(), error }
}

fn of_interrupted(source: &str, watch: &Watch<'_>, interrupted: Interrupted) -> ImageError {
    match interrupted {
        Interrupted::Cancelled => ImageError::Cancelled,
        Interrupted::Stalled => {
            ImageError::Stalled { source_text: source.to_owned(), after: watch.stall }
        }
    }
}

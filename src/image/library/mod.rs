//! Fetches images into the cache of raw images, and lends them.
//!
//! Called by the agent for each attempt, and by `hostler cache`. It must never give out a file that
//! was not fetched, compared and decoded as a whole.

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
/// A file that has decayed as soon as it was kept, so many times in a row, is not worth another
/// try.
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
    /// Bytes of blocks the cache may take; images in use are kept above that.
    pub cache_bytes: u64,
    /// Largest published file in bytes.
    pub published_bytes_max: u64,
    /// Largest raw image in bytes, holes included.
    pub raw_bytes_max: u64,
}

/// The image library. Several processes may have one over the same cache.
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
    /// Held while an entry is thrown away, so that it is the one that was meant.
    discarding: Mutex<()>,
    /// Begun when the cache is first used; its end, with the last of those who use it here, is a
    /// clean one.
    session: OnceCell<Session>,
}

/// An image in the cache. It stays there as long as this is held.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The digest of the file as published.
    pub digest: Digest,
    /// Its raw bytes, compared with their checksums when they are read; holes are zeros.
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
    /// The source without what must not be shown.
    shown: String,
}

impl Library {
    /// The cache's directory is made when it is first needed.
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

    /// The digest a spec's image must have, looked up in its list if the spec names one.
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

    /// The image with this digest, from the cache or else from its source. Whoever asks for one
    /// that is on its way already waits for that, and hears of the same error. The stall limit is
    /// that of who asked first.
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

    /// The digest of a file that lies here, of a kernel or ramdisk.
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

    /// Sees that a file with this digest is in the cache, as it is, and whole; fetched if need be
    /// from the path where it lies.
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

    /// Opens what [`Library::keep`] has put there, after reading all of it. What has decayed is
    /// thrown away, and not there. Blocks for as long as that takes.
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

    /// Removes what [`Library::keep`] has put there and nobody needs any more. Blocks for as long
    /// as the file system does.
    pub fn prune_kept(&self, needed: &BTreeSet<Digest>) -> Result<(), ImageError> {
        let cache = &self.0.cache;
        cache.prune_plain(needed).map_err(|error| of_cache(&cache.dir, error))
    }

    /// Throws away an entry that has decayed, so that it is fetched again when it is next asked
    /// for. Whoever else reads it finds out by itself. Blocks for as long as the file system does.
    pub fn discard(&self, entry: &Entry) -> Result<(), ImageError> {
        let _alone = self.0.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        let discarded = self.0.cache.discard(&entry.name, entry.file.file());
        discarded.map_err(|error| of_cache(&entry.path, error))
    }

    /// The images in the cache, those used longest ago first. Blocks for as long as the file system
    /// does.
    pub fn list(&self) -> Result<Vec<Kept>, ImageError> {
        self.0.cache.list().map_err(|error| of_cache(&self.0.cache.dir, error))
    }

    /// Removes what was used longest ago until the cache takes no more than so many bytes, but
    /// nothing that is in use. Blocks for as long as the file system does.
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

//! The cache, and the way of an image into it.
//!
//! Called by the agent for each attempt, and by `hostler cache`. It must never give out a file that was not fetched, compared and decoded
//! as a whole.

use std::{
    fs::{self, File},
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    ImageError,
    decode::{self, Limits},
    fetch::{FetchError, Sources},
    source::Directories,
};
use crate::{
    model::{ids::Digest, spec},
    progress::{Interrupted, Watch},
};

/// Where images are, and how much of them is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a relative source is relative to.
    pub dir: PathBuf,
    /// Where absolute ones may lie, besides `dir`.
    pub allowed_dirs: Vec<PathBuf>,
    /// The cache's own directory.
    pub cache_dir: PathBuf,
    /// How many bytes the cache may take, in blocks really used; images in use are kept above it.
    pub cache_bytes: u64,
}

/// The image library.
#[derive(Debug)]
pub struct Library {
    sources: Sources,
    cache: PathBuf,
}

/// An image in the cache. It stays there as long as this is held.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The digest of the file as published.
    pub digest: Digest,
    /// Its raw bytes; holes are zeros.
    pub file: Arc<File>,
    /// Where that lies.
    pub path: PathBuf,
    /// How many there are.
    pub bytes: u64,
}

impl Library {
    /// The cache's directory is made when it is first needed.
    pub fn new(options: Options) -> Self {
        let directories = Directories::new(options.dir, options.allowed_dirs);
        Self { sources: Sources::new(directories), cache: options.cache_dir }
    }

    /// The digest a spec's image must have. Looks it up where it is listed.
    pub async fn digest(
        &self,
        image: &spec::Image,
        watch: &Watch<'_>,
    ) -> Result<Digest, ImageError> {
        match &image.checksum {
            spec::Checksum::Inline(digest) => Ok(digest.clone()),
            spec::Checksum::Listed(place) => self
                .sources
                .listed(place, &image.source, watch)
                .await
                .map_err(|error| of_fetch(&image.source, watch, error)),
        }
    }

    /// The image with this digest, from the cache or else from its source.
    pub async fn get(
        &self,
        image: &spec::Image,
        digest: &Digest,
        watch: &Watch<'_>,
    ) -> Result<Entry, ImageError> {
        let path = self.cache.join(format!("{}.raw", digest.to_string().replace(':', "-")));
        if let Ok(file) = File::open(&path) {
            return entry(digest, file, &path).map_err(|error| of_cache(&path, error));
        }
        let partial = path.with_extension("part");
        let at_cache = |error| of_cache(&partial, error);
        fs::create_dir_all(&self.cache).map_err(at_cache)?;
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(&partial);
        let file = Arc::new(file.map_err(at_cache)?);
        self.sources
            .fetch(&image.source, digest, &file, u64::MAX, watch)
            .await
            .map_err(|error| of_fetch(&image.source, watch, error))?;
        let mut progress = |_| ControlFlow::Continue(());
        let scratch = || {
            let path = partial.with_extension("scratch");
            let file =
                File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
            fs::remove_file(path).map(|()| file)
        };
        let mut limits =
            Limits { raw_bytes_max: u64::MAX, progress: &mut progress, scratch: &scratch };
        let into = File::create(&path).map_err(at_cache)?;
        decode::decode(&file, image.format, &into, &mut limits).map_err(|error| {
            fs::remove_file(&path).unwrap_or_default();
            ImageError::Decode { source_text: image.source.clone(), error }
        })?;
        fs::remove_file(&partial).map_err(at_cache)?;
        let file = File::open(&path).map_err(at_cache)?;
        entry(digest, file, &path).map_err(at_cache)
    }
}

fn entry(digest: &Digest, file: File, path: &Path) -> io::Result<Entry> {
    let bytes = file.metadata()?.len();
    Ok(Entry { digest: digest.clone(), file: Arc::new(file), path: path.to_owned(), bytes })
}

fn of_cache(path: &Path, error: io::Error) -> ImageError {
    ImageError::Cache { path: path.to_owned(), error }
}

fn of_fetch(source: &str, watch: &Watch<'_>, error: FetchError) -> ImageError {
    let source_text = source.to_owned();
    match error {
        FetchError::Interrupted(Interrupted::Cancelled) => ImageError::Cancelled,
        FetchError::Interrupted(Interrupted::Stalled) => {
            ImageError::Stalled { source_text, after: watch.stall }
        }
        error => ImageError::Fetch { source_text, error },
    }
}

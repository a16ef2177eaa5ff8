//! Getting an image as it was published, from a file here or from a web server, and comparing its checksum.
//!
//! Called by the library with an open file of its own to fill. It must never report a file whose digest it has not compared.

mod error;
mod hash;
mod http;
mod listing;
mod local;
mod sink;
mod web;

use std::{
    fs::{File, Metadata},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    sync::Arc,
};

use tokio::task::spawn_blocking;
use url::Url;

pub use self::error::FetchError;
pub(super) use self::hash::Hash;
#[cfg(fuzzing)]
pub use self::listing::fuzz;
use self::{sink::Sink, web::Web};
use super::source::Directories;
use crate::{
    model::ids::{Digest, hex},
    progress::Watch,
};

/// The largest file of checksums. That of all of Debian's cloud images has 4 KiB.
const LIST_BYTES_MAX: usize = 1 << 20;

/// How many bytes of what a server sent are shown, as text or in hex.
const SHOWN_BYTES: usize = 60;
const SHOWN_BINARY_BYTES: usize = 8;

/// A block in `st_blocks`, whatever the file system (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// Where images come from: directories, and web servers by http and https. The system's certificate authorities are trusted, or those in
/// `SSL_CERT_FILE` and `SSL_CERT_DIR`; the variables `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` are honoured.
#[derive(Clone, Debug)]
pub struct Sources {
    directories: Directories,
}

impl Sources {
    /// Sources that are no URLs lie in these directories.
    pub fn new(directories: Directories) -> Self {
        Self { directories }
    }

    /// A source as it may be shown and logged: a URL without its credentials and query. What looks like a URL but is none is not shown.
    pub fn shown(source: &str) -> String {
        match web::url(source) {
            None => source.to_owned(),
            Some(url) => url.map_or_else(|_| "a URL".to_owned(), |url| web::shown(&url)),
        }
    }

    /// Opens a file that lies here, of no more than `bytes_max` bytes. Returns its size in bytes too.
    pub async fn open(
        &self,
        path: &str,
        bytes_max: u64,
        watch: &Watch<'_>,
    ) -> Result<(File, u64), FetchError> {
        let (file, bytes) = local::open(&self.directories, path, watch).await?;
        if bytes > bytes_max {
            let place = path.to_owned();
            return Err(FetchError::TooLarge { place, bytes, is_all: true, bytes_max });
        }
        Ok((file, bytes))
    }

    /// How many bytes the file takes, holes of one that is here left out; `None` when its server does not say.
    pub async fn size(&self, source: &str, watch: &Watch<'_>) -> Result<Option<u64>, FetchError> {
        if let Some(url) = web::url(source) {
            return watch.step(Web::new(url?, watch).await?.size()).await?;
        }
        let (file, bytes) = local::open(&self.directories, source, watch).await?;
        let dense = |metadata: Metadata| bytes.min(metadata.blocks() * STAT_BLOCK_BYTES);
        Ok(Some(file.metadata().map_or(bytes, dense)))
    }

    /// Makes `into` the file as published, and compares its digest. What `into` holds already is taken for its beginning, if the rest can be
    /// had alone. The result is as sparse as it can be, and not synced. Nothing is written that would make it larger than `bytes_max`.
    ///
    /// After an error `into` holds a beginning that another call may go on from; after a wrong checksum nothing in it is of any use.
    pub async fn fetch(
        &self,
        source: &str,
        wanted: &Digest,
        into: &Arc<File>,
        bytes_max: u64,
        watch: &Watch<'_>,
    ) -> Result<(), FetchError> {
        let url = web::url(source).transpose()?;
        let known_bytes = match (&url, into.metadata()) {
            (Some(_), Ok(metadata)) if metadata.len() <= bytes_max => metadata.len(),
            _ => 0,
        };
        let mut sink = Sink::new(into, known_bytes, wanted.algorithm());
        let filled = if let Some(url) = url {
            let job = Download { url, wanted, into, bytes_max };
            job.run(known_bytes, &mut sink, watch).await
        } else {
            let found = self.copy(source, &mut sink, bytes_max, watch).await;
            found.map(|found| (found, String::new()))
        };
        sink.stop().await;
        let (found, came) = filled?;
        if found == *wanted {
            Ok(())
        } else {
            let place = Self::shown(source);
            Err(FetchError::Checksum { place, wanted: wanted.clone(), found, came })
        }
    }

    async fn copy(
        &self,
        source: &str,
        sink: &mut Sink,
        bytes_max: u64,
        watch: &Watch<'_>,
    ) -> Result<Digest, FetchError> {
        local::copy(&self.directories, source, sink, bytes_max, watch).await?;
        sink.finish(watch).await
    }

    /// The digest of `source` in the file of checksums at `place`, a path or a URL like that of an image.
    pub async fn listed(
        &self,
        place: &str,
        source: &str,
        watch: &Watch<'_>,
    ) -> Result<Digest, FetchError> {
        let (text, shown) = if let Some(url) = web::url(place).transpose()? {
            let shown = web::shown(&url);
            let web = Web::new(url, watch).await?;
            (http::read_small(&web, LIST_BYTES_MAX, watch).await?, shown)
        } else {
            let text = local::read_small(&self.directories, place, LIST_BYTES_MAX, watch).await?;
            (text, place.to_owned())
        };
        let found = if text.len() > LIST_BYTES_MAX {
            Err("larger than 1 MiB, so no file of checksums".to_owned())
        } else {
            listing::find(&text, &path_of(source)?, &path_of(place)?)
        };
        found.map_err(|reason| FetchError::NotListed { place: shown, reason })
    }
}

/// A file to be had from a web server.
#[derive(Debug)]
struct Download<'a> {
    url: Url,
    wanted: &'a Digest,
    into: &'a Arc<File>,
    bytes_max: u64,
}

impl Download<'_> {
    /// Downloads, and does so once more from the first byte if what came in pieces has the wrong checksum. Returns the digest, and what a
    /// message about a wrong one has to say of what came.
    async fn run(
        self,
        known_bytes: u64,
        sink: &mut Sink,
        watch: &Watch<'_>,
    ) -> Result<(Digest, String), FetchError> {
        let web = Web::new(self.url, watch).await?;
        let mut came = http::download(&web, known_bytes, sink, self.bytes_max, watch).await?;
        let mut found = sink.finish(watch).await?;
        if found != *self.wanted && came.was_pieced {
            tracing::info!("a download in pieces has the wrong checksum and begins again");
            *sink = Sink::new(self.into, 0, self.wanted.algorithm());
            came = http::download(&web, 0, sink, self.bytes_max, watch).await?;
            found = sink.finish(watch).await?;
        }
        if found == *self.wanted || came.called.is_empty() {
            return Ok((found, String::new()));
        }
        let file = Arc::clone(self.into);
        let head = watch.step(spawn_blocking(move || beginning(&file))).await?;
        let head = head.unwrap_or_default();
        let came = format!("; the server sent {}, which begins with {head}", came.called);
        Ok((found, came))
    }
}

/// The first bytes of a file for people: as text if they are, and else in hex.
fn beginning(file: &File) -> String {
    let mut head = [0; SHOWN_BYTES];
    let read = file.read_at(&mut head, 0).unwrap_or_default();
    let head = head.get(..read).unwrap_or_default();
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n');
    if !head.is_empty() && head.iter().all(is_text) {
        let text: String = head.iter().map(|byte| char::from(*byte)).collect();
        return format!("{:?}", text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let hex = hex(head.get(..SHOWN_BINARY_BYTES).unwrap_or(head));
    if hex.is_empty() { "nothing".to_owned() } else { hex }
}

/// The path of a source, as lists spell it.
fn path_of(source: &str) -> Result<Vec<u8>, FetchError> {
    Ok(match web::url(source).transpose()? {
        Some(url) => percent_encoding::percent_decode_str(url.path()).collect(),
        None => source.as_bytes().to_vec(),
    })
}

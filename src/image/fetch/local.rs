//! A local file as a source of images, copied with its holes.
//!
//! [`super::source`] uses it for paths. It must never write to the file.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
};

use bytes::Bytes;
use rustix::{fs::SeekFrom, io::Errno};
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    FetchError, FetchOrder, Fetched,
    directories::Directories,
    sink::{PIECE_BYTES_MAX, Piece, Sink},
};
use crate::{model::status::ImagingStage, progress::Watch};

/// Bytes of a block in `st_blocks` on every file system (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

/// Most reads ahead of the sink.
const PIECES_AHEAD_MAX: usize = 2;

/// A path in the directories of local images.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalFile<'a> {
    directories: &'a Directories,
    path: &'a str,
}

impl<'a> LocalFile<'a> {
    pub(super) fn new(directories: &'a Directories, path: &'a str) -> Self {
        Self { directories, path }
    }

    pub(super) fn path(&self) -> &'a str {
        self.path
    }

    /// Opens the file if it has at most `bytes_max` bytes, and returns it with its size in bytes.
    pub(super) async fn open_limited(
        &self,
        bytes_max: u64,
        watch: &Watch<'_>,
    ) -> Result<(File, u64), FetchError> {
        let (file, bytes) = self.open(watch).await?;
        if bytes > bytes_max {
            let place = self.path.to_owned();
            return Err(FetchError::TooLarge { place, bytes, is_all: true, bytes_max });
        }
        Ok((file, bytes))
    }

    /// Size in bytes, without holes.
    pub(super) async fn size(&self, watch: &Watch<'_>) -> Result<Option<u64>, FetchError> {
        let (file, bytes) = self.open(watch).await?;
        let dense = |metadata: Metadata| bytes.min(metadata.blocks() * STAT_BLOCK_BYTES);
        Ok(Some(file.metadata().map_or(bytes, dense)))
    }

    /// Copies the whole file.
    pub(super) async fn fetch(
        &self,
        order: &FetchOrder<'_>,
        sink: &mut Sink,
        watch: &Watch<'_>,
    ) -> Result<Fetched, FetchError> {
        let (file, bytes) = self.open_limited(order.bytes_max, watch).await?;
        watch.meter.begin(ImagingStage::Fetch, 0, bytes);
        let (pieces, mut ready) = mpsc::channel(PIECES_AHEAD_MAX);
        let reader = spawn_blocking(move || read(&file, bytes, &pieces));
        while let Some(piece) = watch.step(ready.recv()).await? {
            let before = sink.bytes();
            sink.put(piece, watch).await?;
            watch.meter.add(sink.bytes() - before);
        }
        let read = watch.step(reader).await?;
        read.unwrap_or_else(|died| Err(io::Error::other(died)))
            .map_err(|error| unreadable(self.path, error))?;
        Ok(Fetched { digest: sink.finish(watch).await?, came: String::new() })
    }

    /// Reads the first bytes of the file, at most one more than `bytes_max`.
    pub(super) async fn read_small(
        &self,
        bytes_max: usize,
        watch: &Watch<'_>,
    ) -> Result<Vec<u8>, FetchError> {
        let (file, _) = self.open(watch).await?;
        let path = self.path.to_owned();
        blocking(self.path, watch, move || {
            let mut text = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, bytes_max as u64 + 1), &mut text)
                .map_err(|error| unreadable(&path, error))?;
            Ok(text)
        })
        .await
    }

    /// Opens the file on a thread, because the file system may hang, and returns it with its size
    /// in bytes.
    async fn open(&self, watch: &Watch<'_>) -> Result<(File, u64), FetchError> {
        let (directories, path) = (self.directories.clone(), self.path.to_owned());
        blocking(self.path, watch, move || {
            let file = directories.open(&path)?;
            let metadata = file.metadata().map_err(|error| unreadable(&path, error))?;
            Ok((file, metadata.len()))
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    source: &str,
    watch: &Watch<'_>,
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    let done = watch.step(spawn_blocking(work)).await?;
    done.unwrap_or_else(|died| Err(unreadable(source, io::Error::other(died))))
}

fn unreadable(path: impl AsRef<Path>, source: io::Error) -> FetchError {
    FetchError::File { path: path.as_ref().to_owned(), source }
}

/// Reads the file on a thread, up to its length at opening, or until the receiver is gone.
fn read(file: &File, bytes: u64, pieces: &mpsc::Sender<Piece>) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let (data, end) = next_data(file, at, bytes)?;
        while at < data {
            let zeros = (data - at).min(PIECE_BYTES_MAX);
            if pieces.blocking_send(Piece::Zeros(zeros)).is_err() {
                return Ok(());
            }
            at += zeros;
        }
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
            let mut buffer = vec![0; length];
            file.read_exact_at(&mut buffer, at)?;
            if pieces.blocking_send(Piece::Data(Bytes::from(buffer))).is_err() {
                return Ok(());
            }
            at += length as u64;
        }
    }
    Ok(())
}

/// The next range of data at or after `at`; without support for holes, the rest of the file.
fn next_data(file: &File, at: u64, bytes: u64) -> io::Result<(u64, u64)> {
    let begin = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(begin) => begin,
        Err(Errno::NXIO) => return Ok((bytes, bytes)),
        Err(Errno::INVAL) => return Ok((at, bytes)),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(begin))?;
    Ok((begin.clamp(at, bytes), end.clamp(at, bytes)))
}

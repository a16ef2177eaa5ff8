//! A file whose bytes go onto a disk.
//!
//! Made by the agent from what the image library gives, and by whoever makes a file system for the disk. It must never be written to.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use super::ImagingError;

/// An open file of a disk's bytes; its holes are zeros. Clones share it.
#[derive(Clone, Debug)]
pub struct ImageFile {
    file: Arc<File>,
    path: Arc<Path>,
    bytes: u64,
}

impl ImageFile {
    /// `path` is for messages.
    pub fn new(file: Arc<File>, path: &Path) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self { file, path: path.into(), bytes })
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size when it was opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads `bytes` bytes on the calling thread; behind the file's end are zeros, as they will be on the disk.
    pub(super) fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        let there = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let part = buffer.get_mut(..there.min(bytes)).unwrap_or_default();
        self.file.read_exact_at(part, offset)?;
        Ok(buffer)
    }

    /// Reads exactly `bytes` bytes, without holding up the runtime.
    pub(super) async fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, ImagingError> {
        let file = Arc::clone(&self.file);
        let reading = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
            file.read_exact_at(&mut buffer, offset)?;
            Ok(buffer)
        });
        let read = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        read.map_err(|source| ImagingError::File { path: self.path.to_path_buf(), source })
    }
}

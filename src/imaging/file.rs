//! A file whose bytes go onto a disk.
//!
//! Made by the agent from what the image library gives, and by whoever makes a file system for the disk. It must never be written to.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

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

    /// Fills the buffer from `offset` on. Blocks.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImagingError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| self.failed(error))
    }

    /// Where from `offset` on there are bytes that are not a hole: `offset` itself, or the end of the hole there.
    pub(super) fn data_from(&self, offset: u64) -> Result<u64, ImagingError> {
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => Ok(data),
            // No more data, because the rest is a hole, or because the file was made shorter.
            Err(Errno::NXIO) => {
                let bytes = self.file.metadata().map_err(|error| self.failed(error))?.len();
                if bytes < self.bytes {
                    return Err(self.failed(io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(bytes)
            }
            // A file system that knows of no holes.
            Err(Errno::INVAL | Errno::NOTSUP) => Ok(offset),
            Err(error) => Err(self.failed(error.into())),
        }
    }

    /// Where the next hole begins.
    pub(super) fn hole_from(&self, offset: u64) -> Result<u64, ImagingError> {
        match seek(&self.file, SeekFrom::Hole(offset)) {
            Ok(hole) => Ok(hole),
            Err(Errno::NXIO | Errno::INVAL | Errno::NOTSUP) => Ok(self.bytes),
            Err(error) => Err(self.failed(error.into())),
        }
    }

    fn failed(&self, source: io::Error) -> ImagingError {
        ImagingError::File { path: self.path.to_path_buf(), source }
    }
}

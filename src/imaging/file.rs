//! A file as the source of a disk's bytes.
//!
//! The agent makes one from an entry of the image library, or from a file system made for the disk.
//! No code must write to the file.

use std::{fs::File, io, path::Path, sync::Arc};

use super::ImagingError;
use crate::checked_file::CheckedFile;

/// An open file with a disk's bytes; its holes are zeros. Clones share it.
#[derive(Clone, Debug)]
pub struct ImageFile {
    file: CheckedFile,
    path: Arc<Path>,
}

impl ImageFile {
    /// A file without checksums. `path` is for messages.
    pub fn new(file: Arc<File>, path: &Path) -> io::Result<Self> {
        CheckedFile::unchecked(file).map(|file| Self::checked(file, path))
    }

    /// A file that every read compares with its checksums, if it has any. `path` is for messages.
    pub fn checked(file: CheckedFile, path: &Path) -> Self {
        Self { file, path: path.into() }
    }

    /// The path for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes at opening.
    pub fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// Reads `bytes` bytes on the calling thread; zeros follow the file's end, as on the disk.
    pub(super) fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        self.file.read_at(&mut buffer, offset)?;
        Ok(buffer)
    }

    /// Fills the buffer from `offset` on. Blocks.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImagingError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| self.failed(error))
    }

    /// The beginning of the data at or after `offset`: `offset` itself, or the end of the hole
    /// there.
    pub(super) fn data_from(&self, offset: u64) -> Result<u64, ImagingError> {
        self.file.data_from(offset).map_err(|error| self.failed(error))
    }

    /// The beginning of the next hole at or after `offset`.
    pub(super) fn hole_from(&self, offset: u64) -> Result<u64, ImagingError> {
        self.file.hole_from(offset).map_err(|error| self.failed(error))
    }

    fn failed(&self, source: io::Error) -> ImagingError {
        ImagingError::File { path: self.path.to_path_buf(), source }
    }
}

//! From a file as it was published to the raw bytes of a disk: what it is, is found by looking into it.
//!
//! Called by the library, on a thread of its own, with a file whose checksum was compared. It must never trust a number in the file, write
//! more than it was allowed to, or run a program.

use std::{
    fs::File,
    io::{self, Seek as _},
    ops::ControlFlow,
};

use crate::model::spec::ImageFormat;

/// Why a file cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is not a format that can be written to a disk.
    #[error("{0}")]
    Unusable(String),
    /// It cannot be read, or what it holds cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It was told to stop.
    #[error("cancelled")]
    Cancelled,
}

/// What decoding may do, and whom it tells.
pub(super) struct Limits<'a> {
    /// The most bytes the raw image may have.
    pub(super) raw_bytes_max: u64,
    /// Told now and then how many bytes of the published file are behind; may stop the work.
    pub(super) progress: &'a mut dyn FnMut(u64) -> ControlFlow<()>,
}

/// What is known of a published file before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// Whether the file is the raw image as it is, so that nothing has to be decoded.
    pub(super) is_raw: bool,
    /// Bytes of the raw image, if the file says so. Not to be believed, but enough to see that there is no space.
    pub(super) raw_bytes: Option<u64>,
}

/// Looks at what a file is.
pub(super) fn inspect(published: &File, format: ImageFormat) -> Result<Look, DecodeError> {
    if format == ImageFormat::Qcow2 {
        return Err(DecodeError::Unusable("qcow2 is not supported yet".to_owned()));
    }
    Ok(Look { is_raw: true, raw_bytes: Some(published.metadata()?.len()) })
}

/// Writes the raw image to `into`, an empty file, as sparse as it can be. Returns its size in bytes.
pub(super) fn decode(
    mut published: &File,
    format: ImageFormat,
    mut into: &File,
    limits: &mut Limits<'_>,
) -> Result<u64, DecodeError> {
    inspect(published, format)?;
    published.rewind()?;
    let bytes = io::copy(&mut published, &mut into)?;
    if bytes > limits.raw_bytes_max {
        return Err(DecodeError::Unusable("too large".to_owned()));
    }
    match (limits.progress)(bytes) {
        ControlFlow::Continue(()) => Ok(bytes),
        ControlFlow::Break(()) => Err(DecodeError::Cancelled),
    }
}

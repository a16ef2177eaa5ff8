//! Decodes a published file to the raw bytes of a disk; the content decides the format.
//!
//! The library calls it on a separate thread, with a file whose checksum was compared. It must
//! never trust a number in the file, exceed its limit of written bytes, or run a program.

mod declared;
mod kind;
mod outer;
mod qcow2;
mod sparse;
#[cfg(test)]
mod tests;

use std::{fmt, fs::File, io, ops::ControlFlow, os::unix::fs::FileExt as _};

use self::{
    kind::{FileFormat, HEAD_BYTES, Remedy, VHD_FOOTER},
    outer::{Packing, Ticker, Unpacked},
};
use crate::model::{size::show_apart, spec::ImageFormat};

/// Bytes decoded at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Most bytes of a packed file that [`inspect`] reads: a longer prefix that unpacks to nothing is
/// no disk.
const INSPECTED_BYTES_MAX: u64 = 64 << 20;

/// A failure to decode a file.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The file's format cannot be written to a disk.
    #[error("{0}")]
    Unusable(String),
    /// The image is larger than allowed.
    #[error("{}", shown_too_large(*bytes, *is_all, *bytes_max))]
    TooLarge {
        /// Bytes of the disk, or bytes decoded before the limit.
        bytes: u64,
        /// Whether `bytes` is the whole size.
        is_all: bool,
        /// The limit in bytes: `images.raw_max`.
        bytes_max: u64,
    },
    /// The file cannot be read, or the image cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The work was stopped.
    #[error("cancelled")]
    Cancelled,
}

/// The limits of a decoding, and its progress callback.
pub struct DecodeLimits<'a> {
    /// The most bytes the raw image may have.
    pub raw_bytes_max: u64,
    /// Called at least after every 2 MiB read or written, with the number of decoded bytes of the
    /// published file, which never falls; may stop the work.
    pub progress: &'a mut dyn FnMut(u64) -> ControlFlow<()>,
    /// Makes an empty file for this decoding alone, open for reading and writing. A packed qcow2 is
    /// unpacked to it, with at most [`scratch_bytes_max`] bytes.
    pub scratch: &'a dyn Fn() -> io::Result<File>,
}

impl fmt::Debug for DecodeLimits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecodeLimits")
            .field("raw_bytes_max", &self.raw_bytes_max)
            .finish_non_exhaustive()
    }
}

/// The properties of a published file before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Whether the file is already the raw image, without decoding.
    pub is_raw: bool,
    /// The declared size of the raw image; `None` without one. It is unchecked, and serves only to
    /// estimate the space.
    pub raw_bytes: Option<u64>,
}

/// Inspects a file's format. Fails where [`decode`] would fail on the first bytes.
pub fn inspect(published: &File, format: ImageFormat) -> Result<Inspection, DecodeError> {
    let mut bounded = |at| {
        if at < INSPECTED_BYTES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let ticker = Ticker::new(&mut bounded);
    let packing = packing(published)?;
    let mut unpacked = Unpacked::new(published, packing, &ticker)?;
    let mut head = [0; HEAD_BYTES];
    let head = match unpacked.fill(&mut head) {
        Err(DecodeError::Cancelled) => return Ok(Inspection { is_raw: false, raw_bytes: None }),
        head => head?,
    };
    let raw_bytes = match (disk(head, packing, format)?, packing) {
        (DiskFormat::Qcow2, _) => Some(qcow2::Header::parse(head)?.bytes),
        (DiskFormat::Raw, Some(packing)) => declared::unpacked_bytes(published, packing)?,
        (DiskFormat::Raw, None) => return inspect_raw(published),
    };
    Ok(Inspection { is_raw: false, raw_bytes })
}

/// Writes the raw image to the empty file `into`, as sparse as possible. Returns the image's size
/// in bytes.
pub fn decode(
    published: &File,
    format: ImageFormat,
    into: &File,
    limits: &mut DecodeLimits<'_>,
) -> Result<u64, DecodeError> {
    let ticker = Ticker::new(limits.progress);
    let packing = packing(published)?;
    let mut unpacked = Unpacked::new(published, packing, &ticker)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let head = unpacked.fill(&mut chunk)?;
    match (disk(head, packing, format)?, packing) {
        (DiskFormat::Raw, _) => {
            let bytes = head.len();
            if packing.is_none() {
                inspect_raw(published)?;
            }
            pour(unpacked, chunk, bytes, into, limits.raw_bytes_max, &ticker)?.disk_bytes()
        }
        (DiskFormat::Qcow2, None) => {
            let published_bytes = published.metadata()?.len();
            // Scaled to the published file, because an image is read in the order of the disk.
            let mut report = |done: u64, all: u64| {
                let behind = u128::from(published_bytes) * u128::from(done) / u128::from(all);
                ticker.at(u64::try_from(behind).unwrap_or(published_bytes))
            };
            qcow2::decode(published, into, limits.raw_bytes_max, &mut report)
        }
        (DiskFormat::Qcow2, Some(_)) => {
            let disk_bytes = qcow2::Header::parse(head)?.bytes;
            let bytes = head.len();
            too_large(disk_bytes, true, limits.raw_bytes_max)?;
            let scratch = (limits.scratch)()?;
            let most = scratch_bytes_max(limits.raw_bytes_max);
            pour(unpacked, chunk, bytes, &scratch, most, &ticker)?;
            let mut report = |_, _| ticker.still_there();
            qcow2::decode(&scratch, into, limits.raw_bytes_max, &mut report)
        }
    }
}

/// Most bytes of a scratch file for an image of this size: the data, and qcow2's tables with the
/// smallest clusters.
pub fn scratch_bytes_max(raw_bytes_max: u64) -> u64 {
    raw_bytes_max.saturating_add(raw_bytes_max / 16).saturating_add(64 << 20)
}

/// The format of a disk image inside its outer layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskFormat {
    Raw,
    Qcow2,
}

/// The packing of the published file, without a check of its support.
fn packing(published: &File) -> Result<Option<Packing>, DecodeError> {
    let mut head = [0; HEAD_BYTES];
    let bytes = published.read_at(&mut head, 0)?;
    match FileFormat::of(head.get(..bytes).unwrap_or_default()) {
        FileFormat::Packed(packing) => Ok(Some(packing)),
        FileFormat::Raw | FileFormat::Qcow2 | FileFormat::Foreign(..) => Ok(None),
    }
}

/// Determines the format of the unpacked bytes, and checks that it is supported and the spec's.
fn disk(
    head: &[u8],
    packing: Option<Packing>,
    format: ImageFormat,
) -> Result<DiskFormat, DecodeError> {
    let place = packing
        .map_or_else(|| "the file".to_owned(), |packing| format!("what is in the {packing} file"));
    let refuse = |why: String| Err(DecodeError::Unusable(format!("{place} is {why}")));
    let disk = match FileFormat::of(head) {
        _ if head.is_empty() => return refuse("empty".to_owned()),
        FileFormat::Raw => DiskFormat::Raw,
        FileFormat::Qcow2 => DiskFormat::Qcow2,
        FileFormat::Foreign(name, remedy) => return refuse(format!("{name}: {}", remedy.advice())),
        FileFormat::Packed(again) => {
            return refuse(format!("{again} again: only one layer of packing is taken off"));
        }
    };
    match (format, disk) {
        (ImageFormat::Raw, DiskFormat::Qcow2) => {
            refuse("qcow2, but image.format is \"raw\"".to_owned())
        }
        (ImageFormat::Qcow2, DiskFormat::Raw) => {
            refuse("raw, or nothing that is known, but image.format is \"qcow2\"".to_owned())
        }
        _ => Ok(disk),
    }
}

fn inspect_raw(published: &File) -> Result<Inspection, DecodeError> {
    let bytes = published.metadata()?.len();
    let mut footer = [0; VHD_FOOTER.len()];
    if let Some(at) = bytes.checked_sub(512)
        && published.read_at(&mut footer, at)? == footer.len()
        && footer == VHD_FOOTER
    {
        return Err(fixed_vhd());
    }
    Ok(Inspection { is_raw: true, raw_bytes: Some(bytes) })
}

fn fixed_vhd() -> DecodeError {
    DecodeError::Unusable(format!("it is vhd: {}", Remedy::Convert.advice()))
}

/// Writes the first chunk, and then the rest of the input.
fn pour(
    mut from: Unpacked<'_>,
    mut chunk: Vec<u8>,
    mut filled: usize,
    into: &File,
    bytes_max: u64,
    ticker: &Ticker<'_>,
) -> Result<RawWritten, DecodeError> {
    let (mut at, mut ends_as_vhd) = (0, false);
    while let Some(bytes) = chunk.get(..filled).filter(|bytes| !bytes.is_empty()) {
        too_large(at + bytes.len() as u64, false, bytes_max)?;
        sparse::write(into, at, bytes)?;
        at += bytes.len() as u64;
        ticker.still_there()?;
        // Whole sectors, so that no chunk splits the last one.
        ends_as_vhd = bytes.rchunks(512).next().is_some_and(|last| last.starts_with(VHD_FOOTER));
        filled = from.fill(&mut chunk)?.len();
    }
    into.set_len(at)?;
    Ok(RawWritten { bytes: at, ends_as_vhd })
}

/// The result of writing a raw image.
struct RawWritten {
    bytes: u64,
    ends_as_vhd: bool,
}

impl RawWritten {
    /// The image's size, if its content is a disk.
    fn disk_bytes(&self) -> Result<u64, DecodeError> {
        if self.ends_as_vhd { Err(fixed_vhd()) } else { Ok(self.bytes) }
    }
}

/// Fails if a disk of so many bytes exceeds the limit.
pub(super) fn too_large(bytes: u64, is_all: bool, bytes_max: u64) -> Result<(), DecodeError> {
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(DecodeError::TooLarge { bytes, is_all, bytes_max })
}

fn shown_too_large(bytes: u64, is_all: bool, bytes_max: u64) -> String {
    let [has, most] = show_apart(bytes, bytes_max);
    let disk =
        if is_all { format!("a disk of {has}, which is") } else { "it unpacks to".to_owned() };
    format!("{disk} more than {most}, the most that images.raw_max allows")
}

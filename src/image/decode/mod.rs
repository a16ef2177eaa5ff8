//! From a file as it was published to the raw bytes of a disk: what it is, is found by looking into
//! it.
//!
//! Called by the library, on a thread of its own, with a file whose checksum was compared. It must
//! never trust a number in the file, write more than it was allowed to, or run a program.

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

/// How much of a packed file [`inspect`] reads before it gives up on what is inside: what unpacks
/// to nothing for so long is no disk.
const INSPECTED_BYTES_MAX: u64 = 64 << 20;

/// A failure to decode a file.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is not a format that can be written to a disk.
    #[error("{0}")]
    Unusable(String),
    /// It is larger than an image may be.
    #[error("{}", shown_too_large(*bytes, *is_all, *bytes_max))]
    TooLarge {
        /// Bytes of the disk, or those decoded before the limit.
        bytes: u64,
        /// Whether that is all it has.
        is_all: bool,
        /// The limit in bytes: `images.raw_max`.
        bytes_max: u64,
    },
    /// It cannot be read, or what it holds cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The work was stopped.
    #[error("cancelled")]
    Cancelled,
}

/// The limits of decoding, and its heartbeat.
pub struct DecodeLimits<'a> {
    /// The most bytes the raw image may have.
    pub raw_bytes_max: u64,
    /// Told at least with every 2 MiB read or written how many bytes of the published file are
    /// behind, never fewer than before; may stop the work.
    pub progress: &'a mut dyn FnMut(u64) -> ControlFlow<()>,
    /// Makes an empty file, open for reading and writing, that nobody else uses. A packed qcow2 is
    /// unpacked to it, of at most [`scratch_bytes_max`] bytes.
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
    /// Whether the file is the raw image as it is, so that nothing has to be decoded.
    pub is_raw: bool,
    /// Bytes of the raw image, if the file says so. Not to be believed, but enough to see that
    /// there is no space.
    pub raw_bytes: Option<u64>,
}

/// Looks at what a file is. Fails where [`decode`] would fail on the first bytes.
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
        (Disk::Qcow2, _) => Some(qcow2::Header::parse(head)?.bytes),
        (Disk::Raw, Some(packing)) => declared::unpacked_bytes(published, packing)?,
        (Disk::Raw, None) => return inspect_raw(published),
    };
    Ok(Inspection { is_raw: false, raw_bytes })
}

/// Writes the raw image to `into`, an empty file, as sparse as it can be. Returns its size in
/// bytes.
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
        (Disk::Raw, _) => {
            let bytes = head.len();
            if packing.is_none() {
                inspect_raw(published)?;
            }
            pour(unpacked, chunk, bytes, into, limits.raw_bytes_max, &ticker)?.disk_bytes()
        }
        (Disk::Qcow2, None) => {
            let published_bytes = published.metadata()?.len();
            // Scaled, since an image is read in the order of the disk.
            let mut report = |done: u64, all: u64| {
                let behind = u128::from(published_bytes) * u128::from(done) / u128::from(all);
                ticker.at(u64::try_from(behind).unwrap_or(published_bytes))
            };
            qcow2::decode(published, into, limits.raw_bytes_max, &mut report)
        }
        (Disk::Qcow2, Some(_)) => {
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

/// The most bytes a scratch file may get for an image of so many: what qcow2 needs besides the
/// data, with the smallest clusters.
pub fn scratch_bytes_max(raw_bytes_max: u64) -> u64 {
    raw_bytes_max.saturating_add(raw_bytes_max / 16).saturating_add(64 << 20)
}

/// The format of a disk image inside its outer layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    Raw,
    Qcow2,
}

/// The packing of the published file, without a check that it can be used.
fn packing(published: &File) -> Result<Option<Packing>, DecodeError> {
    let mut head = [0; HEAD_BYTES];
    let bytes = published.read_at(&mut head, 0)?;
    match FileFormat::of(head.get(..bytes).unwrap_or_default()) {
        FileFormat::Packed(packing) => Ok(Some(packing)),
        FileFormat::Raw | FileFormat::Qcow2 | FileFormat::Foreign(..) => Ok(None),
    }
}

/// The format of the bytes in the outer layer, if it can be used and is the one in the spec.
fn disk(head: &[u8], packing: Option<Packing>, format: ImageFormat) -> Result<Disk, DecodeError> {
    let place = packing
        .map_or_else(|| "the file".to_owned(), |packing| format!("what is in the {packing} file"));
    let refuse = |why: String| Err(DecodeError::Unusable(format!("{place} is {why}")));
    let disk = match FileFormat::of(head) {
        _ if head.is_empty() => return refuse("empty".to_owned()),
        FileFormat::Raw => Disk::Raw,
        FileFormat::Qcow2 => Disk::Qcow2,
        FileFormat::Foreign(name, remedy) => return refuse(format!("{name}: {}", remedy.advice())),
        FileFormat::Packed(again) => {
            return refuse(format!("{again} again: only one layer of packing is taken off"));
        }
    };
    match (format, disk) {
        (ImageFormat::Raw, Disk::Qcow2) => refuse("qcow2, but image.format is \"raw\"".to_owned()),
        (ImageFormat::Qcow2, Disk::Raw) => {
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

/// Writes what is filled of the chunk, and then the rest.
fn pour(
    mut from: Unpacked<'_>,
    mut chunk: Vec<u8>,
    mut filled: usize,
    into: &File,
    bytes_max: u64,
    ticker: &Ticker<'_>,
) -> Result<Poured, DecodeError> {
    let (mut at, mut ends_as_vhd) = (0, false);
    while let Some(bytes) = chunk.get(..filled).filter(|bytes| !bytes.is_empty()) {
        too_large(at + bytes.len() as u64, false, bytes_max)?;
        sparse::write(into, at, bytes)?;
        at += bytes.len() as u64;
        ticker.still_there()?;
        // Whole sectors, so that the last one is not cut in two by chunks.
        ends_as_vhd = bytes.rchunks(512).next().is_some_and(|last| last.starts_with(VHD_FOOTER));
        filled = from.fill(&mut chunk)?.len();
    }
    into.set_len(at)?;
    Ok(Poured { bytes: at, ends_as_vhd })
}

/// The result of unpacking a layer.
struct Poured {
    bytes: u64,
    ends_as_vhd: bool,
}

impl Poured {
    /// Its bytes, if they are those of a disk.
    fn disk_bytes(&self) -> Result<u64, DecodeError> {
        if self.ends_as_vhd { Err(fixed_vhd()) } else { Ok(self.bytes) }
    }
}

/// Fails if a disk of so many bytes is more than there may be.
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

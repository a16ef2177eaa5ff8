//! The compression around an image: gzip, xz, zstd, bzip2, or none.
//!
//! The decoder unpacks the published file with it. All members, frames or streams are concatenated,
//! as in the format's own tool. It must never accept a truncated or corrupt file as whole, need
//! more memory than the packer's usual options, or read without progress reports.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    fmt,
    fs::File,
    io::{self, BufRead, Read},
    ops::{ControlFlow, Range},
    os::unix::fs::FileExt as _,
};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use liblzma::{
    bufread::XzDecoder,
    stream::{CONCATENATED, Error as XzError, Stream, TELL_UNSUPPORTED_CHECK},
};
use zstd::stream::read::Decoder as ZstdDecoder;

use super::DecodeError;
use crate::model::size::show_bytes;

/// Bytes read at once: few calls, and frequent heartbeats.
const INPUT_BYTES: usize = 256 << 10;

/// Most memory of xz: twice that of its strongest preset, `-9`.
const XZ_MEMORY_BYTES_MAX: u64 = 128 << 20;

/// Largest zstd window: zstd's default limit, which `--ultra -22` and `--long` do not exceed (RFC
/// 8878, 3.1.1.1.2).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The compression of a packed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// RFC 1952.
    Gzip,
    /// The .xz file format 1.2.
    Xz,
    /// RFC 8878.
    Zstd,
    /// bzip2 1.0.
    Bzip2,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// Reports the progress in the published file, from any layer that knows it.
pub(super) struct Ticker<'a> {
    tell: RefCell<&'a mut dyn FnMut(u64) -> ControlFlow<()>>,
    at: Cell<u64>,
}

/// The error by which a cancellation passes through the decoders.
#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
struct Stop;

impl<'a> Ticker<'a> {
    pub(super) fn new(tell: &'a mut dyn FnMut(u64) -> ControlFlow<()>) -> Self {
        Self { tell: RefCell::new(tell), at: Cell::new(0) }
    }

    /// Reports the bytes read of the published file.
    pub(super) fn at(&self, bytes: u64) -> Result<(), DecodeError> {
        self.at.set(self.at.get().max(bytes));
        self.still_there()
    }

    /// Reports work without progress in the published file.
    pub(super) fn still_there(&self) -> Result<(), DecodeError> {
        match (self.tell.borrow_mut())(self.at.get()) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(DecodeError::Cancelled),
        }
    }
}

/// Unpacks the published file from beginning to end.
pub(super) struct Unpacked<'a> {
    packing: Option<Packing>,
    bytes: Box<dyn Read + 'a>,
    /// Bytes unpacked so far.
    at: u64,
}

impl<'a> Unpacked<'a> {
    /// Opens the file. Reads nothing yet, except gzip's header.
    pub(super) fn new(
        published: &'a File,
        packing: Option<Packing>,
        ticker: &'a Ticker<'a>,
    ) -> Result<Self, DecodeError> {
        let input = Input { published, ticker, at: 0, buffer: vec![0; INPUT_BYTES], unread: 0..0 };
        let bytes: Box<dyn Read + 'a> = match packing {
            None => Box::new(input),
            Some(Packing::Gzip) => Box::new(Members(Some(GzDecoder::begin(input)))),
            Some(Packing::Xz) => {
                let flags = CONCATENATED | TELL_UNSUPPORTED_CHECK;
                let stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, flags);
                Box::new(XzDecoder::new_stream(input, stream.map_err(io::Error::from)?))
            }
            Some(Packing::Zstd) => {
                let mut decoder = ZstdDecoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            Some(Packing::Bzip2) => Box::new(Members(Some(BzDecoder::begin(input)))),
        };
        Ok(Self { packing, bytes, at: 0 })
    }

    /// Fills the buffer; a shorter result is the end.
    pub(super) fn fill<'b>(&mut self, buffer: &'b mut [u8]) -> Result<&'b [u8], DecodeError> {
        let mut filled = 0;
        while let Some(empty) = buffer.get_mut(filled..).filter(|empty| !empty.is_empty()) {
            let bytes = self.bytes.read(empty).map_err(|error| self.explain(error))?;
            if bytes == 0 {
                break;
            }
            filled += bytes;
            self.at += bytes as u64;
        }
        Ok(buffer.get(..filled).unwrap_or_default())
    }

    fn explain(&self, error: io::Error) -> DecodeError {
        if error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<Stop>) {
            return DecodeError::Cancelled;
        }
        let Some(packing) = self.packing.filter(|_| error.raw_os_error().is_none()) else {
            return DecodeError::Io(error);
        };
        let xz = error.get_ref().and_then(|inner| inner.downcast_ref::<XzError>());
        let why = if error.kind() == io::ErrorKind::UnexpectedEof {
            "it is cut short".to_owned()
        } else if xz == Some(&XzError::MemLimit) {
            let most = show_bytes(XZ_MEMORY_BYTES_MAX);
            format!("it needs more than {most} of memory; pack it with -9 or less")
        } else if packing == Packing::Zstd && error.to_string().contains("too much memory") {
            format!("its window is too large; pack it with --long={ZSTD_WINDOW_LOG_MAX} or less")
        } else {
            error.to_string().to_lowercase()
        };
        DecodeError::Unusable(format!(
            "{packing} cannot be unpacked after its first {}: {why}",
            show_bytes(self.at)
        ))
    }
}

/// The published file, with a progress report for each read.
struct Input<'a> {
    published: &'a File,
    ticker: &'a Ticker<'a>,
    at: u64,
    buffer: Vec<u8>,
    unread: Range<usize>,
}

impl Input<'_> {
    /// The offset of the first unconsumed byte.
    fn taken_bytes(&self) -> u64 {
        self.at.saturating_sub(self.unread.len() as u64)
    }

    /// The number of unconsumed bytes.
    fn left_bytes(&self) -> io::Result<u64> {
        Ok(self.published.metadata()?.len().saturating_sub(self.taken_bytes()))
    }

    /// Whether the unconsumed bytes begin with `magic`, or are a part of it, cut short.
    fn begins_with(&self, magic: &[u8]) -> io::Result<bool> {
        let mut head = [0; 4];
        let head = head.get_mut(..magic.len()).unwrap_or_default();
        let bytes = self.published.read_at(head, self.taken_bytes())?;
        Ok(bytes > 0 && magic.starts_with(head.get(..bytes).unwrap_or_default()))
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.unread.is_empty() {
            self.ticker.at(self.at).map_err(|_| io::Error::other(Stop))?;
            let bytes = self.published.read_at(&mut self.buffer, self.at)?;
            self.at += bytes as u64;
            self.unread = 0..bytes;
        }
        Ok(self.buffer.get(self.unread.clone()).unwrap_or_default())
    }

    fn consume(&mut self, bytes: usize) {
        self.unread.start += bytes;
    }
}

impl Read for Input<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?.read(into)?;
        self.consume(bytes);
        Ok(bytes)
    }
}

/// A member of a file of one or several.
trait Member<'a>: Read {
    /// Magic bytes of each stream.
    const MAGIC: &'static [u8];

    /// Starts to read the member at the input's position.
    fn begin(input: Input<'a>) -> Self;

    /// The input after the member, once the member was read.
    fn into_rest(self) -> Input<'a>;
}

impl<'a> Member<'a> for GzDecoder<Input<'a>> {
    const MAGIC: &'static [u8] = b"\x1f\x8b";

    fn begin(input: Input<'a>) -> Self {
        Self::new(input)
    }

    fn into_rest(self) -> Input<'a> {
        self.into_inner()
    }
}

impl<'a> Member<'a> for BzDecoder<Input<'a>> {
    const MAGIC: &'static [u8] = b"BZh";

    fn begin(input: Input<'a>) -> Self {
        Self::new(input)
    }

    fn into_rest(self) -> Input<'a> {
        self.into_inner()
    }
}

/// Reads the members of a file one after the other. Other bytes end the sequence, as in gunzip and
/// bunzip2: padding, and `OpenWrt`'s metadata after its images. The digest was compared over the
/// whole file, so that no member is lost.
struct Members<M>(Option<M>);

impl<'a, M: Member<'a>> Read for Members<M> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let bytes = member.read(into)?;
            if bytes > 0 {
                return Ok(bytes);
            }
            let rest = self.0.take().map(M::into_rest);
            let left = rest.as_ref().map_or(Ok(0), Input::left_bytes)?;
            let begins = |rest: &Input<'_>| rest.begins_with(M::MAGIC);
            if rest.as_ref().map_or(Ok(false), begins)? {
                self.0 = rest.map(M::begin);
            } else if left > 0 {
                tracing::info!(bytes = left, "bytes after the last member of an image are ignored");
            }
        }
        Ok(0)
    }
}

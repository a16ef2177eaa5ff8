//! PDUs on a byte stream, RFC 7143 §11.1: lengths, padding and CRC32C digests.
//!
//! The connection uses it. It checks a digest before it uses the bytes, and reads no more than the
//! declared length. Neither direction copies data in user space: it is read into its final buffer,
//! and written from the caller's.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};

use super::{
    error::{DigestOf, IscsiErrorKind},
    negotiate::{Digests, MAX_RECV_BYTES},
    pdu::{self, BHS_BYTES, Bhs, Pdu},
};

/// Size of the read-ahead buffer: small enough that a large data segment bypasses it, large enough
/// for many responses at once.
const READ_AHEAD_BYTES: usize = 16 << 10;
/// Bytes of one batch of PDUs: enough for cheap system calls, few enough that the answer to a
/// NOP-In does not wait long.
const BATCH_BYTES: usize = 512 << 10;
/// Most slices of one system call; each PDU has up to three.
const SLICES_MAX: usize = 192;
/// Bytes of a digest, and of a padding word.
const WORD_BYTES: usize = 4;
/// Capacity for a header with padding and digests.
const FRAME_BYTES_MAX: usize = 64;

/// Reads PDUs from a stream.
#[derive(Debug)]
pub(super) struct PduReader<R> {
    stream: BufReader<R>,
    digests: Digests,
}

impl<R: AsyncRead + Unpin> PduReader<R> {
    /// A reader without digests, as during the login.
    pub(super) fn new(stream: R) -> Self {
        let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
        Self { stream, digests: Digests::default() }
    }

    /// Switches to the negotiated digests.
    pub(super) fn use_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Reads the header of the next PDU; the caller must read its data before the next header.
    pub(super) async fn header(&mut self) -> Result<Bhs, IscsiErrorKind> {
        let mut bhs = [0; BHS_BYTES];
        self.stream.read_exact(&mut bhs).await.map_err(|e| gone(&e))?;
        if self.digests.header {
            let digest = self.stream.read_u32_le().await.map_err(|e| gone(&e))?;
            if digest != crc32c::crc32c(&bhs) {
                return Err(IscsiErrorKind::Digest(DigestOf::Header));
            }
        }
        let (additional, bytes) = pdu::lengths(&bhs);
        if additional > 0 {
            return Err(IscsiErrorKind::Protocol(
                "an additional header segment, which no target sends".to_owned(),
            ));
        }
        if bytes > MAX_RECV_BYTES {
            return Err(IscsiErrorKind::Protocol(format!(
                "a data segment of {bytes} bytes, at most {MAX_RECV_BYTES} declared"
            )));
        }
        Ok(bhs)
    }

    /// Appends the data of the PDU with this header to `to`.
    pub(super) async fn data(
        &mut self,
        bhs: &Bhs,
        to: &mut BytesMut,
    ) -> Result<(), IscsiErrorKind> {
        let bytes = usize::try_from(pdu::lengths(bhs).1).unwrap_or(0);
        if bytes == 0 {
            return Ok(());
        }
        let before = to.len();
        to.reserve(bytes);
        let mut room = (&mut *to).limit(bytes);
        while room.has_remaining_mut() {
            if self.stream.read_buf(&mut room).await.map_err(|e| gone(&e))? == 0 {
                return Err(gone(&std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        let mut padding = [0; WORD_BYTES];
        let short = bytes.next_multiple_of(WORD_BYTES) - bytes;
        let padding = padding.get_mut(..short).unwrap_or_default();
        self.stream.read_exact(padding).await.map_err(|e| gone(&e))?;
        if self.digests.data {
            let digest = self.stream.read_u32_le().await.map_err(|e| gone(&e))?;
            let data = to.get(before..).unwrap_or_default();
            if digest != crc32c::crc32c_append(crc32c::crc32c(data), padding) {
                return Err(IscsiErrorKind::Digest(DigestOf::Data));
            }
        }
        Ok(())
    }
}

/// Gathers PDUs, and sends them with few vectored writes. Their data is not copied.
#[derive(Debug)]
pub(super) struct PduWriter<W> {
    stream: W,
    pieces: VecDeque<Bytes>,
    frames: BytesMut,
    bytes: usize,
    digests: Digests,
}

impl<W: AsyncWrite + Unpin> PduWriter<W> {
    /// A writer without digests, as during the login.
    pub(super) fn new(stream: W) -> Self {
        Self {
            stream,
            pieces: VecDeque::with_capacity(SLICES_MAX),
            frames: BytesMut::new(),
            bytes: 0,
            digests: Digests::default(),
        }
    }

    /// Switches to the negotiated digests.
    pub(super) fn use_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Whether the batch has room for another PDU.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < BATCH_BYTES && self.pieces.len() + 3 <= SLICES_MAX
    }

    /// Whether nothing waits to be sent.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds a PDU to the batch.
    pub(super) fn push(&mut self, pdu: Pdu) {
        if self.frames.capacity() < 2 * FRAME_BYTES_MAX {
            self.frames.reserve(SLICES_MAX * FRAME_BYTES_MAX);
        }
        self.frames.extend_from_slice(&pdu.bhs);
        if self.digests.header {
            self.frames.extend_from_slice(&crc32c::crc32c(&pdu.bhs).to_le_bytes());
        }
        self.push_piece_of_frames();
        if pdu.data.is_empty() {
            return;
        }
        let short = pdu.data.len().next_multiple_of(WORD_BYTES) - pdu.data.len();
        let padding = [0; WORD_BYTES];
        let padding = padding.get(..short).unwrap_or_default();
        self.frames.extend_from_slice(padding);
        if self.digests.data {
            let digest = crc32c::crc32c_append(crc32c::crc32c(&pdu.data), padding);
            self.frames.extend_from_slice(&digest.to_le_bytes());
        }
        self.bytes += pdu.data.len();
        self.pieces.push_back(pdu.data);
        self.push_piece_of_frames();
    }

    fn push_piece_of_frames(&mut self) {
        if !self.frames.is_empty() {
            self.bytes += self.frames.len();
            self.pieces.push_back(self.frames.split().freeze());
        }
    }

    /// Sends the whole batch. Not safe to cancel: the number of sent bytes is then unknown.
    pub(super) async fn flush(&mut self) -> Result<(), IscsiErrorKind> {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.pieces.len().min(SLICES_MAX);
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(piece);
            }
            let slices = slices.get(..count).unwrap_or_default();
            let written = self.stream.write_vectored(slices).await.map_err(|e| gone(&e))?;
            if written == 0 {
                return Err(IscsiErrorKind::TargetGone("it takes no more bytes".to_owned()));
            }
            self.advance(written);
        }
        self.bytes = 0;
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
    }
}

fn gone(error: &std::io::Error) -> IscsiErrorKind {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        IscsiErrorKind::TargetGone("closed by the target".to_owned())
    } else {
        IscsiErrorKind::TargetGone(error.to_string())
    }
}

#[cfg(test)]
mod tests;

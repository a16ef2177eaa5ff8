//! A file as an answer's body: read in pieces, the next when the client has taken the one before.
//!
//! Made by the server for each answer, polled by hyper. However its connection ends, what became of the file is told once. It must never
//! hold more than one piece.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    fs::File,
    io::{AsyncRead as _, ReadBuf},
};

use super::super::{
    evidence::{Asked, Ended},
    files::Opened,
    shelf::Shelf,
};
use crate::places::Kept;

/// Read at once, in bytes: large enough that a gigabit needs two thousand reads a second, and 256 connections hold 16 MiB.
const PIECE_BYTES: usize = 64 << 10;

/// Whom and of what to tell at the end.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) shelf: Arc<Shelf>,
    pub(super) peer: IpAddr,
    pub(super) asked: Asked,
    pub(super) path: String,
    pub(super) began: Instant,
    /// The connection's place, while its file is sent.
    pub(super) _kept: Kept,
}

/// The body.
#[derive(Debug)]
pub(super) struct FileBody {
    file: File,
    bytes: u64,
    sent_bytes: u64,
    piece: Vec<u8>,
    /// Counts what moves.
    pulse: Arc<AtomicU64>,
    told: Option<Told>,
}

impl FileBody {
    pub(super) fn new(file: Opened, told: Told, pulse: Arc<AtomicU64>) -> Self {
        Self {
            bytes: file.bytes,
            file: File::from_std(file.into_file()),
            sent_bytes: 0,
            piece: vec![0; PIECE_BYTES],
            pulse,
            told: Some(told),
        }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let left = this.bytes - this.sent_bytes;
        if left == 0 {
            return Poll::Ready(None);
        }
        let wanted = usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        this.piece.truncate(wanted);
        let mut space = ReadBuf::new(&mut this.piece);
        ready!(Pin::new(&mut this.file).poll_read(context, &mut space))?;
        let read = Bytes::copy_from_slice(space.filled());
        if read.is_empty() {
            // The client learns it from the length it was told.
            return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
        }
        this.sent_bytes += read.len() as u64;
        this.pulse.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(read))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent_bytes == self.bytes
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes - self.sent_bytes)
    }
}

/// hyper lets go of a body once all of it is on its way, or with its connection. What is then still in the system's buffers counts as
/// sent: no server can know better before the client asks for the next file.
impl Drop for FileBody {
    fn drop(&mut self) {
        let Some(Told { shelf, peer, asked, path, began, _kept }) = self.told.take() else {
            return;
        };
        let (sent_bytes, complete) = (self.sent_bytes, self.is_end_stream());
        let took_ms = began.elapsed().as_millis();
        if complete {
            tracing::info!(%peer, ?path, sent_bytes, took_ms, "HTTP file sent");
        } else {
            tracing::info!(%peer, ?path, sent_bytes, took_ms, "HTTP file not sent");
        }
        shelf.ended(peer, asked, Ended { path, sent_bytes, complete }, began);
    }
}

//! A file as a response's body, read in pieces: each when the client has taken the one before.
//!
//! The server makes one for each response, and hyper polls it. The end of the fetch is reported
//! once, however its connection ends. It must never hold more than one piece.

use std::{
    io::{self, Seek as _, SeekFrom},
    net::IpAddr,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    fs::File,
    io::{AsyncRead as _, ReadBuf},
};

use super::{
    super::{
        catalog::BootFileCatalog,
        evidence::{Ended, FetchKind},
        files::Opened,
    },
    activity::ConnectionActivity,
};
use crate::listener::Protection;

/// Bytes read at once: large enough that a gigabit needs two thousand reads a second, and 256
/// connections hold 16 MiB.
const PIECE_BYTES: usize = 64 << 10;

/// The report to make when the response ends.
#[derive(Debug)]
pub(super) struct SendReport {
    pub(super) catalog: Arc<BootFileCatalog>,
    pub(super) peer: IpAddr,
    pub(super) kind: FetchKind,
    pub(super) path: String,
    pub(super) began: Instant,
    /// Keeps the connection from being evicted while its file is sent.
    pub(super) protection: Protection,
}

#[derive(Debug)]
pub(super) struct FileBody {
    file: File,
    /// The end of the wanted bytes in the file.
    end: u64,
    /// The next byte to read in the file.
    at: u64,
    piece: Vec<u8>,
    activity: Arc<ConnectionActivity>,
    report: Option<SendReport>,
}

impl FileBody {
    /// Makes a body of a range of the file.
    pub(super) fn new(
        file: Opened,
        bytes: Range<u64>,
        report: SendReport,
        activity: Arc<ConnectionActivity>,
    ) -> io::Result<Self> {
        let mut file = file.into_file();
        file.seek(SeekFrom::Start(bytes.start))?;
        Ok(Self {
            file: File::from_std(file),
            end: bytes.end,
            at: bytes.start,
            piece: vec![0; PIECE_BYTES],
            activity,
            report: Some(report),
        })
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
        let left = this.end - this.at;
        if left == 0 {
            return Poll::Ready(None);
        }
        let wanted = usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        this.piece.truncate(wanted);
        let mut space = ReadBuf::new(&mut this.piece);
        ready!(Pin::new(&mut this.file).poll_read(context, &mut space))?;
        let read = Bytes::copy_from_slice(space.filled());
        if read.is_empty() {
            // The client detects it by the length in the head.
            return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
        }
        this.at += read.len() as u64;
        this.activity.note();
        if let Some(report) = &this.report {
            report.protection.note_progress();
        }
        Poll::Ready(Some(Ok(Frame::data(read))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.at)
    }
}

/// hyper drops a body once all of it was sent, or with its connection. Bytes still in the system's
/// buffers count as sent: no server can know better before the client requests the next file.
impl Drop for FileBody {
    fn drop(&mut self) {
        let Some(SendReport { catalog, peer, kind, path, began, protection: _ended }) =
            self.report.take()
        else {
            return;
        };
        // A boot loader that skips a part of a file requests its end.
        let (sent_bytes, complete) = (self.at, self.is_end_stream());
        let took_ms = began.elapsed().as_millis();
        if complete {
            tracing::info!(%peer, ?path, sent_bytes, took_ms, "HTTP file sent");
        } else {
            tracing::info!(%peer, ?path, sent_bytes, took_ms, "HTTP file not sent");
        }
        catalog.ended(peer, kind, Ended { path, sent_bytes, complete }, began);
    }
}

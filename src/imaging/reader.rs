//! Reads a plan's bytes ahead in the order of the disk, on a separate thread.
//!
//! Every pass over the disk uses it. It must never hold more than the buffers of its pool, and it
//! ends when its receiver is dropped.

use std::{ops::Range, sync::mpsc::SyncSender};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    Content, ImageFile, ImagingError, buffer_pool::BufferPool, in_flight::ended, plan::Plan, zeros,
};

/// Bytes of one command: a multiple of every block size. Larger ones measured no faster, and most
/// targets take this much in one command.
pub(super) const CHUNK_BYTES: u64 = 512 << 10;
/// Buffers of one chunk each for data read ahead and in flight, together 8 MiB. They fill a 10
/// Gbit/s link over several milliseconds, and four writes stay below 64 MiB, also when each reads
/// back as much.
pub(super) const BUFFERS: usize = 16;
/// Most zeros of one piece: few commands, and still visible progress of a target that writes them.
const ZERO_RUN_BYTES: u64 = 16 << 20;

/// A run of whole blocks on the disk.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) at: u64,
    pub(super) filling: Filling,
}

#[derive(Clone, Debug)]
pub(super) enum Filling {
    Data(Bytes),
    Zeros(u64),
}

impl Piece {
    pub(super) fn end(&self) -> u64 {
        self.at + self.bytes()
    }

    pub(super) fn bytes(&self) -> u64 {
        match &self.filling {
            Filling::Data(data) => data.len() as u64,
            Filling::Zeros(bytes) => *bytes,
        }
    }

    /// Bytes that a write of the piece sends.
    pub(super) fn data_bytes(&self) -> u64 {
        match &self.filling {
            Filling::Data(data) => data.len() as u64,
            Filling::Zeros(_) => 0,
        }
    }
}

/// The purpose of a read.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// A write: the reader finds runs of zeros in the data, and joins them. The channel hashes
    /// every piece.
    Write(Option<SyncSender<Piece>>),
    /// A comparison, chunk by chunk.
    Compare,
}

/// The receiver of the reader's pieces.
#[derive(Debug)]
pub(super) struct Pieces {
    pieces: mpsc::Receiver<Piece>,
    thread: JoinHandle<Result<(), ImagingError>>,
}

impl Pieces {
    /// The next piece; `None` after the last one. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, ImagingError> {
        match self.pieces.recv().await {
            Some(piece) => Ok(Some(piece)),
            None => ended((&mut self.thread).await).map(|()| None),
        }
    }
}

/// Reads the plan in a part of the disk.
pub(super) fn read_ahead(plan: Plan, window: Range<u64>, purpose: Purpose) -> Pieces {
    let (sender, pieces) = mpsc::channel(BUFFERS);
    let thread = tokio::task::spawn_blocking(move || {
        let (finds_zeros, zero_bytes_max, hasher) = match purpose {
            Purpose::Write(hasher) => (true, ZERO_RUN_BYTES, hasher),
            Purpose::Compare => (false, CHUNK_BYTES, None),
        };
        let emit = |piece: Piece| {
            if let Some(hasher) = &hasher {
                // The receiver is gone once it has seen all bytes, while the write may repeat some.
                drop(hasher.send(piece.clone()));
            }
            sender.blocking_send(piece).map_err(|_| Ended::Unwanted)
        };
        let mut walk = Walk { emit, zeros: 0..0, zero_bytes_max, finds_zeros };
        match walk.walk(&plan, &window) {
            Err(Ended::Failed(error)) => Err(error),
            Ok(()) | Err(Ended::Unwanted) => Ok(()),
        }
    });
    Pieces { pieces, thread }
}

/// Reads a small part of the plan at once, with zeros in its gaps; `None` if the plan has no bytes
/// there.
pub(super) async fn read_whole(
    plan: Plan,
    window: Range<u64>,
) -> Result<Option<Bytes>, ImagingError> {
    if plan.segments_in(&window).next().is_none() {
        return Ok(None);
    }
    let mut whole = vec![0; usize::try_from(window.end - window.start).unwrap_or_default()];
    let mut pieces = read_ahead(plan, window.clone(), Purpose::Compare);
    while let Some(piece) = pieces.next().await? {
        let from = usize::try_from(piece.at - window.start).unwrap_or(usize::MAX);
        if let Filling::Data(data) = piece.filling
            && let Some(place) = whole.get_mut(from..).and_then(|rest| rest.get_mut(..data.len()))
        {
            place.copy_from_slice(&data);
        }
    }
    Ok(Some(whole.into()))
}

/// The reason for an early end of the reader.
enum Ended {
    Unwanted,
    Failed(ImagingError),
}

impl From<ImagingError> for Ended {
    fn from(error: ImagingError) -> Self {
        Self::Failed(error)
    }
}

struct Walk<F> {
    emit: F,
    /// Zeros that were not sent yet, because more may follow.
    zeros: Range<u64>,
    zero_bytes_max: u64,
    finds_zeros: bool,
}

impl<F: FnMut(Piece) -> Result<(), Ended>> Walk<F> {
    fn walk(&mut self, plan: &Plan, window: &Range<u64>) -> Result<(), Ended> {
        let mut pool = BufferPool::new(BUFFERS, usize::try_from(CHUNK_BYTES).unwrap_or_default());
        for (segment, part) in plan.segments_in(window) {
            match &segment.content {
                Content::Zeros(_) => self.zeros(part)?,
                Content::Made(made) => self.made(made, segment.at, part)?,
                Content::File { file, offset, bytes } => {
                    let source = Source {
                        file,
                        offset: *offset,
                        at: segment.at,
                        end: segment.at + bytes,
                        block_bytes: plan.block_bytes(),
                    };
                    self.file(&source, part, &mut pool)?;
                }
            }
        }
        self.hand_over_zeros()
    }

    fn file(
        &mut self,
        source: &Source<'_>,
        part: Range<u64>,
        pool: &mut BufferPool,
    ) -> Result<(), Ended> {
        let (mut at, mut data_end) = (part.start, part.start);
        while at < part.end {
            if at >= data_end {
                let zeros_end = source.hole_end(at)?.min(part.end);
                if zeros_end > at {
                    self.zeros(at..zeros_end)?;
                    at = zeros_end;
                    continue;
                }
                data_end = source.data_end(at)?;
            }
            let chunk = at..chunk_end(at).min(data_end).min(part.end);
            let mut buffer = pool.take(length(&chunk));
            source.read(&chunk, buffer.as_mut())?;
            self.data(at, &buffer.freeze())?;
            at = chunk.end;
        }
        Ok(())
    }

    /// Sends bytes in memory, the last block padded with zeros.
    fn made(&mut self, made: &Bytes, first: u64, part: Range<u64>) -> Result<(), Ended> {
        let mut at = part.start;
        while at < part.end {
            let chunk = at..chunk_end(at).min(part.end);
            let from = usize::try_from(at - first).unwrap_or(usize::MAX).min(made.len());
            let to = made.len().min(from + length(&chunk));
            let mut data = made.slice(from..to);
            if data.len() < length(&chunk) {
                let mut padded = data.to_vec();
                padded.resize(length(&chunk), 0);
                data = padded.into();
            }
            self.data(at, &data)?;
            at = chunk.end;
        }
        Ok(())
    }

    fn data(&mut self, at: u64, data: &Bytes) -> Result<(), Ended> {
        if !self.finds_zeros {
            self.hand_over_zeros()?;
            return (self.emit)(Piece { at, filling: Filling::Data(data.clone()) });
        }
        for (run, zero) in zeros::runs(data) {
            let from = at + run.start as u64;
            if zero {
                self.zeros(from..from + run.len() as u64)?;
            } else {
                self.hand_over_zeros()?;
                (self.emit)(Piece { at: from, filling: Filling::Data(data.slice(run)) })?;
            }
        }
        Ok(())
    }

    fn zeros(&mut self, range: Range<u64>) -> Result<(), Ended> {
        if self.zeros.end != range.start {
            self.hand_over_zeros()?;
            self.zeros.start = range.start;
        }
        self.zeros.end = range.end;
        while self.zeros.end - self.zeros.start > self.zero_bytes_max {
            let at = self.zeros.start;
            self.zeros.start += self.zero_bytes_max;
            (self.emit)(Piece { at, filling: Filling::Zeros(self.zero_bytes_max) })?;
        }
        Ok(())
    }

    fn hand_over_zeros(&mut self) -> Result<(), Ended> {
        let zeros = std::mem::replace(&mut self.zeros, 0..0);
        if zeros.is_empty() {
            return Ok(());
        }
        let filling = Filling::Zeros(zeros.end - zeros.start);
        (self.emit)(Piece { at: zeros.start, filling })
    }
}

/// A file's part in a layout, addressed as on the disk.
struct Source<'a> {
    file: &'a ImageFile,
    /// Offset of the segment in the file.
    offset: u64,
    /// Offset of the segment on the disk.
    at: u64,
    /// End of the segment's bytes on the disk.
    end: u64,
    block_bytes: u64,
}

impl Source<'_> {
    fn in_file(&self, at: u64) -> u64 {
        self.offset + (at - self.at)
    }

    fn on_disk(&self, in_file: u64) -> u64 {
        self.at + in_file.saturating_sub(self.offset)
    }

    /// End of the whole blocks of a hole that begins at `at`; `at` itself if there are none.
    fn hole_end(&self, at: u64) -> Result<u64, ImagingError> {
        let end = self.on_disk(self.file.data_from(self.in_file(at))?);
        // Zeros follow the segment's bytes.
        Ok(if end >= self.end { u64::MAX } else { end - end % self.block_bytes })
    }

    /// End of the blocks with data; `at` is in the first of them.
    fn data_end(&self, at: u64) -> Result<u64, ImagingError> {
        let end = self.on_disk(self.file.hole_from(self.in_file(at))?);
        Ok(end.max(at + 1).next_multiple_of(self.block_bytes))
    }

    fn read(&self, chunk: &Range<u64>, buffer: &mut [u8]) -> Result<(), ImagingError> {
        let bytes = length(&(chunk.start..chunk.end.min(self.end)));
        let (bytes, padding) = buffer.split_at_mut(bytes.min(buffer.len()));
        self.file.read(self.in_file(chunk.start), bytes)?;
        padding.fill(0);
        Ok(())
    }
}

/// End of the chunk of `at`. Commands end with chunks of the disk, so that they fit stripes, erase
/// blocks and pages.
fn chunk_end(at: u64) -> u64 {
    (at / CHUNK_BYTES + 1) * CHUNK_BYTES
}

/// Length of a chunk, which fits a buffer.
fn length(chunk: &Range<u64>) -> usize {
    usize::try_from(chunk.end.saturating_sub(chunk.start)).unwrap_or_default()
}

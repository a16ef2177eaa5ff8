//! Hashes and writes a fetched file on a separate thread.
//!
//! Sources feed it piece by piece. It must never write after a timely return of [`Sink::stop`], nor
//! block the runtime.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle, spawn_blocking},
    time::timeout,
};

use super::{FetchError, Hash};
use crate::{
    model::ids::{Digest, DigestAlgorithm},
    progress::Watch,
};

/// Most pieces that wait for the thread. A connection's pieces have at most 400 KiB, a file's 1
/// MiB.
const PIECES_WAITING_MAX: usize = 8;

/// Bytes between two polls of the stop signal: half a second on a processor without SHA-256
/// instructions.
pub(super) const PIECE_BYTES_MAX: u64 = 64 << 20;

/// Time limit for the end of a stopped thread. Only a hanging disk exceeds it.
const STOP_LIMIT: Duration = Duration::from_millis(800);

/// Granularity of holes: a file system's usual block.
const BLOCK_BYTES: usize = 4096;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The next piece of the file.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes of the file.
    Data(Bytes),
    /// A run of zeros, at most [`PIECE_BYTES_MAX`].
    Zeros(u64),
    /// A run of bytes already in the file, at most [`PIECE_BYTES_MAX`].
    Known(u64),
    /// The file begins again; earlier pieces are void.
    Restart,
}

/// A file during its fetch.
#[derive(Debug)]
pub(super) struct Sink {
    pieces: mpsc::Sender<Piece>,
    worker: JoinHandle<io::Result<Digest>>,
    stop: Arc<AtomicBool>,
    bytes: u64,
}

impl Sink {
    /// Starts the thread. `into` keeps its first `known_bytes`, which must come first as
    /// [`Piece::Known`], and no others.
    pub(super) fn new(into: &Arc<File>, known_bytes: u64, algorithm: DigestAlgorithm) -> Self {
        let (pieces, waiting) = mpsc::channel(PIECES_WAITING_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let (into, stopped) = (Arc::clone(into), Arc::clone(&stop));
        let worker = spawn_blocking(move || fill(&into, known_bytes, algorithm, waiting, &stopped));
        Self { pieces, worker, stop, bytes: 0 }
    }

    /// Bytes put so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds the next piece, as soon as there is room for it.
    pub(super) async fn put(&mut self, piece: Piece, watch: &Watch<'_>) -> Result<(), FetchError> {
        let bytes = match &piece {
            Piece::Data(bytes) => bytes.len() as u64,
            Piece::Zeros(bytes) | Piece::Known(bytes) => *bytes,
            Piece::Restart => 0,
        };
        self.bytes = if matches!(piece, Piece::Restart) { 0 } else { self.bytes + bytes };
        if watch.step(self.pieces.send(piece)).await?.is_err() {
            // The thread ends before its channel only because of an error.
            watch.step(&mut self.worker).await?.map_err(died)?.map_err(FetchError::Keep)?;
        }
        Ok(())
    }

    /// Ends the file and returns its digest.
    pub(super) async fn finish(&mut self, watch: &Watch<'_>) -> Result<Digest, FetchError> {
        // Dropping the sender ends the thread's work.
        self.pieces = mpsc::channel(1).0;
        watch.step(&mut self.worker).await?.map_err(died)?.map_err(FetchError::Keep)
    }

    /// Stops the thread without finishing the file.
    pub(super) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.pieces = mpsc::channel(1).0;
        if !self.worker.is_finished() {
            drop(timeout(STOP_LIMIT, &mut self.worker).await);
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn died(error: JoinError) -> FetchError {
    FetchError::Keep(io::Error::other(error))
}

/// Runs the thread's work until the pieces end or it is stopped.
fn fill(
    into: &File,
    known_bytes: u64,
    algorithm: DigestAlgorithm,
    mut pieces: mpsc::Receiver<Piece>,
    stop: &AtomicBool,
) -> io::Result<Digest> {
    into.set_len(known_bytes)?;
    let mut hash = Hash::new(algorithm);
    let mut at = 0;
    let mut buffer = Vec::new();
    while let Some(piece) = pieces.blocking_recv() {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match piece {
            Piece::Data(bytes) => {
                hash.update(&bytes);
                write_sparse(into, at, &bytes)?;
                at += bytes.len() as u64;
            }
            Piece::Zeros(bytes) => {
                each(bytes, ZEROS.len(), |length| {
                    hash.update(ZEROS.get(..length).unwrap_or_default());
                    Ok(())
                })?;
                at += bytes;
            }
            Piece::Known(bytes) => {
                buffer.resize(1 << 20, 0);
                let most = buffer.len();
                each(bytes, most, |length| {
                    let part = buffer.get_mut(..length).unwrap_or_default();
                    into.read_exact_at(part, at)?;
                    hash.update(part);
                    at += length as u64;
                    Ok(())
                })?;
            }
            Piece::Restart => {
                into.set_len(0)?;
                hash = Hash::new(algorithm);
                at = 0;
            }
        }
    }
    // Zeros at the file's end were only counted so far.
    into.set_len(at)?;
    Ok(hash.finish())
}

/// Cuts `bytes` into parts of `most`.
fn each(
    mut bytes: u64,
    most: usize,
    mut work: impl FnMut(usize) -> io::Result<()>,
) -> io::Result<()> {
    while bytes > 0 {
        let length = usize::try_from(bytes).unwrap_or(most).min(most);
        work(length)?;
        bytes -= length as u64;
    }
    Ok(())
}

/// Writes bytes without blocks of zeros, to a file that is empty there.
fn write_sparse(into: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    let mut at = at;
    while !rest.is_empty() {
        let zeros = run(rest, at, true);
        let (_, data) = rest.split_at(zeros);
        at += zeros as u64;
        let (data, after) = data.split_at(run(data, at, false));
        if !data.is_empty() {
            into.write_all_at(data, at)?;
        }
        at += data.len() as u64;
        rest = after;
    }
    Ok(())
}

/// Length of the leading blocks that are all zeros, or all not. `bytes` begin at the offset `at`.
fn run(bytes: &[u8], at: u64, zeros: bool) -> usize {
    let mut length = 0;
    while let Some(rest) = bytes.get(length..).filter(|rest| !rest.is_empty()) {
        let in_block = (at + length as u64) % BLOCK_BYTES as u64;
        let block = (BLOCK_BYTES - usize::try_from(in_block).unwrap_or(0)).min(rest.len());
        let is_zero = rest.get(..block).is_some_and(|part| ZEROS.get(..block) == Some(part));
        if is_zero != zeros {
            break;
        }
        length += block;
    }
    length
}

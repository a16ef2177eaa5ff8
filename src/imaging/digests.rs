//! Digests of the disk's ranges, which the machine itself compares.
//!
//! The write computes them from the written bytes, on a separate thread. The bytes must arrive in
//! the order of the disk; repeated bytes are skipped. Each range is shown to the machine as soon as
//! it is hashed and flushed.

use std::{
    ops::Range,
    sync::{
        Arc,
        mpsc::{self, Receiver, SyncSender},
    },
};

use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use super::{
    ImagingError,
    in_flight::ended,
    plan::Plan,
    reader::{Filling, Piece},
    zeros::zeros,
};
use crate::{
    model::{
        callback::{DiskRange, VERIFY_RANGES_MAX},
        ids::{Digest, DigestAlgorithm},
        range_digest::RangeHasher,
    },
    progress::WrittenRanges,
};

/// Most ranges of the disk's body: head and tail have one each.
const BODY_RANGES_MAX: u64 = VERIFY_RANGES_MAX as u64 - 2;
/// Shortest range: few threads read a disk in parallel.
const RANGE_BYTES_MIN: u64 = 16 << 20;
/// Most pieces that wait for the hash: each holds a buffer of the reader's.
const PIECES_WAITING: usize = 4;
/// Most zeros hashed at once.
const ZEROS_AT_ONCE: u64 = 1 << 20;

/// A thread that hashes the body's pieces.
#[derive(Debug)]
pub(super) struct Digests {
    sender: SyncSender<Piece>,
    ranges: Arc<WrittenRanges>,
    hashing: JoinHandle<()>,
}

impl Digests {
    /// Starts the thread. `None` if the body has more runs than ranges are allowed; then the disk
    /// must be read back.
    pub(super) fn start(plan: &Plan, salt: Option<u32>) -> Option<Self> {
        let cut = cut(plan.runs_in(&plan.body()))?;
        let (sender, pieces) = mpsc::sync_channel(PIECES_WAITING);
        let ranges = Arc::<WrittenRanges>::default();
        let hashing = tokio::task::spawn_blocking({
            let ranges = Arc::clone(&ranges);
            move || hash_all(cut, &pieces, salt, &ranges)
        });
        Some(Self { sender, ranges, hashing })
    }

    /// The body's ranges as they are written.
    pub(super) fn ranges(&self) -> &Arc<WrittenRanges> {
        &self.ranges
    }

    /// The channel for pieces.
    pub(super) fn sender(&self) -> SyncSender<Piece> {
        self.sender.clone()
    }

    /// Waits for the end of the input, and returns the digests of all complete ranges.
    pub(super) async fn finish(self) -> Result<Vec<DiskRange>, ImagingError> {
        drop(self.sender);
        ended(self.hashing.await.map(Ok))?;
        Ok(self.ranges.hashed())
    }
}

/// The digest of bytes in memory.
pub(super) fn digest_of(from: u64, data: &[u8]) -> Option<DiskRange> {
    let digest = Digest::from_bytes(DigestAlgorithm::Sha256, &Sha256::digest(data))?;
    Some(DiskRange { from, bytes: data.len() as u64, digest, salt: None })
}

/// Cuts runs into ranges of similar length, as many as are allowed.
fn cut(runs: Vec<Range<u64>>) -> Option<Vec<Range<u64>>> {
    let spare = BODY_RANGES_MAX.checked_sub(runs.len() as u64)?;
    let bytes: u64 = runs.iter().map(|run| run.end - run.start).sum();
    // Each run has at most one range that is shorter than this.
    let step = bytes.div_ceil(spare.max(1)).next_multiple_of(RANGE_BYTES_MIN);
    let step = if spare == 0 { u64::MAX } else { step.max(RANGE_BYTES_MIN) };
    let ranges = runs.into_iter().flat_map(|run| {
        let starts = std::iter::successors(Some(run.start), move |at| at.checked_add(step));
        let ranges = starts.take_while(move |at| *at < run.end);
        ranges.map(move |at| at..run.end.min(at.saturating_add(step)))
    });
    Some(ranges.collect())
}

fn hash_all(
    ranges: Vec<Range<u64>>,
    pieces: &Receiver<Piece>,
    salt: Option<u32>,
    done: &WrittenRanges,
) {
    let mut rest = ranges.into_iter();
    let Some(mut range) = rest.next() else { return };
    let (mut at, mut hasher) = (range.start, Hasher::new(salt));
    for piece in pieces {
        while at < piece.end() {
            let until = range.end.min(piece.end());
            hasher.feed(&piece, at..until);
            at = until;
            if at == range.end {
                let (from, bytes) = (range.start, range.end - range.start);
                if let Some(digest) = std::mem::replace(&mut hasher, Hasher::new(salt)).finish() {
                    done.add(DiskRange { from, bytes, digest, salt });
                }
                let Some(next) = rest.next() else { return };
                range = next;
                at = range.start;
            }
        }
    }
}

/// The hash of one range.
enum Hasher {
    /// All bytes in a row, for a ramdisk that knows no other.
    Plain(Sha256),
    Chunked(RangeHasher),
}

impl Hasher {
    fn new(salt: Option<u32>) -> Self {
        match salt {
            None => Self::Plain(Sha256::new()),
            Some(salt) => Self::Chunked(RangeHasher::new(salt)),
        }
    }

    /// Hashes the part of the piece that lies in the range.
    fn feed(&mut self, piece: &Piece, range: Range<u64>) {
        match &piece.filling {
            Filling::Data(data) => {
                let from = usize::try_from(range.start - piece.at).unwrap_or(usize::MAX);
                let to = usize::try_from(range.end - piece.at).unwrap_or(usize::MAX);
                let data = data.get(from..to).unwrap_or_default();
                match self {
                    Self::Plain(hash) => hash.update(data),
                    Self::Chunked(hasher) => hasher.data(data),
                }
            }
            Filling::Zeros(_) => {
                let bytes = range.end - range.start;
                match self {
                    Self::Plain(hash) => hash_zeros(hash, bytes),
                    Self::Chunked(hasher) => hasher.zeros(bytes),
                }
            }
        }
    }

    fn finish(self) -> Option<Digest> {
        match self {
            Self::Plain(hash) => Digest::from_bytes(DigestAlgorithm::Sha256, &hash.finalize()),
            Self::Chunked(hasher) => hasher.finish(),
        }
    }
}

fn hash_zeros(hash: &mut Sha256, mut bytes: u64) {
    while bytes > 0 {
        let step = bytes.min(ZEROS_AT_ONCE);
        hash.update(zeros(usize::try_from(step).unwrap_or_default()));
        bytes -= step;
    }
}

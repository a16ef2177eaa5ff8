//! Digests of the disk's ranges, which the machine itself compares.
//!
//! The write computes them from the written bytes, on a separate thread. The bytes must arrive in
//! the order of the disk; repeated bytes are skipped.

use std::{
    ops::Range,
    sync::mpsc::{self, Receiver, SyncSender},
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
use crate::model::{
    callback::{DiskRange, VERIFY_RANGES_MAX},
    ids::{Digest, DigestAlgorithm},
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
    result: JoinHandle<Vec<DiskRange>>,
}

impl Digests {
    /// Starts the thread. `None` if the body has more runs than ranges are allowed; then the disk
    /// must be read back.
    pub(super) fn start(plan: &Plan) -> Option<Self> {
        let ranges = cut(plan.runs_in(&plan.body()))?;
        let (sender, pieces) = mpsc::sync_channel(PIECES_WAITING);
        let result = tokio::task::spawn_blocking(move || hash_all(ranges, &pieces));
        Some(Self { sender, result })
    }

    /// The channel for pieces.
    pub(super) fn sender(&self) -> SyncSender<Piece> {
        self.sender.clone()
    }

    /// Waits for the end of the input, and returns the digests of all complete ranges.
    pub(super) async fn finish(self) -> Result<Vec<DiskRange>, ImagingError> {
        drop(self.sender);
        ended(self.result.await.map(Ok))
    }
}

/// The digest of bytes in memory.
pub(super) fn digest_of(from: u64, data: &[u8]) -> Option<DiskRange> {
    let digest = Digest::from_bytes(DigestAlgorithm::Sha256, &Sha256::digest(data))?;
    Some(DiskRange { from, bytes: data.len() as u64, digest })
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

fn hash_all(ranges: Vec<Range<u64>>, pieces: &Receiver<Piece>) -> Vec<DiskRange> {
    let mut done = Vec::with_capacity(ranges.len());
    let mut rest = ranges.into_iter();
    let Some(mut range) = rest.next() else { return done };
    let (mut at, mut hash) = (range.start, Sha256::new());
    for piece in pieces {
        while at < piece.end() {
            let until = range.end.min(piece.end());
            feed(&mut hash, &piece, at..until);
            at = until;
            if at == range.end {
                let digest = Digest::from_bytes(DigestAlgorithm::Sha256, &hash.finalize_reset());
                let bytes = range.end - range.start;
                done.extend(digest.map(|digest| DiskRange { from: range.start, bytes, digest }));
                let Some(next) = rest.next() else { return done };
                range = next;
                at = range.start;
            }
        }
    }
    done
}

/// Hashes the part of the piece that lies in the range.
fn feed(hash: &mut Sha256, piece: &Piece, range: Range<u64>) {
    match &piece.filling {
        Filling::Data(data) => {
            let from = usize::try_from(range.start - piece.at).unwrap_or(usize::MAX);
            let to = usize::try_from(range.end - piece.at).unwrap_or(usize::MAX);
            hash.update(data.get(from..to).unwrap_or_default());
        }
        Filling::Zeros(_) => {
            let mut left = range.end - range.start;
            while left > 0 {
                let step = left.min(ZEROS_AT_ONCE);
                hash.update(zeros(usize::try_from(step).unwrap_or_default()));
                left -= step;
            }
        }
    }
}

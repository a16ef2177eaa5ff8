//! The digest of a disk's range that is hashed in chunks.
//!
//! The agent computes it from the bytes that it writes, and the deploy ramdisk from the bytes on
//! its disk. A chunk of zeros has a known digest, so that neither of them hashes it. Pure.

use std::{ops::Range, sync::LazyLock};

use sha2::{Digest as _, Sha256};

use super::ids::{Digest, DigestAlgorithm};

/// Bytes of a chunk. The chunks begin with the range; the last may be shorter.
pub const CHUNK_BYTES: u64 = ZEROS.len() as u64;
/// Bytes compared at once: long enough for the processor's widest loads, short enough to leave
/// early.
const STRIDE_BYTES: usize = 256;

/// Zeros of a whole chunk.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
static ZEROS_HASH: LazyLock<[u8; 32]> = LazyLock::new(|| Sha256::digest(ZEROS).into());

/// Up to [`CHUNK_BYTES`] of zeros.
pub fn zeros(bytes: usize) -> &'static [u8] {
    ZEROS.get(..bytes).unwrap_or(&ZEROS)
}

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let no_one = |stride: &[u8]| stride.iter().fold(0, |all, byte| all | byte) == 0;
    bytes.chunks(STRIDE_BYTES).all(no_one)
}

/// The SHA-256 of a chunk, which costs little if the chunk is whole and all zeros.
pub fn chunk_hash(chunk: &[u8]) -> [u8; 32] {
    if chunk.len() == ZEROS.len() && is_zero(chunk) {
        *ZEROS_HASH
    } else {
        Sha256::digest(chunk).into()
    }
}

/// Hashes a range: the SHA-256 of a salt, in big-endian order, and of the SHA-256 of each chunk.
///
/// The salt belongs to one write of a disk, so that no digest of an earlier write counts for it.
#[derive(Clone, Debug)]
pub struct RangeHasher {
    range: Sha256,
    chunk: Sha256,
    /// Bytes of the current chunk so far.
    chunk_bytes: u64,
}

impl RangeHasher {
    /// Begins a range of the write with this salt.
    pub fn new(salt: u32) -> Self {
        let range = Sha256::new().chain_update(salt.to_be_bytes());
        Self { range, chunk: Sha256::new(), chunk_bytes: 0 }
    }

    /// Continues with data.
    pub fn data(&mut self, mut data: &[u8]) {
        while let Some((now, rest)) = data.split_at_checked(self.rest_of_chunk(data.len() as u64)) {
            if now.is_empty() {
                return;
            }
            self.chunk.update(now);
            self.advance(now.len() as u64);
            data = rest;
        }
    }

    /// Continues with so many zeros.
    pub fn zeros(&mut self, mut bytes: u64) {
        while bytes > 0 {
            if self.chunk_bytes == 0 && bytes >= CHUNK_BYTES {
                self.range.update(*ZEROS_HASH);
                bytes -= CHUNK_BYTES;
                continue;
            }
            let now = zeros(self.rest_of_chunk(bytes));
            self.chunk.update(now);
            self.advance(now.len() as u64);
            bytes -= now.len() as u64;
        }
    }

    /// Continues with a chunk by its hash. The chunk before it must be whole.
    pub fn chunk(&mut self, hash: &[u8; 32]) {
        self.range.update(hash);
    }

    /// Ends the range.
    pub fn finish(mut self) -> Option<Digest> {
        if self.chunk_bytes > 0 {
            self.range.update(self.chunk.finalize());
        }
        Digest::from_bytes(DigestAlgorithm::Sha256, &self.range.finalize())
    }

    /// The part of so many bytes that belongs to the current chunk.
    fn rest_of_chunk(&self, bytes: u64) -> usize {
        usize::try_from(bytes.min(CHUNK_BYTES - self.chunk_bytes)).unwrap_or_default()
    }

    fn advance(&mut self, bytes: u64) {
        self.chunk_bytes += bytes;
        if self.chunk_bytes == CHUNK_BYTES {
            self.range.update(self.chunk.finalize_reset());
            self.chunk_bytes = 0;
        }
    }
}

/// The chunks of a range, in order.
pub fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let starts = std::iter::successors(Some(range.start), |at| at.checked_add(CHUNK_BYTES));
    let starts = starts.take_while(move |at| *at < range.end);
    starts.map(move |at| at..range.end.min(at.saturating_add(CHUNK_BYTES)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The digest by its definition.
    fn defined(salt: u32, bytes: &[u8]) -> Digest {
        let mut all = salt.to_be_bytes().to_vec();
        for chunk in bytes.chunks(ZEROS.len()) {
            all.extend(Sha256::digest(chunk));
        }
        Digest::of(&all)
    }

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        for bytes in [1, 255, 256, 257, 5000] {
            let mut data = vec![0; bytes];
            assert!(is_zero(&data), "{bytes}");
            for at in [0, bytes / 2, bytes - 1] {
                data[at] = 1;
                assert!(!is_zero(&data), "{at} of {bytes}");
                data[at] = 0;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_range_has_the_same_digest_however_it_is_put_together(
            salt: u32,
            // Data, zeros, or zeros as data.
            parts in proptest::collection::vec((0..3_u8, 0..3 * ZEROS.len()), 0..5),
        ) {
            let (mut hasher, mut whole) = (RangeHasher::new(salt), Vec::new());
            for (kind, bytes) in parts {
                let part = vec![u8::from(kind == 0); bytes];
                match kind {
                    1 => hasher.zeros(bytes as u64),
                    _ => hasher.data(&part),
                }
                whole.extend(part);
            }
            let wanted = Some(defined(salt, &whole));
            prop_assert_eq!(hasher.finish(), wanted.clone());
            let mut by_chunk = RangeHasher::new(salt);
            for chunk in chunks(0..whole.len() as u64) {
                let [from, to] = [chunk.start, chunk.end].map(|at| usize::try_from(at).unwrap());
                by_chunk.chunk(&chunk_hash(&whole[from..to]));
            }
            prop_assert_eq!(by_chunk.finish(), wanted.clone());
            prop_assert_ne!(RangeHasher::new(salt ^ 1).finish(), wanted);
        }
    }
}

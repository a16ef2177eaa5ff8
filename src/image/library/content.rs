//! The checksums of a raw image's blocks, and a digest of the checksums, which detects damage in
//! the cache.
//!
//! The library makes them when an image enters the cache, and again after an unclean end; each read
//! of a block compares its checksum ([`crate::checked_file`]). They detect decay, not attacks: a
//! user who can write to the cache can also write the checksums. They must depend only on the
//! file's bytes, not on its holes.

use std::{fs::File, io, ops::ControlFlow, os::unix::fs::FileExt as _};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::watched::Heartbeat;
use crate::{
    checked_file::{BLOCK_BYTES, SUM_BYTES, sum},
    model::ids::{Digest, DigestAlgorithm},
};

const BLOCK_SIZE: usize = 64 << 10;
/// Checksums written and read at once: one page.
const PAGE_SUMS: usize = 1024;
const PAGE_BYTES: usize = PAGE_SUMS * 4;

/// The content of a raw file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// Digest of its length and its checksums.
    pub(super) digest: Digest,
    /// The digest of version 1, which kept no checksums.
    pub(super) digest_v1: Digest,
}

/// Reads a whole raw file, without its holes, and writes its checksums to `sums`. `None` if it was
/// stopped.
pub(super) fn survey(
    raw: &File,
    sums: &File,
    heartbeat: &mut Heartbeat<'_>,
) -> io::Result<Option<Content>> {
    let bytes = raw.metadata()?.len();
    let mut v1 = Sha256::new();
    v1.update(bytes.to_le_bytes());
    let mut pages = Pages { sums, page: None };
    sums.set_len(0)?;
    sums.set_len(bytes.div_ceil(BLOCK_BYTES) * SUM_BYTES)?;
    let mut buffer = vec![0; BLOCK_SIZE];
    let mut at = 0;
    while let Some(data) = next_data(raw, at)? {
        // A block of data may begin in a hole.
        at = data - data % BLOCK_BYTES;
        let block = read_block(raw, &mut buffer, at)?;
        if block.iter().any(|byte| *byte != 0) {
            v1.update(at.to_le_bytes());
            v1.update(crc32c::crc32c(block).to_le_bytes());
            pages.put(at / BLOCK_BYTES, sum(block))?;
        }
        at += BLOCK_BYTES;
        if let ControlFlow::Break(()) = heartbeat(at.min(bytes)) {
            return Ok(None);
        }
    }
    pages.write()?;
    Ok(Some(Content { digest: digest(sums, bytes)?, digest_v1: finished(v1) }))
}

/// The digest of a raw file of so many bytes with these checksums.
pub(super) fn digest(sums: &File, bytes: u64) -> io::Result<Digest> {
    let length = bytes.div_ceil(BLOCK_BYTES) * SUM_BYTES;
    if sums.metadata()?.len() != length {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too few or too many checksums"));
    }
    let mut hash = Sha256::new();
    hash.update(bytes.to_le_bytes());
    let mut page = [0; PAGE_BYTES];
    let mut at = 0;
    while let Some(data) = next_data(sums, at)? {
        at = data - data % PAGE_BYTES as u64;
        let there = usize::try_from(length - at).unwrap_or(PAGE_BYTES).min(PAGE_BYTES);
        let read = page.get_mut(..there).unwrap_or_default();
        sums.read_exact_at(read, at)?;
        for (number, sum) in (at / SUM_BYTES..).zip(read.as_chunks::<4>().0) {
            if *sum != [0; 4] {
                hash.update(number.to_le_bytes());
                hash.update(sum);
            }
        }
        at += PAGE_BYTES as u64;
    }
    Ok(finished(hash))
}

/// A buffered writer of checksums.
struct Pages<'a> {
    sums: &'a File,
    page: Option<(u64, [u8; PAGE_BYTES])>,
}

impl Pages<'_> {
    fn put(&mut self, block: u64, sum: u32) -> io::Result<()> {
        let number = block / PAGE_SUMS as u64;
        if self.page.as_ref().is_none_or(|(present, _)| *present != number) {
            self.write()?;
        }
        let (_, page) = self.page.get_or_insert((number, [0; PAGE_BYTES]));
        let place = usize::try_from(block % PAGE_SUMS as u64).unwrap_or_default();
        if let Some(place) = page.as_chunks_mut::<4>().0.get_mut(place) {
            *place = sum.to_le_bytes();
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let Some((number, page)) = self.page.take() else { return Ok(()) };
        let at = number * PAGE_BYTES as u64;
        let there = self.sums.metadata()?.len().saturating_sub(at);
        let there = usize::try_from(there).unwrap_or(PAGE_BYTES).min(PAGE_BYTES);
        self.sums.write_all_at(page.get(..there).unwrap_or_default(), at)
    }
}

fn finished(hash: Sha256) -> Digest {
    Digest::from_bytes(DigestAlgorithm::Sha256, &hash.finalize())
        .unwrap_or_else(|| unreachable!("a sha256 hash has 32 bytes"))
}

/// The beginning of the next data at or after `at`.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads a block, or the part of it before the file's end.
fn read_block<'a>(file: &File, buffer: &'a mut [u8], at: u64) -> io::Result<&'a [u8]> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer.get(..filled).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use proptest::prelude::*;

    use super::*;

    fn never_stop(_: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn content(file: &File) -> Content {
        let sums = tempfile::tempfile().unwrap();
        survey(file, &sums, &mut never_stop).unwrap().unwrap()
    }

    fn content_of(fill: impl FnOnce(&File)) -> Content {
        let file = tempfile::tempfile().unwrap();
        fill(&file);
        content(&file)
    }

    #[test]
    fn holes_and_zeros_are_the_same_and_the_length_counts() {
        let bytes = 3 * BLOCK_SIZE + 7;
        let hole = content_of(|file| file.set_len(bytes as u64).unwrap());
        let zeros = content_of(|file| file.write_all_at(&vec![0; bytes], 0).unwrap());
        let longer = content_of(|file| file.set_len(bytes as u64 + 1).unwrap());
        assert_eq!(hole, zeros);
        assert!(hole.digest != longer.digest && hole.digest_v1 != longer.digest_v1);
    }

    #[test]
    fn what_the_first_version_wrote_down_is_still_understood() {
        // The digest of 64 KiB of zeros, 64 KiB of ones and one byte, from version 1.
        let ones = vec![1; BLOCK_SIZE];
        let file = content_of(|file| {
            file.set_len(2 * BLOCK_BYTES + 1).unwrap();
            file.write_all_at(&ones, BLOCK_BYTES).unwrap();
        });
        let mut hash = Sha256::new();
        hash.update((2 * BLOCK_BYTES + 1).to_le_bytes());
        hash.update(BLOCK_BYTES.to_le_bytes());
        hash.update(crc32c::crc32c(&ones).to_le_bytes());
        assert_eq!(file.digest_v1, finished(hash));
    }

    #[test]
    fn it_stops_when_told_to() {
        let (file, sums) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        file.write_all_at(&vec![1; 4 * BLOCK_SIZE], 0).unwrap();
        let mut heartbeats = 0;
        let content = survey(&file, &sums, &mut |_| {
            heartbeats += 1;
            if heartbeats == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!((content.unwrap(), heartbeats), (None, 2));
    }

    #[test]
    fn checksums_of_more_than_a_page_are_all_there() {
        let (file, sums) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let blocks = [0, 1023, 1024, 5000];
        for block in blocks {
            file.write_all_at(b"x", block * BLOCK_BYTES).unwrap();
        }
        survey(&file, &sums, &mut never_stop).unwrap().unwrap();
        let mut found = vec![0; 5001 * 4];
        sums.read_exact_at(&mut found, 0).unwrap();
        let nonzero: Vec<u64> = (0_u64..)
            .zip(found.as_chunks::<4>().0)
            .filter(|(_, sum)| **sum != [0; 4])
            .map(|(block, _)| block)
            .collect();
        assert_eq!(nonzero, blocks);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_flipped_bit_changes_it(
            at in 0..4 * BLOCK_BYTES + 100,
            bit in 0..8_u32,
            data in any::<[u8; 3]>(),
        ) {
            let file = tempfile::tempfile().unwrap();
            file.set_len(4 * BLOCK_BYTES + 100).unwrap();
            file.write_all_at(&data, 2 * BLOCK_BYTES - 1).unwrap();
            let before = content(&file);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
            let after = content(&file);
            prop_assert!(after.digest != before.digest && after.digest_v1 != before.digest_v1);
            file.write_all_at(&byte, at).unwrap();
            prop_assert_eq!(content(&file), before);
        }

        #[test]
        fn any_flipped_bit_of_the_checksums_changes_the_digest(at in 0..20_u64, bit in 0..8_u32) {
            let (file, sums) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            file.set_len(4 * BLOCK_BYTES + 100).unwrap();
            file.write_all_at(b"x", 2 * BLOCK_BYTES - 1).unwrap();
            let before = survey(&file, &sums, &mut never_stop).unwrap().unwrap();
            let mut byte = [0];
            sums.read_exact_at(&mut byte, at).unwrap();
            sums.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
            prop_assert_ne!(digest(&sums, 4 * BLOCK_BYTES + 100).unwrap(), before.digest);
        }
    }
}

//! A file that is compared with its checksums at each read, block by block.
//!
//! The image library makes a [`CheckedFile`] of each cached image; everything that writes, compares
//! or inspects an image reads it. Disks decay silently, so that bytes are compared when they are
//! used, not only when they arrive. CRC-32C, which file systems use, costs a small part of the
//! reading. A file with checksums must never hand out a byte that was not compared.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

/// Bytes of a block, which has one checksum.
pub const BLOCK_BYTES: u64 = 64 << 10;
/// Bytes of a checksum in the file of checksums.
pub const SUM_BYTES: u64 = 4;
/// Checksums of a hole read at once.
const SUMS_AT_ONCE: u64 = 1024;

const BLOCK_SIZE: usize = 64 << 10;
static ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];
static SUM_OF_ZEROS: LazyLock<u32> = LazyLock::new(|| crc32c::crc32c(&ZEROS));

/// Returns the checksum of a block, or of the shorter one at a file's end: CRC-32C, shifted so that
/// zeros have checksum 0. A file of checksums is thus sparse where its file is.
pub fn sum(block: &[u8]) -> u32 {
    let of_zeros = match ZEROS.get(..block.len()) {
        Some(zeros) if zeros.len() < BLOCK_SIZE => crc32c::crc32c(zeros),
        _ => *SUM_OF_ZEROS,
    };
    crc32c::crc32c(block) ^ of_zeros
}

/// An open file, with or without checksums. Clones share the file and its `has_decayed`.
#[derive(Clone, Debug)]
pub struct CheckedFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: Arc<File>,
    /// The size when the file was opened.
    bytes: u64,
    /// The checksum of each block, little-endian.
    sums: Option<File>,
    has_decayed: AtomicBool,
}

impl CheckedFile {
    /// Wraps a file without checksums: reads compare nothing.
    pub fn unchecked(file: Arc<File>) -> io::Result<Self> {
        Self::of(file, None)
    }

    /// Wraps a file and the file of its blocks' checksums, in the same order.
    pub fn new(file: Arc<File>, sums: File) -> io::Result<Self> {
        Self::of(file, Some(sums))
    }

    fn of(file: Arc<File>, sums: Option<File>) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self(Arc::new(Inner { file, bytes, sums, has_decayed: AtomicBool::new(false) })))
    }

    /// The size when the file was opened.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// The file itself. Bytes read from it directly are not compared.
    pub fn file(&self) -> &File {
        &self.0.file
    }

    /// Whether a read met a block that is unreadable or differs from its checksum. Always false
    /// without checksums.
    pub fn has_decayed(&self) -> bool {
        self.0.has_decayed.load(Ordering::Relaxed)
    }

    /// Fills the buffer from `offset` on. Blocks for as long as the file system does.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.0.file.read_exact_at(buffer, offset);
        let compared = read.and_then(|()| match &self.0.sums {
            Some(sums) if !buffer.is_empty() => self.compare(sums, buffer, offset),
            _ => Ok(()),
        });
        compared.map_err(|error| self.spoilt(error))
    }

    /// Reads from `offset` to the end of the file or of the buffer, and returns the number of
    /// bytes.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let there = usize::try_from(self.bytes().saturating_sub(offset)).unwrap_or(usize::MAX);
        let there = there.min(buffer.len());
        self.read_exact_at(buffer.get_mut(..there).unwrap_or_default(), offset)?;
        Ok(there)
    }

    /// Compares the whole file with its checksums, if it has any.
    pub fn check(&self) -> io::Result<()> {
        if self.0.sums.is_none() {
            return Ok(());
        }
        let mut buffer = vec![0; BLOCK_SIZE * 8];
        let mut at = 0;
        while at < self.bytes() {
            let data = self.data_from(at)?;
            let end = self.hole_from(data)?;
            at = data;
            while at < end {
                let bytes = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
                self.read_exact_at(buffer.get_mut(..bytes).unwrap_or_default(), at)?;
                at += bytes as u64;
            }
        }
        Ok(())
    }

    /// Returns the first offset at or after `offset` with data, as `SEEK_DATA` does. With
    /// checksums, holes are whole blocks and must have been holes when the checksums were made.
    pub fn data_from(&self, offset: u64) -> io::Result<u64> {
        self.find_data(offset).map_err(|error| self.spoilt(error))
    }

    fn find_data(&self, offset: u64) -> io::Result<u64> {
        let data = match seek(&self.0.file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // The rest is a hole, or the file was truncated.
            Err(Errno::NXIO) => {
                let bytes = self.0.file.metadata()?.len();
                if bytes < self.bytes() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.bytes().max(offset)
            }
            // The file system supports no holes.
            Err(Errno::INVAL | Errno::NOTSUP) => offset,
            Err(error) => return Err(error.into()),
        };
        let Some(sums) = &self.0.sums else { return Ok(data) };
        let end = if data < self.bytes() { data - data % BLOCK_BYTES } else { data };
        if !offset.is_multiple_of(BLOCK_BYTES) || end <= offset {
            return Ok(offset);
        }
        let mut block = offset / BLOCK_BYTES;
        let end_block = end.div_ceil(BLOCK_BYTES);
        while block < end_block {
            let count = (end_block - block).min(SUMS_AT_ONCE);
            let lost = read_sums(sums, block, count)?.iter().position(|sum| *sum != 0);
            if let Some(lost) = lost {
                return Err(decayed((block + lost as u64) * BLOCK_BYTES));
            }
            block += count;
        }
        Ok(end)
    }

    /// Returns the first hole after `offset`, which has data, or the end of the file.
    pub fn hole_from(&self, offset: u64) -> io::Result<u64> {
        let hole = match seek(&self.0.file, SeekFrom::Hole(offset)) {
            Ok(hole) => hole,
            Err(Errno::NXIO | Errno::INVAL | Errno::NOTSUP) => self.bytes(),
            Err(error) => return Err(self.spoilt(error.into())),
        };
        if self.0.sums.is_none() {
            return Ok(hole);
        }
        Ok(hole.max(offset + 1).next_multiple_of(BLOCK_BYTES).min(self.bytes()))
    }

    /// Compares the bytes just read with their checksums. For a partial block, the whole block is
    /// read again and the wanted part copied from it.
    fn compare(&self, sums: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        let first = offset / BLOCK_BYTES;
        let wanted = read_sums(sums, first, end.div_ceil(BLOCK_BYTES) - first)?;
        let mut scratch = Vec::new();
        for (block, wanted) in (first..).zip(wanted) {
            let from = block * BLOCK_BYTES;
            let to = (from + BLOCK_BYTES).min(self.bytes());
            let part = from.max(offset)..to.min(end);
            let place = size(part.start - offset)..size(part.end - offset);
            let place = buffer.get_mut(place).unwrap_or_default();
            let found = if part == (from..to) {
                sum(place)
            } else {
                scratch.resize(size(to - from), 0);
                self.0.file.read_exact_at(&mut scratch, from)?;
                let read = scratch.get(size(part.start - from)..).unwrap_or_default();
                place.copy_from_slice(read.get(..place.len()).unwrap_or_default());
                sum(&scratch)
            };
            if found != wanted {
                return Err(decayed(from));
            }
        }
        Ok(())
    }

    fn spoilt(&self, error: io::Error) -> io::Error {
        if self.0.sums.is_some() {
            self.0.has_decayed.store(true, Ordering::Relaxed);
        }
        error
    }
}

fn read_sums(sums: &File, first: u64, count: u64) -> io::Result<Vec<u32>> {
    let mut bytes = vec![0; size(count * SUM_BYTES)];
    sums.read_exact_at(&mut bytes, first * SUM_BYTES)?;
    Ok(bytes.as_chunks().0.iter().map(|sum| u32::from_le_bytes(*sum)).collect())
}

fn decayed(at: u64) -> io::Error {
    let message =
        format!("the block at byte {at} is not what was verified; it changed where it is kept");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Converts a size that fits into memory.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 6;
    const BYTES: u64 = BLOCKS * BLOCK_BYTES + 100;

    /// Makes a sparse file with these blocks of data, and its checksums.
    fn checked(data: &[(u64, u8)]) -> CheckedFile {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES).unwrap();
        for (at, byte) in data {
            file.write_all_at(&[*byte; 3000], *at).unwrap();
        }
        let bytes = file.metadata().unwrap().len();
        let sums = tempfile::tempfile().unwrap();
        for at in (0..bytes).step_by(BLOCK_SIZE) {
            let mut block = vec![0; size(BLOCK_BYTES.min(bytes - at))];
            file.read_exact_at(&mut block, at).unwrap();
            let place = at / BLOCK_BYTES * SUM_BYTES;
            sums.write_all_at(&sum(&block).to_le_bytes(), place).unwrap();
        }
        CheckedFile::new(Arc::new(file), sums).unwrap()
    }

    #[test]
    fn a_block_of_zeros_has_the_sum_0_whatever_its_length() {
        for bytes in [0, 1, 511, BLOCK_SIZE - 1, BLOCK_SIZE] {
            assert_eq!(sum(&vec![0; bytes]), 0, "{bytes}");
        }
        assert_ne!(sum(&[0, 1]), sum(&[1, 0]));
    }

    #[test]
    fn data_that_became_a_hole_is_noticed_and_a_hole_that_was_one_is_not_read() {
        let file = checked(&[(0, 1), (4 * BLOCK_BYTES, 2)]);
        assert_eq!(file.data_from(BLOCK_BYTES).unwrap(), 4 * BLOCK_BYTES);
        assert_eq!(file.hole_from(4 * BLOCK_BYTES).unwrap(), 5 * BLOCK_BYTES);
        assert_eq!(file.data_from(5 * BLOCK_BYTES).unwrap(), BYTES);
        file.check().unwrap();
        // The same bytes, and no hole any more.
        file.file().write_all_at(&[0; 5000], 2 * BLOCK_BYTES).unwrap();
        file.check().unwrap();
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file.file(), flags, 4 * BLOCK_BYTES, BLOCK_BYTES).unwrap();
        assert!(!file.has_decayed());
        file.check().unwrap_err();
        assert!(file.has_decayed());
    }

    #[test]
    fn a_file_that_became_shorter_has_decayed() {
        for bytes in [BYTES - 1, BLOCK_BYTES] {
            let file = checked(&[(0, 1)]);
            file.file().set_len(bytes).unwrap();
            file.check().unwrap_err();
            assert!(file.has_decayed(), "{bytes}");
        }
    }

    #[test]
    fn a_file_without_checksums_is_read_and_never_decays() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        let file = CheckedFile::unchecked(Arc::new(file)).unwrap();
        file.check().unwrap();
        file.read_exact_at(&mut [0; 11], 0).unwrap_err();
        assert!(!file.has_decayed());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// Invariant (image): A cached image that has decayed is noticed at its reading and never
        /// installed.
        #[test]
        fn any_part_is_read_as_it_is_and_a_bit_flipped_in_any_of_its_blocks_is_noticed(
            from in 0..BYTES, bytes in 1..3 * BLOCK_BYTES, flip in 0..BYTES, bit in 0..8_u32,
        ) {
            let file = checked(&[(100, 1), (2 * BLOCK_BYTES - 1, 2), (5 * BLOCK_BYTES + 7, 3)]);
            let bytes = bytes.min(BYTES - from);
            let (mut wanted, mut found) = (vec![0; size(bytes)], vec![9; size(bytes)]);
            file.file().read_exact_at(&mut wanted, from).unwrap();
            file.read_exact_at(&mut found, from).unwrap();
            prop_assert_eq!(&wanted, &found);

            let mut byte = [0];
            file.file().read_exact_at(&mut byte, flip).unwrap();
            file.file().write_all_at(&[byte[0] ^ (1 << bit)], flip).unwrap();
            let blocks = from / BLOCK_BYTES..=(from + bytes - 1) / BLOCK_BYTES;
            let read = file.read_exact_at(&mut found, from);
            prop_assert_eq!(read.is_err(), blocks.contains(&(flip / BLOCK_BYTES)));
            prop_assert!(file.check().is_err() && file.has_decayed());
        }
    }
}

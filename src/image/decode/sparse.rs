//! Writes a file with holes instead of zeros.
//!
//! The decoder passes every byte of a raw image, in any order, on any thread. It must never write a
//! block of zeros: the file is empty before.

use std::{fs::File, io, os::unix::fs::FileExt as _};

/// Granularity of holes: the block size of nearly every file system.
const BLOCK_BYTES: usize = 4096;

/// Zeros to compare with: memcmp runs at the speed of memory.
static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Writes bytes at their offset, without blocks of zeros.
pub(super) fn write(into: &File, mut at: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let (_, rest) = split_run(at, bytes, true);
        at += (bytes.len() - rest.len()) as u64;
        let (data, rest) = split_run(at, rest, false);
        if !data.is_empty() {
            into.write_all_at(data, at)?;
        }
        at += data.len() as u64;
        bytes = rest;
    }
    Ok(())
}

/// Splits off the leading blocks that are all zeros, or all not.
fn split_run(at: u64, bytes: &[u8], zeros: bool) -> (&[u8], &[u8]) {
    let misaligned = usize::try_from(at % BLOCK_BYTES as u64).unwrap_or(0);
    let (mut run, mut block) = (0, BLOCK_BYTES - misaligned);
    while let Some(rest) = bytes.get(run..).filter(|rest| !rest.is_empty()) {
        let part = rest.get(..block).unwrap_or(rest);
        if ZEROS.starts_with(part) != zeros {
            break;
        }
        run += part.len();
        block = BLOCK_BYTES;
    }
    bytes.split_at(run)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_of_zeros_is_a_hole_wherever_the_pieces_begin() {
        let file = tempfile::tempfile().unwrap();
        let bytes = [&[7; 3 * 4096][..], &[0; 4 * 4096], &[7; 4096]].concat();
        for (index, piece) in bytes.chunks(1000).enumerate() {
            write(&file, index as u64 * 1000, piece).unwrap();
        }
        file.set_len(bytes.len() as u64).unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), 4 * 4096 / 512);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            runs in prop::collection::vec((0_u8..2, 1_usize..9000), 1..12),
            piece in 1_usize..20_000,
        ) {
            let bytes: Vec<u8> =
                runs.iter().flat_map(|(byte, count)| vec![*byte; *count]).collect();
            let file = tempfile::tempfile().unwrap();
            for (index, part) in bytes.chunks(piece).enumerate() {
                write(&file, (index * piece) as u64, part).unwrap();
            }
            file.set_len(bytes.len() as u64).unwrap();
            let mut read = vec![9; bytes.len()];
            file.read_exact_at(&mut read, 0).unwrap();
            prop_assert!(read == bytes);
        }
    }
}

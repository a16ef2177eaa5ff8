//! A digest of what a raw image holds, by which one that was damaged in the cache is known.
//!
//! Computed when an image comes into the cache, and again after an unclean end. It is made for decay, not against people: whoever can write
//! to the cache can also write what is compared with. So blocks are told apart by CRC-32C, as file systems do, which costs a tenth of a
//! cryptographic hash. It must not depend on how the file is laid out, only on its bytes.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::watched::Beat;
use crate::model::ids::{Digest, DigestAlgorithm};

/// What one CRC is for. A block of zeros counts as a hole.
const BLOCK_BYTES: usize = 64 << 10;

/// The digest: of the length, and of each block that is not all zeros its place and its CRC-32C. Holes are not read. `None`: it was told
/// to stop.
pub(super) fn digest(file: &File, beat: &mut Beat<'_>) -> io::Result<Option<Digest>> {
    let bytes = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(bytes.to_le_bytes());
    let mut buffer = vec![0; BLOCK_BYTES];
    let mut at = 0;
    while let Some(data) = next_data(file, at)? {
        // The first block may begin in the hole.
        at = data - data % BLOCK_BYTES as u64;
        let block = read_block(file, &mut buffer, at)?;
        if block.iter().any(|byte| *byte != 0) {
            hash.update(at.to_le_bytes());
            hash.update(crc32c::crc32c(block).to_le_bytes());
        }
        at += BLOCK_BYTES as u64;
        if beat(at.min(bytes)).is_break() {
            return Ok(None);
        }
    }
    Ok(Digest::from_bytes(DigestAlgorithm::Sha256, &hash.finalize()))
}

/// Where the next bytes that are not a hole begin.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// A block, or what there is of it before the end.
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

    fn digest_of(fill: impl FnOnce(&File)) -> Digest {
        let file = tempfile::tempfile().unwrap();
        fill(&file);
        digest(&file, &mut never_stop).unwrap().unwrap()
    }

    #[test]
    fn holes_and_zeros_are_the_same_and_the_length_counts() {
        let bytes = 3 * BLOCK_BYTES + 7;
        let hole = digest_of(|file| file.set_len(bytes as u64).unwrap());
        let zeros = digest_of(|file| file.write_all_at(&vec![0; bytes], 0).unwrap());
        let longer = digest_of(|file| file.set_len(bytes as u64 + 1).unwrap());
        assert_eq!(hole, zeros);
        assert_ne!(hole, longer);
    }

    #[test]
    fn it_stops_when_told_to() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![1; 4 * BLOCK_BYTES], 0).unwrap();
        let mut beats = 0;
        let digest = digest(&file, &mut |_| {
            beats += 1;
            if beats == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!((digest.unwrap(), beats), (None, 2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_flipped_bit_changes_it(at in 0..4 * BLOCK_BYTES as u64 + 100, bit in 0..8_u32, data in any::<[u8; 3]>()) {
            let file = tempfile::tempfile().unwrap();
            file.set_len(4 * BLOCK_BYTES as u64 + 100).unwrap();
            file.write_all_at(&data, 2 * BLOCK_BYTES as u64 - 1).unwrap();
            let before = digest(&file, &mut never_stop).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
            prop_assert_ne!(digest(&file, &mut never_stop).unwrap(), before.clone());
            file.write_all_at(&byte, at).unwrap();
            prop_assert_eq!(digest(&file, &mut never_stop).unwrap(), before);
        }
    }
}

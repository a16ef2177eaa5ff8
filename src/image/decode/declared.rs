//! Reads the size that a packed file declares for its content.
//!
//! The decoder calls it before it unpacks, to check the free space. The size must never be trusted:
//! the unpacked bytes are counted. For a file of several streams or frames it is the size of one,
//! because the others would need a read of the whole file.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::outer::Packing;

/// A zstd frame's header has at most 18 bytes (RFC 8878, 3.1.1.1).
const ZSTD_HEADER_BYTES: usize = 18;

/// The .xz format's stream footer (2.1.2).
const XZ_FOOTER_BYTES: usize = 12;

/// Largest accepted index: a larger one would mean far too small blocks.
const XZ_INDEX_BYTES_MAX: u64 = 1 << 20;

/// The declared size of the image in a packed file; `None` without one. gzip's size has only 32
/// bits, and bzip2 has none.
pub(super) fn unpacked_bytes(published: &File, packing: Packing) -> io::Result<Option<u64>> {
    match packing {
        Packing::Gzip | Packing::Bzip2 => Ok(None),
        Packing::Zstd => {
            let mut header = [0; ZSTD_HEADER_BYTES];
            let bytes = published.read_at(&mut header, 0)?;
            let header = header.get(..bytes).unwrap_or_default();
            let declared = zstd::zstd_safe::get_frame_content_size(header).ok().flatten();
            // A skippable frame declares no bytes.
            Ok(declared.filter(|bytes| *bytes > 0))
        }
        Packing::Xz => Ok(xz_index(published)?.and_then(|index| sum_of_index(&index))),
    }
}

/// Reads the index of the last stream, found from the file's end.
fn xz_index(published: &File) -> io::Result<Option<Vec<u8>>> {
    let bytes = published.metadata()?.len();
    let Some(footer_at) = bytes.checked_sub(XZ_FOOTER_BYTES as u64) else { return Ok(None) };
    let mut footer = [0; XZ_FOOTER_BYTES];
    if published.read_at(&mut footer, footer_at)? < footer.len() {
        return Ok(None);
    }
    let [_, _, _, _, a, b, c, d, _, _, b'Y', b'Z'] = footer else { return Ok(None) };
    let index_bytes = (u64::from(u32::from_le_bytes([a, b, c, d])) + 1) * 4;
    let Some(index_at) = footer_at.checked_sub(index_bytes) else { return Ok(None) };
    if index_bytes > XZ_INDEX_BYTES_MAX {
        return Ok(None);
    }
    let mut index = vec![0; usize::try_from(index_bytes).unwrap_or(0)];
    published.read_exact_at(&mut index, index_at)?;
    Ok(Some(index))
}

/// Adds up the unpacked sizes in an index (.xz format, 4): an indicator, a count, and for each
/// block its packed and unpacked size.
fn sum_of_index(index: &[u8]) -> Option<u64> {
    let mut rest = index.strip_prefix(&[0])?;
    let blocks = take_number(&mut rest)?;
    let mut sum = 0_u64;
    for _ in 0..blocks {
        take_number(&mut rest)?;
        sum = sum.checked_add(take_number(&mut rest)?)?;
    }
    Some(sum)
}

/// Decodes a number (.xz format, 1.2): seven bits a byte, the lowest first.
fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_index_is_summed_up() {
        // The index that `xz --block-size=1MiB` writes for 2.5 MiB.
        let index = [&[0, 3][..], &[9, 0x80, 0x80, 0x40], &[9, 0x80, 0x80, 0x40]].concat();
        let index = [&index[..], &[9, 0x80, 0x80, 0x20], &[0, 0]].concat();
        assert_eq!(sum_of_index(&index), Some(5 << 19));
        assert_eq!(sum_of_index(&index[..9]), None);
        assert_eq!(sum_of_index(&[1]), None);
    }

    proptest! {
        #[test]
        fn never_panics_on_any_bytes(index in prop::collection::vec(any::<u8>(), 0..64)) {
            sum_of_index(&index);
        }
    }
}

//! The signature of swap space (version 1, as `mkswap` writes it and Linux's `swap_header` reads
//! it).
//!
//! The agent uses it for swap partitions, of which only the first page matters.

use bytes::Bytes;

use super::DriveError;

/// Bytes of a page: a PC's, and those of nearly every kernel for 64-bit Arm. A kernel with pages of
/// 64 KiB refuses the swap space, and runs without.
const PAGE_BYTES: usize = 4096;
/// Least pages that `mkswap` accepts.
const PAGES_MIN: u64 = 10;
/// Offset of the header; the bytes before it are for a boot loader.
const HEADER_AT: usize = 1024;
/// Longest label, in bytes.
const LABEL_BYTES: usize = 16;

/// Makes the first page of swap space of so many bytes. Cuts a label after 16 bytes. Fails under 40
/// KiB.
pub fn swap_header(bytes: u64, uuid: [u8; 16], label: &str) -> Result<Bytes, DriveError> {
    let pages = bytes / PAGE_BYTES as u64;
    if pages < PAGES_MIN {
        return Err(DriveError::TooSmall {
            what: "swap space",
            bytes,
            bytes_min: PAGES_MIN * PAGE_BYTES as u64,
        });
    }
    // Linux does not use space beyond 16 TiB.
    let last_page = u32::try_from(pages - 1).unwrap_or(u32::MAX - 1);
    let mut page = vec![0; HEADER_AT];
    page.extend(1_u32.to_le_bytes());
    page.extend(last_page.to_le_bytes());
    // No bad pages.
    page.extend([0; 4]);
    page.extend(uuid);
    let mut field = [0; LABEL_BYTES];
    field.iter_mut().zip(label.bytes()).for_each(|(to, from)| *to = from);
    page.extend(field);
    page.resize(PAGE_BYTES - 10, 0);
    page.extend(b"SWAPSPACE2");
    Ok(page.into())
}

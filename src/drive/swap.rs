//! The signature of swap space (version 1, as `mkswap` writes it and Linux's `swap_header` reads
//! it).
//!
//! Called by the agent for swap partitions; only the first page of one matters.

use bytes::Bytes;

use super::DriveError;

/// Bytes of a page on the machines there are (`x86_64`).
const PAGE_BYTES: usize = 4096;
/// Least pages that `mkswap` takes.
const PAGES_MIN: u64 = 10;
/// Offset of the header; a boot loader has room before it.
const HEADER_AT: usize = 1024;
/// Longest label, in bytes.
const LABEL_BYTES: usize = 16;

/// The first page of swap space of so many bytes. Of a label longer than 16 bytes, the rest is left
/// out. Fails under 40 KiB.
pub fn swap_header(bytes: u64, uuid: [u8; 16], label: &str) -> Result<Bytes, DriveError> {
    let pages = bytes / PAGE_BYTES as u64;
    if pages < PAGES_MIN {
        return Err(DriveError::TooSmall {
            what: "swap space",
            bytes,
            bytes_min: PAGES_MIN * PAGE_BYTES as u64,
        });
    }
    // Space beyond 16 TiB is unused.
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

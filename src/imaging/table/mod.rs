//! Partition tables as bytes: GUID partition tables and master boot records.
//!
//! Used by the layouts, which read the bytes and decide where they go. It must never panic on any
//! bytes, and never believe a number of theirs before it is checked.

pub(super) mod gpt;
pub(super) mod mbr;
#[cfg(test)]
mod tests;

/// The bytes at a fixed place; zeros where there are none.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

/// Puts bytes at a fixed place, if there is one.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    let place = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..value.len()));
    if let Some(place) = place {
        place.copy_from_slice(value);
    }
}

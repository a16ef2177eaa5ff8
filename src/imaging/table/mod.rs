//! Partition tables as bytes: GUID partition tables and master boot records.
//!
//! Layouts use it: they read the bytes, and decide their places. It must never panic on any bytes,
//! nor use a number from them before its check.

pub(super) mod gpt;
pub(super) mod mbr;
#[cfg(test)]
mod tests;

/// The bytes at a fixed offset; zeros beyond the end.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

/// Writes bytes at a fixed offset; does nothing beyond the end.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    let place = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..value.len()));
    if let Some(place) = place {
        place.copy_from_slice(value);
    }
}

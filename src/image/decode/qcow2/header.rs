//! The header of a qcow2 file, which comes before all other structures ("Header").
//!
//! The decoder passes a file's first bytes. It must refuse an image that needs a feature which
//! hostler does not read.

use std::fmt::Write as _;

use crate::image::decode::DecodeError;

/// Largest table of the first level, which is kept in memory. QEMU has the same limit.
const L1_BYTES_MAX: u64 = 32 << 20;

/// Most characters of a name in a message.
const NAME_CHARS_MAX: usize = 200;

/// Header bytes of version 2, and the least of version 3.
const V2_BYTES: usize = 72;
const V3_BYTES: u64 = 104;

// Incompatible features, bytes 72 to 79.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Compression of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Deflate without a header; QEMU's name is zlib.
    Deflate,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// The header of a supported image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image::decode) struct Header {
    /// The size of the disk in bytes.
    pub(in crate::image::decode) bytes: u64,
    pub(super) cluster_bits: u32,
    /// Offset of the first level of tables.
    pub(super) l1_at: u64,
    /// The number of needed entries; the table may have more.
    pub(super) l1_entries: u64,
    pub(super) compression: Compression,
    /// Whether entries map 32nds of a cluster ("Extended L2 Entries").
    pub(super) has_subclusters: bool,
    /// Whether bit 0 of an entry means zeros, as from version 3 on.
    pub(super) has_zero_bit: bool,
}

impl Header {
    /// Parses the first bytes of a file, which may be more than the header.
    pub(in crate::image::decode) fn parse(head: &[u8]) -> Result<Self, DecodeError> {
        parse(head).map_err(|why| DecodeError::Unusable(format!("qcow2: {why}")))
    }

    /// Bytes of the disk that one table of the second level maps.
    pub(super) fn l2_covers(self) -> u64 {
        1 << (2 * self.cluster_bits - self.entry_bits())
    }

    /// The base 2 logarithm of a second-level entry's bytes.
    pub(super) fn entry_bits(self) -> u32 {
        if self.has_subclusters { 4 } else { 3 }
    }

    pub(super) fn cluster_bytes(self) -> u64 {
        1 << self.cluster_bits
    }
}

fn parse(head: &[u8]) -> Result<Header, String> {
    if head.len() < V2_BYTES {
        return Err("cut short within its header".to_owned());
    }
    let version = u32_at(head, 4);
    let has_features = match version {
        2 => false,
        3 => true,
        _ => return Err(format!("version {version} is not known; 2 and 3 are")),
    };
    let incompatible = if has_features { u64_at(head, 72) } else { 0 };
    let has_subclusters = incompatible & EXTENDED_L2 != 0;
    check_usable(head, incompatible)?;
    let compression = compression(head, incompatible)?;

    let cluster_bits = u32_at(head, 20);
    // A 32nd of a cluster is at least a sector.
    let least = if has_subclusters { 14 } else { 9 };
    if !(least..=21).contains(&cluster_bits) {
        return Err(format!("cluster_bits is {cluster_bits}, must be {least} to 21"));
    }
    let mut header = Header {
        bytes: u64_at(head, 24),
        cluster_bits,
        l1_at: u64_at(head, 40),
        l1_entries: 0,
        compression,
        has_subclusters,
        has_zero_bit: has_features,
    };
    if header.bytes == 0 {
        return Err("the disk has no bytes".to_owned());
    }
    header.l1_entries = header.bytes.div_ceil(header.l2_covers());
    let l1_size = u32_at(head, 36);
    if header.l1_entries > u64::from(l1_size) {
        return Err(format!(
            "l1_size is {l1_size}, but a disk of {} bytes needs {}",
            header.bytes, header.l1_entries
        ));
    }
    if header.l1_entries * 8 > L1_BYTES_MAX {
        return Err(format!(
            "a disk of {} bytes is too large for clusters of {}",
            header.bytes,
            header.cluster_bytes()
        ));
    }
    Ok(header)
}

/// Checks that the file holds the whole disk, unencrypted and undamaged.
fn check_usable(head: &[u8], incompatible: u64) -> Result<(), String> {
    if u64_at(head, 8) != 0 {
        let name = backing_file(head).map(|name| format!(", `{name}`")).unwrap_or_default();
        return Err(format!(
            "it needs a backing file{name}; publish it with what it is based \
             on: `qemu-img convert -O qcow2 OLD NEW`"
        ));
    }
    match u32_at(head, 32) {
        0 => {}
        1 => return Err("it is encrypted with AES; publish it decrypted".to_owned()),
        2 => return Err("it is encrypted with LUKS; publish it decrypted".to_owned()),
        method => return Err(format!("encryption method {method} is not known")),
    }
    if incompatible & CORRUPT != 0 {
        return Err("it is marked corrupt; repair it with `qemu-img check -r all`".to_owned());
    }
    if incompatible & EXTERNAL_DATA != 0 {
        return Err(
            "its data is in another file; publish it in one: `qemu-img convert -O qcow2 OLD NEW`"
                .to_owned(),
        );
    }
    // In a dirty image, only the reference counts may be wrong ("Incompatible features", bit 0),
    // and hostler does not read them.
    let unknown = incompatible & !(DIRTY | COMPRESSION_TYPE | EXTENDED_L2);
    if unknown != 0 {
        let mut bits = String::new();
        for bit in (0..64).filter(|bit| unknown >> bit & 1 == 1) {
            let comma = if bits.is_empty() { "" } else { ", " };
            write!(bits, "{comma}{bit}").unwrap_or_default();
        }
        return Err(format!("it needs features that are not known: incompatible bits {bits}"));
    }
    Ok(())
}

fn compression(head: &[u8], incompatible: u64) -> Result<Compression, String> {
    let is_marked = incompatible & COMPRESSION_TYPE != 0;
    let has_type = u32_at(head, 4) >= 3 && u64::from(u32_at(head, 100)) > V3_BYTES;
    let kind = head.get(104).copied().filter(|_| has_type).unwrap_or(0);
    match (kind, is_marked) {
        (0, false) => Ok(Compression::Deflate),
        (1, true) => Ok(Compression::Zstd),
        (0 | 1, _) => Err(format!("compression_type is {kind}, which its feature bit denies")),
        _ => Err(format!("compression_type {kind} is not known; zlib and zstd are")),
    }
}

/// The backing file's name, shortened for a message.
fn backing_file(head: &[u8]) -> Option<String> {
    let at = usize::try_from(u64_at(head, 8)).ok()?;
    let bytes = usize::try_from(u32_at(head, 16)).ok()?;
    let name = head.get(at..)?.get(..bytes)?;
    let name = String::from_utf8_lossy(name);
    Some(name.chars().take(NAME_CHARS_MAX).flat_map(char::escape_debug).collect())
}

/// Reads a big-endian number; 0 past the end, which a check of the length excludes.
fn u32_at(head: &[u8], at: usize) -> u32 {
    let bytes = head.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn u64_at(head: &[u8], at: usize) -> u64 {
    let bytes = head.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

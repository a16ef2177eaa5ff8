//! The two levels of tables, which map the disk to the file ("Cluster mapping").
//!
//! Several threads use it, one unit of the disk at a time. It must never return an offset outside
//! of the file.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::header::Header;
use crate::image::decode::DecodeError;

/// Bytes of a unit: the largest cluster, so that a unit is whole clusters.
const UNIT_BYTES_MAX: u64 = 2 << 20;

/// Bits 9 to 55 of an entry of either level.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Flag of an entry of either level: the reference count is 1. Ignored.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Subclusters of a cluster ("Extended L2 Entries").
const SUBCLUSTERS: u32 = 32;
const SECTOR_BYTES: u64 = 512;

/// A contiguous part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Bytes of the disk.
    pub(super) bytes: u64,
    pub(super) at: ExtentSource,
}

/// The source of an extent's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtentSource {
    /// All zeros.
    Zeros,
    /// Unpacked bytes at an offset of the file.
    Plain { at: u64 },
    /// A whole cluster, whose packed bytes end within these bytes of the file.
    Packed { at: u64, bytes: u64 },
}

/// The tables of an image.
pub(super) struct Tables<'a> {
    image: &'a File,
    image_bytes: u64,
    header: Header,
    l1: Vec<u64>,
}

impl<'a> Tables<'a> {
    /// Reads the first level.
    pub(super) fn open(image: &'a File, header: Header) -> Result<Self, DecodeError> {
        let image_bytes = image.metadata()?.len();
        let mut tables = Self { image, image_bytes, header, l1: Vec::new() };
        let (at, bytes) = (header.l1_at, header.l1_entries * 8);
        tables.check("L1 table", at, bytes)?;
        tables.l1 = numbers(&tables.read(at, bytes)?).collect();
        Ok(tables)
    }

    pub(super) fn header(&self) -> Header {
        self.header
    }

    /// Bytes of the disk that one lookup maps: whole clusters, within one table of the second
    /// level.
    pub(super) fn unit_bytes(&self) -> u64 {
        UNIT_BYTES_MAX.min(self.header.l2_covers())
    }

    /// Maps the unit at an offset of the disk. The extents are contiguous; a hole may be larger
    /// than the unit.
    pub(super) fn extents(&self, disk_at: u64) -> Result<Vec<Extent>, DecodeError> {
        let covers = self.header.l2_covers();
        let l1_index = usize::try_from(disk_at / covers).ok();
        let l1_entry = l1_index.and_then(|index| self.l1.get(index)).copied().unwrap_or(0);
        let table_at = l1_entry & OFFSET;
        if l1_entry & !(OFFSET | COPIED) != 0 {
            return Err(unusable(&format!("L1 entry {l1_entry:#x} has reserved bits")));
        }
        if table_at == 0 {
            let end = (disk_at / covers + 1).saturating_mul(covers).min(self.header.bytes);
            return Ok(vec![Extent { bytes: end - disk_at, at: ExtentSource::Zeros }]);
        }
        self.check("L2 table", table_at, self.header.cluster_bytes())?;
        let (bits, entry_bits) = (self.header.cluster_bits, self.header.entry_bits());
        let entry_at = ((disk_at % covers) >> bits) << entry_bits;
        let bytes = self.unit_bytes().min(self.header.bytes - disk_at);
        let entries = bytes.div_ceil(self.header.cluster_bytes()) << entry_bits;
        let slice = self.read(table_at + entry_at, entries)?;
        self.map(&slice, bytes)
    }

    /// Maps so many bytes of the disk by the table's entries.
    fn map(&self, slice: &[u8], mut left: u64) -> Result<Vec<Extent>, DecodeError> {
        let mut extents = Vec::new();
        let mut numbers = numbers(slice);
        while let Some(entry) = numbers.next() {
            let bitmap = if self.header.has_subclusters { numbers.next() } else { None };
            let bytes = left.min(self.header.cluster_bytes());
            left -= bytes;
            if entry & COMPRESSED != 0 {
                if bitmap.is_some_and(|bitmap| bitmap != 0) {
                    return Err(unusable("a compressed cluster has subclusters"));
                }
                extents.push(Extent { bytes, at: self.packed(entry)? });
            } else if let Some(bitmap) = bitmap {
                self.push_subclusters(&mut extents, entry, bitmap, bytes)?;
            } else {
                self.push_cluster(&mut extents, entry, bytes)?;
            }
        }
        Ok(extents)
    }

    /// Adds the extent of a "Standard Cluster Descriptor".
    fn push_cluster(
        &self,
        extents: &mut Vec<Extent>,
        entry: u64,
        bytes: u64,
    ) -> Result<(), DecodeError> {
        let flags = if self.header.has_zero_bit { COPIED | ZERO } else { COPIED };
        let at = offset(entry, flags)?;
        if entry & ZERO != 0 || at == 0 {
            push(extents, Extent { bytes, at: ExtentSource::Zeros });
            return Ok(());
        }
        self.check("cluster", at, bytes)?;
        push(extents, Extent { bytes, at: ExtentSource::Plain { at } });
        Ok(())
    }

    /// Adds the extents of a cluster with "Extended L2 Entries": bit n of the bitmap means that
    /// subcluster n is allocated, bit 32 + n that it is zeros.
    fn push_subclusters(
        &self,
        extents: &mut Vec<Extent>,
        entry: u64,
        bitmap: u64,
        mut left: u64,
    ) -> Result<(), DecodeError> {
        let cluster_at = offset(entry, COPIED)?;
        self.check("cluster", cluster_at, 0)?;
        let subcluster = self.header.cluster_bytes() / u64::from(SUBCLUSTERS);
        for index in 0..SUBCLUSTERS {
            let bytes = left.min(subcluster);
            left -= bytes;
            let is_there = bitmap >> index & 1 == 1;
            let is_zeros = bitmap >> (SUBCLUSTERS + index) & 1 == 1;
            if is_there && (is_zeros || cluster_at == 0) {
                return Err(unusable(&format!("subclusters {bitmap:#x} contradict each other")));
            }
            let at = if is_there {
                let at = cluster_at + u64::from(index) * subcluster;
                self.within("subcluster", at, bytes)?;
                ExtentSource::Plain { at }
            } else {
                ExtentSource::Zeros
            };
            push(extents, Extent { bytes, at });
        }
        Ok(())
    }

    /// Decodes a "Compressed Cluster Descriptor": the offset below bit x, and above it the number
    /// of further sectors.
    fn packed(&self, entry: u64) -> Result<ExtentSource, DecodeError> {
        let x = 62 - (self.header.cluster_bits - 8);
        let descriptor = entry & (COMPRESSED - 1);
        let at = descriptor & ((1 << x) - 1);
        let sectors = (descriptor >> x) + 1;
        let bytes = sectors * SECTOR_BYTES - at % SECTOR_BYTES;
        // The last sector of a file may be cut short.
        let image_end = self.image_bytes.next_multiple_of(SECTOR_BYTES);
        if at < self.image_bytes && at + bytes <= image_end {
            let bytes = bytes.min(self.image_bytes - at);
            return Ok(ExtentSource::Packed { at, bytes });
        }
        Err(self.past_end("compressed cluster", at, bytes))
    }

    /// Fails if the bytes are no cluster of the file.
    fn check(&self, what: &str, at: u64, bytes: u64) -> Result<(), DecodeError> {
        if !at.is_multiple_of(self.header.cluster_bytes()) {
            return Err(unusable(&format!("the {what} at {at} does not begin with a cluster")));
        }
        self.within(what, at, bytes)
    }

    /// Fails if the bytes exceed the file. QEMU would read zeros, and hide that the file was cut
    /// short.
    fn within(&self, what: &str, at: u64, bytes: u64) -> Result<(), DecodeError> {
        match at.checked_add(bytes) {
            Some(end) if end <= self.image_bytes => Ok(()),
            _ => Err(self.past_end(what, at, bytes)),
        }
    }

    fn past_end(&self, what: &str, at: u64, bytes: u64) -> DecodeError {
        unusable(&format!(
            "the {what} at {at} with {bytes} bytes is not in the file, which ends at {}: \
             is it cut short?",
            self.image_bytes
        ))
    }

    /// Reads bytes at a checked offset.
    fn read(&self, at: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        self.image.read_exact_at(&mut buffer, at)?;
        Ok(buffer)
    }
}

/// Adds an extent, or extends the last one if they are contiguous.
fn push(extents: &mut Vec<Extent>, extent: Extent) {
    if let Some(last) = extents.last_mut() {
        let goes_on = match (last.at, extent.at) {
            (ExtentSource::Zeros, ExtentSource::Zeros) => true,
            (ExtentSource::Plain { at: begin }, ExtentSource::Plain { at }) => {
                begin + last.bytes == at
            }
            _ => false,
        };
        if goes_on {
            last.bytes += extent.bytes;
            return;
        }
    }
    extents.push(extent);
}

/// The offset in an entry, which may have only these flags.
fn offset(entry: u64, flags: u64) -> Result<u64, DecodeError> {
    if entry & !(OFFSET | flags) == 0 {
        return Ok(entry & OFFSET);
    }
    Err(unusable(&format!("L2 entry {entry:#x} has reserved bits")))
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks().0.iter().map(|number| u64::from_be_bytes(*number))
}

fn unusable(why: &str) -> DecodeError {
    DecodeError::Unusable(format!("qcow2: {why}"))
}

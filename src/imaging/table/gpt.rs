//! The GUID partition table (UEFI 2.10 §5.3): a header and an array of entries, both at either end
//! of a disk.

use std::ops::Range;

use super::{field, put, u32_at, u64_at};
use crate::model::ids::hex;

/// The block of the primary header.
pub(in crate::imaging) const PRIMARY_LBA: u64 = 1;
/// Most bytes of all entries. Current tools make 16 KiB; both copies must lie in the wiped ends of
/// a disk.
const ENTRIES_BYTES_MAX: usize = 128 << 10;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER_BYTES: u32 = 92;
const ENTRY_BYTES: u32 = 128;
const ENTRY_BYTES_MAX: u32 = 4096;
/// The usual number of entries; less than 16 KiB of entries are not allowed.
const ENTRIES: u32 = 128;

// Fields of the header.
const REVISION_AT: usize = 8;
const HEADER_BYTES_AT: usize = 12;
const HEADER_CRC_AT: usize = 16;
const MY_LBA_AT: usize = 24;
const ALTERNATE_LBA_AT: usize = 32;
const FIRST_USABLE_AT: usize = 40;
const LAST_USABLE_AT: usize = 48;
const DISK_GUID_AT: usize = 56;
const ENTRIES_LBA_AT: usize = 72;
const ENTRY_COUNT_AT: usize = 80;
const ENTRY_BYTES_AT: usize = 84;
const ENTRIES_CRC_AT: usize = 88;

// Fields of an entry.
const GUID_AT: usize = 16;
const FIRST_AT: usize = 32;
const LAST_AT: usize = 40;
const NAME_AT: usize = 56;
const NAME_UNITS: usize = 36;

/// A GUID in its encoding on a disk.
pub(in crate::imaging) type Guid = [u8; 16];

/// An EFI system partition.
pub(in crate::imaging) const ESP: Guid = guid(0xc12a_7328, 0xf81f, 0x11d2, 0xba4b_00a0_c93e_c93b);
/// Linux swap space.
pub(in crate::imaging) const SWAP: Guid = guid(0x0657_fd6d, 0xa4ab, 0x43c4, 0x84e5_0933_c84b_4f4f);
/// A Linux file system.
pub(in crate::imaging) const LINUX: Guid = guid(0x0fc6_3daf, 0x8483, 0x4772, 0x8e79_3d69_d847_7de4);
/// The root file systems of Linux on a PC and on 64-bit Arm (Discoverable Partitions
/// Specification).
pub(in crate::imaging) const ROOT_X86_64: Guid =
    guid(0x4f68_bce3, 0xe8cd, 0x4db1, 0x96e7_fbca_f984_b709);
pub(in crate::imaging) const ROOT_AARCH64: Guid =
    guid(0xb921_b045, 0x1df0, 0x41c3, 0xaf44_4c6f_280d_3fae);
/// Microsoft basic data, the type of FAT partitions.
pub(in crate::imaging) const BASIC_DATA: Guid =
    guid(0xebd0_a0a2, 0xb9e5, 0x4433, 0x87c0_68b6_b726_99c7);

/// Encodes a GUID from its written fields, the last two as one; the first three are little-endian
/// on a disk (UEFI 2.10 appendix A).
const fn guid(time_low: u32, time_mid: u16, time_high: u16, rest: u64) -> Guid {
    let low = (time_low.swap_bytes() as u128) << 96;
    let mid = (time_mid.swap_bytes() as u128) << 80;
    let high = (time_high.swap_bytes() as u128) << 64;
    (low | mid | high | rest as u128).to_be_bytes()
}

/// Formats a GUID as Linux does (UEFI 2.10 appendix A).
pub(in crate::imaging) fn written(guid: Guid) -> String {
    // The first three fields are little-endian.
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let digits = hex(&order.map(|at| guid.get(at).copied().unwrap_or_default()));
    let groups = [0..8, 8..12, 12..16, 16..20, 20..32];
    groups.map(|group| digits.get(group).unwrap_or_default()).join("-")
}

/// Marks random bytes as a random GUID (RFC 9562 §5.4).
fn random(mut bytes: Guid) -> Guid {
    let [_, _, _, _, _, _, _, version, variant, ..] = &mut bytes;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    bytes
}

/// The fault of a damaged table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(in crate::imaging) struct Damaged(&'static str);

impl Damaged {
    /// The backup is intact, and the bytes before the partitions must not be overwritten.
    pub(in crate::imaging) const NO_PLACE: Self = Self(
        "it is good, but nobody knows where the first table had its entries, and what lies before \
         the partitions may be a boot loader",
    );
}

/// A header that passed its own checks.
#[derive(Clone, Debug)]
pub(in crate::imaging) struct Header {
    /// The header's whole block, so that unknown fields are kept.
    block: Vec<u8>,
    my_lba: u64,
    first_usable: u64,
    entries_lba: u64,
    entry_bytes: usize,
    /// Bytes of all entries.
    entries_bytes: usize,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::imaging) struct Partition {
    /// The partition's number, from 1 on.
    pub(in crate::imaging) number: usize,
    /// The partition's unique GUID.
    pub(in crate::imaging) guid: Guid,
    pub(in crate::imaging) blocks: Range<u64>,
    pub(in crate::imaging) name: String,
}

/// A valid table, for a disk of any size that has room for its partitions.
#[derive(Clone, Debug)]
pub(in crate::imaging) struct Gpt {
    header: Header,
    entries: Vec<u8>,
}

/// Whether a block has a header's signature.
pub(in crate::imaging) fn is_header(block: &[u8]) -> bool {
    block.starts_with(SIGNATURE)
}

impl Header {
    /// Parses the block at `lba`.
    pub(in crate::imaging) fn parse(block: Vec<u8>, lba: u64) -> Result<Self, Damaged> {
        ensure(is_header(&block), "there is none")?;
        let header_bytes = u32_at(&block, HEADER_BYTES_AT);
        let header = block.get(..header_bytes as usize).filter(|_| header_bytes >= HEADER_BYTES);
        let header = header.ok_or(Damaged("its header has a wrong size"))?;
        ensure(header_crc(header) == u32_at(header, HEADER_CRC_AT), "its header is damaged")?;
        ensure(u64_at(header, MY_LBA_AT) == lba, "its header is meant for another place")?;
        let entry_bytes = u32_at(header, ENTRY_BYTES_AT);
        let sane =
            entry_bytes.is_power_of_two() && (ENTRY_BYTES..=ENTRY_BYTES_MAX).contains(&entry_bytes);
        ensure(sane, "its entries have a wrong size")?;
        let entry_bytes = entry_bytes as usize;
        let entries_bytes = (u32_at(header, ENTRY_COUNT_AT) as usize).saturating_mul(entry_bytes);
        ensure(entries_bytes > 0, "it has no entries")?;
        ensure(
            entries_bytes <= ENTRIES_BYTES_MAX,
            "it has more than 128 KiB of entries, which is the most that hostler takes",
        )?;
        let entries_lba = u64_at(header, ENTRIES_LBA_AT);
        ensure(entries_lba > PRIMARY_LBA, "its entries overlap its header")?;
        let first_usable = u64_at(header, FIRST_USABLE_AT);
        ensure(first_usable > PRIMARY_LBA, "it leaves no room for its header")?;
        Ok(Self { my_lba: lba, first_usable, entries_lba, entry_bytes, entries_bytes, block })
    }

    /// A header without entries, for a new table.
    fn new(block_bytes: usize, disk_guid: Guid) -> Self {
        let entry_bytes = ENTRY_BYTES as usize;
        let entries_bytes = ENTRIES as usize * entry_bytes;
        let entries_lba = PRIMARY_LBA + 1;
        let first_usable = entries_lba + entries_bytes.div_ceil(block_bytes.max(1)) as u64;
        let mut block = vec![0; block_bytes];
        put(&mut block, 0, SIGNATURE);
        put(&mut block, REVISION_AT, &REVISION.to_le_bytes());
        put(&mut block, HEADER_BYTES_AT, &HEADER_BYTES.to_le_bytes());
        put(&mut block, FIRST_USABLE_AT, &first_usable.to_le_bytes());
        put(&mut block, DISK_GUID_AT, &random(disk_guid));
        put(&mut block, ENTRY_COUNT_AT, &ENTRIES.to_le_bytes());
        put(&mut block, ENTRY_BYTES_AT, &ENTRY_BYTES.to_le_bytes());
        let my_lba = PRIMARY_LBA;
        Self { block, my_lba, first_usable, entries_lba, entry_bytes, entries_bytes }
    }

    /// First block of its entries.
    pub(in crate::imaging) fn entries_lba(&self) -> u64 {
        self.entries_lba
    }

    /// Bytes of all its entries; at most 128 KiB.
    pub(in crate::imaging) fn entries_bytes(&self) -> usize {
        self.entries_bytes
    }

    fn entry_blocks(&self) -> u64 {
        self.entries_bytes.div_ceil(self.block.len().max(1)) as u64
    }
}

impl Gpt {
    /// A table without partitions.
    pub(in crate::imaging) fn empty(block_bytes: usize, disk_guid: Guid) -> Self {
        let header = Header::new(block_bytes, disk_guid);
        Self { entries: vec![0; header.entries_bytes], header }
    }

    /// Parses a header and the entries it names.
    pub(in crate::imaging) fn new(header: Header, entries: Vec<u8>) -> Result<Self, Damaged> {
        let intact = crc32fast::hash(&entries) == u32_at(&header.block, ENTRIES_CRC_AT);
        ensure(intact && entries.len() == header.entries_bytes, "its entries are damaged")?;
        let gpt = Self { header, entries };
        let inside = |partition: Partition| {
            !partition.blocks.is_empty() && partition.blocks.start >= gpt.header.first_usable
        };
        ensure(gpt.partitions().all(inside), "a partition lies where none may")?;
        Ok(gpt)
    }

    /// Converts the table to a primary one, if its entries fit; the entries of a backup follow the
    /// header directly.
    pub(in crate::imaging) fn into_primary(self) -> Result<Self, Damaged> {
        let Header { my_lba, entries_lba, .. } = self.header;
        self.into_primary_at(if my_lba == PRIMARY_LBA { entries_lba } else { PRIMARY_LBA + 1 })
    }

    /// Converts the table to a primary one with its entries from this block on, if they fit.
    pub(in crate::imaging) fn into_primary_at(mut self, entries_lba: u64) -> Result<Self, Damaged> {
        (self.header.my_lba, self.header.entries_lba) = (PRIMARY_LBA, entries_lba);
        let [_, entries] = self.own_blocks();
        ensure(
            entries.start > PRIMARY_LBA && entries.end <= self.header.first_usable,
            "its entries lie where partitions may",
        )?;
        Ok(self)
    }

    /// The blocks where the entries of the primary copy may have begun, likeliest first: the place
    /// that its header names, the usual place, and directly before the partitions.
    pub(in crate::imaging) fn primary_places(&self, primary: &[u8]) -> Vec<u64> {
        let named = is_header(primary).then(|| u64_at(primary, ENTRIES_LBA_AT));
        let last = self.header.first_usable.checked_sub(self.header.entry_blocks());
        let usual = PRIMARY_LBA + 1;
        let mut places: Vec<u64> = named.into_iter().chain([usual]).chain(last).collect();
        places.retain(|place| last.is_some_and(|last| (usual..=last).contains(place)));
        places
    }

    /// The bytes of all entries.
    pub(in crate::imaging) fn entries(&self) -> &[u8] {
        &self.entries
    }

    /// The blocks of its header and its entries.
    pub(in crate::imaging) fn own_blocks(&self) -> [Range<u64>; 2] {
        let Header { my_lba, entries_lba, .. } = self.header;
        let entries_end = entries_lba.saturating_add(self.header.entry_blocks());
        [my_lba..my_lba.saturating_add(1), entries_lba..entries_end]
    }

    /// The block of the other copy, as the header states it.
    pub(in crate::imaging) fn alternate_lba(&self) -> u64 {
        u64_at(&self.header.block, ALTERNATE_LBA_AT)
    }

    /// The partitions, by number.
    pub(in crate::imaging) fn partitions(&self) -> impl Iterator<Item = Partition> {
        let entries = self.entries.chunks_exact(self.header.entry_bytes).zip(1..);
        entries.filter(|(entry, _)| is_used(entry)).map(|(entry, number)| Partition {
            number,
            guid: field(entry, GUID_AT),
            blocks: u64_at(entry, FIRST_AT)..u64_at(entry, LAST_AT).saturating_add(1),
            name: name(entry),
        })
    }

    /// Fills the first unused entry; `None` if there is none.
    pub(in crate::imaging) fn add(
        &mut self,
        kind: &Guid,
        guid: Guid,
        blocks: &Range<u64>,
        name: &str,
    ) -> Option<()> {
        let mut entries = self.entries.chunks_exact_mut(self.header.entry_bytes);
        let entry = entries.find(|entry| !is_used(entry))?;
        entry.fill(0);
        put(entry, 0, kind);
        put(entry, GUID_AT, &random(guid));
        put(entry, FIRST_AT, &blocks.start.to_le_bytes());
        put(entry, LAST_AT, &blocks.end.saturating_sub(1).to_le_bytes());
        let units = name.encode_utf16().take(NAME_UNITS).flat_map(u16::to_le_bytes);
        put(entry, NAME_AT, &units.collect::<Vec<u8>>());
        Some(())
    }

    /// The blocks for partitions on a disk of so many blocks; empty if the disk is too small for
    /// the table itself.
    pub(in crate::imaging) fn usable(&self, disk_blocks: u64) -> Range<u64> {
        self.header.first_usable..disk_blocks.saturating_sub(self.tail_blocks())
    }

    /// The blocks that the backup takes at the end of a disk.
    pub(in crate::imaging) fn tail_blocks(&self) -> u64 {
        self.header.entry_blocks() + 1
    }

    /// The encoded copies on a disk: block numbers with the bytes from there on.
    pub(in crate::imaging) fn placed(&self, disk_blocks: u64) -> [(u64, Vec<u8>); 4] {
        let backup_lba = disk_blocks.saturating_sub(1);
        let backup_entries_lba = disk_blocks.saturating_sub(self.tail_blocks());
        let entries_lba = self.header.entries_lba;
        [
            (PRIMARY_LBA, self.header_at(PRIMARY_LBA, backup_lba, entries_lba, disk_blocks)),
            (entries_lba, self.entries.clone()),
            (backup_entries_lba, self.entries.clone()),
            (backup_lba, self.header_at(backup_lba, PRIMARY_LBA, backup_entries_lba, disk_blocks)),
        ]
    }

    fn header_at(
        &self,
        my_lba: u64,
        other_lba: u64,
        entries_lba: u64,
        disk_blocks: u64,
    ) -> Vec<u8> {
        let mut block = self.header.block.clone();
        let last_usable = self.usable(disk_blocks).end.saturating_sub(1);
        for (at, lba) in [
            (MY_LBA_AT, my_lba),
            (ALTERNATE_LBA_AT, other_lba),
            (LAST_USABLE_AT, last_usable),
            (ENTRIES_LBA_AT, entries_lba),
        ] {
            put(&mut block, at, &lba.to_le_bytes());
        }
        put(&mut block, ENTRIES_CRC_AT, &crc32fast::hash(&self.entries).to_le_bytes());
        let header_bytes = u32_at(&block, HEADER_BYTES_AT) as usize;
        let crc = header_crc(block.get(..header_bytes).unwrap_or_default());
        put(&mut block, HEADER_CRC_AT, &crc.to_le_bytes());
        block
    }
}

fn ensure(holds: bool, or: &'static str) -> Result<(), Damaged> {
    if holds { Ok(()) } else { Err(Damaged(or)) }
}

/// The header's checksum, computed with a zero in its own field.
fn header_crc(header: &[u8]) -> u32 {
    let mut header = header.to_vec();
    put(&mut header, HEADER_CRC_AT, &[0; 4]);
    crc32fast::hash(&header)
}

fn is_used(entry: &[u8]) -> bool {
    field(entry, 0) != [0; 16]
}

fn name(entry: &[u8]) -> String {
    let bytes = entry.get(NAME_AT..).unwrap_or_default();
    let units =
        bytes.chunks_exact(2).take(NAME_UNITS).map(|unit| u16::from_le_bytes(field(unit, 0)));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

/// Corrects the checksums of a primary table, so that random bytes pass them.
#[cfg(any(test, fuzzing))]
pub(in crate::imaging) fn seal(disk: &mut [u8], block_bytes: usize) {
    let Some(header) = disk.get(block_bytes..2 * block_bytes) else { return };
    let mut sealed = header.to_vec();
    put(&mut sealed, 0, SIGNATURE);
    put(&mut sealed, HEADER_BYTES_AT, &HEADER_BYTES.to_le_bytes());
    put(&mut sealed, MY_LBA_AT, &PRIMARY_LBA.to_le_bytes());
    let bytes = u32_at(&sealed, ENTRY_COUNT_AT).saturating_mul(u32_at(&sealed, ENTRY_BYTES_AT));
    let at = u64_at(&sealed, ENTRIES_LBA_AT).saturating_mul(block_bytes as u64);
    let entries = usize::try_from(at).ok().and_then(|at| disk.get(at..));
    let mut entries = entries.unwrap_or_default().to_vec();
    entries.resize((bytes as usize).min(ENTRIES_BYTES_MAX), 0);
    put(&mut sealed, ENTRIES_CRC_AT, &crc32fast::hash(&entries).to_le_bytes());
    let crc = header_crc(sealed.get(..HEADER_BYTES as usize).unwrap_or_default());
    put(&mut sealed, HEADER_CRC_AT, &crc.to_le_bytes());
    put(disk, block_bytes, &sealed);
}

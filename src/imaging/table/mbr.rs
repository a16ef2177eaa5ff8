//! The master boot record (UEFI 2.10 §5.2): four records in the first 512 bytes of a disk.
//!
//! Logical partitions are ignored: the extended one around them is a partition like any other.

use std::ops::Range;

use super::{field, put, u32_at};

/// The number of blocks that a record can count, and so the first block beyond any partition.
pub(in crate::imaging) const BLOCKS_MAX: u64 = 1 << 32;

/// An EFI system partition.
pub(in crate::imaging) const ESP: u8 = 0xef;
/// Linux swap space.
pub(in crate::imaging) const SWAP: u8 = 0x82;
/// A Linux file system.
pub(in crate::imaging) const LINUX: u8 = 0x83;
/// FAT, addressed by blocks.
pub(in crate::imaging) const FAT: u8 = 0x0c;
/// Type of the partition that stands for a GUID partition table.
const PROTECTIVE: u8 = 0xee;

/// Boot code of a disk without a boot loader: INT 18h, at which a BIOS tries its next boot device
/// (BIOS Boot Specification 1.01 §6.7), and a halt if it returns. Zeros are instructions too, and
/// would hang the machine.
const NO_BOOT_LOADER: [u8; 5] = [0xcd, 0x18, 0xf4, 0xeb, 0xfd];

const DISK_ID_AT: usize = 440;
const RECORDS_AT: usize = 446;
const RECORD_BYTES: usize = 16;
const RECORDS: usize = 4;
const SIGNATURE_AT: usize = 510;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// The value for an address beyond cylinders, heads and sectors, as current tools write it.
const CHS_BEYOND: [u8; 3] = [0xfe, 0xff, 0xff];

/// A record of a partition. A record without type or blocks is unused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::imaging) struct Record {
    /// Index in the table, 0 to 3.
    pub(in crate::imaging) index: usize,
    pub(in crate::imaging) kind: u8,
    /// The partition's blocks; the record does not state their size.
    pub(in crate::imaging) blocks: Range<u64>,
}

/// The first block of a disk, with a table in it.
#[derive(Clone, Debug)]
pub(in crate::imaging) struct Mbr {
    block: Vec<u8>,
}

impl Mbr {
    /// A table without partitions, and without a boot loader: a BIOS goes on to its next boot
    /// device.
    pub(in crate::imaging) fn empty(block_bytes: usize, disk_id: [u8; 4]) -> Self {
        let mut block = vec![0; block_bytes];
        put(&mut block, 0, &NO_BOOT_LOADER);
        put(&mut block, DISK_ID_AT, &disk_id);
        put(&mut block, SIGNATURE_AT, &SIGNATURE);
        Self { block }
    }

    /// The protective record before a GUID partition table.
    pub(in crate::imaging) fn protective(block_bytes: usize, disk_blocks: u64) -> Self {
        let mut mbr = Self::empty(block_bytes, [0; 4]);
        mbr.protect(0, disk_blocks);
        mbr
    }

    /// Parses the first block of a disk. The boot sector of a file system has the same signature,
    /// but invalid records or none.
    pub(in crate::imaging) fn parse(block: Vec<u8>) -> Option<Self> {
        let signed = field(&block, SIGNATURE_AT) == SIGNATURE;
        let flags_valid = (0..RECORDS)
            .all(|index| matches!(field(&block, RECORDS_AT + index * RECORD_BYTES), [0 | 0x80]));
        let mbr = Self { block };
        (signed && flags_valid && mbr.records().next().is_some()).then_some(mbr)
    }

    /// The partitions.
    pub(in crate::imaging) fn records(&self) -> impl Iterator<Item = Record> {
        (0..RECORDS).map(|index| self.record(index)).filter(Record::is_used)
    }

    fn record(&self, index: usize) -> Record {
        let at = RECORDS_AT + index * RECORD_BYTES;
        let [kind] = field(&self.block, at + 4);
        let first = u64::from(u32_at(&self.block, at + 8));
        let blocks = u64::from(u32_at(&self.block, at + 12));
        Record { index, kind, blocks: first..first + blocks }
    }

    /// Whether the record announces a GUID partition table, perhaps beside partitions of its own.
    pub(in crate::imaging) fn is_protective(&self) -> bool {
        self.records().any(|record| record.kind == PROTECTIVE)
    }

    /// Extends the protective partition to the end of the disk, unless the record has others: their
    /// author chose its size.
    pub(in crate::imaging) fn grow(&mut self, disk_blocks: u64) {
        let records: Vec<Record> = self.records().collect();
        if let [only] = records.as_slice()
            && only.kind == PROTECTIVE
            && only.blocks.start == 1
        {
            self.protect(only.index, disk_blocks);
        }
    }

    fn protect(&mut self, index: usize, disk_blocks: u64) {
        let at = RECORDS_AT + index * RECORD_BYTES;
        put(&mut self.block, at + 1, &[0, 2, 0, PROTECTIVE]);
        put(&mut self.block, at + 5, &[0xff; 3]);
        put(&mut self.block, at + 8, &1_u32.to_le_bytes());
        let blocks = u32::try_from(disk_blocks.saturating_sub(1)).unwrap_or(u32::MAX);
        put(&mut self.block, at + 12, &blocks.to_le_bytes());
    }

    /// Fills the first unused record; `None` if all are in use, or the blocks exceed its range.
    pub(in crate::imaging) fn add(&mut self, kind: u8, blocks: &Range<u64>) -> Option<()> {
        let index = (0..RECORDS).find(|index| !self.record(*index).is_used())?;
        let first = u32::try_from(blocks.start).ok()?;
        let count = u32::try_from(blocks.end.checked_sub(blocks.start)?).ok()?;
        let at = RECORDS_AT + index * RECORD_BYTES;
        put(&mut self.block, at, &[0]);
        put(&mut self.block, at + 1, &CHS_BEYOND);
        put(&mut self.block, at + 4, &[kind]);
        put(&mut self.block, at + 5, &CHS_BEYOND);
        put(&mut self.block, at + 8, &first.to_le_bytes());
        put(&mut self.block, at + 12, &count.to_le_bytes());
        Some(())
    }

    /// The whole block.
    pub(in crate::imaging) fn into_block(self) -> Vec<u8> {
        self.block
    }
}

impl Record {
    fn is_used(&self) -> bool {
        self.kind != 0 && !self.blocks.is_empty()
    }
}

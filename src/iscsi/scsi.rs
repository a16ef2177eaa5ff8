//! SCSI: the commands that write a disk (SPC-4, SBC-3), and the decoding of status and sense data.
//!
//! The disk uses it. Pure functions over bytes, without I/O.

use std::fmt;

use thiserror::Error;

use super::pdu::LunField;

/// Largest logical unit number of the flat addressing of SAM-5 §4.7.7.3.
pub(super) const LUN_MAX: u16 = 0x3fff;

/// Bytes that INQUIRY asks for.
pub(super) const INQUIRY_BYTES: u8 = 96;
/// Bytes of a page of vital product data that INQUIRY asks for: all of Block Limits, and more list
/// entries than any disk has.
pub(super) const PAGE_BYTES: u8 = 64;
/// Vital product data: the list of its pages, SPC-4 §7.8.14.
pub(super) const SUPPORTED_PAGES: u8 = 0x00;
/// Vital product data: Block Limits, SBC-3 §6.5.3.
pub(super) const BLOCK_LIMITS: u8 = 0xb0;
/// Vital product data: Logical Block Provisioning, SBC-3 §6.5.4.
pub(super) const PROVISIONING: u8 = 0xb2;
/// Bytes of an answer to READ CAPACITY(16).
pub(super) const CAPACITY_16_BYTES: u32 = 32;
/// Bytes of an answer to READ CAPACITY(10).
pub(super) const CAPACITY_10_BYTES: u32 = 8;
/// Bytes that REPORT LUNS asks for: 127 units, more than an error message can show.
pub(super) const REPORT_LUNS_BYTES: u32 = 1024;

/// A command descriptor block, padded with zeros to the 16 bytes of its PDU field.
pub(super) type Cdb = [u8; 16];

/// Encodes a unit number up to [`LUN_MAX`] in its 8-byte form.
pub(super) fn lun_field(lun: u16) -> LunField {
    let [high, low] = lun.to_be_bytes();
    // Peripheral addressing below 256, which every target understands; flat addressing above.
    let method = if high == 0 { 0 } else { 0x40 };
    [method | high, low, 0, 0, 0, 0, 0, 0]
}

/// Builds TEST UNIT READY.
pub(super) fn test_unit_ready() -> Cdb {
    cdb([0; 6])
}

/// Builds INQUIRY for the standard data.
pub(super) fn inquiry() -> Cdb {
    cdb([0x12, 0, 0, 0, INQUIRY_BYTES, 0])
}

/// Builds INQUIRY for a page of vital product data.
pub(super) fn inquiry_page(page: u8) -> Cdb {
    cdb([0x12, 1, page, 0, PAGE_BYTES, 0])
}

/// Builds REPORT LUNS.
pub(super) fn report_luns() -> Cdb {
    let [a, b, c, d] = REPORT_LUNS_BYTES.to_be_bytes();
    cdb([0xa0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0])
}

/// Builds READ CAPACITY(10).
pub(super) fn read_capacity_10() -> Cdb {
    cdb([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// Builds READ CAPACITY(16).
pub(super) fn read_capacity_16() -> Cdb {
    let [a, b, c, d] = CAPACITY_16_BYTES.to_be_bytes();
    [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0]
}

/// Builds READ(16) of `blocks` at `lba`.
pub(super) fn read_16(lba: u64, blocks: u32) -> Cdb {
    ranged(0x88, 0, lba, blocks)
}

/// Builds WRITE(16) of `blocks` at `lba`.
pub(super) fn write_16(lba: u64, blocks: u32) -> Cdb {
    ranged(0x8a, 0, lba, blocks)
}

/// Builds WRITE SAME(16): one block of data for `blocks` at `lba`. With `unmap`, the target may
/// deallocate blocks that then read the same.
pub(super) fn write_same_16(lba: u64, blocks: u32, unmap: bool) -> Cdb {
    ranged(0x93, if unmap { 0x08 } else { 0 }, lba, blocks)
}

/// Builds SYNCHRONIZE CACHE(16) of the whole disk.
pub(super) fn synchronize_cache_16() -> Cdb {
    ranged(0x91, 0, 0, 0)
}

/// Builds SYNCHRONIZE CACHE(10) of the whole disk.
pub(super) fn synchronize_cache_10() -> Cdb {
    cdb([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

fn cdb<const N: usize>(short: [u8; N]) -> Cdb {
    let mut cdb = [0; 16];
    for (to, from) in cdb.iter_mut().zip(short) {
        *to = from;
    }
    cdb
}

fn ranged(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Cdb {
    let range = lba.to_be_bytes().into_iter().chain(blocks.to_be_bytes());
    let mut cdb = cdb([opcode, flags]);
    for (to, from) in cdb.iter_mut().skip(2).zip(range) {
        *to = from;
    }
    cdb
}

/// Whether standard INQUIRY data describes a present disk (SPC-4 §6.6.2: qualifier 0, device type
/// 0).
pub(super) fn is_disk(inquiry: &[u8]) -> bool {
    inquiry.first() == Some(&0)
}

/// Decodes the unit numbers in an answer to REPORT LUNS.
pub(super) fn luns(answer: &[u8]) -> Vec<u16> {
    let Some((length, entries)) = answer.split_at_checked(8) else { return Vec::new() };
    let length = be_u32(length, 0).and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    let entries = entries.get(..length).unwrap_or(entries);
    entries
        .chunks_exact(8)
        .filter_map(|entry| Some(u16::from_be_bytes(*entry.first_chunk()?) & LUN_MAX))
        .collect()
}

/// Size and features of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    pub(super) blocks: u64,
    pub(super) block_bytes: u32,
    /// Whether unmapped blocks (LBPME) read as zeros (LBPRZ).
    pub(super) unmapped_is_zero: bool,
}

/// Decodes READ CAPACITY(16) data, SBC-3 §5.16.2.
pub(super) fn capacity_16(answer: &[u8]) -> Option<Capacity> {
    let last = u64::from_be_bytes(*answer.first_chunk()?);
    let unmapped_is_zero = answer.get(14).is_some_and(|flags| flags & 0xc0 == 0xc0);
    capacity(last.checked_add(1)?, be_u32(answer, 8)?, unmapped_is_zero)
}

/// Decodes READ CAPACITY(10) data, SBC-3 §5.15.2. A disk too large for it answers with the largest
/// number, which is refused here.
pub(super) fn capacity_10(answer: &[u8]) -> Option<Capacity> {
    let blocks = be_u32(answer, 0)?.checked_add(1)?;
    capacity(u64::from(blocks), be_u32(answer, 4)?, false)
}

/// Accepts only blocks of 512 bytes to 64 KiB, and a size below 2^63 bytes.
fn capacity(blocks: u64, block_bytes: u32, unmapped_is_zero: bool) -> Option<Capacity> {
    let sane = block_bytes.is_power_of_two() && (512..=65_536).contains(&block_bytes);
    blocks.checked_mul(u64::from(block_bytes)).filter(|bytes| sane && *bytes < 1 << 63)?;
    Some(Capacity { blocks, block_bytes, unmapped_is_zero })
}

/// A command's limits and its optimal length; a 0 in the page means "not given" and is `None` here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "each says its unit")]
pub(super) struct BlockLimits {
    pub(super) transfer_blocks: Option<u32>,
    pub(super) write_same_blocks: Option<u64>,
    pub(super) optimal_blocks: Option<u32>,
}

/// Decodes the Block Limits page, SBC-3 §6.5.3; a page that is too short has no limits.
pub(super) fn block_limits(page: &[u8]) -> BlockLimits {
    if page.get(1) != Some(&BLOCK_LIMITS) {
        return BlockLimits::default();
    }
    let write_same = page.get(36..44).and_then(|field| field.first_chunk());
    let transfer_blocks = be_u32(page, 8).filter(|blocks| *blocks != 0);
    BlockLimits {
        transfer_blocks,
        write_same_blocks: write_same
            .map(|field| u64::from_be_bytes(*field))
            .filter(|blocks| *blocks != 0),
        optimal_blocks: optimal_blocks(page, transfer_blocks),
    }
}

/// OPTIMAL TRANSFER LENGTH if it describes the disk, else its granularity, which divides it.
fn optimal_blocks(page: &[u8], transfer_blocks: Option<u32>) -> Option<u32> {
    let granularity = page.get(6..8).and_then(|field| field.first_chunk());
    let granularity = granularity
        .map(|field| u32::from(u16::from_be_bytes(*field)))
        .filter(|blocks| *blocks != 0);
    be_u32(page, 12)
        .filter(|blocks| *blocks != 0 && blocks.is_multiple_of(granularity.unwrap_or(1)))
        // LIO repeats the maximum transfer length for a disk that reports no optimum.
        .filter(|blocks| Some(*blocks) != transfer_blocks)
        .or(granularity)
}

/// The data of a page of vital product data; empty for another page.
pub(super) fn page_data(answer: &[u8], page: u8) -> &[u8] {
    match answer.split_at_checked(4) {
        Some(([_, code, high, low], data)) if *code == page => {
            let bytes = usize::from(u16::from_be_bytes([*high, *low]));
            data.get(..bytes).unwrap_or(data)
        }
        _ => &[],
    }
}

/// Whether the Logical Block Provisioning page allows WRITE SAME(16) to unmap (LBPWS) and promises
/// zeros in unmapped blocks (the last bit of LBPRZ, which is the whole field in SBC-3).
pub(super) fn unmaps_to_zeros(answer: &[u8]) -> bool {
    page_data(answer, PROVISIONING).get(1).is_some_and(|flags| flags & 0x44 == 0x44)
}

fn be_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_be_bytes(*field))
}

/// The failure of a SCSI command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ScsiFailure {
    /// CHECK CONDITION with sense data.
    #[error("{0}")]
    Sense(Sense),
    /// CHECK CONDITION without readable sense data.
    #[error("CHECK CONDITION without sense data")]
    NoSense,
    /// A status other than GOOD and CHECK CONDITION, SAM-5 §5.3.1.
    #[error("SCSI status {words} ({0:02x})", words = status_words(*.0))]
    Status(u8),
    /// The target could not execute the command at all (iSCSI response code, RFC 7143 §11.4.3).
    #[error("the target could not execute the command (response {0:02x})")]
    TargetFailure(u8),
}

/// Sense data: the key and the additional codes, SPC-4 §4.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key, 0 to 15.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
}

pub(super) const STATUS_GOOD: u8 = 0x00;
pub(super) const STATUS_CHECK_CONDITION: u8 = 0x02;
pub(super) const STATUS_BUSY: u8 = 0x08;
pub(super) const STATUS_TASK_SET_FULL: u8 = 0x28;

fn status_words(status: u8) -> &'static str {
    match status {
        STATUS_BUSY => "BUSY",
        0x18 => "RESERVATION CONFLICT",
        STATUS_TASK_SET_FULL => "TASK SET FULL",
        0x30 => "ACA ACTIVE",
        0x40 => "TASK ABORTED",
        _ => "unknown",
    }
}

impl Sense {
    /// Parses the data segment of a SCSI Response PDU: a length, then fixed (70h) or descriptor
    /// (72h) sense data, current or deferred.
    pub(super) fn parse(segment: &[u8]) -> Option<Self> {
        let sense = segment.get(2..)?;
        let (key, asc, ascq) = match sense.first()? & 0x7f {
            0x70 | 0x71 => (sense.get(2)?, sense.get(12)?, sense.get(13)?),
            0x72 | 0x73 => (sense.get(1)?, sense.get(2)?, sense.get(3)?),
            _ => return None,
        };
        Some(Self { key: key & 0x0f, asc: *asc, ascq: *ascq })
    }

    /// Whether the target reports UNIT ATTENTION: an event since the last command. The command was
    /// not executed and may be repeated.
    pub fn is_unit_attention(self) -> bool {
        self.key == 6
    }

    /// Whether the unit is NOT READY, but becoming ready.
    pub fn is_becoming_ready(self) -> bool {
        (self.key, self.asc, self.ascq) == (2, 0x04, 0x01)
    }

    /// Whether the target does not support the command or one of its fields.
    pub fn is_unsupported(self) -> bool {
        self.key == 5 && matches!(self.asc, 0x20 | 0x24 | 0x26)
    }

    const fn key_words(self) -> &'static str {
        match self.key {
            0 => "NO SENSE",
            1 => "RECOVERED ERROR",
            2 => "NOT READY",
            3 => "MEDIUM ERROR",
            4 => "HARDWARE ERROR",
            5 => "ILLEGAL REQUEST",
            6 => "UNIT ATTENTION",
            7 => "DATA PROTECT",
            8 => "BLANK CHECK",
            9 => "VENDOR SPECIFIC",
            10 => "COPY ABORTED",
            11 => "ABORTED COMMAND",
            13 => "VOLUME OVERFLOW",
            14 => "MISCOMPARE",
            15 => "COMPLETED",
            _ => "RESERVED",
        }
    }

    /// Describes the codes of disks behind iSCSI targets, SPC-4 annex F.
    const fn code_words(self) -> Option<&'static str> {
        Some(match (self.asc, self.ascq) {
            (0x00, 0x00) => "no additional information",
            (0x03, _) => "peripheral write fault",
            (0x04, 0x01) => "becoming ready",
            (0x04, _) => "not ready",
            (0x08, _) => "communication failure",
            (0x0c, _) => "write error",
            (0x11, _) => "unrecovered read error",
            (0x15, _) => "positioning error",
            (0x1a, _) => "parameter list length error",
            (0x20, _) => "command not supported",
            (0x21, _) => "beyond the end of the disk",
            (0x24, _) => "invalid field in the command",
            (0x25, _) => "no such logical unit",
            (0x26, _) => "invalid field in the parameters",
            (0x27, 0x07) => "out of space on the thin volume",
            (0x27, _) => "write protected",
            (0x29, _) => "power on or reset occurred",
            (0x2a, 0x09) => "capacity has changed",
            (0x2a, _) => "parameters changed",
            (0x2f, _) => "commands cleared by another initiator",
            (0x31, _) => "medium format corrupted",
            (0x3a, _) => "no medium",
            (0x3f, 0x0e) => "the list of logical units has changed",
            (0x3f, _) => "target operating conditions have changed",
            (0x44, _) => "internal target failure",
            (0x47, _) => "data phase CRC error",
            (0x4b, _) => "data phase error",
            (0x55, _) => "out of resources",
            _ => return None,
        })
    }
}

/// Shows sense data as `MEDIUM ERROR, write error (03/0c/00)`.
impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key_words())?;
        if let Some(words) = self.code_words() {
            write!(f, ", {words}")?;
        }
        write!(f, " ({:02x}/{:02x}/{:02x})", self.key, self.asc, self.ascq)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ids::hex;

    #[test]
    fn commands_have_their_fields_where_sbc_puts_them() {
        assert_eq!(
            hex(&write_16(0x0102_0304_0506_0708, 0x0a0b_0c0d)),
            "8a0001020304050607080a0b0c0d0000"
        );
        assert_eq!(hex(&read_16(1, 2)), "88000000000000000001000000020000");
        assert_eq!(hex(&write_same_16(1, 2, true)), "93080000000000000001000000020000");
        assert_eq!(hex(&synchronize_cache_16()), "91000000000000000000000000000000");
        assert_eq!(hex(&read_capacity_16()), "9e100000000000000000000000200000");
        assert_eq!(hex(&report_luns()), "a0000000000000000400000000000000");
        assert_eq!(hex(&inquiry_page(BLOCK_LIMITS)), "1201b000400000000000000000000000");
    }

    #[test]
    fn unit_numbers_below_256_use_the_form_every_target_knows() {
        assert_eq!(lun_field(1), [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(lun_field(255), [0, 255, 0, 0, 0, 0, 0, 0]);
        assert_eq!(lun_field(0x3abc), [0x7a, 0xbc, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn capacities_that_cannot_be_computed_with_are_refused() {
        let answer = |last: u64, block: u32| {
            let mut answer = [0; 32];
            answer[..8].copy_from_slice(&last.to_be_bytes());
            answer[8..12].copy_from_slice(&block.to_be_bytes());
            answer[14] = 0xc0;
            answer
        };
        let disk = capacity_16(&answer(0xfff, 4096)).unwrap();
        assert_eq!(disk, Capacity { blocks: 0x1000, block_bytes: 4096, unmapped_is_zero: true });
        for (last, block) in
            [(u64::MAX, 512), (1 << 60, 512), (9, 0), (9, 513), (9, 256), (9, 1 << 17)]
        {
            assert_eq!(capacity_16(&answer(last, block)), None, "{last} {block}");
        }
        assert_eq!(capacity_10(&[0, 0, 0, 9, 0, 0, 2, 0]).unwrap().blocks, 10);
        assert_eq!(capacity_10(&[0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0]), None);
    }

    #[test]
    fn only_a_page_that_shows_both_bits_makes_unmapping_certain() {
        let page = |code, flags| [0, code, 0, 4, 0, flags, 0, 0];
        assert!(unmaps_to_zeros(&page(0xb2, 0x44)));
        assert!(unmaps_to_zeros(&page(0xb2, 0xe5)));
        // LBPU alone, no LBPRZ, LBPRZ of a vendor's pattern (SBC-4), another page, a page cut
        // short.
        for (code, flags) in [(0xb2, 0x84), (0xb2, 0xe0), (0xb2, 0xe8), (0xb0, 0x44)] {
            assert!(!unmaps_to_zeros(&page(code, flags)), "{code:x} {flags:x}");
        }
        assert!(!unmaps_to_zeros(&page(0xb2, 0x44)[..5]));
        assert_eq!(page_data(&[0, 0, 0, 2, 0, 0xb0, 0xb2], 0), [0, 0xb0]);
    }

    #[test]
    fn the_optimal_transfer_length_counts_where_it_says_something_of_the_disk() {
        let page = |granularity: u16, most: u32, optimal: u32| {
            let mut page = [0, 0xb0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            page[6..8].copy_from_slice(&granularity.to_be_bytes());
            page[8..12].copy_from_slice(&most.to_be_bytes());
            page[12..16].copy_from_slice(&optimal.to_be_bytes());
            page
        };
        for (granularity, most, optimal, blocks) in [
            (0, 0, 0, None),
            (0, 0, 384, Some(384)),
            (128, 8192, 384, Some(384)),
            (128, 8192, 0, Some(128)),
            // An optimum that is no multiple of its granularity; an optimum that repeats the limit.
            (128, 8192, 400, Some(128)),
            (1, 65535, 65535, Some(1)),
            (0, u32::MAX, u32::MAX, None),
        ] {
            let limits = block_limits(&page(granularity, most, optimal));
            assert_eq!(limits.optimal_blocks, blocks, "{granularity} {most} {optimal}");
        }
        assert_eq!(block_limits(&page(128, 0, 384)[..12]).optimal_blocks, Some(128));
        assert_eq!(block_limits(&page(128, 0, 384)[..7]), BlockLimits::default());
    }

    #[test]
    fn sense_data_reads_in_both_formats_and_says_what_it_means() {
        let mut fixed = vec![0, 18, 0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x0c, 0, 0, 0, 0, 0];
        assert_eq!(
            Sense::parse(&fixed).unwrap().to_string(),
            "MEDIUM ERROR, write error (03/0c/00)"
        );
        let descriptor = [0, 8, 0x72, 5, 0x21, 0, 0, 0, 0, 0];
        let sense = Sense::parse(&descriptor).unwrap();
        assert_eq!(sense.to_string(), "ILLEGAL REQUEST, beyond the end of the disk (05/21/00)");
        fixed.truncate(15);
        assert_eq!(Sense::parse(&fixed), None);
        let odd = Sense { key: 12, asc: 0xee, ascq: 1 };
        assert_eq!(odd.to_string(), "RESERVED (0c/ee/01)");
        assert_eq!(ScsiFailure::Status(0x18).to_string(), "SCSI status RESERVATION CONFLICT (18)");
    }

    proptest! {
        #[test]
        fn reading_answers_never_panics_on_any_bytes(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            drop((Sense::parse(&bytes).map(|sense| sense.to_string()), luns(&bytes)));
            is_disk(&bytes);
            block_limits(&bytes);
            unmaps_to_zeros(&bytes);
            for disk in [capacity_16(&bytes), capacity_10(&bytes)].into_iter().flatten() {
                prop_assert!(disk.blocks.checked_mul(u64::from(disk.block_bytes)).is_some());
            }
        }
    }
}

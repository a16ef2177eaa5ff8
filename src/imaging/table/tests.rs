//! Tables that are written and read back, and bytes that are no table.

use proptest::prelude::*;

use super::{
    gpt::{self, Gpt, Header, PRIMARY_LBA},
    mbr::{self, Mbr},
};

const BLOCK: usize = 512;
const DISK_BLOCKS: u64 = 4096;

/// A disk's bytes with a table of two partitions.
fn disk() -> Vec<u8> {
    let mut gpt = Gpt::empty(BLOCK, [1; 16]);
    for (blocks, name) in
        [(2048..3000, "root"), (3000..3001, "Größe, länger als sechsunddreißig Zeichen")]
    {
        gpt.add(&gpt::LINUX, [2; 16], &blocks, name).unwrap();
    }
    let mut disk = vec![0; BLOCK * usize::try_from(DISK_BLOCKS).unwrap()];
    for (block, bytes) in gpt.placed(DISK_BLOCKS) {
        let at = usize::try_from(block).unwrap() * BLOCK;
        disk[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    disk
}

fn read(disk: &[u8], lba: u64) -> Result<Gpt, gpt::Damaged> {
    let at = |lba: u64| usize::try_from(lba).unwrap() * BLOCK;
    let header = Header::parse(disk[at(lba)..at(lba + 1)].to_vec(), lba)?;
    let entries = &disk[at(header.entries_lba())..][..header.entries_bytes()];
    Gpt::new(header, entries.to_vec())
}

#[test]
fn both_copies_read_back_with_their_partitions() {
    let disk = disk();
    for (lba, other) in [(PRIMARY_LBA, DISK_BLOCKS - 1), (DISK_BLOCKS - 1, PRIMARY_LBA)] {
        let gpt = read(&disk, lba).unwrap();
        assert_eq!(gpt.alternate_lba(), other);
        let found: Vec<_> = gpt
            .partitions()
            .map(|partition| (partition.number, partition.blocks, partition.name))
            .collect();
        let cut: String = "Größe, länger als sechsunddreißig Zeichen".chars().take(36).collect();
        assert_eq!(found, [(1, 2048..3000, "root".to_owned()), (2, 3000..3001, cut)]);
        let primary = gpt.into_primary().unwrap();
        assert_eq!(
            primary.placed(DISK_BLOCKS),
            read(&disk, PRIMARY_LBA).unwrap().placed(DISK_BLOCKS)
        );
    }
}

#[test]
fn a_table_full_of_partitions_takes_no_more() {
    let mut gpt = Gpt::empty(BLOCK, [1; 16]);
    let add = |gpt: &mut Gpt| gpt.add(&gpt::LINUX, [2; 16], &(2048..2049), "");
    assert!((0..128).all(|_| add(&mut gpt).is_some()));
    assert_eq!(add(&mut gpt), None);

    let mut mbr = Mbr::empty(BLOCK, [1; 4]);
    assert!((0..4).all(|_| mbr.add(mbr::LINUX, &(2048..2049)).is_some()));
    assert_eq!(mbr.add(mbr::LINUX, &(2048..2049)), None);
}

#[test]
fn blocks_that_32_bits_cannot_count_are_in_no_record() {
    let mut mbr = Mbr::empty(BLOCK, [1; 4]);
    assert_eq!(mbr.add(mbr::LINUX, &(mbr::BLOCKS_MAX..mbr::BLOCKS_MAX + 1)), None);
    assert_eq!(mbr.add(mbr::LINUX, &(1..mbr::BLOCKS_MAX + 1)), None);
    assert_eq!(mbr.add(mbr::LINUX, &(1..mbr::BLOCKS_MAX)), Some(()));
    assert_eq!(mbr.records().next().unwrap().blocks, 1..mbr::BLOCKS_MAX);
}

#[test]
fn a_protective_record_covers_what_it_can_of_the_disk() {
    for (disk_blocks, end) in [(100, 100), (1 << 40, mbr::BLOCKS_MAX)] {
        let mut grown = Mbr::protective(BLOCK, 50);
        grown.grow(disk_blocks);
        let made = Mbr::protective(BLOCK, disk_blocks);
        assert_eq!(made.records().next().unwrap().blocks, 1..end);
        assert_eq!(grown.into_block(), made.into_block());
    }
}

#[test]
fn a_boot_sector_without_records_is_no_table() {
    let signed = |at: usize, byte| {
        let mut block = Mbr::empty(BLOCK, [0; 4]).into_block();
        block[at] = byte;
        Mbr::parse(block).is_some()
    };
    assert!(!signed(0, 0xeb));
    assert!(!signed(450, 0x83), "no blocks");
    assert!(Mbr::parse(Mbr::protective(BLOCK, 9).into_block()).is_some());
    let mut unsigned = Mbr::protective(BLOCK, 9).into_block();
    unsigned[511] = 0;
    assert!(Mbr::parse(unsigned).is_none());
    let mut odd_flag = Mbr::protective(BLOCK, 9).into_block();
    odd_flag[462] = b'!';
    assert!(Mbr::parse(odd_flag).is_none());
}

proptest! {
    #[test]
    fn one_wrong_byte_in_a_table_is_noticed(
        at in prop_oneof![BLOCK..BLOCK + 92, 2 * BLOCK..34 * BLOCK], change in 1_u8..
    ) {
        let mut disk = disk();
        disk[at] ^= change;
        prop_assert!(read(&disk, PRIMARY_LBA).is_err());
        prop_assert!(read(&disk, DISK_BLOCKS - 1).is_ok());
    }

    #[test]
    fn never_panics_on_any_bytes(
        block in proptest::collection::vec(any::<u8>(), 0..600),
        fields in any::<[u64; 4]>(),
        sizes in (any::<u32>(), prop_oneof![Just(128_u32), any::<u32>()]),
    ) {
        if let Some(mut mbr) = Mbr::parse(block.clone()) {
            mbr.grow(7);
            mbr.add(1, &(5..6));
        }
        drop(Header::parse(block.clone(), 1));
        let mut disk = [vec![0; BLOCK], block].concat();
        disk.resize(40 * BLOCK, 0);
        for (at, value) in [40, 48, 32, 72].into_iter().zip(fields) {
            disk[BLOCK + at..][..8].copy_from_slice(&value.to_le_bytes());
        }
        disk[BLOCK + 80..][..4].copy_from_slice(&(sizes.0 % 200).to_le_bytes());
        disk[BLOCK + 84..][..4].copy_from_slice(&sizes.1.to_le_bytes());
        gpt::seal(&mut disk, BLOCK);
        if let Ok(header) = Header::parse(disk[BLOCK..2 * BLOCK].to_vec(), 1) {
            let entries = vec![7; header.entries_bytes()];
            drop(Gpt::new(header, entries).map(|gpt| gpt.placed(3)));
        }
    }
}

//! Invariants of layouts for arbitrary images and disks.

use std::{ops::Range, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::{
    imaging::table::{
        gpt::{self, Header, PRIMARY_LBA},
        mbr,
    },
    model::spec::{PartitionTable, Partitions},
};

const MIB: u64 = 1 << 20;
const DRIVE: &[u8] = b"a file system for cloud-init";

fn guids() -> impl FnMut() -> [u8; 16] {
    let mut count = 0;
    move || {
        count += 1;
        [count; 16]
    }
}

/// A sparse file of zeros, except for some ranges.
fn image(bytes: u64, places: &[(u64, Vec<u8>)]) -> ImageFile {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(bytes).unwrap();
    for (at, place) in places {
        file.write_all_at(place, *at).unwrap();
    }
    ImageFile::new(Arc::new(file), Path::new("image")).unwrap()
}

/// A view of the disk that a sound layout makes from a disk of old bytes with wiped ends.
struct Disk<'a>(&'a Layout, Geometry);

impl Disk<'_> {
    fn read(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut read = vec![0xd5; bytes];
        for (byte, place) in read.iter_mut().zip(at..) {
            if place < MIB || place >= self.1.bytes - MIB {
                *byte = 0;
            }
        }
        for segment in self.0.segments() {
            let end = segment.at + self.1.padded(segment.content.bytes());
            let (from, to) = (segment.at.max(at), end.min(at + bytes as u64));
            if from >= to {
                continue;
            }
            let length = usize::try_from(to - from).unwrap();
            let content = match segment.content.clone().skip(from - segment.at) {
                Content::File { file, offset, .. } => file.read_at(offset, length).unwrap(),
                Content::Made(made) => made.to_vec(),
                Content::Zeros(_) => Vec::new(),
            };
            let part = &mut read[usize::try_from(from - at).unwrap()..][..length];
            part.fill(0);
            let there = content.len().min(length);
            part[..there].copy_from_slice(&content[..there]);
        }
        read
    }

    /// Reads the copy of the table at `lba`.
    fn gpt(&self, lba: u64) -> Gpt {
        let block = u64::from(self.1.block_bytes);
        let header = Header::parse(self.read(lba * block, self.1.block_size()), lba).unwrap();
        let entries = self.read(header.entries_lba() * block, header.entries_bytes());
        Gpt::new(header, entries).unwrap()
    }

    fn mbr(&self) -> Mbr {
        Mbr::parse(self.read(0, self.1.block_size())).unwrap()
    }

    /// Whether these bytes are the image's from an offset on.
    fn shows(&self, bytes: &Range<u64>, image_offset: u64) -> bool {
        let mut at = bytes.start;
        for Segment { at: start, content } in self.0.segments() {
            if *start <= at && at < bytes.end.min(start + content.bytes()) {
                let wanted = image_offset + (at - bytes.start);
                let skipped = at - start;
                if !matches!(content, Content::File { offset, .. } if offset + skipped == wanted) {
                    return false;
                }
                at = start + content.bytes();
            }
        }
        at >= bytes.end
    }
}

fn whole(blocks: &Range<u64>, block_bytes: u32) -> Range<u64> {
    blocks.start * u64::from(block_bytes)..blocks.end * u64::from(block_bytes)
}

fn shows_itself(disk: &Disk<'_>, blocks: &Range<u64>) -> bool {
    let bytes = whole(blocks, disk.1.block_bytes);
    disk.shows(&bytes, bytes.start)
}

/// Whether a new config drive's partition after `free` has the disk's alignment, or else there was
/// no room for it.
fn is_as_aligned_as_it_can_be(disk: Geometry, place: &Range<u64>, free: u64) -> bool {
    let alignment = disk.alignment_bytes();
    // The place at a MiB is less than a MiB before the last possible one.
    let room = place.start >= free.next_multiple_of(alignment).max(alignment) + alignment;
    place.start.is_multiple_of(if room { alignment } else { MIB })
}

/// Block sizes, the partitions' blocks after the first MiB, and the blocks of image and disk after
/// the last one.
fn cases() -> impl Strategy<Value = (u32, Vec<Range<u64>>, u64, u64)> {
    let sizes = proptest::collection::vec((0_u64..5000, 1_u64..50_000), 0..5);
    let rest = prop_oneof![0_u64..200, 0_u64..400_000, Just(1 << 33)];
    (prop_oneof![Just(512_u32), Just(4096)], sizes, 34_u64..5000, rest).prop_map(
        |(block_bytes, sizes, image_rest, disk_rest)| {
            let mut end = MIB / u64::from(block_bytes);
            let partitions = sizes.into_iter().map(|(gap, blocks)| {
                let start = end + gap;
                end = start + blocks;
                start..end
            });
            let partitions: Vec<_> = partitions.collect();
            (block_bytes, partitions, end + image_rest, end + disk_rest)
        },
    )
}

/// Optimal transfer lengths that disks report: none, RAIDs' stripes, limits of adapters, nonsense.
fn optima() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        (1_u32..400).prop_map(|chunks| chunks << 16),
        prop_oneof![Just(65535 * 512), Just(8191 * 4096), Just(280 << 10)],
        any::<u32>()
    ]
}

/// Invariant (disk): Partition tables fit the disk, and nothing of its earlier contents is found.
#[test]
fn partitions_are_aligned_as_the_disk_says_if_that_makes_sense() {
    for (optimal_bytes, alignment) in [
        (0, MIB),
        (512, MIB),
        (64 << 10, MIB),
        (3 * (64 << 10), 3 * MIB),
        (7 * (512 << 10), 7 * MIB),
        (4 << 20, 4 * MIB),
        (64 << 20, 64 * MIB),
        // More than disks report, and limits of adapters.
        (128 << 20, MIB),
        (65535 * 512, MIB),
        (65534 * 512, MIB),
        (32767 * 512, MIB),
        (8191 * 4096, MIB),
        (4095 << 20, MIB),
        (u32::MAX, MIB),
    ] {
        let disk = Geometry { bytes: 1 << 40, block_bytes: 512, optimal_bytes };
        assert_eq!(disk.alignment_bytes(), alignment, "{optimal_bytes}");
    }
}

/// Invariant (disk): Partition tables fit the disk, and nothing of its earlier contents is found.
#[test]
fn a_disk_with_no_room_for_its_own_alignment_is_aligned_to_a_mib() {
    let partitions = Partitions {
        table: PartitionTable::Gpt,
        swap_bytes: Some(MIB),
        ephemeral_bytes: None,
        root_bytes: None,
    };
    let root = image(MIB, &[]);
    let needed = needed_bytes(MIB, &partitions, None, false);
    // The swap space, the root, and the space before them take four MiB each, and the table's
    // backup takes one.
    for (bytes, starts) in [(needed, [1, 2]), (13 * MIB - 512, [1, 2]), (13 * MIB, [4, 8])] {
        let disk = Geometry { bytes, block_bytes: 512, optimal_bytes: 4 << 20 };
        let layout = partitioned(&root, disk, &partitions, Parts::default(), &mut guids()).unwrap();
        let table = Disk(&layout, disk).gpt(PRIMARY_LBA);
        let found: Vec<_> = table.partitions().map(|found| found.blocks.start / 2048).collect();
        assert_eq!(found, starts, "{bytes}");
    }
}

#[test]
fn impossible_block_sizes_are_refused() {
    for block_bytes in [0, 1, 256, 513, 131_072] {
        let disk = Geometry { bytes: 1 << 30, block_bytes, optimal_bytes: 0 };
        let layout = whole_disk(&image(MIB, &[]), disk, None, &mut guids());
        assert!(matches!(layout, Err(LayoutError::Blocks(_))), "{block_bytes}");
    }
}

#[test]
fn a_layout_that_is_not_sound_says_why() {
    let disk = Geometry { bytes: 8192, block_bytes: 4096, optimal_bytes: 0 };
    let zeros = |at, bytes| Segment { at, content: Content::Zeros(bytes) };
    let check = |segments: &[Segment]| {
        Layout::new(segments.iter().cloned()).checked(disk).map_err(|error| error.to_string())
    };
    for (segments, what) in [
        ([zeros(512, 1), zeros(4096, 1)], "segment at 512 begins inside a block"),
        ([zeros(0, 4097), zeros(4096, 1)], "segment at 4096 shares a block with the one before"),
        ([zeros(0, 1), zeros(4096, 4097)], "segment at 4096 reaches past the end of the disk"),
        ([zeros(0, 1), zeros(4096, u64::MAX)], "segment at 4096 has no end"),
    ] {
        let error = check(&segments).unwrap_err();
        assert_eq!(error, format!("the layout is unsound: the {what}"));
    }
    check(&[zeros(4096, 4096), zeros(0, 1)]).unwrap();
}

#[test]
fn an_iso_config_drive_is_a_linux_partition_and_one_that_waits_is_known_by_its_label() {
    let mut iso = vec![0; 40 << 10];
    iso[32 << 10..][..7].copy_from_slice(b"\x01CD001\x01");
    iso[(32 << 10) + 40..][..32].copy_from_slice(b"cidata                          ");
    let mut table = Mbr::empty(512, [9; 4]);
    table.add(mbr::FAT, &(2048..4096)).unwrap();
    let disk = Geometry { bytes: 200 * MIB, block_bytes: 512, optimal_bytes: 0 };
    let lay = |places: &[(u64, Vec<u8>)]| {
        let image = image(2 * MIB, places);
        let layout = whole_disk(&image, disk, Some(iso.clone().into()), &mut guids()).unwrap();
        let records: Vec<_> = Disk(&layout, disk).mbr().records().collect();
        records.iter().map(|record| (record.kind, record.blocks.start)).collect::<Vec<_>>()
    };
    let table = (0, table.into_block());
    assert_eq!(lay(&[table.clone(), (MIB, iso.clone())]), [(mbr::FAT, 2048)]);
    assert_eq!(lay(&[table]), [(mbr::FAT, 2048), (mbr::LINUX, 136 * 2048)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn never_panics_on_any_bytes(
        sizes in any::<[u8; 3]>(),
        table in prop_oneof![Just([0xee, 1]), any::<[u8; 2]>()],
        header in (0_u64..40, any::<u64>(), 0_u64..40),
        entries in (0_u32..200, prop_oneof![Just(128_u32), any::<u32>()]),
        noise in proptest::collection::vec((0_usize..8192, any::<u8>()), 0..40),
    ) {
        let mut bytes = sizes.to_vec();
        bytes.resize(3 + 8192, 0);
        let [kind, blocks] = table;
        let block = if sizes[2] & 1 == 0 { 512 } else { 4096 };
        let [first_usable, alternate_lba, entries_lba] =
            [header.0, header.1, header.2].map(u64::to_le_bytes);
        let (count, entry_bytes) = entries;
        let places: [(usize, &[u8]); 8] = [
            (510, &[0x55, 0xaa]),
            (450, &[kind]),
            (458, &[blocks]),
            (block + 32, &alternate_lba),
            (block + 40, &first_usable),
            (block + 72, &entries_lba),
            (block + 80, &count.to_le_bytes()),
            (block + 84, &entry_bytes.to_le_bytes()),
        ];
        for (at, byte) in noise {
            bytes[3 + at] = byte;
        }
        for (at, place) in places {
            bytes[3 + at..][..place.len()].copy_from_slice(place);
        }
        fuzz::fuzz(&bytes);
    }

    #[test]
    fn a_gpt_image_keeps_its_partitions_on_a_disk_of_any_size(
        (block_bytes, partitions, image_blocks, disk_blocks) in cases(),
        with_drive in any::<bool>(),
        named in any::<Option<Index>>(),
        optimal_bytes in optima(),
    ) {
        let block = u64::from(block_bytes);
        let mut gpt = Gpt::empty(block_bytes as usize, [9; 16]);
        let named = named.filter(|_| !partitions.is_empty());
        let named = named.map(|index| index.index(partitions.len()));
        for (index, blocks) in partitions.iter().enumerate() {
            let name = if named == Some(index) { "config-2" } else { "data" };
            gpt.add(&gpt::LINUX, [8; 16], blocks, name).unwrap();
        }
        let mut places: Vec<_> =
            gpt.placed(image_blocks).into_iter().map(|(lba, bytes)| (lba * block, bytes)).collect();
        places.push((0, Mbr::protective(block_bytes as usize, image_blocks).into_block()));
        let image = image(image_blocks * block, &places);
        let disk = Geometry { bytes: disk_blocks * block, block_bytes, optimal_bytes };
        let drive = with_drive.then(|| Bytes::from_static(DRIVE));
        let layout = match whole_disk(&image, disk, drive, &mut guids()) {
            Ok(layout) => layout,
            Err(LayoutError::TooBig { needed_bytes, .. }) => {
                prop_assert!(needed_bytes > disk.bytes && needed_bytes <= image.bytes());
                return Ok(());
            }
            Err(LayoutError::NoRoom { free_bytes, .. }) => {
                prop_assert!(with_drive && named.is_none());
                prop_assert!(free_bytes < CONFIG_DRIVE_BYTES + MIB);
                return Ok(());
            }
            Err(LayoutError::DriveTooBig { .. }) => return Err(TestCaseError::fail("too big")),
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        let made = Disk(&layout.clone().checked(disk).unwrap(), disk).gpt(PRIMARY_LBA);
        let on_disk = Disk(&layout, disk);
        let backup = on_disk.gpt(disk_blocks - 1).into_primary().unwrap();
        prop_assert_eq!(backup.placed(disk_blocks), made.placed(disk_blocks));
        let protective = Mbr::protective(block_bytes as usize, disk_blocks);
        prop_assert_eq!(on_disk.mbr().into_block(), protective.into_block());
        let found: Vec<_> = made.partitions().collect();
        let reused = with_drive.then_some(named).flatten();
        for (index, blocks) in partitions.iter().enumerate() {
            prop_assert_eq!(&found[index].blocks, blocks);
            prop_assert!(reused == Some(index) || shows_itself(&on_disk, blocks));
        }
        prop_assert_eq!(found.len(), partitions.len() + usize::from(with_drive && named.is_none()));
        if with_drive {
            let place = &found[reused.unwrap_or(found.len() - 1)].blocks;
            let bytes = whole(place, block_bytes);
            prop_assert!(place.end <= made.usable(disk_blocks).end);
            let free = partitions.last().map_or(0, |last| last.end * block);
            let aligned = is_as_aligned_as_it_can_be(disk, &bytes, free);
            prop_assert!(reused.is_some() || (free <= bytes.start && aligned));
            prop_assert_eq!(&on_disk.read(bytes.start, DRIVE.len()), DRIVE);
            prop_assert_eq!(on_disk.read(bytes.end - 8, 8), [0; 8]);
        }
        // No tool finds the old backup any more.
        if image_blocks < disk_blocks {
            let old = on_disk.read((image_blocks - 1) * block, 8);
            prop_assert!(!gpt::is_header(&old));
        }
    }

    #[test]
    fn an_msdos_image_keeps_its_partitions_and_gets_a_config_drive_where_32_bits_can_count(
        (block_bytes, partitions, image_blocks, disk_blocks) in cases(),
        with_drive in any::<bool>(),
        optimal_bytes in optima(),
    ) {
        let block = u64::from(block_bytes);
        let mut table = Mbr::empty(block_bytes as usize, [9; 4]);
        let partitions: Vec<_> = partitions.into_iter().take(4).collect();
        for blocks in &partitions {
            table.add(mbr::LINUX, blocks).unwrap();
        }
        let image = image(image_blocks * block, &[(0, table.into_block())]);
        let disk = Geometry { bytes: disk_blocks * block, block_bytes, optimal_bytes };
        let drive = with_drive.then(|| Bytes::from_static(DRIVE));
        let layout = match whole_disk(&image, disk, drive, &mut guids()) {
            Ok(layout) => layout,
            Err(LayoutError::TooBig { .. }) => {
                prop_assert!(image_blocks > disk_blocks);
                return Ok(());
            }
            // The usual beginning of a partition on disks with 512-byte blocks.
            Err(LayoutError::OtherBlocks { image: 512, .. }) => {
                prop_assert!(partitions.iter().all(|blocks| blocks.start.is_multiple_of(2048)));
                return Ok(());
            }
            Err(LayoutError::NoTable) => {
                prop_assert!(with_drive && partitions.is_empty());
                return Ok(());
            }
            Err(LayoutError::TableFull { .. }) => {
                prop_assert!(with_drive && partitions.len() == 4);
                return Ok(());
            }
            Err(LayoutError::NoRoom { free_bytes, .. }) => {
                prop_assert!(with_drive && free_bytes < CONFIG_DRIVE_BYTES + MIB);
                return Ok(());
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        let on_disk = Disk(&layout, disk);
        for blocks in &partitions {
            prop_assert!(shows_itself(&on_disk, blocks));
        }
        if with_drive {
            let found: Vec<_> = on_disk.mbr().records().map(|record| record.blocks).collect();
            let (new, old) = found.split_last().unwrap();
            prop_assert_eq!(old, partitions.as_slice());
            prop_assert!(old.iter().all(|old| old.end <= new.start));
            prop_assert!(new.end <= mbr::BLOCKS_MAX && new.end <= disk_blocks);
            let free = old.last().map_or(0, |last| last.end * block);
            prop_assert!(is_as_aligned_as_it_can_be(disk, &whole(new, block_bytes), free));
            prop_assert_eq!(&on_disk.read(new.start * block, DRIVE.len()), DRIVE);
        }
    }

    #[test]
    fn a_partitioned_disk_has_its_partitions_if_it_is_as_big_as_is_said_to_be_needed(
        table in prop_oneof![Just(PartitionTable::Gpt), Just(PartitionTable::Msdos)],
        sizes in any::<[Option<u32>; 3]>(),
        root_image in 1_u64..1 << 30,
        esp in proptest::option::of(1_u64..1 << 28),
        with_drive in any::<bool>(),
        (short, spare) in (any::<bool>(), prop_oneof![0_u64..3, 0_u64..1 << 40]),
        block_bytes in prop_oneof![Just(512_u32), Just(4096), Just(65536)],
        optimal_bytes in optima(),
    ) {
        let [swap_bytes, ephemeral_bytes, root_bytes] = sizes.map(|size| size.map(u64::from));
        let partitions = Partitions { table, swap_bytes, ephemeral_bytes, root_bytes };
        let root = image(root_image, &[]);
        let parts = Parts {
            esp: esp.map(Content::Zeros),
            config_drive: with_drive.then(|| Bytes::from_static(DRIVE)),
            ..Parts::default()
        };
        let needed = needed_bytes(root_image, &partitions, esp, with_drive);
        let block = u64::from(block_bytes);
        let bytes = if short { needed - block } else { needed + spare / block * block };
        let disk = Geometry { bytes, block_bytes, optimal_bytes };
        let count = [esp, swap_bytes, ephemeral_bytes].iter().flatten().count();
        let count = count + usize::from(with_drive) + 1;
        let layout = partitioned(&root, disk, &partitions, parts, &mut guids());
        let layout = match layout {
            Err(LayoutError::TooBig { needed_bytes, .. }) => {
                prop_assert!(short);
                prop_assert_eq!(needed_bytes, needed);
                return Ok(());
            }
            _ if short => return Err(TestCaseError::fail("it fits a disk that is too small")),
            Err(LayoutError::TooManyPartitions(5)) => {
                prop_assert!(table == PartitionTable::Msdos && count == 5);
                return Ok(());
            }
            Err(LayoutError::ContentTooBig { name: "root", .. }) => {
                prop_assert!(root_bytes.unwrap().max(1).next_multiple_of(MIB) < root_image);
                return Ok(());
            }
            layout => layout.unwrap(),
        };
        let on_disk = Disk(&layout, disk);
        let found: Vec<Range<u64>> = match table {
            PartitionTable::Gpt => {
                let gpt = on_disk.gpt(PRIMARY_LBA);
                let usable = gpt.usable(disk.blocks());
                let backup = on_disk.gpt(disk.blocks() - 1);
                prop_assert_eq!(backup.usable(disk.blocks()), usable.clone());
                let found: Vec<_> = gpt.partitions().map(|partition| partition.blocks).collect();
                let inside = |found: &Range<u64>| {
                    usable.start <= found.start && found.end <= usable.end
                };
                prop_assert!(found.iter().all(inside));
                found
            }
            PartitionTable::Msdos => on_disk.mbr().records().map(|record| record.blocks).collect(),
        };
        prop_assert_eq!(found.len(), count);
        let found: Vec<_> = found.iter().map(|blocks| whole(blocks, block_bytes)).collect();
        prop_assert!(found.windows(2).all(|pair| pair[0].end == pair[1].start));
        // Alignment may lengthen each partition, and the free space before them, by this.
        let wish = disk.alignment_bytes();
        let alignment = found[0].start;
        let is_short = bytes < needed + (count as u64 + 1) * wish;
        prop_assert!(alignment == wish || (alignment == MIB && is_short));
        prop_assert!(found.iter().all(|found| found.start.is_multiple_of(alignment)));
        let place = found.last().unwrap();
        prop_assert!(on_disk.shows(&(place.start..place.start + root_image), 0));
        let last_end = match table {
            PartitionTable::Gpt => disk.bytes - MIB,
            PartitionTable::Msdos => disk.bytes.min(mbr::BLOCKS_MAX * block),
        };
        match root_bytes {
            Some(bytes) => {
                let aligned = bytes.max(1).next_multiple_of(alignment);
                prop_assert_eq!(place.end - place.start, aligned);
            }
            None => prop_assert!(place.end <= last_end && last_end - place.end < alignment),
        }
        for found in &found {
            prop_assert_ne!(on_disk.read(found.start, 1), [0xd5]);
            prop_assert_ne!(on_disk.read(found.end - 1, 1), [0xd5]);
        }
    }
}

//! Layouts of every kind over old content: bit by bit what was asked for, and nothing else.

use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::model::{
    callback::{DiskRange, VERIFY_RANGES_MAX},
    ids::Digest,
    range_digest::CHUNK_BYTES,
};

/// A segment to be made: blocks left free before it, its bytes, and what they are.
#[derive(Clone, Debug)]
pub(super) struct Part {
    gap_blocks: u64,
    bytes: u64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// A file's bytes from an offset on; of each of its stretches, whether it is a hole, zeros or
    /// data.
    File {
        offset: u64,
        stretches: Vec<Stretch>,
    },
    Made(u8),
    Zeros,
}

#[derive(Clone, Copy, Debug)]
enum Stretch {
    Hole(u64),
    Zeros(u64),
    Data(u64),
}

pub(super) fn parts() -> impl Strategy<Value = Vec<Part>> {
    let bytes = prop_oneof![1..2000_u64, 60_000..200_000_u64, 1..3 * MIB];
    let stretch = prop_oneof![
        (1..400_000_u64).prop_map(Stretch::Hole),
        (1..400_000_u64).prop_map(Stretch::Zeros),
        (1..400_000_u64).prop_map(Stretch::Data),
    ];
    let file = (0..10_000_u64, prop::collection::vec(stretch, 1..12))
        .prop_map(|(offset, stretches)| Kind::File { offset, stretches });
    let kind = prop_oneof![3 => file, 1 => (0..3_u8).prop_map(Kind::Made), 1 => Just(Kind::Zeros)];
    let part = (prop_oneof![Just(0), 0..40_u64], bytes, kind)
        .prop_map(|(gap_blocks, bytes, kind)| Part { gap_blocks, bytes, kind });
    prop::collection::vec(part, 1..7)
}

/// A file of stretches, repeated as long as bytes are needed, and those bytes.
fn file_of(stretches: &[Stretch], offset: u64, bytes: u64) -> (ImageFile, Vec<u8>) {
    let file = tempfile::tempfile().unwrap();
    let length = usize::try_from(offset + bytes).unwrap();
    file.set_len(offset + bytes).unwrap();
    let mut at = 0;
    for (number, stretch) in stretches.iter().cycle().enumerate() {
        let (Stretch::Hole(long) | Stretch::Zeros(long) | Stretch::Data(long)) = *stretch;
        let long = usize::try_from(long).unwrap().min(length - at);
        match stretch {
            Stretch::Hole(_) => {}
            Stretch::Zeros(_) => file.write_all_at(&vec![0; long], at as u64).unwrap(),
            Stretch::Data(_) => {
                let filling = u8::try_from(number % 251).unwrap() + 1;
                file.write_all_at(&vec![filling; long], at as u64).unwrap();
            }
        }
        at += long;
        if at == length {
            break;
        }
    }
    let mut content = vec![0; usize::try_from(bytes).unwrap()];
    file.read_exact_at(&mut content, offset).unwrap();
    (ImageFile::new(Arc::new(file), "stretches".as_ref()).unwrap(), content)
}

/// The layout of the parts, and what it puts on the disk, segment by segment.
pub(super) fn layout_of(parts: &[Part], block: u64) -> (Layout, Vec<(u64, Vec<u8>)>) {
    let (mut segments, mut contents, mut at) = (Vec::new(), Vec::new(), 0);
    for part in parts {
        at += part.gap_blocks * block;
        let long = usize::try_from(part.bytes).unwrap();
        let (content, bytes) = match &part.kind {
            Kind::File { offset, stretches } => {
                let (file, bytes) = file_of(stretches, *offset, part.bytes);
                (Content::File { file, offset: *offset, bytes: part.bytes }, bytes)
            }
            Kind::Made(byte) => (Content::Made(vec![*byte; long].into()), vec![*byte; long]),
            Kind::Zeros => (Content::Zeros(part.bytes), vec![0; long]),
        };
        segments.push(Segment { at, content });
        contents.push((at, bytes));
        at = (at + part.bytes).next_multiple_of(block);
    }
    (Layout::new(segments), contents)
}

/// The content of a disk of old content afterwards.
pub(super) fn expected(contents: &[(u64, Vec<u8>)], disk_bytes: u64, block: u64) -> Vec<u8> {
    let mut bytes = super::expected(&[], disk_bytes, u32::try_from(block).unwrap());
    for (at, content) in contents {
        let at = usize::try_from(*at).unwrap();
        let end = (at + content.len()).next_multiple_of(usize::try_from(block).unwrap());
        bytes[at..end].fill(0);
        bytes[at..at + content.len()].copy_from_slice(content);
    }
    bytes
}

/// The digest of a range, by its definition.
fn digest(content: &[u8], salt: Option<u32>) -> Digest {
    let Some(salt) = salt else { return Digest::of(content) };
    let chunks = content.chunks(usize::try_from(CHUNK_BYTES).unwrap()).map(Sha256::digest);
    Digest::of(&[&salt.to_be_bytes()[..], &chunks.flatten().collect::<Vec<_>>()].concat())
}

/// The ranges are few, in order, disjoint, true, and cover everything that was asked for.
pub(super) fn check_ranges(ranges: &[DiskRange], content: &[u8], wanted: &[(u64, Vec<u8>)]) {
    assert!(ranges.len() <= VERIFY_RANGES_MAX);
    assert!(ranges.windows(2).all(|two| two[0].from + two[0].bytes <= two[1].from), "{ranges:?}");
    let mut covered = vec![false; content.len()];
    for range in ranges {
        let from = usize::try_from(range.from).unwrap();
        let part = from..from + usize::try_from(range.bytes).unwrap();
        assert_eq!(digest(&content[part.clone()], range.salt), range.digest, "{range:?}");
        covered[part].fill(true);
    }
    for (at, bytes) in wanted {
        let at = usize::try_from(*at).unwrap();
        assert!(covered[at..at + bytes.len()].iter().all(|covered| *covered), "at {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Invariant (disk): A written disk is bit-exact, and a disk that lies about it is caught.
    #[test]
    fn any_layout_is_on_the_disk_bit_by_bit_over_what_was_there(
        parts in parts(),
        spare_blocks in prop_oneof![Just(0_u64), 0..3000_u64],
        block in prop_oneof![Just(512_u64), Just(4096), Just(65536)],
        verify in prop_oneof![Just(Verify::Full), Just(Verify::Node), Just(Verify::None)],
        salt in prop::option::of(any::<u32>()),
        breaks in prop_oneof![Just(None), (8..60_usize).prop_map(Some)],
    ) {
        let (layout, contents) = layout_of(&parts, block);
        let spare_blocks = spare_blocks.min(4 * MIB / block);
        let capacity = layout.end().next_multiple_of(block) + spare_blocks * block;
        let quirk = breaks.map_or(Quirk::None, |calls| Quirk::Breaks { calls, times: 4 });
        let disk = MemoryDisk::new(capacity, u32::try_from(block).unwrap(), quirk);
        let mut bench = Bench::new(1);
        bench.order = ImagingOrder { layout, verify, salt, ..bench.order };
        let written = block_on(bench.write(&disk)).unwrap();
        let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
        prop_assert_eq!(written.bytes, bytes);
        let content = disk.content();
        prop_assert!(content == expected(&contents, capacity, block));
        prop_assert!(disk.is_flushed());
        let progress = bench.meter.progress().unwrap();
        prop_assert_eq!((progress.done_bytes, progress.total_bytes), (bytes, bytes));
        if verify == Verify::Node {
            check_ranges(&written.ranges, &content, &contents);
            // Each end of the disk has a range of its own, with a usual digest.
            let in_body = |range: &&DiskRange| bench.meter.ranges_on_disk().contains(range);
            let salted = written.ranges.iter().filter(in_body).all(|range| range.salt == salt);
            prop_assert!(salted && bench.meter.ranges_on_disk().len() + 2 >= written.ranges.len());
        } else {
            prop_assert!(written.ranges.is_empty());
        }
    }
}

/// Invariant (disk): The machine is told to compare only ranges that its disk holds, flushed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_is_shown_as_soon_as_the_disk_holds_it_and_no_sooner() {
    const BYTES: u64 = 50 * MIB;
    let disk = MemoryDisk::new(BYTES, 512, Quirk::Breaks { calls: 40, times: 3 });
    let mut bench = Bench::new(BYTES);
    bench.thresholds.flush_bytes = 4 * MIB;
    (bench.order.verify, bench.order.salt) = (Verify::Node, Some(7));
    let mut seen = Vec::new();
    let look = async {
        loop {
            let shown = bench.meter.ranges_on_disk();
            if shown.len() > seen.len() {
                let durable = disk.survives(|| false);
                for DiskRange { from, bytes, digest: wanted, salt } in &shown[seen.len()..] {
                    let from = usize::try_from(*from).unwrap();
                    let content = &durable[from..from + usize::try_from(*bytes).unwrap()];
                    assert_eq!(&digest(content, *salt), wanted, "at {from}");
                }
                seen = shown;
            }
            tokio::task::yield_now().await;
        }
    };
    let written = tokio::select! {
        written = bench.begin(&disk) => written.unwrap(),
        () = look => unreachable!(),
    };
    assert!(!seen.is_empty(), "nothing was shown during the write");
    let shown = bench.meter.ranges_on_disk();
    assert_eq!(shown.iter().map(|range| range.bytes).sum::<u64>(), BYTES - 2 * MIB);
    assert!(shown.iter().all(|range| written.ranges.contains(range)));
    assert!(disk.connections() > 1);
}

fn made(at: u64, bytes: u64) -> Segment {
    let bytes = vec![7; usize::try_from(bytes).unwrap()];
    Segment { at, content: Content::Made(bytes.into()) }
}

#[tokio::test]
async fn a_layout_that_overlaps_or_cuts_a_block_touches_nothing() {
    for (second, misplaced) in [(512, true), (1024, false), (1100, true)] {
        let disk = MemoryDisk::new(8 * MIB, 512, Quirk::None);
        let mut bench = Bench::new(1);
        bench.order.layout = Layout::new([made(0, 700), made(second, 10)]);
        let written = bench.write(&disk).await;
        let refused = matches!(written, Err(ImagingError::Misplaced { at }) if at == second);
        assert_eq!(refused, misplaced, "{written:?}");
        assert_eq!(disk.did().is_empty(), misplaced);
    }
}

#[tokio::test]
async fn holes_and_runs_of_zeros_are_zeroed_and_neighbours_with_one_command() {
    let stretches = [
        Stretch::Data(2 * MIB),
        Stretch::Hole(3 * MIB),
        Stretch::Zeros(3 * MIB),
        Stretch::Data(MIB),
    ];
    let (file, _) = file_of(&stretches, 0, 9 * MIB);
    let content = Content::File { file, offset: 0, bytes: 9 * MIB };
    let more = Segment { at: 9 * MIB, content: Content::Zeros(20 * MIB) };
    let disk = MemoryDisk::new(40 * MIB, 512, Quirk::None);
    let mut bench = Bench::new(1);
    bench.order.layout = Layout::new([Segment { at: 0, content }, more]);
    bench.order.verify = Verify::None;
    bench.write(&disk).await.unwrap();
    let mut zeroed: Vec<_> = disk.did();
    zeroed.retain(|did| matches!(did, Did::Zero(_)));
    zeroed.sort_by_key(|did| format!("{did:?}"));
    let zero = |from: u64, to: u64| Did::Zero(from * MIB..to * MIB);
    assert_eq!(zeroed, [zero(2, 8), zero(25, 29), zero(9, 25)]);
}

#[tokio::test]
async fn a_layout_in_too_many_parts_for_the_node_is_read_back_instead() {
    let segments = (0..200).map(|number| made(number * 8 * 4096, 4096));
    let lie = 3 * MIB..3 * MIB + 4096;
    let disk = MemoryDisk::new(16 * MIB, 512, Quirk::DropsWrites(lie));
    let mut bench = Bench::new(1);
    bench.order =
        ImagingOrder { layout: Layout::new(segments), verify: Verify::Node, ..bench.order };
    let error = bench.write(&disk).await.unwrap_err();
    assert!(matches!(error, ImagingError::Differs { from, .. } if from == 3 * MIB), "{error}");
}

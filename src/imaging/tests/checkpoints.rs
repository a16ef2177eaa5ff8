//! Killed writes, and the writes that resume from their checkpoints.

use proptest::{collection::vec, prelude::*};

use super::{
    Bench, Checkpoint, MIB, block_on,
    disks::{Did, MemoryDisk, Quirk},
    layouts::{check_ranges, expected, layout_of, parts},
};
use crate::{imaging::ImagingOrder, model::spec::Verify};

/// Small, so that a small layout takes many flushes.
const FLUSH_BYTES: u64 = MIB / 4;

/// The lowest offset in the disk's body that was written after the first `from_did` calls.
fn lowest_written(disk: &MemoryDisk, from_did: usize, bytes: u64) -> Option<u64> {
    let tail = bytes.saturating_sub(MIB).max(MIB);
    let did = disk.did().into_iter().skip(from_did);
    let ranges = did.filter_map(|did| match did {
        Did::Write(range) | Did::Zero(range) => Some(range),
        Did::Read(_) | Did::Flush => None,
    });
    ranges.map(|range| range.start).filter(|start| (MIB..tail).contains(start)).min()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Invariant (disk): A killed write is gone on with from its last flush, and ends bit-exact.
    #[test]
    fn a_write_that_was_killed_goes_on_from_its_last_flush(
        parts in parts(),
        block in prop_oneof![Just(512_u64), Just(4096), Just(65536)],
        verify in prop_oneof![Just(Verify::Full), Just(Verify::Node), Just(Verify::None)],
        kills in vec(3..25_usize, 1..4),
        keeps: u64,
    ) {
        let (layout, contents) = layout_of(&parts, block);
        let capacity = layout.end().next_multiple_of(block).max(3 * MIB);
        let disk = MemoryDisk::new(capacity, u32::try_from(block).unwrap(), Quirk::Slow);
        let mut bench = Bench::new(1);
        bench.thresholds.flush_bytes = FLUSH_BYTES;
        bench.order = ImagingOrder { layout, verify, ..bench.order };
        let mut dice = fastrand::Rng::with_seed(keeps);
        block_on(async {
            for calls in kills {
                let from_did = disk.did().len();
                let calls = disk.calls() + calls;
                tokio::select! {
                    written = bench.begin(&disk) => drop(written.unwrap()),
                    () = disk.wait_for_calls(calls) => {}
                }
                while disk.under_way() > 0 {
                    tokio::task::yield_now().await;
                }
                disk.lose(|| dice.bool());
                let resumed_at = bench.order.checkpoint.resumes_at;
                let first = lowest_written(&disk, from_did, capacity);
                assert!(first.is_none_or(|first| first >= resumed_at), "{first:?}, {resumed_at}");
                let resumes_at = *bench.order.checkpoint.flushed.subscribe().borrow();
                assert!(resumes_at == 0 || resumes_at >= resumed_at);
                bench.order.checkpoint = Checkpoint {
                    resumes_at: resumes_at.max(resumed_at),
                    ..Checkpoint::default()
                };
            }
            let written = bench.begin(&disk).await.unwrap();
            let content = disk.content();
            assert!(content == expected(&contents, capacity, block));
            assert!(disk.is_flushed());
            if verify == Verify::Node {
                check_ranges(&written.ranges, &content, &contents);
            }
        });
    }
}

#[tokio::test]
async fn the_ends_are_wiped_again_before_a_killed_write_goes_on() {
    let (mut bench, disk) = (Bench::new(8 * MIB), MemoryDisk::new(8 * MIB, 512, Quirk::None));
    bench.order.verify = Verify::None;
    bench.order.checkpoint.resumes_at = 6 * MIB;
    bench.write(&disk).await.unwrap();
    let did = disk.did();
    assert_eq!(did[..3], [Did::Write(0..MIB), Did::Write(7 * MIB..8 * MIB), Did::Flush]);
    assert_eq!(lowest_written(&disk, 3, 8 * MIB), Some(6 * MIB));
}

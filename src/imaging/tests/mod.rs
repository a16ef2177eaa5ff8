//! The promises of the pipeline, on real files and on disks that misbehave.

mod checkpoints;
mod connection_pool;
mod disks;
mod layouts;
mod opening;
mod reconnects;

use std::{fs, ops::Range, sync::Arc, time::Duration};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::watch;

use self::disks::{CREEP_BYTES, Did, MemoryDisk, OLD, Quirk};
use super::{thresholds::WriteThresholds, *};
use crate::{
    checked_file::{self, CheckedFile},
    model::{backoff::Backoff, spec::Verify},
    progress::Meter,
};

const MIB: u64 = 1 << 20;
const STALL: Duration = Duration::from_secs(120);

/// An image in a directory of its own, and a way to cancel.
struct Bench {
    dir: TempDir,
    order: ImagingOrder,
    bytes: Vec<u8>,
    thresholds: WriteThresholds,
    meter: Meter,
    cancel: watch::Sender<bool>,
}

impl Bench {
    fn new(image_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // No two neighbouring blocks alike, none of them zero.
        let mut bytes = vec![0; usize::try_from(image_bytes).unwrap()];
        for (block, filling) in bytes.chunks_mut(512).zip((1..=251).cycle()) {
            block.fill(filling);
        }
        fs::write(dir.path().join("image"), &bytes).unwrap();
        let path = dir.path().join("image");
        let image = ImageFile::new(Arc::new(fs::File::open(&path).unwrap()), &path).unwrap();
        let order = ImagingOrder {
            layout: Layout::of_file(image),
            verify: Verify::Full,
            salt: None,
            stall: STALL,
            least_rate: LeastRate::ANY,
            checkpoint: Checkpoint::default(),
        };
        let thresholds = WriteThresholds {
            reconnect: Backoff::doubling(Duration::from_millis(1), Duration::from_millis(20)),
            ..WriteThresholds::default()
        };
        let (meter, cancel) = (Meter::default(), watch::channel(false).0);
        Self { dir, order, bytes, thresholds, meter, cancel }
    }

    async fn write(&self, disk: &Arc<MemoryDisk>) -> Result<Written, ImagingError> {
        let written = self.begin(disk).await;
        assert_eq!(disk.under_way(), 0, "it returned while the disk was still busy");
        assert_eq!(disk.open(), 0, "it returned while a connection was still open");
        written
    }

    async fn begin(&self, disk: &MemoryDisk) -> Result<Written, ImagingError> {
        let cancel = self.cancel.subscribe();
        let opened = open(disk, cancel.clone()).await?;
        opened.write_at(self.thresholds, &self.order, &self.meter, cancel).await
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// The content of a disk of old content afterwards: the image, its padding, both ends wiped,
/// everything else as it was.
fn expected(image: &[u8], disk_bytes: u64, block: u32) -> Vec<u8> {
    let disk = usize::try_from(disk_bytes / u64::from(block) * u64::from(block)).unwrap();
    let edge = disk.min(1 << 20);
    let mut bytes = vec![OLD; usize::try_from(disk_bytes).unwrap()];
    bytes[..edge].fill(0);
    bytes[disk - edge..disk].fill(0);
    bytes[..image.len().next_multiple_of(block as usize)].fill(0);
    bytes[..image.len()].copy_from_slice(image);
    bytes
}

fn assert_wiped(disk: &MemoryDisk) {
    let (bytes, zeros) = (disk.content(), vec![0; 1 << 20]);
    assert!(bytes.starts_with(&zeros), "the head is not wiped");
    assert!(bytes.ends_with(&zeros), "the tail is not wiped");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_image_that_fits_is_on_the_disk_bit_by_bit(
        image in prop_oneof![1..5000_u64, MIB - 5000..MIB + 5000, 1..6 * MIB],
        spare in prop_oneof![Just(0), 0..5000_u64, 0..3 * MIB],
        block in prop_oneof![Just(512_u32), Just(4096), Just(65536)],
    ) {
        let capacity = image.next_multiple_of(block.into()) + spare;
        let (bench, disk) = (Bench::new(image), MemoryDisk::new(capacity, block, Quirk::None));
        let written = block_on(bench.write(&disk)).unwrap();
        prop_assert_eq!(written.bytes, image);
        prop_assert!(disk.content() == expected(&bench.bytes, capacity, block));
        prop_assert!(disk.is_flushed());
    }
}

/// The image with its checksums, one of which is wrong.
fn decayed(bench: &Bench, block: u64) -> ImageFile {
    let path = bench.dir.path().join("image");
    let sums: Vec<u8> = bench
        .bytes
        .chunks(64 << 10)
        .zip(0..)
        .flat_map(|(data, number)| {
            (checked_file::sum(data) ^ u32::from(number == block)).to_le_bytes()
        })
        .collect();
    let sums_path = bench.dir.path().join("sums");
    fs::write(&sums_path, sums).unwrap();
    let [raw, sums] = [&path, &sums_path].map(|path| fs::File::open(path).unwrap());
    ImageFile::checked(CheckedFile::new(Arc::new(raw), sums).unwrap(), &path)
}

#[test]
fn a_block_that_has_decayed_stops_the_write_and_leaves_a_wiped_disk() {
    for (verify, block) in [(Verify::Full, 0), (Verify::Node, 50), (Verify::None, 95)] {
        let mut bench = Bench::new(6 * MIB);
        let disk = MemoryDisk::new(8 * MIB, 512, Quirk::None);
        let image = decayed(&bench, block);
        bench.order = ImagingOrder { layout: Layout::of_file(image), verify, ..bench.order };
        let error = block_on(bench.write(&disk)).unwrap_err().to_string();
        let at = format!("the block at byte {} is not what was verified", block << 16);
        assert!(error.contains(&at), "{error}");
        assert_wiped(&disk);
    }
}

#[tokio::test]
async fn an_image_larger_than_the_disk_touches_nothing() {
    let (bench, disk) = (Bench::new(3 * MIB + 1), MemoryDisk::new(3 * MIB + 511, 512, Quirk::None));
    let error = bench.write(&disk).await.unwrap_err().to_string();
    assert_eq!(error, "the image has 3.0 MiB, the disk only 3.0 MiB");
    assert_eq!(disk.did(), []);
}

#[tokio::test]
async fn a_disk_with_impossible_blocks_is_refused() {
    for block in [0, 1, 520, 131_072, u32::MAX] {
        let disk = MemoryDisk::new(8 * MIB, block, Quirk::None);
        let error = Bench::new(MIB).write(&disk).await.unwrap_err();
        assert!(matches!(error, ImagingError::Blocks(bad) if bad == block), "{error}");
        assert_eq!(disk.did(), []);
    }
}

/// Invariant (disk): Half an image never boots: ends wiped first, head written last, wiped again on
/// failure.
#[tokio::test]
async fn the_ends_are_wiped_first_and_the_head_is_written_last_between_flushes() {
    let (bench, disk) = (Bench::new(5 * MIB), MemoryDisk::new(8 * MIB, 512, Quirk::None));
    bench.write(&disk).await.unwrap();
    let mut did = disk.did();
    did.retain(|did| !matches!(did, Did::Read(_)));
    let writes = |range: Range<u64>| Did::Write(range);
    assert_eq!(did[..3], [writes(0..MIB), writes(7 * MIB..8 * MIB), Did::Flush]);
    let body = &did[3..did.len() - 3];
    assert!(body.iter().all(|did| matches!(did, Did::Write(range) if range.start >= MIB)));
    assert_eq!(did[did.len() - 3..], [Did::Flush, writes(0..MIB), Did::Flush]);
}

/// Invariant (disk): A written disk is bit-exact, and a disk that lies about it is caught.
///
/// Invariant (disk): Half an image never boots: ends wiped first, head written last, wiped again on
/// failure.
#[tokio::test]
async fn a_disk_that_drops_a_write_is_caught_and_wiped_and_the_place_is_named() {
    let lie = 3 * MIB..3 * MIB + 4096;
    let disk = MemoryDisk::new(8 * MIB, 512, Quirk::DropsWrites(lie));
    let error = Bench::new(5 * MIB + 7).write(&disk).await.unwrap_err();
    let ImagingError::Differs { from, to } = error else { panic!("{error}") };
    assert_eq!((from, to), (3 * MIB, 3 * MIB + 4096));
    assert_wiped(&disk);
}

#[tokio::test]
async fn an_image_that_shrinks_meanwhile_is_an_error_and_leaves_a_wiped_disk() {
    let (bench, disk) = (Bench::new(9 * MIB), MemoryDisk::new(16 * MIB, 512, Quirk::None));
    let file = fs::OpenOptions::new().write(true).open(bench.dir.path().join("image")).unwrap();
    file.set_len(4 * MIB).unwrap();
    let error = bench.write(&disk).await.unwrap_err();
    assert!(matches!(error, ImagingError::File { .. }), "{error}");
    assert_wiped(&disk);
}

#[tokio::test]
async fn a_disk_that_fails_midway_is_wiped() {
    let disk = MemoryDisk::new(40 * MIB, 512, Quirk::FailsOnceAt(20 * MIB));
    let error = Bench::new(30 * MIB).write(&disk).await.unwrap_err();
    assert_eq!(error.to_string(), "writing the disk at 20.0 MiB: medium error");
    assert_wiped(&disk);
}

#[tokio::test]
async fn a_disk_that_is_gone_is_reported_as_not_wiped_with_both_causes() {
    let disk = MemoryDisk::new(40 * MIB, 512, Quirk::GoneFrom(20 * MIB));
    let error = Bench::new(30 * MIB).write(&disk).await.unwrap_err();
    let both = error.to_string();
    let (cause, wipe) =
        both.split_once("; then the half-written disk could not be wiped: ").unwrap();
    assert!(cause.starts_with("writing the disk at ") && cause.ends_with(": gone"), "{cause}");
    assert_eq!(wipe, "wiping the disk at 0 B: gone");
}

#[tokio::test]
async fn a_short_read_is_an_error_and_not_a_match() {
    let disk = MemoryDisk::new(8 * MIB, 512, Quirk::ShortReads);
    let error = Bench::new(3 * MIB).write(&disk).await.unwrap_err().to_string();
    assert!(error.contains("523776 bytes came back instead of 524288"), "{error}");
    assert_wiped(&disk);
}

#[tokio::test]
async fn cancelled_at_any_moment_it_stops_at_once_and_nothing_boots() {
    for after in 1..14 {
        let (bench, disk) =
            (Bench::new(9 * MIB), MemoryDisk::new(16 * MIB, 512, Quirk::CarriesOut));
        let cancelling = async {
            disk.wait_for_calls(after).await;
            bench.cancel.send_replace(true);
            tokio::time::Instant::now()
        };
        let (written, cancelled_at) = tokio::join!(bench.write(&disk), cancelling);
        let error = written.unwrap_err();
        assert!(matches!(error, ImagingError::Cancelled), "after {after}: {error}");
        assert!(cancelled_at.elapsed() < Duration::from_secs(1), "after {after}");
        assert_wiped(&disk);
        let did = disk.did();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(disk.did(), did, "it wrote after it had returned");
    }
}

#[tokio::test]
async fn cancelled_before_it_began_it_touches_nothing() {
    let (bench, disk) = (Bench::new(MIB), MemoryDisk::new(16 * MIB, 512, Quirk::None));
    let opened = open(&*disk, bench.cancel.subscribe()).await.unwrap();
    bench.cancel.send_replace(true);
    let written = opened.write(&bench.order, &bench.meter, bench.cancel.subscribe()).await;
    assert!(matches!(written, Err(ImagingError::Cancelled)), "{written:?}");
    assert_eq!(disk.open(), 0);
    let error = bench.write(&disk).await.unwrap_err();
    assert!(matches!(error, ImagingError::Cancelled), "{error}");
    assert_eq!(disk.did(), []);
}

#[tokio::test]
async fn dropping_the_sender_of_the_cancel_cancels_too() {
    let (mut bench, disk) = (Bench::new(9 * MIB), MemoryDisk::new(16 * MIB, 512, Quirk::None));
    let cancel = bench.cancel.subscribe();
    bench.cancel = watch::channel(false).0;
    let error = open(&*disk, cancel.clone()).await.unwrap_err();
    assert!(matches!(error, ImagingError::Cancelled), "{error}");
    let opened = open(&*disk, bench.cancel.subscribe()).await.unwrap();
    let error = opened.write(&bench.order, &bench.meter, cancel).await.unwrap_err();
    assert!(matches!(error, ImagingError::Cancelled), "{error}");
    assert_eq!(disk.did(), []);
}

/// Invariant (disk): Nothing is written after an imaging has returned.
#[tokio::test]
async fn an_abandoned_imaging_writes_no_further() {
    let (bench, disk) = (Bench::new(9 * MIB), MemoryDisk::new(16 * MIB, 512, Quirk::Slow));
    tokio::select! {
        _ = bench.begin(&disk) => panic!("too fast"),
        () = disk.wait_for_calls(5) => {}
    }
    // The aborted jobs go at the next turn of the scheduler.
    tokio::task::yield_now().await;
    let did = disk.did();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(disk.did(), did);
}

// The image fits the buffers: a reader that waits for one would keep the paused clock from moving.
#[tokio::test(start_paused = true)]
async fn a_disk_that_stands_still_is_given_up_after_the_stall_limit() {
    let stall = Duration::from_secs(60);
    for (quirk, stage, done) in
        [(Quirk::HangsAt(4 * MIB), "write", 3 * MIB), (Quirk::HangsReading, "verify", 0)]
    {
        let (mut bench, disk) = (Bench::new(6 * MIB), MemoryDisk::new(16 * MIB, 512, quirk));
        bench.order.stall = stall;
        let began = tokio::time::Instant::now();
        let error = bench.write(&disk).await.unwrap_err();
        let ImagingError::Stalled { stage: stalled, after, done_bytes, total_bytes } = error else {
            panic!("{error}");
        };
        assert_eq!(
            (stalled.as_str(), after, done_bytes, total_bytes),
            (stage, stall, done, 6 * MIB)
        );
        assert!((stall..stall + Duration::from_secs(10)).contains(&began.elapsed()));
        assert_wiped(&disk);
    }
}

#[tokio::test]
async fn a_dead_disk_cannot_hold_up_a_cancel_for_a_second() {
    let (bench, disk) =
        (Bench::new(9 * MIB), MemoryDisk::new(16 * MIB, 512, Quirk::DeadFrom(2 * MIB)));
    let cancelling = async {
        disk.wait_for_calls(8).await;
        bench.cancel.send_replace(true);
        tokio::time::Instant::now()
    };
    let (written, cancelled_at) = tokio::join!(bench.write(&disk), cancelling);
    let error = written.unwrap_err().to_string();
    assert!(
        error.starts_with("cancelled; then the half-written disk could not be wiped"),
        "{error}"
    );
    // The limit is 900 ms; the rest is for a machine that runs many tests at once.
    assert!(cancelled_at.elapsed() < Duration::from_millis(1500), "{:?}", cancelled_at.elapsed());
}

#[tokio::test]
async fn memory_in_flight_stays_bounded_however_slow_the_disk() {
    let (bench, disk) = (Bench::new(40 * MIB), MemoryDisk::new(40 * MIB, 512, Quirk::Slow));
    bench.write(&disk).await.unwrap();
    let most = disk.most_under_way();
    // A flush, which holds no buffer, may be in flight, too.
    assert!(most <= reader::BUFFERS + 1 && most > 1, "{most}");
    // A piece that is compared is there twice.
    let reading = disk.most_reading();
    assert!(reading <= write::COMPARES_MAX && reading > 1, "{reading}");
    // Four at once have to stay below 64 MiB with all that is around them.
    let pieces = (reader::BUFFERS + write::COMPARES_MAX) as u64;
    assert!(4 * pieces * reader::CHUNK_BYTES <= 48 * MIB);
}

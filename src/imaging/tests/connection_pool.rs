//! Paths that give one connection only a part of themselves.

use super::{disks::Further, *};
use crate::imaging::scale_up::ScaleUpThresholds;

const IMAGE_BYTES: u64 = 24 * MIB;
const DISK_BYTES: u64 = 28 * MIB;
/// Bytes between two flushes: eight writes.
const FLUSH_BYTES: u64 = 4 * MIB;
/// The rate of [`disks::WRITE_TIME`] is measured in this time.
const SOON: ScaleUpThresholds = ScaleUpThresholds {
    settle: Duration::from_millis(40),
    window: Duration::from_millis(80),
    window_bytes: 2 * MIB,
};

fn bench(image_bytes: u64) -> Bench {
    let mut bench = Bench::new(image_bytes);
    bench.order.verify = Verify::None;
    bench.thresholds.scale_up = SOON;
    bench
}

fn narrow(bytes: u64, further: Further) -> Arc<MemoryDisk> {
    MemoryDisk::new(bytes, 512, Quirk::Narrow(further))
}

/// Writes the image and compares all of the disk with what must be there.
async fn write(bench: &Bench, disk: &Arc<MemoryDisk>, disk_bytes: u64) {
    bench.begin(disk).await.unwrap();
    assert_eq!(disk.open(), 0, "it returned while a connection was still open");
    assert!(disk.content() == expected(&bench.bytes, disk_bytes, 512));
    assert!(disk.is_flushed());
}

async fn wait_for_connections(disk: &MemoryDisk, count: usize) {
    while disk.connections() < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_path_that_gives_each_connection_a_part_of_itself_gets_several() {
    let (bench, disk) = (bench(IMAGE_BYTES), narrow(DISK_BYTES, Further::Helps));
    write(&bench, &disk, DISK_BYTES).await;
    assert!((2..=4).contains(&disk.connections()), "{}", disk.connections());
    let on_the_second = disk.wrote().iter().filter(|wrote| wrote.connection == 1).count();
    assert!(on_the_second > 5, "{on_the_second} writes went over the second connection");
    assert!(disk.most_under_way() <= reader::BUFFERS, "{}", disk.most_under_way());
}

#[tokio::test]
async fn a_further_connection_that_does_not_make_it_quicker_is_closed_before_the_end() {
    let (bench, disk) = (bench(IMAGE_BYTES), narrow(DISK_BYTES, Further::Disturbs));
    write(&bench, &disk, DISK_BYTES).await;
    assert_eq!(disk.connections(), 2);
    let wrote = disk.wrote();
    assert!(wrote.iter().any(|wrote| wrote.open == 2));
    let last = wrote.last().unwrap();
    assert_eq!((last.connection, last.open), (0, 1));
}

/// Invariant (disk): A further connection is kept only if it pays, and never leads to another disk.
#[tokio::test]
async fn a_further_connection_that_is_refused_is_asked_for_once_and_is_no_failure() {
    let (bench, disk) = (bench(IMAGE_BYTES), narrow(DISK_BYTES, Further::Refused));
    write(&bench, &disk, DISK_BYTES).await;
    assert_eq!((disk.connections(), disk.refused()), (1, 1));
}

/// Invariant (disk): A further connection is kept only if it pays, and never leads to another disk.
#[tokio::test]
async fn a_further_connection_that_leads_to_another_disk_is_never_written() {
    let (bench, disk) = (bench(IMAGE_BYTES), narrow(DISK_BYTES, Further::OtherDisk));
    write(&bench, &disk, DISK_BYTES).await;
    assert_eq!(disk.connections(), 2);
    assert!(disk.wrote().iter().all(|wrote| wrote.connection == 0));
}

/// Invariant (disk): With several connections no write overtakes one that must come before it.
#[tokio::test]
async fn when_one_of_several_breaks_all_are_closed_and_what_was_lost_is_written_again_on_one() {
    // Before the first flush and behind it.
    for writes in [1, 10, 24] {
        let bytes = IMAGE_BYTES;
        let (mut bench, disk) = (bench(bytes), narrow(bytes, Further::Breaks(writes)));
        bench.thresholds.flush_bytes = FLUSH_BYTES;
        write(&bench, &disk, bytes).await;
        let wrote = disk.wrote();
        let again = wrote.iter().position(|wrote| wrote.connection == disk.connections() - 1);
        let again = &wrote[again.unwrap()..];
        assert!(disk.connections() > 2 && again.len() > 10, "after {writes} writes: {again:?}");
        assert!(again.iter().all(|wrote| wrote.open == 1), "after {writes} writes: {again:?}");
    }
}

#[tokio::test]
async fn cancelled_with_several_connections_it_ends_within_a_second_and_leaves_none() {
    let (bench, disk) = (bench(60 * MIB), narrow(60 * MIB, Further::Helps));
    let cancelling = async {
        wait_for_connections(&disk, 2).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        bench.cancel.send_replace(true);
        tokio::time::Instant::now()
    };
    let (written, cancelled_at) = tokio::join!(bench.begin(&disk), cancelling);
    assert!(cancelled_at.elapsed() < Duration::from_secs(1), "{:?}", cancelled_at.elapsed());
    assert!(matches!(written, Err(ImagingError::Cancelled)), "{written:?}");
    assert_eq!((disk.open(), disk.under_way()), (0, 0));
    assert_wiped(&disk);
    assert!(disk.is_flushed());
    let did = disk.did();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(disk.did(), did, "it wrote after it had returned");
}

/// Invariant (disk): With several connections no write overtakes one that must come before it.
#[tokio::test]
async fn whenever_the_power_fails_with_several_connections_the_disk_is_complete_or_does_not_boot() {
    // 3 calls wipe, 26 write the body, and 3 what follows it. Most of the time passes in waits.
    let cuts = async |calls: &[usize]| {
        let mut several = 0;
        for calls in calls {
            several += usize::from(cut_after(*calls).await > 1);
        }
        several
    };
    let (some, others) = tokio::join!(cuts(&[15, 26, 28, 30, 32]), cuts(&[22, 27, 29, 31, 33]));
    assert!(some + others > 3, "{some} and {others}");
}

/// Cuts the power after so many calls, and returns the number of open connections.
async fn cut_after(calls: usize) -> usize {
    const IMAGE_BYTES: u64 = 14 * MIB;
    const DISK_BYTES: u64 = 18 * MIB;
    let (bench, disk) = (bench(IMAGE_BYTES), narrow(DISK_BYTES, Further::Helps));
    tokio::select! {
        _ = bench.begin(&disk) => {}
        () = disk.wait_for_calls(calls) => {}
    }
    let open = disk.open();
    // Commands in flight are aborted at the next turn.
    tokio::task::yield_now().await;
    let whole = expected(&bench.bytes, DISK_BYTES, 512);
    for seed in 0..4 {
        let mut random = fastrand::Rng::with_seed(seed);
        let content = disk.survives(|| random.bool());
        let (head, rest) = content.split_at(1 << 20);
        let boots = head != vec![0; head.len()];
        assert!(!boots || rest == &whole[1 << 20..], "after {calls} calls, seed {seed}");
    }
    open
}

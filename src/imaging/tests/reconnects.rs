//! Connections that break, and machines that lose their power, at every point.

use super::{disks::CREEP, layouts::expected, *};

const DISK_BYTES: u64 = 6 * MIB;

/// A disk as the tables of a GPT make it: something in the head, in the body, and in the tail, with
/// gaps between them.
fn whole_disk() -> (Layout, Vec<(u64, Vec<u8>)>) {
    let tail = 33 * 512;
    let parts =
        [(0, 17 << 10, 1), (MIB, 5 * MIB / 2, 2), (4 * MIB, MIB, 3), (DISK_BYTES - tail, tail, 4)];
    let contents = parts.map(|(at, bytes, byte)| (at, vec![byte; usize::try_from(bytes).unwrap()]));
    let segments =
        contents.clone().map(|(at, bytes)| Segment { at, content: Content::Made(bytes.into()) });
    (Layout::new(segments), contents.to_vec())
}

fn bench(verify: Verify) -> (Bench, Vec<u8>) {
    let (layout, contents) = whole_disk();
    let mut bench = Bench::new(1);
    bench.order = ImagingOrder { layout, verify, ..bench.order };
    (bench, expected(&contents, DISK_BYTES, 512))
}

/// Invariant (disk): Data that was lost with a connection is written again.
#[tokio::test]
async fn a_connection_that_breaks_is_replaced_and_what_was_lost_is_written_again() {
    for verify in [Verify::Full, Verify::Node, Verify::None] {
        for calls in 0..16 {
            let (bench, expected) = bench(verify);
            let disk = MemoryDisk::new(DISK_BYTES, 512, Quirk::Breaks { calls, times: 2 });
            bench.write(&disk).await.unwrap();
            assert!(disk.content() == expected, "after {calls} calls");
            assert!(disk.is_flushed());
            assert!(disk.connections() > 1 || calls > 12, "after {calls} calls");
        }
    }
}

/// Invariant (disk): At any moment the disk is complete or does not boot.
#[tokio::test]
async fn whenever_the_power_fails_the_disk_is_complete_or_does_not_boot() {
    for calls in 0..24 {
        let (bench, expected) = bench(Verify::Full);
        let disk = MemoryDisk::new(DISK_BYTES, 512, Quirk::DeadAfter(calls));
        tokio::select! {
            done = bench.begin(&disk) => panic!("not dead after {calls} calls: {done:?}"),
            () = disk.wait_for_calls(calls + 1) => {}
        }
        // Calls in flight on other threads end or hang.
        tokio::time::sleep(Duration::from_millis(2)).await;
        for seed in 0..3 {
            let mut random = fastrand::Rng::with_seed(seed);
            let content = disk.survives(|| random.bool());
            let edge = 1 << 20;
            let (head, rest) = content.split_at(edge);
            let (body, tail) = rest.split_at(rest.len() - edge);
            let is_zero = |bytes: &[u8]| bytes == vec![0; bytes.len()];
            let is_old = |bytes: &[u8]| bytes == vec![OLD; bytes.len()];
            let (untouched, half_wiped) = (is_old(&content), is_old(body));
            let complete_body = body == &expected[edge..expected.len() - edge];
            let safe = is_zero(head) && (is_zero(tail) || complete_body);
            assert!(
                untouched || half_wiped || safe || content == expected,
                "after {calls} calls, seed {seed}"
            );
        }
    }
}

#[tokio::test]
async fn a_disk_that_stays_away_is_given_up_after_the_stall_limit() {
    let (mut bench, _) = bench(Verify::Full);
    bench.order.stall = Duration::from_secs(1);
    let disk = MemoryDisk::new(DISK_BYTES, 512, Quirk::UnreachableFrom(3 * MIB));
    let began = tokio::time::Instant::now();
    let error = bench.write(&disk).await.unwrap_err().to_string();
    let message = "writing the disk at 3.0 MiB: unreachable; no new connection for 1 s: \
        unreachable; then the half-written disk could not be wiped: ";
    assert!(error.starts_with(message), "{error}");
    assert!((1..10).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

/// Bytes that a creeping disk moves in a second at most, at one command in [`CREEP`].
const CREEPS_BYTES_PER_S: u64 = CREEP_BYTES * 500;

#[test]
fn a_creeping_disk_carries_out_five_hundred_commands_a_second() {
    assert_eq!(CREEP * 500, Duration::from_secs(1));
}

/// Time over which a creeping disk is measured.
const MEASURED: Duration = Duration::from_millis(300);

/// Writes to a creeping disk that must have a rate.
async fn creep(bytes_per_s: u64, breaks_after: u64) -> Result<Written, ImagingError> {
    let mut bench = Bench::new(18 * MIB);
    bench.order.least_rate = LeastRate { bytes_per_s, over: MEASURED };
    let disk = MemoryDisk::new(20 * MIB, 512, Quirk::Creeps { breaks_after });
    bench.write(&disk).await
}

/// Invariant (fair): A slow disk gives its permit up.
#[tokio::test]
async fn a_disk_is_judged_by_the_commands_it_answers_also_if_calls_end_in_bursts() {
    let error = creep(4 * CREEPS_BYTES_PER_S, u64::MAX).await.unwrap_err();
    let ImagingError::TooSlow { slow, .. } = &error else { panic!("{error}") };
    // It was measured right: no more than there was, and not nothing.
    let quick = slow.bytes_per_s > CREEPS_BYTES_PER_S * 11 / 10;
    assert!(!quick && slow.bytes_per_s > 0, "{error}");
    assert!(slow.over >= MEASURED, "{error}");
    // Sixteen calls share the disk, and none of them ends for most of the measured time.
    creep(CREEPS_BYTES_PER_S / 16, u64::MAX).await.unwrap();
}

/// Invariant (fair): A slow disk gives its permit up.
#[tokio::test]
async fn a_disk_does_not_get_more_time_by_breaking_its_connections() {
    // Each carries 2.5 MiB of its own thresholds.
    let error = creep(4 * CREEPS_BYTES_PER_S, 40).await.unwrap_err();
    assert!(matches!(error, ImagingError::TooSlow { .. }), "{error}");
}

#[tokio::test]
async fn another_disk_behind_the_new_connection_is_not_written() {
    let (bench, _) = bench(Verify::Full);
    let quirk = Quirk::TurnsInto { calls: 6, bytes: 2 * DISK_BYTES };
    let disk = MemoryDisk::new(DISK_BYTES, 512, quirk);
    let error = bench.write(&disk).await.unwrap_err().to_string();
    assert!(
        error.starts_with(
            "the disk had 6.0 MiB in blocks of 512, and after a new connection 12.0 MiB in blocks \
             of 512; then "
        ),
        "{error}"
    );
    let wiped = disk.content().ends_with(&vec![0; 1 << 20]);
    assert!(wiped && disk.is_flushed(), "the other disk was touched");
}

#[tokio::test]
async fn after_a_failure_the_disk_is_wiped_on_a_new_connection_if_need_be() {
    let (bench, _) = bench(Verify::Full);
    let disk = MemoryDisk::new(DISK_BYTES, 512, Quirk::Breaks { calls: 6, times: 1 });
    let cancelling = async {
        disk.wait_for_calls(6).await;
        bench.cancel.send_replace(true);
    };
    let (written, ()) = tokio::join!(bench.write(&disk), cancelling);
    assert!(matches!(written, Err(ImagingError::Cancelled)), "{written:?}");
    assert_wiped(&disk);
    assert!(disk.is_flushed());
}

#[tokio::test]
async fn a_connection_that_breaks_again_and_again_does_not_start_from_the_beginning() {
    let image_bytes = 48 * MIB;
    let quirk = Quirk::Breaks { calls: 20, times: 90 };
    let (mut bench, disk) = (Bench::new(image_bytes), MemoryDisk::new(image_bytes, 512, quirk));
    bench.order.verify = Verify::None;
    bench.thresholds.flush_bytes = 32 * MIB;
    bench.write(&disk).await.unwrap();
    assert!(disk.content() == bench.bytes);
    let bytes = |did: &Did| if let Did::Write(range) = did { range.end - range.start } else { 0 };
    let written: u64 = disk.did().iter().map(bytes).sum();
    assert!(written < 3 * image_bytes, "{} MiB written", written / MIB);
    assert!(disk.connections() > 5, "{}", disk.connections());
}

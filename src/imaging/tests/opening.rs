//! A disk between its opening and its first write.

use super::{disks::OPTIMAL_BYTES, *};

#[tokio::test]
async fn an_opened_disk_states_its_geometry_and_is_written_over_the_same_connection() {
    let (bench, disk) = (Bench::new(MIB), MemoryDisk::new(8 * MIB, 4096, Quirk::None));
    let cancel = bench.cancel.subscribe();
    let opened = open(&*disk, cancel.clone()).await.unwrap();
    let wanted = Geometry { bytes: 8 * MIB, block_bytes: 4096, optimal_bytes: OPTIMAL_BYTES };
    assert_eq!(opened.geometry(), wanted);
    assert_eq!(disk.did(), []);
    opened.write(&bench.order, &bench.meter, cancel).await.unwrap();
    assert_eq!((disk.connections(), disk.open()), (1, 0));
}

#[tokio::test]
async fn a_disk_that_is_closed_without_a_write_is_untouched_and_has_no_connection() {
    let (bench, disk) = (Bench::new(MIB), MemoryDisk::new(8 * MIB, 512, Quirk::None));
    open(&*disk, bench.cancel.subscribe()).await.unwrap().close().await;
    assert_eq!((disk.did(), disk.open()), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_cannot_be_opened_is_tried_five_times_two_seconds_apart() {
    let (bench, disk) =
        (Bench::new(MIB), MemoryDisk::new(8 * MIB, 512, Quirk::UnreachableFrom(u64::MAX)));
    let began = tokio::time::Instant::now();
    let error = open(&*disk, bench.cancel.subscribe()).await.unwrap_err();
    assert!(
        matches!(&error, ImagingError::Connection(why) if why.message == "unreachable"),
        "{error}"
    );
    assert_eq!(began.elapsed().as_secs(), 4 * 2);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_ends_the_tries_to_open_a_disk_at_once() {
    let (bench, disk) =
        (Bench::new(MIB), MemoryDisk::new(8 * MIB, 512, Quirk::UnreachableFrom(u64::MAX)));
    let began = tokio::time::Instant::now();
    let cancelling = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        bench.cancel.send_replace(true);
    };
    let (opened, ()) = tokio::join!(open(&*disk, bench.cancel.subscribe()), cancelling);
    assert!(matches!(opened, Err(ImagingError::Cancelled)), "{opened:?}");
    assert_eq!(began.elapsed().as_secs(), 3);
}

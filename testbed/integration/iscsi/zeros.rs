//! Zeroing of old contents by every method, on a plain and on a thin unit.

use std::os::unix::fs::MetadataExt as _;

use hostler::iscsi::{IscsiOptions, Lun, Zeroing};

use super::tgtd::{DISK_BYTES, Tgtd};

/// The unit of the thin disk.
const THIN: u16 = 3;

/// The allocated bytes of the disk's file.
fn allocated(tgtd: &Tgtd) -> u64 {
    std::fs::metadata(tgtd.disk_file()).unwrap().blocks() * 512
}

/// Zeroes most of a disk of old contents, and checks that the rest stays; returns the allocated
/// bytes of the file.
async fn zero(tgtd: &Tgtd, lun: u16, zeroing: Option<Zeroing>) -> u64 {
    let case = format!("LUN {lun}, {zeroing:?}");
    tgtd.fill_disk(0xaa);
    let options = IscsiOptions { zeroing, ..IscsiOptions::default() };
    let lun = Lun::connect(&tgtd.lun(lun), None, &options).await.unwrap();
    // One block, an odd range, a long one, and several at once with gaps between them.
    lun.write_zeros(512, 512).await.expect(&case);
    lun.write_zeros(1536, (40 << 20) + 512).await.expect(&case);
    lun.write_zeros(50 << 20, 0).await.expect(&case);
    let mut ranges = tokio::task::JoinSet::new();
    for at in 0..16 {
        let lun = lun.clone();
        ranges.spawn(async move { lun.write_zeros((42 << 20) + at * 8192, 4096).await });
    }
    while let Some(done) = ranges.join_next().await {
        done.unwrap().expect(&case);
    }
    lun.flush().await.expect(&case);
    lun.logout().await.expect(&case);
    let mut expected = vec![0xaa; usize::try_from(DISK_BYTES).unwrap()];
    let small = (0..16).map(|at| ((42 << 20) + at * 8192, 4096));
    for (at, bytes) in [(512, 512), (1536, (40 << 20) + 512)].into_iter().chain(small) {
        expected.get_mut(at..at + bytes).unwrap().fill(0);
    }
    assert!(tgtd.disk() == expected, "{case}");
    allocated(tgtd)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_data_never_shows_through_zeros_whichever_way_they_are_made() {
    let tgtd = Tgtd::start();
    tgtd.add_thin_disk(THIN);
    for lun in [1, THIN] {
        for zeroing in [None, Some(Zeroing::Unmap), Some(Zeroing::Same), Some(Zeroing::Write)] {
            let left = zero(&tgtd, lun, zeroing).await;
            // The plain unit promises nothing about unmapped blocks, so that the initiator unmaps
            // none, even on demand.
            let unmapped = lun == THIN && matches!(zeroing, None | Some(Zeroing::Unmap));
            assert_eq!(left < DISK_BYTES / 2, unmapped, "LUN {lun}, {zeroing:?}: {left} left");
        }
    }
}

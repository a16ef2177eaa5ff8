//! Local files.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Fetch, digest, noise, used_bytes};

#[tokio::test]
async fn a_sparse_file_stays_sparse_and_its_holes_count_for_the_checksum() {
    let fetch = Fetch::new();
    let image = fetch.images().join("sparse.img");
    let file = File::create(&image).unwrap();
    file.write_all_at(&noise(100_000), 1_000_001).unwrap();
    file.write_all_at(&noise(70_000), 40 << 20).unwrap();
    file.set_len(150 << 20).unwrap();
    let published = std::fs::read(&image).unwrap();
    fetch.run("sparse.img", &digest(&published)).await.unwrap();
    assert!(fetch.bytes() == published);
    assert!(used_bytes(&fetch.part()) <= used_bytes(&image));
    let progress = fetch.progress();
    assert_eq!((progress.done_bytes, progress.total_bytes), (150 << 20, 150 << 20));
}

#[tokio::test]
async fn zeros_that_were_written_become_holes() {
    let fetch = Fetch::new();
    let mut published = vec![0; 32 << 20];
    published[5_000_000..5_000_003].copy_from_slice(b"one");
    *published.last_mut().unwrap() = 1;
    std::fs::write(fetch.images().join("dense.img"), &published).unwrap();
    fetch.run("dense.img", &digest(&published)).await.unwrap();
    assert!(fetch.bytes() == published);
    assert!(used_bytes(&fetch.part()) <= 16 << 10, "{}", used_bytes(&fetch.part()));
}

#[tokio::test]
async fn whatever_was_there_before_is_replaced() {
    let fetch = Fetch::new();
    fetch.begin_with(&noise(3_000_000));
    let published = [noise(70_000), vec![0; 2_000_000]].concat();
    std::fs::write(fetch.images().join("new.img"), &published).unwrap();
    fetch.run("new.img", &digest(&published)).await.unwrap();
    assert!(fetch.bytes() == published);
}

#[tokio::test]
async fn a_wrong_checksum_is_told_with_both() {
    let fetch = Fetch::new();
    std::fs::write(fetch.images().join("a.img"), "other bytes").unwrap();
    let (wanted, found) = (digest(b"bytes"), digest(b"other bytes"));
    let error = fetch.error("a.img", &wanted).await;
    let said = format!("a.img: its checksum is {found}, the spec wants {wanted}");
    assert_eq!(error.to_string(), said);
    assert!(error.is_lasting());
}

#[tokio::test]
async fn a_file_for_which_there_is_no_room_is_not_begun() {
    let mut fetch = Fetch::new();
    fetch.bytes_max = 1 << 20;
    std::fs::write(fetch.images().join("a.img"), noise(3 << 20)).unwrap();
    let error = fetch.error("a.img", &digest(b"")).await;
    assert!(error.is_lasting());
    assert_eq!(error.to_string(), "a.img: 3.0 MiB, at most 1.0 MiB are allowed");
    assert_eq!(fetch.bytes(), b"");
    assert_eq!(fetch.size("a.img").await.unwrap(), Some(3 << 20));
}

#[tokio::test]
async fn a_copy_is_cancelled_within_a_second_and_lets_go_of_the_file() {
    let fetch = Fetch::new();
    let file = File::create(fetch.images().join("huge.img")).unwrap();
    file.write_all_at(&noise(1 << 20), 1 << 30).unwrap();
    file.set_len(1 << 40).unwrap();
    drop(file);
    let fetch = Fetch { bytes_max: 1 << 41, ..fetch };
    let wanted = digest(b"");
    let cancelled = async {
        fetch.reaches(200 << 20).await;
        fetch.cancel.send_replace(true);
        Instant::now()
    };
    let (error, at) = tokio::join!(fetch.error("huge.img", &wanted), cancelled);
    assert_eq!(error.to_string(), "cancelled");
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
    assert_eq!(Arc::strong_count(&fetch.into), 1);
}

#[tokio::test]
async fn a_list_of_checksums_lies_where_images_lie() {
    let fetch = Fetch::new();
    let wanted = digest(b"disk");
    let list = format!("{}  disk.img\n", wanted.to_string().trim_start_matches("sha256:"));
    std::fs::write(fetch.images().join("SHA256SUMS"), list).unwrap();
    assert_eq!(fetch.listed("SHA256SUMS", "13/disk.img").await.unwrap(), wanted);
    let error = fetch.listed("SHA256SUMS", "none.img").await.unwrap_err();
    assert_eq!(error.to_string(), "SHA256SUMS: has no checksum for none.img, but for disk.img");
    let error = fetch.listed("/etc/passwd", "disk.img").await.unwrap_err();
    assert!(error.to_string().contains("images must lie under"), "{error}");
    std::fs::write(fetch.images().join("large"), vec![b'\n'; (1 << 20) + 1]).unwrap();
    let error = fetch.listed("large", "disk.img").await.unwrap_err();
    assert_eq!(error.to_string(), "large: larger than 1 MiB, so no file of checksums");
}

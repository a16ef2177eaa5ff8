//! The contenders that are hostler: its write and the ramdisk's comparison, and a prototype.

use std::{
    fs::{self, File},
    future::Future,
    io::{self, Read as _},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
    time::Duration,
};

use hostler::{
    model::{
        callback::{DiskRange, VERIFY_RANGES_MAX},
        disk::Disk,
        ids::{Digest, DigestAlgorithm},
        spec::Verify,
    },
    progress::Meter,
    ramdisk::{self, EarlyComparison},
};
use rustix::fs::{FallocateFlags, fallocate};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;

use crate::writer::write_and_verify;

const PIECE_BYTES: usize = 1 << 20;
/// Any number does.
const SALT: u32 = 7;
/// The endpoint's pause.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Writes an image as the agent does; with `verify = "node"` the ramdisk's code compares the
/// machine's own device, during the write and after it.
pub(crate) fn write(verify: Verify, device: &str, disk: &[String]) {
    block_on(async {
        let meter = Meter::default();
        let (early, machine) = (EarlyComparison::default(), disk_of(device));
        let written = tokio::select! {
            written = write_and_verify(disk, verify, Some(SALT), &meter) => written,
            differs = early.run(&machine, async |known| flushed(&meter, known).await) => {
                panic!("{differs:?}")
            }
        };
        flush(device);
        compare(device, written.ranges, &early).await;
    });
}

/// Writes and compares with a ramdisk that does not know digests with a salt.
pub(crate) fn write_for_old_ramdisk(device: &str, disk: &[String]) {
    block_on(async {
        let written = write_and_verify(disk, Verify::Node, None, &Meter::default()).await;
        flush(device);
        compare(device, written.ranges, &EarlyComparison::default()).await;
    });
}

/// The ranges that the disk holds, as often as the agent's endpoint looks for them.
async fn flushed(meter: &Meter, known: usize) -> Option<Vec<DiskRange>> {
    loop {
        let ranges = meter.ranges_on_disk();
        if ranges.len() != known {
            return Some(ranges);
        }
        sleep(LOOK_PAUSE).await;
    }
}

/// Prototype: writes the unpacked image from the standard input, and compares the disk with the
/// agent's digests. The first piece, without which nothing boots, comes last.
pub(crate) fn unpack(digests: &str, device: &str) {
    let disk = File::options().write(true).open(device).unwrap();
    let mut input = io::stdin().lock();
    let (mut head, mut at) = (Vec::new(), 0);
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = input.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece).unwrap() as u64;
        if read == 0 {
            break;
        }
        let is_zero = piece.iter().all(|byte| *byte == 0);
        if at == 0 {
            head = piece;
        } else if is_zero {
            // A disk drops these blocks or writes zeros by itself (BLKZEROOUT).
            fallocate(&disk, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, read)
                .unwrap();
        } else {
            disk.write_all_at(&piece, at).unwrap();
        }
        at += read;
    }
    disk.sync_all().unwrap();
    disk.write_all_at(&head, 0).unwrap();
    disk.sync_all().unwrap();
    block_on(async { compare(device, read(digests), &EarlyComparison::default()).await });
}

/// The digests of an image, as of a disk that holds it.
pub(crate) fn digests(image: &Path) -> Vec<DiskRange> {
    let file = File::open(image).unwrap();
    let bytes = file.metadata().unwrap().len();
    let step = bytes.div_ceil(VERIFY_RANGES_MAX as u64).next_multiple_of(PIECE_BYTES as u64);
    let range = |from: u64| digest(&file, from..bytes.min(from + step));
    (0..bytes).step_by(usize::try_from(step).unwrap()).map(range).collect()
}

fn digest(file: &File, range: Range<u64>) -> DiskRange {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    for at in range.clone().step_by(PIECE_BYTES) {
        let rest = usize::try_from(range.end - at).unwrap().min(PIECE_BYTES);
        file.read_exact_at(&mut piece[..rest], at).unwrap();
        hash.update(&piece[..rest]);
    }
    let digest = Digest::from_bytes(DigestAlgorithm::Sha256, &hash.finalize()).unwrap();
    DiskRange { from: range.start, bytes: range.end - range.start, digest, salt: None }
}

fn read(digests: &str) -> Vec<DiskRange> {
    serde_json::from_slice(&fs::read(digests).unwrap()).unwrap()
}

async fn compare(device: &str, ranges: Vec<DiskRange>, early: &EarlyComparison) {
    ramdisk::compare(&disk_of(device), ranges, early).await.unwrap();
}

fn disk_of(device: &str) -> Disk {
    Disk { name: device.to_owned(), ..Disk::default() }
}

fn flush(device: &str) {
    File::options().write(true).open(device).unwrap().sync_all().unwrap();
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(future);
}

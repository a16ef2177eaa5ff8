//! The images of the benchmark.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

const MIB: u64 = 1 << 20;
const NOISE_BYTES: usize = 1 << 20;

/// Makes an image of incompressible bytes, without a hole.
pub(crate) fn dense(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("dense.raw");
    let file = File::create(&path).unwrap();
    for at in (0..bytes).step_by(NOISE_BYTES) {
        file.write_all_at(&noise(at), at).unwrap();
    }
    path
}

/// Makes an image whose tenth is data, in runs of 1 to 8 MiB, with holes between.
pub(crate) fn sparse(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("sparse.raw");
    let file = File::create(&path).unwrap();
    file.set_len(bytes).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let (mut at, mut data) = (0, 0);
    while at < bytes && data < bytes / 10 {
        let run = random.u64(1..=8) * MIB;
        for place in (at..(at + run).min(bytes)).step_by(NOISE_BYTES) {
            file.write_all_at(&noise(place), place).unwrap();
        }
        data += run;
        at += run * 10;
    }
    path
}

/// Makes an image with so much data in runs of 1 to 8 MiB, with holes between. The data shrink as
/// much as those of an operating system: a fifth is noise, the rest are words.
pub(crate) fn system(dir: &Path, bytes: u64, data_bytes: u64) -> PathBuf {
    let path = dir.join("system.raw");
    let file = File::create(&path).unwrap();
    file.set_len(bytes).unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    let words: Vec<Vec<u8>> =
        (0..1024).map(|_| (0..random.usize(6..18)).map(|_| random.u8(..)).collect()).collect();
    let (mut at, mut data) = (0, 0);
    while data < data_bytes {
        let run = (random.u64(1..=8) * MIB).min(data_bytes - data);
        for place in (at..at + run).step_by(NOISE_BYTES) {
            let mut piece = noise(place);
            let mut written = piece.len() / 5;
            while written < piece.len() {
                let word = &words[random.usize(..words.len())];
                let room = word.len().min(piece.len() - written);
                piece[written..written + room].copy_from_slice(&word[..room]);
                written += room;
            }
            file.write_all_at(&piece, place).unwrap();
        }
        data += run;
        at += run * bytes / data_bytes / MIB * MIB;
    }
    path
}

fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; NOISE_BYTES];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// A minimal Debian in an ext4 file system, as a raw, a qcow2 and a zstd image.
/// `testbed/benches/debian` makes them in advance, because the benchmark has no way to the mirrors.
pub(crate) fn debian(dir: &Path) -> [PathBuf; 3] {
    ["debian.raw", "debian.qcow2", "debian.raw.zst"].map(|name| {
        let path = dir.join(name);
        assert!(
            path.exists(),
            "no {}; run testbed/benches/debian {}",
            path.display(),
            dir.display()
        );
        path
    })
}

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

//! The images that are written.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

const MIB: u64 = 1 << 20;
const NOISE_BYTES: usize = 1 << 20;

/// `bytes` that cannot be compressed, without a hole.
pub(crate) fn dense(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("dense.raw");
    let file = File::create(&path).unwrap();
    for at in (0..bytes).step_by(NOISE_BYTES) {
        file.write_all_at(&noise(at), at).unwrap();
    }
    path
}

/// A tenth of it data, in runs of 1 to 8 MiB, the rest holes.
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

/// A minimal Debian in an ext4 file system, as a raw, a qcow2 and a zstd image; made once.
pub(crate) fn debian(dir: &Path) -> [PathBuf; 3] {
    let paths = ["debian.raw", "debian.qcow2", "debian.raw.zst"].map(|name| dir.join(name));
    shell(&format!("testbed/benches/debian {}", dir.display()));
    paths
}

pub(crate) fn shell(command: &str) {
    let done = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(done.success(), "{command}");
}

//! Decoding against the tools that write images: qemu-img, and gzip, xz, zstd, bzip2 and their
//! parallel variants.

mod packed;
mod qcow2;
mod refused;

use std::{
    fs::{self, File},
    ops::ControlFlow,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use hostler::{
    image::{DecodeError, DecodeLimits, decode, inspect},
    model::spec::ImageFormat,
};
use tempfile::TempDir;

/// Size limit, larger than every image here.
const MOST_BYTES: u64 = 1 << 30;

static ZEROS: [u8; 4096] = [0; 4096];

/// The directory of the images.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command in the directory, which must succeed.
    fn sh(&self, command: &str) {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", command])
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {said}");
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn decode(&self, name: &str) -> Result<Vec<u8>, DecodeError> {
        decode_as(&self.path(name), ImageFormat::Auto, MOST_BYTES)
    }

    /// Decodes a file, which must fail; returns the reason.
    fn refusal(&self, name: &str) -> String {
        self.decode(name).map(|bytes| bytes.len()).expect_err(name).to_string()
    }
}

fn decode_as(path: &Path, format: ImageFormat, most: u64) -> Result<Vec<u8>, DecodeError> {
    let into = tempfile::NamedTempFile::new()?;
    let published = File::open(path)?;
    let look = inspect(&published, format)?;
    let mut before = 0;
    let mut progress = |at| {
        assert!(at >= before, "progress goes back from {before} to {at}");
        before = at;
        ControlFlow::Continue(())
    };
    let mut limits =
        DecodeLimits { raw_bytes_max: most, progress: &mut progress, scratch: &tempfile::tempfile };
    let bytes = decode(&published, format, into.as_file(), &mut limits)?;
    let raw = fs::read(into.path())?;
    assert_eq!(raw.len() as u64, bytes);
    assert!(look.raw_bytes.is_none_or(|declared| declared <= bytes), "{look:?} of {bytes}");
    let blocks = raw.chunks(4096).filter(|block| !ZEROS.starts_with(block)).count();
    let used = into.as_file().metadata()?.blocks() * 512;
    assert!(used <= blocks as u64 * 4096, "{used} bytes are used for {blocks} blocks");
    Ok(raw)
}

/// The bytes of a partly full disk: noise, text and zeros, in pieces of all sizes, determined by
/// the seed.
fn disk(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut disk = Vec::with_capacity(bytes + (1 << 20));
    while disk.len() < bytes {
        let piece = 512 << random.u32(0..12);
        match random.u8(0..4) {
            0 => {
                let mut noise = vec![0; piece];
                random.fill(&mut noise);
                disk.append(&mut noise);
            }
            1 => disk.extend_from_slice(&b"The quick brown ".repeat(piece / 16)),
            2 => {
                let numbers = random.u64(..)..;
                let lines = numbers.take(piece / 32).map(|number| format!("line {number:>26}\n"));
                disk.extend_from_slice(lines.collect::<String>().as_bytes());
            }
            _ => disk.resize(disk.len() + piece, 0),
        }
    }
    disk.truncate(bytes);
    disk
}

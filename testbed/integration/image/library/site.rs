//! A test's images, cache and configuration, and `hostler cache` on them.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use hostler::model::ids::hex;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// Time limit of each wait, on a machine that runs many tests at once.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Site(TempDir);

/// A published image.
pub(super) struct Image {
    source: String,
    /// The checksum in a spec.
    pub(super) digest: String,
    /// The raw disk.
    pub(super) raw: Vec<u8>,
}

/// A small file system; unmounted on drop.
pub(super) struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

impl Site {
    pub(super) fn new() -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        for dir in ["images", "nodes"] {
            fs::create_dir(site.path(dir)).unwrap();
        }
        site.configure(&format!("cache_dir = \"{}\"", site.path("cache").display()));
        site
    }

    /// Writes the configuration, with more lines for `[images]`.
    pub(super) fn configure(&self, images: &str) {
        let dir = self.0.path().display();
        let text = format!(
            r#"network.advertise = "192.0.2.1"
specs.dir = "{dir}/nodes"
state.dir = "{dir}/state"
ramdisk = {{ kernel = "/k", initramfs = "/i" }}
[images]
dir = "{dir}/images"
{images}
"#
        );
        fs::write(self.path("hostler.toml"), text).unwrap();
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Puts the cache on a file system of so many MiB.
    pub(super) fn small_disk(&self, mib: u32) -> Disk {
        let dir = self.path("cache");
        fs::create_dir(&dir).unwrap();
        let size = format!("size={mib}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&dir));
        Disk(dir)
    }

    pub(super) fn publish(&self, source: &str, raw: &[u8]) -> Image {
        self.publish_as(source, raw, raw)
    }

    pub(super) fn publish_zstd(&self, source: &str, raw: &[u8]) -> Image {
        self.publish_as(source, raw, &zstd::encode_all(raw, 1).unwrap())
    }

    fn publish_as(&self, source: &str, raw: &[u8], published: &[u8]) -> Image {
        fs::write(self.path("images").join(source), published).unwrap();
        let digest = format!("sha256:{}", hex(&Sha256::digest(published)));
        Image { source: source.to_owned(), digest, raw: raw.to_owned() }
    }

    pub(super) fn write_spec(&self, node: &str, image: &Image) {
        let text = format!(
            r#"boot.mac = "52:54:00:00:00:{}"
bmc = {{ address = "192.0.2.20", username = "admin", password_file = "x" }}
image = {{ source = "{}", checksum = "{}" }}
"#,
            &node[node.len() - 2..],
            image.source,
            image.digest
        );
        fs::write(self.path("nodes").join(format!("{node}.toml")), text).unwrap();
    }

    /// The image's file in the cache.
    pub(super) fn cached(&self, image: &Image, suffix: &str) -> PathBuf {
        self.path("cache").join(format!("{}.{suffix}", image.digest.replace(':', "-")))
    }

    pub(super) fn cache(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostler"));
        command.arg("cache").args(arguments).arg("--config").arg(self.path("hostler.toml"));
        command.env_remove("HOSTLER_LOG").stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(super) fn fetch(&self, image: &Image) -> Command {
        self.cache(&["fetch", "--source", &image.source, "--checksum", &image.digest])
    }

    pub(super) fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let started = Instant::now();
        while !is_so() {
            assert!(
                started.elapsed() < LIMIT,
                "{what} does not come in {}",
                self.0.path().display()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Incompressible bytes.
pub(super) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    fastrand::Rng::with_seed(seed).fill(&mut noise);
    noise
}

/// Runs a command; returns exit code, standard output and standard error.
pub(super) fn answer(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Runs a command, which must succeed; returns its output and its standard error.
pub(super) fn says(command: &mut Command) -> (String, String) {
    let (code, said, errors) = answer(command);
    assert_eq!(code, 0, "{errors}");
    (said, errors)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

//! Fetches from nginx, over connections that break, and from servers that misbehave.

mod faults;
mod local;
mod nginx;
mod ranges;
mod secure;
mod web;

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use hostler::{
    image::{Directories, FetchError, Sources},
    model::{ids::Digest, status::Progress},
    progress::{Meter, Watch},
};
use tempfile::TempDir;
use tokio::sync::watch;

/// Size limit, larger than every file here.
const BYTES_MAX: u64 = 1 << 30;

/// A fetch with the library's parameters: the file to fill, the cancellation, the meter.
pub(super) struct Fetch {
    dir: TempDir,
    into: Arc<File>,
    meter: Meter,
    cancel: watch::Sender<bool>,
    stall: Duration,
    bytes_max: u64,
}

impl Fetch {
    pub(super) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        let into = Arc::new(options.open(dir.path().join("part")).unwrap());
        let cancel = watch::channel(false).0;
        let stall = Duration::from_secs(20);
        Self { dir, into, meter: Meter::default(), cancel, stall, bytes_max: BYTES_MAX }
    }

    /// The directory of local images.
    fn images(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    fn watch(&self) -> Watch<'_> {
        Watch { cancel: self.cancel.subscribe(), stall: self.stall, meter: &self.meter }
    }

    fn sources(&self) -> Sources {
        Sources::new(Directories::new(self.images(), Vec::new()))
    }

    pub(super) async fn run(&self, source: &str, wanted: &Digest) -> Result<(), FetchError> {
        let watch = self.watch();
        self.sources().fetch(source, wanted, &self.into, self.bytes_max, &watch).await
    }

    async fn size(&self, source: &str) -> Result<Option<u64>, FetchError> {
        self.sources().size(source, &self.watch()).await
    }

    async fn listed(&self, place: &str, source: &str) -> Result<Digest, FetchError> {
        self.sources().listed(place, source, &self.watch()).await
    }

    /// Runs a fetch, which must fail; returns its error.
    async fn error(&self, source: &str, wanted: &Digest) -> FetchError {
        self.run(source, wanted).await.unwrap_err()
    }

    fn progress(&self) -> Progress {
        self.meter.progress().unwrap()
    }

    /// Writes a beginning into the file to fill.
    fn begin_with(&self, bytes: &[u8]) {
        self.into.as_ref().write_all(bytes).unwrap();
    }

    /// The fetched bytes.
    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.part()).unwrap()
    }

    fn part(&self) -> PathBuf {
        self.dir.path().join("part")
    }

    /// Waits until so many bytes are fetched.
    async fn reaches(&self, bytes: u64) {
        let began = Instant::now();
        while self.meter.progress().is_none_or(|progress| progress.done_bytes < bytes) {
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", self.meter.progress());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The digest of these bytes, by coreutils.
pub(super) fn digest(bytes: &[u8]) -> Digest {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    format!("sha256:{}", text.split_whitespace().next().unwrap()).parse().unwrap()
}

/// Incompressible bytes.
fn noise(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..)).take(bytes).collect()
}

/// The bytes of a file on the disk.
fn used_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).unwrap().blocks() * 512
}

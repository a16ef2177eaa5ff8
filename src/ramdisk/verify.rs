//! Compares the written disk with its expected digests: `image.verify = "node"`.
//!
//! The boot sequence calls it after the stop of the target and the flush of the disk. Ranges that
//! were compared during the write ([`early`]) are not compared again, except for a random sample of
//! each. It reads past the kernel's cache (`O_DIRECT`), which may hold old bytes. It must never
//! write, trust the agent's ranges to lie on the disk, or wait for a disk that does not answer.

pub(super) mod early;

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom},
    num::NonZero,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::fs::{Mode, OFlags, open};
use sha2::{Digest as _, Sha256, Sha512, digest::DynDigest};
use tokio::{task::spawn_blocking, time::timeout};

use self::early::EarlyComparison;
use crate::model::{
    callback::{DiskRange, VERIFY_RANGES_MAX},
    disk::Disk,
    ids::{Digest, DigestAlgorithm},
    range_digest::{RangeHasher, chunk_hash, chunks},
};

/// Bytes of one read: long enough that a spinning disk seldom moves its head.
const READ_BYTES: usize = 4 << 20;
/// Alignment of reads in memory and on the disk, in bytes: the largest logical block of Linux.
const ALIGNMENT_BYTES: usize = 64 << 10;
/// Most ranges hashed concurrently: with one read's memory each, they fit into the smallest
/// machine.
const THREADS_MAX: usize = 8;
/// Longest time without progress; a disk that takes longer for [`READ_BYTES`] is broken.
const STALL_LIMIT: Duration = Duration::from_secs(120);

/// The reason why a disk does not count as verified.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum VerifyError {
    #[error(
        "{disk} does not hold the image: its bytes {from} to {last} hash to {found}, must be \
         {wanted}"
    )]
    Differs { disk: String, from: u64, last: u64, found: Digest, wanted: Digest },
    #[error(
        "{disk} held the image during the write, and does not hold it any more: its bytes {from} \
         to {last} hash to {found}, must be {wanted}"
    )]
    Lost { disk: String, from: u64, last: u64, found: Digest, wanted: Digest },
    #[error("reading {disk} at byte {at}: {source}")]
    Unreadable { disk: String, at: u64, source: io::Error },
    #[error("{disk}: nothing was read within {} s", STALL_LIMIT.as_secs())]
    Stalled { disk: String },
    #[error("the agent gave {0} ranges to compare, at most {VERIFY_RANGES_MAX} are possible")]
    TooMany(usize),
    #[error("the agent gave {bytes} bytes from byte {from} on to compare, {disk} has {disk_bytes}")]
    BeyondDisk { disk: String, from: u64, bytes: u64, disk_bytes: u64 },
    #[error("comparing {disk}: {reason}")]
    Broken { disk: String, reason: String },
    #[error("comparing {disk}: stopped")]
    Stopped { disk: String },
}

impl VerifyError {
    /// Whether the comparison found other content.
    pub fn differs(&self) -> bool {
        matches!(self, Self::Differs { .. } | Self::Lost { .. })
    }
}

/// Compares every range of `/dev/<disk>`, or a sample of it if `early` has compared it, and counts
/// the bytes in `read_bytes`. The error names the first range that differs.
pub(super) async fn verify(
    disk: &Disk,
    ranges: Vec<DiskRange>,
    early: &EarlyComparison,
    read_bytes: Arc<AtomicU64>,
) -> Result<(), VerifyError> {
    let name = disk.name.clone();
    if ranges.len() > VERIFY_RANGES_MAX {
        return Err(VerifyError::TooMany(ranges.len()));
    }
    let (tasks, had_bytes) = early.rest_of(ranges);
    read_bytes.store(had_bytes, Ordering::Relaxed);
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    // A rotating disk reads fastest with one thread.
    let threads = if disk.rotational { 1 } else { processors.min(THREADS_MAX) };
    let mut work = spawn_blocking({
        let (disk, read_bytes) = (name.clone(), Arc::clone(&read_bytes));
        move || Comparison::new(disk, read_bytes)?.run(&tasks, threads)
    });
    let mut before = had_bytes;
    loop {
        match timeout(STALL_LIMIT, &mut work).await {
            Ok(Ok(compared)) => return compared,
            Ok(Err(panic)) => {
                return Err(VerifyError::Broken { disk: name, reason: panic.to_string() });
            }
            // The hanging threads are abandoned.
            Err(_) if read_bytes.load(Ordering::Relaxed) == before => {
                return Err(VerifyError::Stalled { disk: name });
            }
            Err(_) => before = read_bytes.load(Ordering::Relaxed),
        }
    }
}

fn open_past_the_cache(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
    Ok(open(path, flags, Mode::empty())?.into())
}

/// A range to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Task {
    range: DiskRange,
    /// Whether the disk held these bytes during the write.
    was_right: bool,
}

/// An open disk.
struct Comparison {
    disk: String,
    file: File,
    /// Bytes read so far, of all ranges.
    read_bytes: Arc<AtomicU64>,
    /// Ends the comparison.
    stop: Arc<AtomicBool>,
}

impl Comparison {
    /// Opens `/dev/<disk>`.
    fn new(disk: String, read_bytes: Arc<AtomicU64>) -> Result<Self, VerifyError> {
        match open_past_the_cache(&Path::new("/dev").join(&disk)) {
            Ok(file) => Ok(Self { disk, file, read_bytes, stop: Arc::default() }),
            Err(source) => Err(VerifyError::Unreadable { disk, at: 0, source }),
        }
    }

    fn run(mut self, tasks: &[Task], threads: usize) -> Result<(), VerifyError> {
        self.check(tasks.iter().map(|task| &task.range))?;
        let next = AtomicUsize::new(0);
        let first_bad = Mutex::new(None::<(usize, VerifyError)>);
        let work = || {
            let mut buffer = Buffer::new();
            loop {
                // Threads take ranges in order: all ranges before a wrong one are done or in
                // progress.
                let n = next.fetch_add(1, Ordering::Relaxed);
                let bad = || first_bad.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(task) = tasks.get(n).filter(|_| bad().is_none()) else { return };
                if let Err(error) = self.compare(task, &mut buffer, |_, _| {}) {
                    let mut bad = bad();
                    if bad.as_ref().is_none_or(|(first, _)| n < *first) {
                        *bad = Some((n, error));
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads.min(tasks.len()) {
                // Without another thread, this one does all the work.
                drop(thread::Builder::new().spawn_scoped(scope, work));
            }
            work();
        });
        let first_bad = first_bad.into_inner().unwrap_or_else(PoisonError::into_inner);
        first_bad.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Checks that the ranges lie on the disk.
    fn check<'a>(
        &mut self,
        mut ranges: impl Iterator<Item = &'a DiskRange>,
    ) -> Result<(), VerifyError> {
        let disk_bytes =
            self.file.seek(SeekFrom::End(0)).map_err(|error| self.unreadable(0, error))?;
        let lies_on_disk = |range: &&DiskRange| {
            range.from.checked_add(range.bytes).is_some_and(|end| end <= disk_bytes)
        };
        match ranges.find(|range| !lies_on_disk(range)) {
            None => Ok(()),
            Some(&DiskRange { from, bytes, .. }) => {
                Err(VerifyError::BeyondDisk { disk: self.disk.clone(), from, bytes, disk_bytes })
            }
        }
    }

    /// Compares a range. `see` gets the hash of each chunk of a range with a salt.
    fn compare(
        &self,
        task: &Task,
        buffer: &mut Buffer,
        see: impl FnMut(Range<u64>, [u8; 32]),
    ) -> Result<(), VerifyError> {
        let DiskRange { from, bytes, digest, salt } = &task.range;
        let (from, wanted) = (*from, digest.clone());
        let end = from.saturating_add(*bytes);
        let found = match salt {
            Some(salt) => self.hash_chunks(*salt, from..end, buffer, see)?,
            None => self.hash(digest.algorithm(), from..end, buffer)?,
        };
        if found.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let (disk, last) = (self.disk.clone(), end.saturating_sub(1).max(from));
        let found = found.unwrap_or_else(|| wanted.clone());
        Err(if task.was_right {
            VerifyError::Lost { disk, from, last, found, wanted }
        } else {
            VerifyError::Differs { disk, from, last, found, wanted }
        })
    }

    fn hash(
        &self,
        algorithm: DigestAlgorithm,
        range: Range<u64>,
        buffer: &mut Buffer,
    ) -> Result<Option<Digest>, VerifyError> {
        let mut hasher: Box<dyn DynDigest> = match algorithm {
            DigestAlgorithm::Sha256 => Box::new(Sha256::new()),
            DigestAlgorithm::Sha512 => Box::new(Sha512::new()),
        };
        self.read(range, buffer, |found| hasher.update(found))?;
        Ok(Digest::from_bytes(algorithm, &hasher.finalize()))
    }

    fn hash_chunks(
        &self,
        salt: u32,
        range: Range<u64>,
        buffer: &mut Buffer,
        mut see: impl FnMut(Range<u64>, [u8; 32]),
    ) -> Result<Option<Digest>, VerifyError> {
        let (mut hasher, mut in_parts) = (RangeHasher::new(salt), Sha256::new());
        let (mut at, mut chunks) = (range.start, chunks(range.clone()).peekable());
        // One read has several chunks.
        self.read(range, buffer, |mut found| {
            while let Some(chunk) = chunks.peek()
                && !found.is_empty()
            {
                let (part, rest) = found.split_at(clamped(chunk.end - at).min(found.len()));
                (at, found) = (at + part.len() as u64, rest);
                let is_whole = part.len() as u64 == chunk.end - chunk.start;
                if !is_whole {
                    sha2::Digest::update(&mut in_parts, part);
                }
                if at == chunk.end {
                    let hash = if is_whole {
                        chunk_hash(part)
                    } else {
                        sha2::Digest::finalize_reset(&mut in_parts).into()
                    };
                    hasher.chunk(&hash);
                    chunks.next().into_iter().for_each(|chunk| see(chunk, hash));
                }
            }
        })?;
        Ok(hasher.finish())
    }

    /// Reads a range, piece by piece.
    fn read(
        &self,
        range: Range<u64>,
        buffer: &mut Buffer,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), VerifyError> {
        let mut at = range.start;
        while at < range.end {
            if self.stop.load(Ordering::Relaxed) {
                return Err(VerifyError::Stopped { disk: self.disk.clone() });
            }
            let found = buffer
                .read(&self.file, at, range.end)
                .map_err(|error| self.unreadable(at, error))?;
            take(found);
            at += found.len() as u64;
            self.read_bytes.fetch_add(found.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn unreadable(&self, at: u64, source: io::Error) -> VerifyError {
        VerifyError::Unreadable { disk: self.disk.clone(), at, source }
    }
}

/// Memory for one read, aligned for `O_DIRECT`.
struct Buffer(Vec<u8>);

impl Buffer {
    fn new() -> Self {
        Self(vec![0; READ_BYTES + ALIGNMENT_BYTES])
    }

    /// Reads the file's bytes from `at` on: at least one, and none at or past `end`.
    fn read(&mut self, file: &File, at: u64, end: u64) -> io::Result<&[u8]> {
        let padding = self.0.as_ptr().align_offset(ALIGNMENT_BYTES);
        let aligned = self.0.get_mut(padding..).and_then(|rest| rest.get_mut(..READ_BYTES));
        let aligned = aligned.ok_or(io::ErrorKind::OutOfMemory)?;
        // The bytes before it in the same block are read and skipped.
        let before = at % ALIGNMENT_BYTES as u64;
        let from = at - before;
        let length = file.read_at(aligned, from)?.min(clamped(end - from));
        let found = aligned.get(clamped(before)..length).unwrap_or_default();
        if found.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(found) }
    }
}

/// Converts an offset to a length, limited to a buffer's.
fn clamped(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use rustix::fs::fcntl_getfl;

    use super::*;

    /// A multiple of a block, but not of a read or of the alignment.
    const DISK_BYTES: usize = 9 * HALF_MIB + 512;
    const HALF_MIB: usize = 512 * 1024;

    fn none() -> EarlyComparison {
        EarlyComparison::default()
    }

    /// Content without repetition.
    fn content() -> Vec<u8> {
        let mut content = Vec::with_capacity(DISK_BYTES);
        for number in 0..DISK_BYTES as u64 / 8 {
            content.extend_from_slice(&number.to_le_bytes());
        }
        content
    }

    fn digest(bytes: &[u8]) -> Digest {
        Digest::from_bytes(DigestAlgorithm::Sha256, &Sha256::digest(bytes)).unwrap()
    }

    fn range(content: &[u8], from: usize, bytes: usize) -> DiskRange {
        let digest = digest(&content[from..from + bytes]);
        DiskRange { from: from as u64, bytes: bytes as u64, digest, salt: None }
    }

    /// A file that is read without the cache, as a disk is.
    struct Bench {
        dir: tempfile::TempDir,
        content: Vec<u8>,
    }

    impl Bench {
        fn new() -> Self {
            let dir = crate::ramdisk::dir_on_disk();
            let content = content();
            fs::write(dir.path().join("disk"), &content).unwrap();
            Self { dir, content }
        }

        fn open(&self) -> File {
            open_past_the_cache(&self.dir.path().join("disk")).unwrap()
        }

        fn run(&self, ranges: Vec<DiskRange>, threads: usize) -> Result<(), VerifyError> {
            let tasks: Vec<_> =
                ranges.into_iter().map(|range| Task { range, was_right: false }).collect();
            let (disk, read_bytes, stop) = ("vda".into(), Arc::default(), Arc::default());
            Comparison { disk, file: self.open(), read_bytes, stop }.run(&tasks, threads)
        }

        fn spoil(&self, at: u64) {
            let file = File::options().write(true).open(self.dir.path().join("disk")).unwrap();
            file.write_all_at(b"x", at).unwrap();
            file.sync_all().unwrap();
        }
    }

    #[test]
    fn a_disk_that_holds_what_it_must_is_verified_whatever_the_ranges_are_like() {
        let bench = Bench::new();
        for (from, bytes) in [
            (0, DISK_BYTES),
            (0, 0),
            (DISK_BYTES, 0),
            (1, 1),
            (511, 4097),
            (READ_BYTES - 1, 4097),
            (DISK_BYTES - 700, 700),
        ] {
            for threads in [1, 4] {
                let plain = range(&bench.content, from, bytes);
                let mut hasher = RangeHasher::new(7);
                hasher.data(&bench.content[from..from + bytes]);
                let digest = hasher.finish().unwrap();
                let salted = DiskRange { digest, salt: Some(7), ..plain.clone() };
                let ranges = [vec![plain; 5], vec![salted; 5]].concat();
                bench.run(ranges, threads).unwrap_or_else(|error| panic!("{from}: {error}"));
            }
        }
    }

    /// Invariant (disk): A disk that drops writes is caught by default.
    #[test]
    fn what_is_compared_does_not_come_from_the_cache() {
        assert!(fcntl_getfl(Bench::new().open()).unwrap().contains(OFlags::DIRECT));
    }

    #[test]
    fn sha_512_is_compared_too() {
        let bench = Bench::new();
        let hash = Sha512::digest(&bench.content);
        let digest = Digest::from_bytes(DigestAlgorithm::Sha512, &hash).unwrap();
        let whole = DiskRange { from: 0, bytes: DISK_BYTES as u64, digest, salt: None };
        bench.run(vec![whole], 1).unwrap();
    }

    #[test]
    fn of_several_bad_ranges_the_first_is_named_in_bytes() {
        let bench = Bench::new();
        let ranges: Vec<_> =
            (0..9).map(|n| range(&bench.content, n * HALF_MIB, HALF_MIB)).collect();
        for at in [8 * HALF_MIB, 3 * HALF_MIB + 7, 5 * HALF_MIB] {
            bench.spoil(at as u64);
        }
        for threads in [1, 3, 9] {
            let error = bench.run(ranges.clone(), threads).unwrap_err();
            assert!(error.differs());
            let message = error.to_string();
            assert!(
                message.starts_with(
                    "vda does not hold the image: its bytes 1572864 to 2097151 hash to sha256:"
                ),
                "{message}"
            );
        }
    }

    #[test]
    fn ranges_the_disk_has_not_are_refused() {
        let bench = Bench::new();
        for (from, bytes) in [(DISK_BYTES as u64, 1), (0, DISK_BYTES as u64 + 1), (u64::MAX, 2)] {
            let odd = DiskRange { from, bytes, digest: digest(b""), salt: None };
            let error = bench.run(vec![odd], 1).unwrap_err();
            assert!(matches!(error, VerifyError::BeyondDisk { .. }) && !error.differs(), "{error}");
        }
    }

    #[tokio::test]
    async fn a_disk_that_is_not_there_is_an_error_and_no_mismatch() {
        let disk = Disk { name: "no-such-disk".into(), ..Disk::default() };
        let ranges = |number| vec![range(&[0], 0, 1); number];
        let verified = async |ranges| verify(&disk, ranges, &none(), Arc::default()).await;
        let error = verified(ranges(VERIFY_RANGES_MAX)).await.unwrap_err();
        assert!(error.to_string().starts_with("reading no-such-disk at byte 0: "), "{error}");
        assert!(!error.differs());
        let many = verified(ranges(VERIFY_RANGES_MAX + 1)).await;
        assert!(matches!(many, Err(VerifyError::TooMany(65))));
    }

    #[test]
    fn never_panics_on_any_ranges() {
        let bench = Bench::new();
        let odd = |from, bytes| DiskRange { from, bytes, digest: digest(b""), salt: None };
        let cases = ProptestConfig::with_cases(24);
        proptest!(cases, |(from: u64, bytes: u64, near in 0..2 * DISK_BYTES as u64)| {
            for ranges in [vec![odd(from, bytes)], vec![odd(near, bytes % 1000), odd(0, near)]] {
                drop(bench.run(ranges, 2));
            }
        });
    }
}

//! Tests of comparisons during the write: what counts after it, and what is read again.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use super::*;
use crate::{
    model::range_digest::RangeHasher,
    ramdisk::{compare, dir_on_disk},
};

const MIB: u64 = 1 << 20;
/// The disk's bytes: a head, three ranges and a tail.
const DISK_BYTES: u64 = 29 * MIB;
const RANGE_BYTES: u64 = 9 * MIB;
const SALT: Option<u32> = Some(7);

/// A file that is read without the cache, as a disk is.
struct Bench {
    dir: tempfile::TempDir,
    disk: Disk,
    content: Vec<u8>,
}

impl Bench {
    /// A disk without a repetition, except for a range of zeros.
    fn new() -> Self {
        let dir = dir_on_disk();
        let mut content = vec![0; place(&(0..DISK_BYTES)).len()];
        fastrand::Rng::with_seed(1).fill(&mut content);
        content[place(&(11 * MIB..13 * MIB))].fill(0);
        fs::write(dir.path().join("disk"), &content).unwrap();
        let name = dir.path().join("disk").to_str().unwrap().to_owned();
        Self { dir, disk: Disk { name, ..Disk::default() }, content }
    }

    fn range(&self, from: u64, bytes: u64, salt: Option<u32>) -> DiskRange {
        let content = &self.content[place(&(from..from + bytes))];
        let digest = match salt {
            None => Digest::of(content),
            Some(salt) => {
                let mut hasher = RangeHasher::new(salt);
                hasher.data(content);
                hasher.finish().unwrap()
            }
        };
        DiskRange { from, bytes, digest, salt }
    }

    /// The body's ranges.
    fn body(&self, salt: Option<u32>) -> Vec<DiskRange> {
        (0..3).map(|n| self.range(MIB + n * RANGE_BYTES, RANGE_BYTES, salt)).collect()
    }

    /// All ranges, as after a write.
    fn all(&self, salt: Option<u32>) -> Vec<DiskRange> {
        let (head, tail) = (self.range(0, MIB, None), self.range(DISK_BYTES - MIB, MIB, None));
        [vec![head], self.body(salt), vec![tail]].concat()
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn spoil(&self, range: std::ops::Range<u64>) {
        let file = File::options().write(true).open(self.path()).unwrap();
        file.write_all_at(&vec![0xee; place(&range).len()], range.start).unwrap();
        file.sync_all().unwrap();
    }

    /// Compares what the agent names during the write, one range more each time.
    async fn compare_early(&self, ranges: &[DiskRange]) -> (EarlyComparison, Option<VerifyError>) {
        let early = EarlyComparison::default();
        let named = async |known: usize| match known {
            usize::MAX => Some(ranges.to_vec()),
            known => (known < ranges.len()).then(|| ranges[..=known].to_vec()),
        };
        let differs = early.run(&self.disk, named).await;
        (early, differs)
    }
}

fn place(range: &std::ops::Range<u64>) -> std::ops::Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

#[tokio::test]
async fn after_the_write_only_a_sample_of_the_compared_ranges_is_read_again() {
    let mut bench = Bench::new();
    // The comparison of a rotating disk rests, and is the same.
    bench.disk.rotational = true;
    let (early, differs) = bench.compare_early(&bench.body(SALT)[..2]).await;
    assert!(differs.is_none(), "{differs:?}");
    let (tasks, had_bytes) = early.rest_of(bench.all(SALT));
    let whole: Vec<_> = tasks.iter().filter(|task| !task.was_right).collect();
    assert_eq!(whole.iter().map(|task| task.range.from / MIB).collect::<Vec<_>>(), [0, 19, 28]);
    let sample: Vec<_> = tasks.iter().filter(|task| task.was_right).collect();
    assert_eq!(sample.iter().map(|task| task.range.bytes).collect::<Vec<_>>(), [MIB; 2]);
    assert_eq!(had_bytes, 2 * (RANGE_BYTES - MIB));
    assert!(tasks.is_sorted_by_key(|task| task.range.from), "the first bad place is named");
    compare(&bench.disk, bench.all(SALT), &early).await.unwrap();
}

/// Invariant (disk): A range that was compared during the write, and was destroyed since, is
/// caught.
#[tokio::test]
async fn a_disk_that_wraps_around_and_destroys_what_was_compared_is_caught() {
    let bench = Bench::new();
    let (early, differs) = bench.compare_early(&bench.body(SALT)).await;
    assert!(differs.is_none(), "{differs:?}");
    // The second half of the disk went to the first half.
    bench.spoil(MIB..14 * MIB);
    let error = compare(&bench.disk, bench.all(SALT), &early).await.unwrap_err();
    assert!(matches!(error, VerifyError::Lost { .. }) && error.differs(), "{error}");
    let sample = early.compared()[0].sample[0].from;
    let expected = format!(
        "{} held the image during the write, and does not hold it any more: its bytes {sample} to",
        bench.disk.name
    );
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[tokio::test]
async fn a_difference_during_the_write_is_named_with_its_range_at_once() {
    let bench = Bench::new();
    bench.spoil(22 * MIB + 5..22 * MIB + 6);
    let (early, differs) = bench.compare_early(&bench.body(SALT)).await;
    let differs = differs.unwrap();
    assert!(differs.differs());
    assert!(differs.to_string().contains("its bytes 19922944 to 29360127 hash to"), "{differs}");
    // Without the agent's verdict, the range is compared again.
    let error = compare(&bench.disk, bench.all(SALT), &early).await.unwrap_err();
    assert!(matches!(error, VerifyError::Differs { from, .. } if from == 19 * MIB), "{error}");
}

/// Invariant (disk): A comparison during a write counts for no other write of the disk.
#[tokio::test]
async fn what_was_compared_of_one_write_does_not_count_for_another() {
    let bench = Bench::new();
    let (early, _) = bench.compare_early(&bench.body(SALT)).await;
    // One byte of each range differs, which no sample need hit.
    for n in 0..3 {
        bench.spoil(2 * MIB + n * RANGE_BYTES..2 * MIB + n * RANGE_BYTES + 1);
    }
    for salt in [Some(8), None] {
        let (tasks, had_bytes) = early.rest_of(bench.all(salt));
        assert!(had_bytes == 0 && tasks.len() == 5 && tasks.iter().all(|task| !task.was_right));
        let error = compare(&bench.disk, bench.all(salt), &early).await.unwrap_err();
        assert!(matches!(error, VerifyError::Differs { from, .. } if from == MIB), "{error}");
    }
}

#[tokio::test]
async fn whatever_prevents_the_comparison_during_the_write_leaves_all_of_it_for_after_it() {
    let bench = Bench::new();
    let beyond = DiskRange { from: u64::MAX - 1, ..bench.range(MIB, MIB, SALT) };
    let gone = Disk { name: "no-such-disk".into(), ..Disk::default() };
    for (disk, named) in [
        (&bench.disk, vec![]),
        (&bench.disk, vec![beyond]),
        (&bench.disk, bench.body(None)),
        (&gone, bench.body(SALT)),
    ] {
        let early = EarlyComparison::default();
        let answer = async |known: usize| (known < named.len()).then(|| named.clone());
        assert!(early.run(disk, answer).await.is_none());
        let (tasks, had_bytes) = early.rest_of(bench.all(SALT));
        assert!(had_bytes == 0 && tasks.iter().all(|task| !task.was_right), "{tasks:?}");
    }
}

/// After a restart of the agent, another write puts other bytes where a range was.
#[tokio::test]
async fn a_difference_from_a_write_that_was_begun_anew_is_none() {
    let bench = Bench::new();
    let old = bench.body(SALT);
    bench.spoil(2 * MIB..2 * MIB + 1);
    let early = EarlyComparison::default();
    let calls = std::cell::Cell::new(0);
    let answer = async |_known: usize| {
        calls.set(calls.get() + 1);
        match calls.get() {
            1 => Some(vec![old[0].clone()]),
            2 => Some(vec![bench.range(11 * MIB, MIB, Some(8))]),
            _ => None,
        }
    };
    let differs = early.run(&bench.disk, answer).await;
    assert!(differs.is_none() && calls.get() == 3, "{differs:?}");
}

#[tokio::test]
async fn the_bytes_compared_during_the_write_are_known_before_the_first_report() {
    let bench = Bench::new();
    let (early, _) = bench.compare_early(&bench.body(SALT)).await;
    let read_bytes = Arc::new(std::sync::atomic::AtomicU64::new(0));
    tokio::select! {
        biased;
        _ = crate::ramdisk::verify::verify(
            &bench.disk, bench.all(SALT), &early, Arc::clone(&read_bytes),
        ) => panic!("it reads on another thread"),
        () = std::future::ready(()) => {}
    }
    assert!(read_bytes.load(Ordering::Relaxed) >= 3 * (RANGE_BYTES - MIB));
}

#[test]
fn a_rotating_disk_is_left_to_the_target_for_most_of_the_time() {
    let read = Duration::from_millis(40);
    assert_eq!(rest_after(read, true), Duration::from_millis(120));
    assert_eq!(rest_after(read, false), Duration::ZERO);
}

#[tokio::test]
async fn a_comparison_that_nobody_waits_for_stops() {
    let bench = Bench::new();
    let stop = StopOnDrop(Arc::default());
    let stopped = Arc::clone(&stop.0);
    drop(stop);
    let range = bench.range(MIB, MIB, SALT);
    let result = compare_now(bench.disk.name.clone(), range, false, stopped);
    assert!(matches!(result, Err(VerifyError::Stopped { .. })), "{result:?}");
}

#[test]
fn each_64_mib_of_a_range_has_one_chunk_in_the_sample_and_not_always_the_same() {
    let range = |bytes| {
        let digest = Digest::of(b"");
        DiskRange { from: 3 * MIB + 512, bytes, digest, salt: SALT }
    };
    for (bytes, chunks) in [(1, 1), (MIB, 1), (64 * MIB, 1), (64 * MIB + 1, 2), (1000 * MIB, 16)] {
        let chosen = sample_of(&range(bytes)).unwrap();
        assert_eq!(chosen.len(), chunks, "{bytes}");
        for (at, from) in chosen.iter().zip((3 * MIB + 512..).step_by(64 << 20)) {
            assert!((from..from + 64 * MIB).contains(at) && *at < 3 * MIB + 512 + bytes);
            assert!((at - 512).is_multiple_of(MIB));
        }
    }
    let first: std::collections::BTreeSet<u64> =
        (0..100).map(|_| sample_of(&range(64 * MIB)).unwrap()[0]).collect();
    assert!(first.len() > 10, "{first:?}");
}

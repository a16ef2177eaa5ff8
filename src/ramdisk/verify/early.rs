//! Compares the disk's ranges while the agent still writes others.
//!
//! The boot sequence runs it beside the target. A range counts only if the agent names the very
//! same one after the write, with its digest and its write's salt; a random sample of it is read
//! again then, because a later write may have destroyed it, and the disk may have read it from its
//! own cache. Anything that prevents the comparison leaves the range to the comparison after the
//! write. It must never starve the target: one thread reads a few chunks after the others, and
//! rests most of the time on a rotating disk, whose head moves between writes and reads.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::info;

use super::{Buffer, Comparison, Task, VerifyError};
use crate::model::{
    callback::{DiskRange, VERIFY_RANGES_MAX},
    disk::Disk,
    ids::{Digest, DigestAlgorithm},
    range_digest::CHUNK_BYTES,
};

/// Bytes of a range of which one random chunk is read again.
const SAMPLED_BYTES: u64 = 64 << 20;
/// Chunks of a rotating disk between two rests, so that reading takes longer than moving its head.
const CHUNKS_AT_ONCE: u32 = 4;

/// The ranges that held their bytes during the write.
#[derive(Debug, Default)]
pub struct EarlyComparison(Mutex<Vec<Compared>>);

#[derive(Clone, Debug)]
struct Compared {
    range: DiskRange,
    sample: Vec<DiskRange>,
}

impl EarlyComparison {
    /// Compares every flushed range that the agent names. `flushed` returns all of them once their
    /// number is another one, and `None` if the agent names none any more. Ends with the first
    /// difference, or with `None` if there is nothing more to do.
    pub async fn run(
        &self,
        disk: &Disk,
        mut flushed: impl AsyncFnMut(usize) -> Option<Vec<DiskRange>>,
    ) -> Option<VerifyError> {
        let mut ranges = flushed(0).await?;
        loop {
            let known = ranges.len();
            for range in ranges.into_iter().take(VERIFY_RANGES_MAX) {
                if range.salt.is_none() || self.compared().iter().any(|one| one.range == range) {
                    continue;
                }
                match compare(disk, range.clone()).await {
                    Ok(compared) => self.compared().push(compared),
                    // Another write may have begun meanwhile, after a restart of the agent.
                    Err(error) if error.differs() => {
                        let named = flushed(usize::MAX).await?;
                        if named.contains(&range) {
                            return Some(error);
                        }
                    }
                    Err(error) => {
                        info!(%error, "nothing more is compared during the write");
                        return None;
                    }
                }
            }
            ranges = flushed(known).await?;
        }
    }

    /// Returns the ranges that are left to compare, and samples of the others, in the order of the
    /// disk; and the bytes that need not be read again.
    pub(super) fn rest_of(&self, ranges: Vec<DiskRange>) -> (Vec<Task>, u64) {
        let (mut tasks, mut had_bytes) = (Vec::new(), 0);
        for range in ranges {
            match self.compared().iter().find(|one| one.range == range) {
                None => tasks.push(Task { range, was_right: false }),
                Some(Compared { range, sample }) => {
                    let sampled_bytes: u64 = sample.iter().map(|chunk| chunk.bytes).sum();
                    had_bytes += range.bytes.saturating_sub(sampled_bytes);
                    let again = |chunk: &DiskRange| Task { range: chunk.clone(), was_right: true };
                    tasks.extend(sample.iter().map(again));
                }
            }
        }
        (tasks, had_bytes)
    }

    /// The bytes of all ranges that were compared.
    pub(in crate::ramdisk) fn compared_bytes(&self) -> u64 {
        self.compared().iter().map(|one| one.range.bytes).sum()
    }

    fn compared(&self) -> MutexGuard<'_, Vec<Compared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compares one range on a thread of its own. Dropping the future ends the thread soon.
async fn compare(disk: &Disk, range: DiskRange) -> Result<Compared, VerifyError> {
    let (name, is_rotational) = (disk.name.clone(), disk.rotational);
    let broken = |reason| VerifyError::Broken { disk: disk.name.clone(), reason };
    let stop = StopOnDrop(Arc::default());
    let (sender, compared) = oneshot::channel();
    let work = {
        let stop = Arc::clone(&stop.0);
        move || {
            drop(sender.send(compare_now(name, range, is_rotational, stop)));
        }
    };
    thread::Builder::new().spawn(work).map_err(|error| broken(error.to_string()))?;
    compared.await.unwrap_or_else(|_| Err(broken("its thread ended".to_owned())))
}

fn compare_now(
    disk: String,
    range: DiskRange,
    is_rotational: bool,
    stop: Arc<AtomicBool>,
) -> Result<Compared, VerifyError> {
    let chosen = sample_of(&range).map_err(|error| VerifyError::Broken {
        disk: disk.clone(),
        reason: format!("random numbers: {error}"),
    })?;
    let mut comparison = Comparison { stop, ..Comparison::new(disk, Arc::default())? };
    comparison.check([&range].into_iter())?;
    let (mut chosen, mut sample) = (chosen.into_iter().peekable(), Vec::new());
    let task = Task { range, was_right: false };
    let (mut read_since, mut chunks_left) = (Instant::now(), CHUNKS_AT_ONCE);
    comparison.compare(&task, &mut Buffer::new(), |chunk, hash| {
        if chosen.next_if_eq(&chunk.start).is_some()
            && let Some(digest) = Digest::from_bytes(DigestAlgorithm::Sha256, &hash)
        {
            let bytes = chunk.end - chunk.start;
            sample.push(DiskRange { from: chunk.start, bytes, digest, salt: None });
        }
        chunks_left -= 1;
        if chunks_left == 0 {
            thread::sleep(rest_after(read_since.elapsed(), is_rotational));
            (read_since, chunks_left) = (Instant::now(), CHUNKS_AT_ONCE);
        }
    })?;
    Ok(Compared { range: task.range, sample })
}

/// The rest after so long a read: the head of a rotating disk moves between reads and the target's
/// writes, and the target gets most of the time.
fn rest_after(read: Duration, is_rotational: bool) -> Duration {
    if is_rotational { read * 3 } else { Duration::ZERO }
}

/// Chooses the chunks to read again: offsets on the disk, in order.
fn sample_of(range: &DiskRange) -> io::Result<Vec<u64>> {
    let end = range.from.saturating_add(range.bytes);
    let mut chosen = Vec::new();
    let mut from = range.from;
    while from < end {
        let chunks = SAMPLED_BYTES.min(end - from).div_ceil(CHUNK_BYTES);
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        chosen.push(from + u64::from_be_bytes(random) % chunks * CHUNK_BYTES);
        from = from.saturating_add(SAMPLED_BYTES);
    }
    Ok(chosen)
}

/// Ends a comparison whose result nobody wants.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;

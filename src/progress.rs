//! Progress and cancellation of long work.
//!
//! The adapters that move an image update a [`Meter`]; the agent reads it at any time. A meter must
//! never block: its lock is held for a few instructions, once per chunk.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};

use crate::model::{
    callback::DiskRange,
    status::{ImagingStage, Progress},
};

/// Becomes `true` when the work is to stop. A dropped sender means the same.
pub type Cancel = watch::Receiver<bool>;

/// Waits until the work is to stop.
pub async fn stopped(cancel: &mut Cancel) {
    drop(cancel.wait_for(|stop| *stop).await);
}

/// The cancellation, stall limit and meter of one piece of work.
#[derive(Clone, Debug)]
pub struct Watch<'a> {
    /// Cancels the work.
    pub cancel: Cancel,
    /// Longest time for one step.
    pub stall: Duration,
    /// Counts the work's progress.
    pub meter: &'a Meter,
}

/// The reason why a step was abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The step took longer than the stall limit.
    #[error("no progress in time")]
    Stalled,
}

impl Watch<'_> {
    /// Waits for one step of the work until the stall limit or the cancellation.
    pub async fn step<T>(&self, step: impl Future<Output = T>) -> Result<T, Interrupted> {
        let mut cancel = self.cancel.clone();
        tokio::select! {
            biased;
            () = stopped(&mut cancel) => Err(Interrupted::Cancelled),
            done = timeout(self.stall, step) => done.map_err(|_| Interrupted::Stalled),
        }
    }
}

/// The progress of one piece of work, stage by stage, and the disk's ranges that it has written.
#[derive(Debug, Default)]
pub struct Meter {
    stages: Mutex<Stages>,
    ranges: Mutex<Option<Arc<WrittenRanges>>>,
}

/// The ranges of one write of a disk, with their digests.
#[derive(Debug, Default)]
pub struct WrittenRanges(Mutex<Ranges>);

#[derive(Debug, Default)]
struct Ranges {
    /// In the order of the disk.
    hashed: Vec<DiskRange>,
    /// The offset up to which the disk holds them.
    flushed_bytes: u64,
}

impl WrittenRanges {
    /// Adds a range, which follows those before.
    pub fn add(&self, range: DiskRange) {
        self.ranges().hashed.push(range);
    }

    /// Notes the offset up to which the disk holds its ranges.
    pub fn flushed(&self, bytes: u64) {
        self.ranges().flushed_bytes = bytes;
    }

    /// The ranges that the disk holds.
    pub fn on_disk(&self) -> Vec<DiskRange> {
        let ranges = self.ranges();
        let is_on_disk =
            |range: &&DiskRange| range.from.saturating_add(range.bytes) <= ranges.flushed_bytes;
        ranges.hashed.iter().take_while(is_on_disk).cloned().collect()
    }

    /// All ranges so far.
    pub fn hashed(&self) -> Vec<DiskRange> {
        self.ranges().hashed.clone()
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Debug, Default)]
struct Stages {
    present: Option<Stage>,
    past: Vec<(ImagingStage, Duration)>,
}

#[derive(Clone, Copy, Debug)]
struct Stage {
    kind: ImagingStage,
    done_bytes: u64,
    /// Bytes done before the stage began, which do not count for the rate.
    had_bytes: u64,
    total_bytes: u64,
    began: Instant,
}

impl Meter {
    /// The stage under way, or the last one; `None` before the first.
    pub fn progress(&self) -> Option<Progress> {
        let stage = self.stages().present?;
        let elapsed_ms = stage.began.elapsed().as_millis().max(1);
        let moved_bytes = stage.done_bytes.saturating_sub(stage.had_bytes);
        let rate = u128::from(moved_bytes) * 1000 / elapsed_ms;
        let rate_bytes = u64::try_from(rate).unwrap_or(u64::MAX);
        let remaining_bytes = stage.total_bytes.checked_sub(stage.done_bytes);
        Some(Progress {
            stage: stage.kind,
            done_bytes: stage.done_bytes,
            total_bytes: stage.total_bytes,
            rate_bytes,
            remaining_s: remaining_bytes.and_then(|bytes| bytes.checked_div(rate_bytes)),
        })
    }

    /// The stages so far, the current one included, in order, each with its duration.
    pub fn durations(&self) -> Vec<(ImagingStage, Duration)> {
        let stages = self.stages();
        let present = stages.present.map(|stage| (stage.kind, stage.began.elapsed()));
        stages.past.iter().copied().chain(present).collect()
    }

    /// Begins a stage and ends the one before. `had_bytes` of `total_bytes` are done already; a
    /// total of 0 is unknown.
    pub fn begin(&self, kind: ImagingStage, had_bytes: u64, total_bytes: u64) {
        let mut stages = self.stages();
        let ended = stages.present.replace(Stage {
            kind,
            done_bytes: had_bytes,
            had_bytes,
            total_bytes,
            began: Instant::now(),
        });
        stages.past.extend(ended.map(|stage| (stage.kind, stage.began.elapsed())));
    }

    /// Adds bytes to the stage's progress.
    pub fn add(&self, bytes: u64) {
        if let Some(stage) = &mut self.stages().present {
            stage.done_bytes = stage.done_bytes.saturating_add(bytes);
        }
    }

    /// Sets the stage's bytes done; fewer than before if a part must be repeated.
    pub fn set(&self, bytes: u64) {
        if let Some(stage) = &mut self.stages().present {
            stage.done_bytes = bytes;
            stage.had_bytes = stage.had_bytes.min(bytes);
        }
    }

    /// Copies another meter, whose work this one waits for.
    pub fn show(&self, other: &Self) {
        let stages = other.stages().clone();
        *self.stages() = stages;
    }

    /// Shows the ranges of a write that begins, instead of those of an earlier one.
    pub fn show_ranges(&self, ranges: Option<Arc<WrittenRanges>>) {
        *self.ranges.lock().unwrap_or_else(PoisonError::into_inner) = ranges;
    }

    /// The ranges that the disk holds.
    pub fn ranges_on_disk(&self) -> Vec<DiskRange> {
        let ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ranges.map_or_else(Vec::new, |ranges| ranges.on_disk())
    }

    fn stages(&self) -> MutexGuard<'_, Stages> {
        // Nothing in here can be left half done by a panic elsewhere.
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

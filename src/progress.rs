//! Progress and cancellation of long work.
//!
//! The adapters that move an image update a [`Meter`]; the agent reads it at any time. A meter must
//! never block: its lock is held for a few instructions, once per chunk.

use std::{
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};

use crate::model::status::{ImagingStage, Progress};

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

/// The progress of one piece of work, stage by stage.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Stages>);

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

    fn stages(&self) -> MutexGuard<'_, Stages> {
        // Nothing in here can be left half done by a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

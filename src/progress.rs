//! How far a piece of work is, and how it is told to stop.
//!
//! Written by the adapters that move an image, looked at by the agent whenever it likes. A meter
//! must never be waited for: it is a lock held for a few instructions, once per chunk.

use std::{
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};

use crate::model::status::{ImagingStage, Progress};

/// Says `true` when the work is to stop. A sender that is gone means the same: nobody wants the
/// result any more.
pub type Cancel = watch::Receiver<bool>;

/// Waits until the work is to stop.
pub async fn stopped(cancel: &mut Cancel) {
    drop(cancel.wait_for(|stop| *stop).await);
}

/// Who watches over a piece of work: the one who may cancel it, the limit on standing still, and
/// the meter.
#[derive(Clone, Debug)]
pub struct Watch<'a> {
    /// Who may cancel it.
    pub cancel: Cancel,
    /// How long one step may take.
    pub stall: Duration,
    /// Where it says how far it is.
    pub meter: &'a Meter,
}

/// Why a step was not waited for any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    /// It was told to stop.
    #[error("cancelled")]
    Cancelled,
    /// It took longer than the limit.
    #[error("no progress in time")]
    Stalled,
}

impl Watch<'_> {
    /// Waits for one step of the work, but not longer than the limit and not once cancelled.
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
    /// Bytes that were done before it began, and so say nothing of the rate.
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

    /// The stages so far, the one under way included, in the order they began, with how long each
    /// took.
    pub fn durations(&self) -> Vec<(ImagingStage, Duration)> {
        let stages = self.stages();
        let present = stages.present.map(|stage| (stage.kind, stage.began.elapsed()));
        stages.past.iter().copied().chain(present).collect()
    }

    /// A stage begins; the one before has ended. `had_bytes` of the total are there already; a
    /// total of 0 is not known.
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

    /// So many more bytes are done.
    pub fn add(&self, bytes: u64) {
        if let Some(stage) = &mut self.stages().present {
            stage.done_bytes = stage.done_bytes.saturating_add(bytes);
        }
    }

    /// So many bytes are done in all: less than before, when something has to be done again.
    pub fn set(&self, bytes: u64) {
        if let Some(stage) = &mut self.stages().present {
            stage.done_bytes = bytes;
            stage.had_bytes = stage.had_bytes.min(bytes);
        }
    }

    /// Shows what another meter shows: this work is done by somebody else.
    pub fn show(&self, other: &Self) {
        let stages = other.stages().clone();
        *self.stages() = stages;
    }

    fn stages(&self) -> MutexGuard<'_, Stages> {
        // Nothing in here can be left half done by a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

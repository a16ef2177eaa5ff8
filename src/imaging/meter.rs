//! How far the work is: written by the pipeline, looked at by the agent whenever it likes.
//!
//! It must never be waited for: a lock held for a few instructions, once per chunk.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::model::status::{ImagingStage, Progress};

/// The progress of one imaging, stage by stage.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Option<Stage>>);

#[derive(Clone, Copy, Debug)]
struct Stage {
    kind: ImagingStage,
    done_bytes: u64,
    total_bytes: u64,
    began: Instant,
}

impl Meter {
    /// The stage under way, or the last one; `None` before the first.
    pub fn progress(&self) -> Option<Progress> {
        let stage = (*self.stage())?;
        let elapsed_ms = stage.began.elapsed().as_millis().max(1);
        let rate = u128::from(stage.done_bytes) * 1000 / elapsed_ms;
        Some(Progress {
            stage: stage.kind,
            done_bytes: stage.done_bytes,
            total_bytes: stage.total_bytes,
            rate_bytes: u64::try_from(rate).unwrap_or(u64::MAX),
        })
    }

    pub(super) fn begin(&self, kind: ImagingStage, total_bytes: u64) {
        *self.stage() = Some(Stage { kind, done_bytes: 0, total_bytes, began: Instant::now() });
    }

    pub(super) fn add(&self, bytes: u64) {
        if let Some(stage) = &mut *self.stage() {
            stage.done_bytes = stage.done_bytes.saturating_add(bytes);
        }
    }

    fn stage(&self) -> MutexGuard<'_, Option<Stage>> {
        // Nothing in here can be left half done by a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Many chunks under way at once, none of them for ever.
//!
//! Called by every stage. It must never return while one of its jobs is still running, unless the job could not be made to end.

use std::{
    collections::VecDeque,
    future::Future,
    ops::Range,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{timeout, timeout_at},
};

use super::ImagingError;
use crate::{
    model::status::ImagingStage,
    progress::{Cancel, Meter},
};

/// Jobs under way at once. With [`CHUNK_BYTES`] each, they fill a 10 Gbit/s link over several milliseconds and cost 8 MiB.
const QUEUE_DEPTH: usize = 8;
/// Bytes of one job: a multiple of every block size, small enough that a slow link shows progress.
pub(super) const CHUNK_BYTES: u64 = 1 << 20;
/// What is under way on a live volume ends within milliseconds; what does not end in this time is given up.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// The chunks of a range of bytes, as offset and length.
pub(super) fn chunks(range: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let end = range.end;
    let starts = std::iter::successors(Some(range.start), |at| at.checked_add(CHUNK_BYTES));
    starts.take_while(move |at| *at < end).map(move |at| (at, CHUNK_BYTES.min(end - at)))
}

/// Who watches over a stage: the one who may cancel, the limit on standing still, and the meter.
#[derive(Clone, Debug)]
pub(super) struct Watch<'a> {
    pub(super) cancel: Cancel,
    pub(super) stall: Duration,
    pub(super) meter: &'a Meter,
}

impl Watch<'_> {
    /// Waits for one step of the work, but not longer than the stall limit and not once cancelled.
    pub(super) async fn step<T>(
        &self,
        step: impl Future<Output = Result<T, ImagingError>>,
    ) -> Result<T, ImagingError> {
        let mut cancel = self.cancel.clone();
        tokio::select! {
            biased;
            _ = cancel.wait_for(|cancelled| *cancelled) => Err(ImagingError::Cancelled),
            done = timeout(self.stall, step) => done.unwrap_or_else(|_| Err(self.stalled())),
        }
    }

    /// Runs the jobs, [`QUEUE_DEPTH`] at once, and hands over their results in the order of the jobs. The first error ends it, once
    /// everything under way has ended too.
    pub(super) async fn fly<T, J>(
        &self,
        mut jobs: impl Iterator<Item = J>,
        mut landed: impl FnMut(T) -> Result<(), ImagingError>,
    ) -> Result<(), ImagingError>
    where
        T: Send + 'static,
        J: Future<Output = Result<T, ImagingError>> + Send + 'static,
    {
        let mut flying = VecDeque::with_capacity(QUEUE_DEPTH);
        let outcome = loop {
            flying.extend(jobs.by_ref().take(QUEUE_DEPTH - flying.len()).map(Job::start));
            let Some(first) = flying.front_mut() else { break Ok(()) };
            if let Err(error) = self.step(first).await.and_then(&mut landed) {
                break Err(error);
            }
            flying.pop_front();
        };
        drain(flying).await;
        outcome
    }

    fn stalled(&self) -> ImagingError {
        let progress = self.meter.progress();
        ImagingError::Stalled {
            stage: progress.map_or(ImagingStage::Write, |progress| progress.stage),
            after: self.stall,
            done_bytes: progress.map_or(0, |progress| progress.done_bytes),
            total_bytes: progress.map_or(0, |progress| progress.total_bytes),
        }
    }
}

/// Waits until the jobs have ended, however; those that do not in time are cut off when they are dropped.
async fn drain<T>(flying: VecDeque<Job<T>>) {
    let limit = tokio::time::Instant::now() + DRAIN_MAX;
    for mut job in flying {
        if !job.0.is_finished() && timeout_at(limit, &mut job.0).await.is_err() {
            tracing::warn!("a disk command did not end and was given up");
        }
    }
}

/// A running job; it is cut off when this is dropped, so that an abandoned imaging writes no further.
#[derive(Debug)]
struct Job<T>(JoinHandle<Result<T, ImagingError>>);

impl<T: Send + 'static> Job<T> {
    fn start(job: impl Future<Output = Result<T, ImagingError>> + Send + 'static) -> Self {
        Self(tokio::spawn(job))
    }
}

impl<T> Future for Job<T> {
    type Output = Result<T, ImagingError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|ended| {
            ended.unwrap_or_else(|error| match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_runtime_stops) => Err(ImagingError::Cancelled),
            })
        })
    }
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

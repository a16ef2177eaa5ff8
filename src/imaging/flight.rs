//! Commands under way at once, and their results in the order in which they were begun.
//!
//! Called by every pass over the disk. A command that is forgotten is cut off, so that an abandoned imaging writes no further.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    task::{JoinError, JoinHandle},
    time::{Instant, timeout_at},
};

use super::ImagingError;
use crate::{
    model::status::ImagingStage,
    progress::{Interrupted, Watch},
};

/// Commands under way; the bytes they carry are bounded by the reader's buffers. Each gives an offset of the disk.
#[derive(Debug, Default)]
pub(super) struct Flight {
    commands: VecDeque<Command>,
    flush: Option<Job>,
    landed_bytes: u64,
}

#[derive(Debug)]
struct Command {
    job: Job,
    /// The number of its connection, and the bytes of data it carries there.
    lane: usize,
    data_bytes: u64,
}

/// What has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Landed {
    /// The oldest command.
    Command(u64),
    /// The flush.
    Flush(u64),
}

impl Flight {
    /// One more command, on the first connection and of no account.
    pub(super) fn begin(&mut self, command: impl Future<Output = Outcome> + Send + 'static) {
        self.begin_on(0, 0, command);
    }

    /// One more command on a connection, which carries so many bytes of data.
    pub(super) fn begin_on(
        &mut self,
        lane: usize,
        data_bytes: u64,
        command: impl Future<Output = Outcome> + Send + 'static,
    ) {
        self.commands.push_back(Command { job: Job(tokio::spawn(command)), lane, data_bytes });
    }

    /// A flush beside the commands, which none of them waits for.
    pub(super) fn begin_flush(&mut self, flush: impl Future<Output = Outcome> + Send + 'static) {
        self.flush = Some(Job(tokio::spawn(flush)));
    }

    /// Commands whose results have not been taken yet.
    pub(super) fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.flush.is_none()
    }

    /// What a connection has to do: bytes of data, and commands.
    pub(super) fn load(&self, lane: usize) -> (u64, usize) {
        let its = self.unanswered().filter(|command| command.lane == lane);
        its.fold((0, 0), |(bytes, count), command| (bytes + command.data_bytes, count + 1))
    }

    /// Whether a connection has nothing to do.
    pub(super) fn is_idle(&self, lane: usize) -> bool {
        self.unanswered().all(|command| command.lane != lane)
    }

    /// Bytes of data under way on all connections.
    pub(super) fn data_under_way(&self) -> u64 {
        self.unanswered().map(|command| command.data_bytes).sum()
    }

    /// Commands under way that carry data, on all connections.
    pub(super) fn data_commands(&self) -> usize {
        self.unanswered().filter(|command| command.data_bytes > 0).count()
    }

    /// Bytes of data that have landed so far.
    pub(super) fn landed_bytes(&self) -> u64 {
        self.landed_bytes
    }

    /// Those that have not ended; some that have may wait for earlier ones.
    fn unanswered(&self) -> impl Iterator<Item = &Command> {
        self.commands.iter().filter(|command| !command.job.0.is_finished())
    }

    /// Whether a flush is under way.
    pub(super) fn is_flushing(&self) -> bool {
        self.flush.is_some()
    }

    /// The next result; for ever if there is nothing under way. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Landed, ImagingError> {
        let Self { commands, flush, landed_bytes } = self;
        let first = async {
            match commands.front_mut() {
                Some(first) => (&mut first.job).await,
                None => std::future::pending().await,
            }
        };
        let flushed = async {
            match flush {
                Some(flush) => flush.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            flushed = flushed => {
                *flush = None;
                flushed.map(Landed::Flush)
            }
            first = first => {
                if let Some(command) = commands.pop_front() {
                    *landed_bytes += command.data_bytes;
                }
                first.map(Landed::Command)
            }
        }
    }

    /// Waits until everything has ended, however. False if it did not in time: then it is cut off, and may still happen.
    pub(super) async fn drain(&mut self, limit: Instant) -> bool {
        let mut ended = true;
        let commands = self.commands.drain(..).map(|command| command.job);
        for mut job in commands.chain(self.flush.take()) {
            if !job.0.is_finished() && timeout_at(limit, &mut job.0).await.is_err() {
                ended = false;
                job.0.abort();
                // It goes at its next turn.
                drop((&mut job.0).await);
            }
        }
        ended
    }
}

/// Waits for one step of the work, but not longer than the stall limit and not once cancelled.
pub(super) async fn watched<T>(
    watch: &Watch<'_>,
    step: impl Future<Output = Result<T, ImagingError>>,
) -> Result<T, ImagingError> {
    match watch.step(step).await {
        Ok(done) => done,
        Err(Interrupted::Cancelled) => Err(ImagingError::Cancelled),
        Err(Interrupted::Stalled) => {
            let progress = watch.meter.progress();
            Err(ImagingError::Stalled {
                stage: progress.map_or(ImagingStage::Write, |progress| progress.stage),
                after: watch.stall,
                done_bytes: progress.map_or(0, |progress| progress.done_bytes),
                total_bytes: progress.map_or(0, |progress| progress.total_bytes),
            })
        }
    }
}

/// How a command ends.
pub(super) type Outcome = Result<u64, ImagingError>;

/// A running command; it is cut off when this is dropped.
#[derive(Debug)]
struct Job(JoinHandle<Outcome>);

impl Future for Job {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        Pin::new(&mut self.0).poll(context).map(ended)
    }
}

/// What came of a task; its panic goes on here.
pub(super) fn ended<T>(
    task: Result<Result<T, ImagingError>, JoinError>,
) -> Result<T, ImagingError> {
    task.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_runtime_stops) => Err(ImagingError::Cancelled),
    })
}

impl Drop for Job {
    fn drop(&mut self) {
        self.0.abort();
    }
}

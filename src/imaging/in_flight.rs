//! Commands in flight, and their results in the order of their start.
//!
//! Every pass over the disk uses it. Dropping it aborts its commands, so that an abandoned imaging
//! writes no more.

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

/// Commands in flight, each of which returns an offset of the disk. The reader's buffers bound
/// their bytes.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    commands: VecDeque<InFlightCommand>,
    flush: Option<Job>,
    completed_bytes: u64,
}

#[derive(Debug)]
struct InFlightCommand {
    job: Job,
    /// The number of the command's connection in the pool.
    connection: usize,
    /// Bytes of data that the command carries.
    data_bytes: u64,
}

/// A completed command or flush, with the offset it returned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Completed {
    /// The oldest command.
    Command(u64),
    /// The flush.
    Flush(u64),
}

impl InFlight {
    /// Starts a command on the first connection that carries no data.
    pub(super) fn begin(&mut self, command: impl Future<Output = CommandResult> + Send + 'static) {
        self.begin_on(0, 0, command);
    }

    /// Starts a command on a connection that carries `data_bytes` bytes of data.
    pub(super) fn begin_on(
        &mut self,
        connection: usize,
        data_bytes: u64,
        command: impl Future<Output = CommandResult> + Send + 'static,
    ) {
        self.commands.push_back(InFlightCommand {
            job: Job(tokio::spawn(command)),
            connection,
            data_bytes,
        });
    }

    /// Starts a flush beside the commands; no command waits for it.
    pub(super) fn begin_flush(
        &mut self,
        flush: impl Future<Output = CommandResult> + Send + 'static,
    ) {
        self.flush = Some(Job(tokio::spawn(flush)));
    }

    /// Number of commands whose results have not been taken.
    pub(super) fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether no command and no flush is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.flush.is_none()
    }

    /// Load of a connection: bytes of data, and commands.
    pub(super) fn load(&self, connection: usize) -> (u64, usize) {
        let its = self.unanswered().filter(|command| command.connection == connection);
        its.fold((0, 0), |(bytes, count), command| (bytes + command.data_bytes, count + 1))
    }

    /// Whether a connection has no command.
    pub(super) fn is_idle(&self, connection: usize) -> bool {
        self.unanswered().all(|command| command.connection != connection)
    }

    /// Bytes of data in flight on all connections.
    pub(super) fn data_in_flight(&self) -> u64 {
        self.unanswered().map(|command| command.data_bytes).sum()
    }

    /// Commands in flight on all connections that carry data.
    pub(super) fn data_commands(&self) -> usize {
        self.unanswered().filter(|command| command.data_bytes > 0).count()
    }

    /// Bytes of data of the commands completed so far.
    pub(super) fn completed_bytes(&self) -> u64 {
        self.completed_bytes
    }

    /// Commands without an answer. Others may be answered, and wait for the results of earlier
    /// ones.
    fn unanswered(&self) -> impl Iterator<Item = &InFlightCommand> {
        self.commands.iter().filter(|command| !command.job.0.is_finished())
    }

    /// Whether a flush is in flight.
    pub(super) fn is_flushing(&self) -> bool {
        self.flush.is_some()
    }

    /// Waits for the next result; never ends if nothing is in flight. Dropping the future loses
    /// nothing.
    pub(super) async fn next(&mut self) -> Result<Completed, ImagingError> {
        let Self { commands, flush, completed_bytes } = self;
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
                flushed.map(Completed::Flush)
            }
            first = first => {
                if let Some(command) = commands.pop_front() {
                    *completed_bytes += command.data_bytes;
                }
                first.map(Completed::Command)
            }
        }
    }

    /// Waits until every command has ended, with any result. Returns `false` if the limit passed:
    /// then the rest is aborted, and may still reach the disk.
    pub(super) async fn drain(&mut self, limit: Instant) -> bool {
        let mut ended = true;
        let commands = self.commands.drain(..).map(|command| command.job);
        for mut job in commands.chain(self.flush.take()) {
            if !job.0.is_finished() && timeout_at(limit, &mut job.0).await.is_err() {
                ended = false;
                job.0.abort();
                // The aborted task ends at its next poll.
                drop((&mut job.0).await);
            }
        }
        ended
    }
}

/// Waits for one step of the work, for at most the stall limit, and not after a cancellation.
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

/// The offset that a command returns, or its error.
pub(super) type CommandResult = Result<u64, ImagingError>;

/// A running command. Dropping it aborts the command.
#[derive(Debug)]
struct Job(JoinHandle<CommandResult>);

impl Future for Job {
    type Output = CommandResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<CommandResult> {
        Pin::new(&mut self.0).poll(context).map(ended)
    }
}

/// The result of a task; a panic in it continues here.
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

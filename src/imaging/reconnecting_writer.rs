//! Reconnects to a disk when a connection breaks, and wipes a disk whose write fails.
//!
//! The write reports each failure with the step that it has reached. The reconnecting writer must
//! never retry for ever, nor leave a half-written disk that boots.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::{
    Connector, DISK_HINT, Geometry, ImagingError, VolumeError,
    connection_pool::{CLOSE_MAX, ConnectionPool},
    disk::ConnectedDisk,
    in_flight::{InFlight, watched},
    step::ImagingStep,
};
use crate::{model::backoff::Backoff, progress::Watch};

/// Most reconnects of one write: a path that breaks more often is useless.
const RECONNECTS_MAX: u32 = 100;
/// Time limit of wiping and closing after a failure. A live disk needs milliseconds.
const FAILED_PATIENCE: Duration = Duration::from_secs(25);
/// Time limit of wiping and closing after a cancellation: an operator waits.
const CANCELLED_PATIENCE: Duration = Duration::from_millis(900);

/// Time for commands in flight to end by themselves. After it, closing their connection ends them.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// A pool of connections, which it replaces when one breaks.
pub(super) struct ReconnectingWriter<'a, C: Connector> {
    connector: &'a C,
    watch: &'a Watch<'a>,
    pool: Option<ConnectionPool<'a, C>>,
    geometry: Geometry,
    reconnects: u32,
    /// The furthest step that has begun.
    reached: Option<ImagingStep>,
    /// The first failure since then.
    broken: Option<Broken>,
    /// The pauses since the last new step, including the next one.
    backoff: Backoff,
    pause: Duration,
    /// The pauses after a step that was reached for the first time.
    pauses: Backoff,
}

/// A failure that no reconnect has repaired yet.
#[derive(Debug)]
struct Broken {
    since: Instant,
    cause: ImagingError,
}

impl<'a, C: Connector> ReconnectingWriter<'a, C> {
    /// Starts with the connection that opened the disk.
    pub(super) fn new(
        connector: &'a C,
        disk: ConnectedDisk<C::Volume>,
        watch: &'a Watch<'a>,
        pauses: Backoff,
    ) -> Self {
        Self {
            connector,
            watch,
            geometry: disk.geometry(),
            pool: Some(ConnectionPool::new(connector, disk)),
            reconnects: 0,
            reached: None,
            broken: None,
            backoff: pauses,
            pause: Duration::ZERO,
            pauses,
        }
    }

    /// The open connections; reconnects if there are none.
    pub(super) async fn pool(&mut self) -> Result<&mut ConnectionPool<'a, C>, ImagingError> {
        let pool = match self.pool.take() {
            Some(pool) => pool,
            None => self.connect().await?,
        };
        Ok(self.pool.insert(pool))
    }

    async fn connect(&mut self) -> Result<ConnectionPool<'a, C>, ImagingError> {
        loop {
            watched(self.watch, async {
                sleep(self.pause).await;
                Ok(())
            })
            .await?;
            match watched(self.watch, ConnectionPool::open(self.connector, self.geometry)).await {
                Ok(pool) => return Ok(pool),
                Err(error) => self.broken(error)?,
            }
        }
    }

    /// Reports a failure of the write at `step`. Returns the error if a reconnect cannot help or
    /// has not helped.
    pub(super) async fn lost(
        &mut self,
        error: ImagingError,
        step: ImagingStep,
        in_flight: &mut InFlight,
    ) -> Result<(), ImagingError> {
        if !error.may_pass() {
            return Err(error);
        }
        if self.reached.is_none_or(|reached| reached < step) {
            self.reached = Some(step);
            self.broken = None;
            self.backoff = self.pauses;
        }
        self.broken(error)?;
        // All connections are closed first: no write of an old connection may reach the disk after
        // one of a new connection.
        let watch = self.watch;
        watched(watch, async {
            self.close(Instant::now() + CLOSE_MAX).await;
            Ok(())
        })
        .await?;
        in_flight.drain(Instant::now()).await;
        Ok(())
    }

    fn broken(&mut self, error: ImagingError) -> Result<(), ImagingError> {
        self.reconnects += 1;
        let since = self.broken.as_ref().map_or_else(Instant::now, |broken| broken.since);
        if !error.may_pass()
            || self.reconnects > RECONNECTS_MAX
            || since.elapsed() >= self.watch.stall
        {
            return Err(self.lost_by(error));
        }
        self.pause = self.backoff.next_pause();
        let (reconnects, pause) = (self.reconnects, self.pause);
        warn!(%error, reconnects, ?pause, "no connection to the disk; connecting again");
        self.broken.get_or_insert(Broken { since, cause: error });
        Ok(())
    }

    /// The error to report when reconnecting ends: it names the first failure, too.
    fn lost_by(&mut self, error: ImagingError) -> ImagingError {
        match (self.broken.take(), error) {
            (Some(Broken { cause: ImagingError::Connection(_), .. }), error) => error,
            (Some(Broken { since, cause }), ImagingError::Connection(last)) => {
                ImagingError::Lost { broke: Box::new(cause), after: since.elapsed(), last }
            }
            (_, error) => error,
        }
    }

    /// Closes all connections.
    pub(super) async fn close(&mut self, limit: Instant) {
        if let Some(pool) = &mut self.pool
            && timeout_at(limit, pool.close()).await.is_err()
        {
            warn!("a connection to the disk did not close in order, and was cut");
        }
        self.pool = None;
    }

    /// Wipes the disk if the write touched it, closes all connections, and returns the error to
    /// report.
    pub(super) async fn give_up(
        mut self,
        cause: ImagingError,
        mut in_flight: InFlight,
        touched: bool,
    ) -> ImagingError {
        let cancelled = matches!(cause, ImagingError::Cancelled);
        let patience = if cancelled { CANCELLED_PATIENCE } else { FAILED_PATIENCE };
        let limit = Instant::now() + patience;
        let wiped_by = limit - patience / 5;
        if !in_flight.drain(Instant::now() + DRAIN_MAX.min(patience * 2 / 5)).await {
            // An aborted command may still reach the disk, but not after its connection is closed.
            warn!("a disk command did not end in time, and was abandoned");
            self.close(wiped_by).await;
        }
        if !touched {
            self.close(limit).await;
            return cause;
        }
        let wiped = timeout_at(wiped_by, self.wipe()).await.unwrap_or_else(|_| {
            let message = format!("no answer within {} ms", patience.as_millis());
            let source = VolumeError { code: "Timeout", hint: DISK_HINT, message, reconnect: true };
            Err(ImagingError::Volume { doing: "wiping", offset: 0, source })
        });
        self.close(limit).await;
        match wiped {
            Ok(()) => cause,
            Err(wipe) => {
                warn!(error = %wipe, "the half-written disk is not wiped");
                ImagingError::NotWiped { cause: Box::new(cause), wipe: Box::new(wipe) }
            }
        }
    }

    /// Wipes the disk on its connection or, if that fails, on a new one.
    async fn wipe(&mut self) -> Result<(), ImagingError> {
        if let Some(pool) = &self.pool {
            let disk = pool.first().clone();
            match disk.wipe().await {
                Err(error) if error.may_pass() => {
                    warn!(%error, "wiping the disk on a new connection");
                    self.close(Instant::now() + CLOSE_MAX).await;
                }
                wiped => return wiped.map(drop),
            }
        }
        let pool = ConnectionPool::open(self.connector, self.geometry).await?;
        let disk = pool.first().clone();
        self.pool = Some(pool);
        disk.wipe().await.map(drop)
    }
}

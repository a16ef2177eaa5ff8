//! The line to a disk: connecting, connecting again, and leaving no half-written disk behind.
//!
//! Called by the writing, which says what became of it between two connections. It must never try for ever.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::{
    Connector, DISK_HINT, Geometry, ImagingError, VolumeError,
    disk::Disk,
    flight::{Flight, watched},
    lanes::{CLOSE_MAX, Lanes},
    step::Step,
};
use crate::progress::Watch;

/// New connections in one imaging: a line that breaks more often is no line.
const RECONNECTS_MAX: u32 = 100;
/// Before the second try to connect again; doubled up to [`PAUSE_MAX`]. The first comes at once.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What may be taken in all for wiping and closing when something has gone wrong. On a live volume it takes milliseconds, on a dead one
/// there is nothing to wait for.
const FAILED_PATIENCE: Duration = Duration::from_secs(25);
/// The same when it was cancelled: somebody waits.
const CANCELLED_PATIENCE: Duration = Duration::from_millis(900);

/// For commands under way to end by themselves; afterwards their connection is closed, which takes care of them too.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Connections, or none at the moment.
pub(super) struct Line<'a, C: Connector> {
    connector: &'a C,
    watch: &'a Watch<'a>,
    lanes: Option<Lanes<'a, C>>,
    geometry: Geometry,
    reconnects: u32,
    /// The furthest step that was begun, and what has broken the line since.
    reached: Option<Step>,
    broken: Option<Broken>,
    pause: Duration,
}

/// A line that does not work.
#[derive(Debug)]
struct Broken {
    since: Instant,
    cause: ImagingError,
}

impl<'a, C: Connector> Line<'a, C> {
    /// The line begins with the connection that the disk was opened with.
    pub(super) fn new(connector: &'a C, disk: Disk<C::Volume>, watch: &'a Watch<'a>) -> Self {
        Self {
            connector,
            watch,
            geometry: disk.geometry(),
            lanes: Some(Lanes::new(connector, disk)),
            reconnects: 0,
            reached: None,
            broken: None,
            pause: Duration::ZERO,
        }
    }

    /// The connections, made anew with one if there are none.
    pub(super) async fn lanes(&mut self) -> Result<&mut Lanes<'a, C>, ImagingError> {
        let lanes = match self.lanes.take() {
            Some(lanes) => lanes,
            None => self.connect().await?,
        };
        Ok(self.lanes.insert(lanes))
    }

    async fn connect(&mut self) -> Result<Lanes<'a, C>, ImagingError> {
        loop {
            watched(self.watch, async {
                sleep(self.pause).await;
                Ok(())
            })
            .await?;
            match watched(self.watch, Lanes::open(self.connector, self.geometry)).await {
                Ok(lanes) => return Ok(lanes),
                Err(error) => self.broken(error)?,
            }
        }
    }

    /// Takes note that the work, which has come to `step`, has failed. An error if connecting again will not help, or has not helped.
    pub(super) async fn lost(
        &mut self,
        error: ImagingError,
        step: Step,
        flight: &mut Flight,
    ) -> Result<(), ImagingError> {
        if !error.may_pass() {
            return Err(error);
        }
        if self.reached.is_none_or(|reached| reached < step) {
            self.reached = Some(step);
            self.broken = None;
            self.pause = Duration::ZERO;
        }
        self.broken(error)?;
        // All are closed first: nothing that was sent on one may reach the disk after what is sent on the next.
        let watch = self.watch;
        watched(watch, async {
            self.close(Instant::now() + CLOSE_MAX).await;
            Ok(())
        })
        .await?;
        flight.drain(Instant::now()).await;
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
        warn!(%error, reconnects = self.reconnects, pause = ?self.pause, "no connection to the disk; connecting again");
        self.pause = (self.pause * 2).clamp(PAUSE, PAUSE_MAX);
        self.broken.get_or_insert(Broken { since, cause: error });
        Ok(())
    }

    /// What is to be told of a line that is given up: also why there was need of a new connection.
    fn lost_by(&mut self, error: ImagingError) -> ImagingError {
        match (self.broken.take(), error) {
            (Some(Broken { cause: ImagingError::Connection(_), .. }), error) => error,
            (Some(Broken { since, cause }), ImagingError::Connection(last)) => {
                ImagingError::Lost { broke: Box::new(cause), after: since.elapsed(), last }
            }
            (_, error) => error,
        }
    }

    /// Closes all connections there are.
    pub(super) async fn close(&mut self, limit: Instant) {
        if let Some(lanes) = &mut self.lanes
            && timeout_at(limit, lanes.close()).await.is_err()
        {
            warn!("a connection to the disk could not be closed in good order and was cut");
        }
        self.lanes = None;
    }

    /// Wipes the disk after a failure and closes all connections; returns what is to be told.
    pub(super) async fn give_up(
        mut self,
        cause: ImagingError,
        mut flight: Flight,
        touched: bool,
    ) -> ImagingError {
        let cancelled = matches!(cause, ImagingError::Cancelled);
        let patience = if cancelled { CANCELLED_PATIENCE } else { FAILED_PATIENCE };
        let limit = Instant::now() + patience;
        let wiped_by = limit - patience / 5;
        if !flight.drain(Instant::now() + DRAIN_MAX.min(patience * 2 / 5)).await {
            // What was cut off may still happen, but not once the connections are closed.
            warn!("a disk command did not end and was given up");
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

    /// On this connection, and if that has failed, on a new one.
    async fn wipe(&mut self) -> Result<(), ImagingError> {
        if let Some(lanes) = &self.lanes {
            let disk = lanes.first().clone();
            match disk.wipe().await {
                Err(error) if error.may_pass() => {
                    warn!(%error, "wiping the disk on a new connection");
                    self.close(Instant::now() + CLOSE_MAX).await;
                }
                wiped => return wiped.map(drop),
            }
        }
        let lanes = Lanes::open(self.connector, self.geometry).await?;
        let disk = lanes.first().clone();
        self.lanes = Some(lanes);
        disk.wipe().await.map(drop)
    }
}

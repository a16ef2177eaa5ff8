//! The open connections to one disk: one, and more during the write of a body, as long as they make
//! it faster.
//!
//! The reconnecting writer replaces the pool when a connection breaks, and the passes over the disk
//! spread their commands over it. It must never lead a connection to another disk, nor close one
//! while its commands are still wanted.

use std::{
    future::{Future, pending, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{
    Connector, Geometry, ImagingError, Volume,
    disk::ConnectedDisk,
    in_flight::InFlight,
    reader::{BUFFERS, CHUNK_BYTES},
    scale_up::{ScaleAdvice, ScaleUp},
};

/// Bytes of data in flight at which the path counts as the bottleneck: nearly all buffers, except
/// those that are being filled.
const FULL_BYTES: u64 = BUFFERS as u64 * CHUNK_BYTES * 3 / 4;
/// Time limit for an orderly close, which takes milliseconds on a live connection.
pub(super) const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Poll interval of the disk's byte counters while no call ends.
const MOVED_PERIOD: Duration = Duration::from_secs(1);

/// Whether so much data is in flight that the path is the bottleneck.
pub(super) fn is_full(in_flight: &InFlight) -> bool {
    in_flight.data_in_flight() >= FULL_BYTES
}

/// Whether so many commands are in flight that the disk is the bottleneck: nearly every buffer has
/// one.
pub(super) fn is_busy(in_flight: &InFlight) -> bool {
    in_flight.data_commands() >= BUFFERS * 3 / 4
}

/// A connection under construction.
type Opening<'a, V> =
    Pin<Box<dyn Future<Output = Result<ConnectedDisk<V>, ImagingError>> + Send + 'a>>;

/// Connections to one disk, numbered from 0 on.
pub(super) struct ConnectionPool<'a, C: Connector> {
    connector: &'a C,
    first: ConnectedDisk<C::Volume>,
    more: Vec<ConnectedDisk<C::Volume>>,
    opening: Option<Opening<'a, C::Volume>>,
    /// A connection that gets no more commands, and is closed when its last one ends. Its number
    /// follows those of the others.
    retiring: Option<ConnectedDisk<C::Volume>>,
    /// Bytes moved on closed connections.
    closed_moved_bytes: u64,
}

/// A change of the pool.
pub(super) enum PoolUpdate<V> {
    /// A new connection is open, or failed.
    Opened(Result<ConnectedDisk<V>, ImagingError>),
    /// The disk has moved bytes.
    Moved,
}

impl<'a, C: Connector> ConnectionPool<'a, C> {
    /// Makes a pool of one open connection.
    pub(super) fn new(connector: &'a C, first: ConnectedDisk<C::Volume>) -> Self {
        Self {
            connector,
            first,
            more: Vec::new(),
            opening: None,
            retiring: None,
            closed_moved_bytes: 0,
        }
    }

    /// Connects again; fails if the connection leads to another disk.
    pub(super) async fn open(connector: &'a C, had: Geometry) -> Result<Self, ImagingError> {
        let first = connect_again(connector, had).await?;
        Ok(Self::new(connector, first))
    }

    /// Bytes moved on all connections, closed ones included.
    pub(super) fn moved_bytes(&self) -> u64 {
        self.closed_moved_bytes + moved_bytes(&self.first, &self.more, self.retiring.as_ref())
    }

    /// The connection for single commands. A flush on it covers writes acknowledged on any
    /// connection: the cache belongs to the logical unit, and SYNCHRONIZE CACHE names blocks, not
    /// their writer (SBC-3).
    pub(super) fn first(&self) -> &ConnectedDisk<C::Volume> {
        &self.first
    }

    /// The connection with the least load, and its number.
    pub(super) fn freest(&self, in_flight: &InFlight) -> (usize, ConnectedDisk<C::Volume>) {
        let connections = [&self.first].into_iter().chain(&self.more).enumerate();
        let freest = connections.min_by_key(|(number, _)| in_flight.load(*number));
        freest.map_or_else(|| (0, self.first.clone()), |(number, disk)| (number, disk.clone()))
    }

    /// Opens or closes a connection if `scale_up` decides so.
    pub(super) async fn adapt(&mut self, scale_up: &mut ScaleUp, in_flight: &InFlight) {
        let now = tokio::time::Instant::now();
        match scale_up.observe(now, in_flight.completed_bytes(), is_full(in_flight)) {
            ScaleAdvice::OpenOne => {
                self.opening = Some(Box::pin(connect_again(self.connector, self.first.geometry())));
            }
            ScaleAdvice::CloseOne => {
                self.retiring = self.more.pop();
                debug!(connections = 1 + self.more.len(), "one more connection is no faster");
            }
            ScaleAdvice::Stay | ScaleAdvice::Settled => {}
        }
        if let Some(disk) = &self.retiring
            && in_flight.is_idle(1 + self.more.len())
        {
            let closing = self.connector.close(disk.clone().into_volume());
            if timeout(CLOSE_MAX, closing).await.is_err() {
                warn!("an unneeded connection did not close in order, and was cut");
            }
            self.closed_moved_bytes += disk.moved_bytes();
            self.retiring = None;
        }
    }

    /// Waits for the next change; never ends if none can come. Dropping the future loses nothing.
    pub(super) async fn next_update(&mut self) -> PoolUpdate<C::Volume> {
        let Self { first, more, opening, retiring, .. } = self;
        let opened = async {
            match opening {
                Some(opening) => opening.await,
                None => pending().await,
            }
        };
        let moved = async {
            let before = moved_bytes(first, more, retiring.as_ref());
            while moved_bytes(first, more, retiring.as_ref()) == before {
                sleep(MOVED_PERIOD).await;
            }
        };
        tokio::select! {
            biased;
            opened = opened => {
                self.opening = None;
                PoolUpdate::Opened(opened)
            }
            () = moved => PoolUpdate::Moved,
        }
    }

    /// Adds the connection of [`PoolUpdate::Opened`].
    pub(super) fn take(
        &mut self,
        opened: Result<ConnectedDisk<C::Volume>, ImagingError>,
        scale_up: &mut ScaleUp,
    ) {
        match opened {
            Ok(disk) => {
                self.more.push(disk);
                scale_up.opened();
                debug!(connections = 1 + self.more.len(), "one more connection to the disk");
            }
            Err(error) => {
                scale_up.refused();
                warn!(%error, "no further connection to the disk; the write uses the open ones");
            }
        }
    }

    /// Cancels a connection under construction: no write was sent on it.
    pub(super) fn open_no_more(&mut self) {
        self.opening = None;
    }

    /// Closes all connections concurrently: when this returns, no write reaches the disk any more.
    /// Dropping the future loses nothing.
    pub(super) async fn close(&mut self) {
        self.open_no_more();
        let disks = [&self.first].into_iter().chain(&self.more).chain(&self.retiring);
        let mut closing: Vec<_> =
            disks.map(|disk| Box::pin(self.connector.close(disk.clone().into_volume()))).collect();
        poll_fn(|context| {
            closing.retain_mut(|one| one.as_mut().poll(context).is_pending());
            if closing.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

fn moved_bytes<V: Volume>(
    first: &ConnectedDisk<V>,
    more: &[ConnectedDisk<V>],
    retiring: Option<&ConnectedDisk<V>>,
) -> u64 {
    [first].into_iter().chain(more).chain(retiring).map(ConnectedDisk::moved_bytes).sum()
}

/// Connects again, and refuses a disk of another geometry.
async fn connect_again<C: Connector>(
    connector: &C,
    had: Geometry,
) -> Result<ConnectedDisk<C::Volume>, ImagingError> {
    let disk = connect(connector).await?;
    let has = disk.geometry();
    if had == has {
        return Ok(disk);
    }
    connector.close(disk.into_volume()).await;
    Err(ImagingError::OtherDisk { had, has })
}

/// Connects once, and refuses a disk with invalid block sizes.
pub(super) async fn connect<C: Connector>(
    connector: &C,
) -> Result<ConnectedDisk<C::Volume>, ImagingError> {
    // Boxed, because the login's buffers would otherwise be in every future that may connect.
    let connected = Box::pin(connector.connect()).await;
    let volume = connected.map_err(ImagingError::Connection)?;
    match ConnectedDisk::of(volume.clone()) {
        Ok(disk) => Ok(disk),
        Err(error) => {
            connector.close(volume).await;
            Err(error)
        }
    }
}

//! The connections that are open to one disk: one, and while a body is written as many as make it quicker.
//!
//! Called by the line, which makes them anew when one has broken, and by the passes over the disk, which spread their commands over them.
//! It must never lend a connection to another disk, and never close one under commands that are still wanted.

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
    climb::{Advice, Climb},
    disk::Disk,
    flight::Flight,
    reader::{BUFFERS, CHUNK_BYTES},
};

/// Bytes of data under way when the line is what limits: nearly all the buffers, but for those being filled.
const FULL_BYTES: u64 = BUFFERS as u64 * CHUNK_BYTES * 3 / 4;
/// For closing a connection in good order; on one that lives it takes milliseconds.
pub(super) const CLOSE_MAX: Duration = Duration::from_secs(5);
/// How often it is looked at whether the disk moves anything, while no call to it ends.
const MOVED_PERIOD: Duration = Duration::from_secs(1);

/// Whether so much data is under way that the line is what limits.
pub(super) fn is_full(flight: &Flight) -> bool {
    flight.data_under_way() >= FULL_BYTES
}

/// Whether so many commands are under way that the disk is what limits: nearly every buffer has
/// one.
pub(super) fn is_busy(flight: &Flight) -> bool {
    flight.data_commands() >= BUFFERS * 3 / 4
}

/// A connection being made.
type Opening<'a, V> = Pin<Box<dyn Future<Output = Result<Disk<V>, ImagingError>> + Send + 'a>>;

/// Connections to one disk, numbered from 0 on.
pub(super) struct Lanes<'a, C: Connector> {
    connector: &'a C,
    first: Disk<C::Volume>,
    more: Vec<Disk<C::Volume>>,
    opening: Option<Opening<'a, C::Volume>>,
    /// Gets no more commands, and is closed when it has none. Its number is the next after the others'.
    retiring: Option<Disk<C::Volume>>,
    /// What was moved on connections that were closed.
    closed_moved_bytes: u64,
}

/// What becomes known beside the ends of commands.
pub(super) enum News<V> {
    /// The connection that was being made is there or is not to be had.
    Opened(Result<Disk<V>, ImagingError>),
    /// Bytes were moved.
    Moved,
}

impl<'a, C: Connector> Lanes<'a, C> {
    /// One connection that is open already.
    pub(super) fn new(connector: &'a C, first: Disk<C::Volume>) -> Self {
        Self {
            connector,
            first,
            more: Vec::new(),
            opening: None,
            retiring: None,
            closed_moved_bytes: 0,
        }
    }

    /// Connects again; an error if that leads to another disk than before.
    pub(super) async fn open(connector: &'a C, had: Geometry) -> Result<Self, ImagingError> {
        let first = connect_again(connector, had).await?;
        Ok(Self::new(connector, first))
    }

    /// Bytes that were moved on all of these connections, the closed ones included.
    pub(super) fn moved_bytes(&self) -> u64 {
        self.closed_moved_bytes + moved_bytes(&self.first, &self.more, self.retiring.as_ref())
    }

    /// The connection for what is not spread. A flush on it covers what was acknowledged on any: the cache is the logical unit's, and
    /// SYNCHRONIZE CACHE speaks of its blocks, not of who wrote them (SBC-3).
    pub(super) fn first(&self) -> &Disk<C::Volume> {
        &self.first
    }

    /// The connection with the least to do, and its number.
    pub(super) fn freest(&self, flight: &Flight) -> (usize, Disk<C::Volume>) {
        let lanes = [&self.first].into_iter().chain(&self.more).enumerate();
        let freest = lanes.min_by_key(|(number, _)| flight.load(*number));
        freest.map_or_else(|| (0, self.first.clone()), |(number, disk)| (number, disk.clone()))
    }

    /// Opens or closes a connection, when that is what `climb` says to what is under way.
    pub(super) async fn adapt(&mut self, climb: &mut Climb, flight: &Flight) {
        let now = tokio::time::Instant::now();
        match climb.look(now, flight.landed_bytes(), is_full(flight)) {
            Advice::OpenOne => {
                self.opening = Some(Box::pin(connect_again(self.connector, self.first.geometry())));
            }
            Advice::CloseOne => {
                self.retiring = self.more.pop();
                debug!(connections = 1 + self.more.len(), "one more connection is no quicker");
            }
            Advice::Stay | Advice::Settled => {}
        }
        if let Some(disk) = &self.retiring
            && flight.is_idle(1 + self.more.len())
        {
            let closing = self.connector.close(disk.clone().into_volume());
            if timeout(CLOSE_MAX, closing).await.is_err() {
                warn!("a connection that was not needed any more was cut");
            }
            self.closed_moved_bytes += disk.moved_bytes();
            self.retiring = None;
        }
    }

    /// The connection that is being made, when it is there or is not to be had, or that bytes were
    /// moved though no call has ended; for ever if there is neither. Dropping the future loses
    /// nothing.
    pub(super) async fn news(&mut self) -> News<C::Volume> {
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
                News::Opened(opened)
            }
            () = moved => News::Moved,
        }
    }

    /// Takes the connection that [`Lanes::news`] gave.
    pub(super) fn take(
        &mut self,
        opened: Result<Disk<C::Volume>, ImagingError>,
        climb: &mut Climb,
    ) {
        match opened {
            Ok(disk) => {
                self.more.push(disk);
                climb.opened();
                debug!(connections = 1 + self.more.len(), "one more connection to the disk");
            }
            Err(error) => {
                climb.refused();
                warn!(%error, "no further connection to the disk; going on with what there is");
            }
        }
    }

    /// Gives up a connection that is being made: nothing was sent on it that writes.
    pub(super) fn open_no_more(&mut self) {
        self.opening = None;
    }

    /// Closes all of them, at the same time: when this returns, nothing is written any more. Dropping the future loses nothing.
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

fn moved_bytes<V: Volume>(first: &Disk<V>, more: &[Disk<V>], retiring: Option<&Disk<V>>) -> u64 {
    [first].into_iter().chain(more).chain(retiring).map(Disk::moved_bytes).sum()
}

/// Connects to the disk that had this geometry, and refuses any other.
async fn connect_again<C: Connector>(
    connector: &C,
    had: Geometry,
) -> Result<Disk<C::Volume>, ImagingError> {
    let disk = connect(connector).await?;
    let has = disk.geometry();
    if had == has {
        return Ok(disk);
    }
    connector.close(disk.into_volume()).await;
    Err(ImagingError::OtherDisk { had, has })
}

/// Connects once, and refuses a disk with blocks that nobody can work with.
pub(super) async fn connect<C: Connector>(connector: &C) -> Result<Disk<C::Volume>, ImagingError> {
    // On the heap: a login with all its buffers is in every future that may connect.
    let connected = Box::pin(connector.connect()).await;
    let volume = connected.map_err(ImagingError::Connection)?;
    match Disk::of(volume.clone()) {
        Ok(disk) => Ok(disk),
        Err(error) => {
            connector.close(volume).await;
            Err(error)
        }
    }
}

//! Writes a layout to a disk in the order that keeps a half-written disk from booting, and reads it
//! back.
//!
//! The agent calls it once per attempt through [`super::OpenedDisk::write`], after the comparison
//! of the image's checksum. The parent module lists its guarantees.

use std::{ops::Range, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    Connector, ImagingError, Layout, Volume,
    connection_pool::{ConnectionPool, PoolUpdate, is_busy},
    digests::{Digests, digest_of},
    disk::ConnectedDisk,
    in_flight::{Completed, InFlight, watched},
    least_rate::{LeastRate, Pass, RateWatch},
    plan::Plan,
    reader::{Filling, Piece, Pieces, Purpose, read_ahead, read_whole},
    reconnecting_writer::ReconnectingWriter,
    scale_up::ScaleUp,
    step::ImagingStep,
    thresholds::WriteThresholds,
};
use crate::{
    model::{callback::DiskRange, spec::Verify, status::ImagingStage},
    progress::{Cancel, Meter, Watch},
};

/// Fewest bytes of the disk between two flushes. After a broken connection, the write repeats at
/// most twice the bytes between two flushes, and halves this distance down to the minimum, so that
/// it makes progress even if no connection lasts long.
const FLUSH_BYTES_MIN: u64 = 4 << 20;
/// Longest time between two flushes during writes, so that a slow disk loses no minutes.
const FLUSH_PERIOD: Duration = Duration::from_secs(5);
/// Most commands in flight. This bounds the zeros in flight; the buffers bound the data.
const COMMANDS_MAX: usize = 64;
/// Most pieces compared at once: each holds the read bytes and the expected ones. A connection has
/// no more data in flight.
pub(super) const COMPARES_MAX: usize = 8;
/// Time limit for closing the connections of a written disk.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// The content for a disk, and the requirements on its write.
#[derive(Clone, Debug)]
pub struct ImagingOrder {
    /// The disk's content.
    pub layout: Layout,
    /// How the written content is verified.
    pub verify: Verify,
    /// With [`Verify::Node`]: this write's salt, if the machine's ramdisk knows digests with one.
    pub salt: Option<u32>,
    /// Longest time without any progress.
    pub stall: Duration,
    /// Lowest rate of a disk that is the bottleneck.
    pub least_rate: LeastRate,
    /// Progress of an earlier write of the same layout to the same disk.
    pub checkpoint: Checkpoint,
}

/// The progress of a write, from which a later write resumes if this one is killed.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// Offset in bytes up to which the disk holds the layout's body, flushed; 0: nothing of it.
    pub resumes_at: u64,
    /// Receives the new offset after each flush of the body.
    pub flushed: watch::Sender<u64>,
}

/// A disk that holds its layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the layout.
    pub bytes: u64,
    /// Duration of the writes.
    pub writing: Duration,
    /// Duration of reading back.
    pub verifying: Duration,
    /// With [`Verify::Node`]: digests of the disk's ranges, for the machine to compare.
    pub ranges: Vec<DiskRange>,
}

/// Writes a layout to an opened disk, as [`super::OpenedDisk::write`] describes.
pub(super) async fn write<C: Connector>(
    connector: &C,
    disk: ConnectedDisk<C::Volume>,
    thresholds: WriteThresholds,
    order: &ImagingOrder,
    meter: &Meter,
    cancel: Cancel,
) -> Result<Written, ImagingError> {
    let watch = Watch { cancel, stall: order.stall, meter };
    let plan = Plan::new(&order.layout, disk.geometry());
    let mut writer = ReconnectingWriter::new(connector, disk, &watch, thresholds.reconnect);
    let mut in_flight = InFlight::default();
    let is_wanted = watched(&watch, async { Ok(()) }).await;
    let plan = match is_wanted.and(plan) {
        Ok(plan) => plan,
        Err(error) => return Err(writer.give_up(error, in_flight, false).await),
    };
    let mut writing = Writing::new(plan, order, &watch, thresholds);
    let done = loop {
        let pool = match writer.pool().await {
            Ok(pool) => pool,
            Err(error) => break Err(error),
        };
        let Err(error) = writing.go_on(pool, &mut in_flight).await else { break Ok(()) };
        if let Err(error) = writer.lost(error, writing.step, &mut in_flight).await {
            break Err(error);
        }
        writing.flush_bytes = (writing.flush_bytes / 2).max(FLUSH_BYTES_MIN);
    };
    if let Err(cause) = done {
        return Err(writer.give_up(cause, in_flight, writing.step > ImagingStep::Nothing).await);
    }
    writer.close(Instant::now() + CLOSE_MAX).await;
    writing.written().await
}

#[derive(Debug)]
struct Writing<'a> {
    plan: Plan,
    watch: &'a Watch<'a>,
    step: ImagingStep,
    flush_bytes: u64,
    scale_up: ScaleUp,
    rate: RateWatch,
    checkpoint: &'a Checkpoint,
    /// Whether the write reads the disk back.
    compares: bool,
    digests: Option<Digests>,
    edges: Vec<DiskRange>,
    began: Instant,
    wrote: Option<Instant>,
}

impl<'a> Writing<'a> {
    fn new(
        plan: Plan,
        order: &'a ImagingOrder,
        watch: &'a Watch<'a>,
        thresholds: WriteThresholds,
    ) -> Self {
        let verify = order.verify;
        let digests = if verify == Verify::Node { Digests::start(&plan, order.salt) } else { None };
        // A layout with too many parts for digests is read back.
        let compares = match verify {
            Verify::Full => true,
            Verify::Node => digests.is_none(),
            Verify::None => false,
        };
        watch.meter.show_ranges(digests.as_ref().map(|digests| Arc::clone(digests.ranges())));
        watch.meter.begin(ImagingStage::Write, 0, plan.bytes());
        Self {
            plan,
            watch,
            step: ImagingStep::Nothing,
            flush_bytes: thresholds.flush_bytes,
            scale_up: ScaleUp::new(thresholds.scale_up),
            rate: RateWatch::new(order.least_rate, order.stall),
            checkpoint: &order.checkpoint,
            compares,
            digests,
            edges: Vec::new(),
            began: Instant::now(),
            wrote: None,
        }
    }

    /// Resumes at the current step and continues to the end.
    async fn go_on<C: Connector>(
        &mut self,
        pool: &mut ConnectionPool<'_, C>,
        in_flight: &mut InFlight,
    ) -> Result<(), ImagingError> {
        let disk = pool.first().clone();
        loop {
            self.step = match self.step {
                ImagingStep::Nothing => ImagingStep::Wipe,
                ImagingStep::Wipe => {
                    in_flight.begin(disk.clone().wipe());
                    self.next_completed(in_flight).await?;
                    ImagingStep::Body(self.resume().await?)
                }
                ImagingStep::Body(from) => {
                    self.body(pool, in_flight, from).await?;
                    ImagingStep::Tail
                }
                ImagingStep::Tail => {
                    self.edge(&disk, in_flight, self.plan.tail()).await?;
                    ImagingStep::Head
                }
                ImagingStep::Head => {
                    self.edge(&disk, in_flight, self.plan.head()).await?;
                    self.wrote = Some(Instant::now());
                    if self.compares {
                        self.watch.meter.begin(ImagingStage::Verify, 0, self.plan.bytes());
                        ImagingStep::Compare(0)
                    } else {
                        ImagingStep::Done
                    }
                }
                ImagingStep::Compare(from) => {
                    self.compare(pool, in_flight, from).await?;
                    ImagingStep::Done
                }
                ImagingStep::Done => return Ok(()),
            };
        }
    }

    /// Returns the offset at which the body's write starts, and hashes the part before it, which
    /// the machine compares, too.
    async fn resume(&mut self) -> Result<u64, ImagingError> {
        let body = self.plan.body();
        let from = self.checkpoint.resumes_at.clamp(body.start, body.end);
        self.show_flushed(from);
        if let Some(digests) = self.digests.as_ref().filter(|_| from > body.start) {
            let purpose = Purpose::Write(Some(digests.sender()));
            let mut pieces = read_ahead(self.plan.clone(), body.start..from, purpose);
            while watched(self.watch, pieces.next()).await?.is_some() {}
        }
        Ok(from)
    }

    /// Writes one end of the disk at once, and flushes.
    async fn edge<V: Volume>(
        &mut self,
        disk: &ConnectedDisk<V>,
        in_flight: &mut InFlight,
        edge: Range<u64>,
    ) -> Result<(), ImagingError> {
        let Some(data) = watched(self.watch, read_whole(self.plan.clone(), edge.clone())).await?
        else {
            return Ok(());
        };
        if self.digests.is_some() {
            self.edges.retain(|known| known.from != edge.start);
            self.edges.extend(digest_of(edge.start, &data));
        }
        let piece = Piece { at: edge.start, filling: Filling::Data(data) };
        in_flight.begin(disk.clone().write(piece));
        self.next_completed(in_flight).await?;
        in_flight.begin(disk.clone().flush(edge.end));
        self.next_completed(in_flight).await?;
        self.watch.meter.add(self.plan.bytes_in(&edge));
        Ok(())
    }

    /// Writes the body from this offset on and flushes, with many commands at once, over as many
    /// connections as make it faster.
    async fn body<C: Connector>(
        &mut self,
        pool: &mut ConnectionPool<'_, C>,
        in_flight: &mut InFlight,
        from: u64,
    ) -> Result<(), ImagingError> {
        let body = self.plan.body();
        let hasher = self.digests.as_ref().map(Digests::sender);
        let purpose = Purpose::Write(hasher);
        let mut pieces = Some(read_ahead(self.plan.clone(), from..body.end, purpose));
        let (mut begun, mut completed, mut flushed) = (from, from, from);
        let mut flush_sent = (from, Instant::now());
        // After a reconnect, the progress is less than before.
        self.watch.meter.set(self.plan.bytes_in(&(body.start..from)));
        self.scale_up.begin();
        let resumed = Resumed::new(self.plan.bytes_in(&(body.start..from)), pool);
        self.rate.begin(Instant::now(), Pass::Body, resumed.had_bytes);
        while pieces.is_some() || !in_flight.is_empty() {
            // This bounds the repeated bytes, even if a flush takes long.
            let room = in_flight.len() < COMMANDS_MAX && begun - flushed < 2 * self.flush_bytes;
            let pieces_now = pieces.as_mut().filter(|_| room);
            match watched(self.watch, next(pieces_now, in_flight, pool)).await? {
                Event::Read(None) => pieces = None,
                Event::Read(Some(piece)) => {
                    begun = piece.end();
                    let (connection, disk) = pool.freest(in_flight);
                    in_flight.begin_on(connection, piece.data_bytes(), disk.write(piece));
                }
                Event::Completed(Completed::Command(end)) => {
                    completed = end;
                    self.watch.meter.set(self.plan.bytes_in(&(body.start..completed)));
                }
                Event::Completed(Completed::Flush(covers)) => {
                    flushed = covers;
                    self.step = ImagingStep::Body(covers);
                    self.checkpoint.flushed.send_replace(covers);
                    self.show_flushed(covers);
                }
                Event::PoolUpdate(PoolUpdate::Opened(opened)) => {
                    pool.take(opened, &mut self.scale_up);
                }
                Event::PoolUpdate(PoolUpdate::Moved) => {}
            }
            let (sent_to, sent_at) = flush_sent;
            let due = completed - sent_to >= self.flush_bytes
                || completed > sent_to && sent_at.elapsed() >= FLUSH_PERIOD;
            if due && !in_flight.is_flushing() {
                // The flush covers completed writes of every connection, and no write waits for it.
                in_flight.begin_flush(pool.first().clone().flush(completed));
                flush_sent = (completed, Instant::now());
            }
            self.adapt(pool, in_flight).await?;
            let reader_limits = pieces.is_some() && room && !is_busy(in_flight);
            self.check_rate(resumed.done_bytes(pool), !reader_limits)?;
        }
        pool.open_no_more();
        in_flight.begin(pool.first().clone().flush(body.end));
        self.next_completed(in_flight).await?;
        self.show_flushed(body.end);
        Ok(())
    }

    /// Lets the machine compare the body's ranges that end before this offset.
    fn show_flushed(&self, covers: u64) {
        if let Some(digests) = &self.digests {
            digests.ranges().flushed(covers);
        }
    }

    async fn adapt<C: Connector>(
        &mut self,
        pool: &mut ConnectionPool<'_, C>,
        in_flight: &InFlight,
    ) -> Result<(), ImagingError> {
        let scale_up = &mut self.scale_up;
        let adapted = async {
            pool.adapt(scale_up, in_flight).await;
            Ok(())
        };
        watched(self.watch, adapted).await
    }

    /// Reads the disk back from this offset on, many commands at once.
    async fn compare<C: Connector>(
        &mut self,
        pool: &mut ConnectionPool<'_, C>,
        in_flight: &mut InFlight,
        from: u64,
    ) -> Result<(), ImagingError> {
        let part = from..self.plan.disk().end;
        let mut pieces = Some(read_ahead(self.plan.clone(), part, Purpose::Compare));
        let resumed = Resumed::new(self.plan.bytes_in(&(0..from)), pool);
        self.rate.begin(Instant::now(), Pass::Compare, resumed.had_bytes);
        while pieces.is_some() || !in_flight.is_empty() {
            let room = in_flight.len() < COMPARES_MAX;
            let pieces_now = pieces.as_mut().filter(|_| room);
            match watched(self.watch, next(pieces_now, in_flight, pool)).await? {
                Event::Read(None) => pieces = None,
                Event::Read(Some(piece)) => {
                    let (connection, disk) = pool.freest(in_flight);
                    in_flight.begin_on(connection, piece.bytes(), disk.compare(piece));
                }
                Event::PoolUpdate(PoolUpdate::Opened(opened)) => {
                    pool.take(opened, &mut self.scale_up);
                }
                Event::PoolUpdate(PoolUpdate::Moved) => {}
                Event::Completed(Completed::Command(same_to) | Completed::Flush(same_to)) => {
                    self.step = ImagingStep::Compare(same_to);
                    self.watch.meter.set(self.plan.bytes_in(&(0..same_to)));
                }
            }
            self.check_rate(resumed.done_bytes(pool), pieces.is_none() || !room)?;
        }
        Ok(())
    }

    /// Fails if the disk was too slow while it was the bottleneck. `done_bytes` are this pass's.
    fn check_rate(&mut self, done_bytes: u64, limits: bool) -> Result<(), ImagingError> {
        let Some(slow) = self.rate.too_slow(Instant::now(), done_bytes, limits) else {
            return Ok(());
        };
        let progress = self.watch.meter.progress();
        Err(ImagingError::TooSlow {
            stage: progress.map_or(ImagingStage::Write, |progress| progress.stage),
            slow,
            least_bytes_per_s: self.rate.least().bytes_per_s,
            done_bytes: progress.map_or(0, |progress| progress.done_bytes),
            total_bytes: progress.map_or(0, |progress| progress.total_bytes),
        })
    }

    async fn next_completed(&self, in_flight: &mut InFlight) -> Result<Completed, ImagingError> {
        watched(self.watch, in_flight.next()).await
    }

    async fn written(self) -> Result<Written, ImagingError> {
        let wrote = self.wrote.unwrap_or(self.began);
        let verifying = wrote.elapsed();
        let mut ranges = self.edges;
        if let Some(digests) = self.digests {
            ranges.extend(digests.finish().await?);
        }
        ranges.sort_by_key(|range| range.from);
        let writing = wrote.duration_since(self.began);
        Ok(Written { bytes: self.plan.bytes(), writing, verifying, ranges })
    }
}

/// Progress of a pass that resumes over a new connection: the bytes flushed or compared before, and
/// those moved since. Repeated bytes count once.
#[derive(Clone, Copy, Debug)]
struct Resumed {
    had_bytes: u64,
    moved_before: u64,
}

impl Resumed {
    fn new<C: Connector>(had_bytes: u64, pool: &ConnectionPool<'_, C>) -> Self {
        Self { had_bytes, moved_before: pool.moved_bytes() }
    }

    fn done_bytes<C: Connector>(self, pool: &ConnectionPool<'_, C>) -> u64 {
        self.had_bytes + pool.moved_bytes().saturating_sub(self.moved_before)
    }
}

enum Event<V> {
    Read(Option<Piece>),
    Completed(Completed),
    PoolUpdate(PoolUpdate<V>),
}

/// Waits for the next piece if there is room for it, the next result, or the next change of the
/// pool.
async fn next<C: Connector>(
    pieces: Option<&mut Pieces>,
    in_flight: &mut InFlight,
    pool: &mut ConnectionPool<'_, C>,
) -> Result<Event<C::Volume>, ImagingError> {
    let read = async {
        match pieces {
            Some(pieces) => pieces.next().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        update = pool.next_update() => Ok(Event::PoolUpdate(update)),
        completed = in_flight.next() => completed.map(Event::Completed),
        piece = read => piece.map(Event::Read),
    }
}

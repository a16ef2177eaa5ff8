//! Writing a layout to a disk, in the order that keeps a half-written disk from booting, and reading it back.
//!
//! Called once per attempt, after the image's checksum has been compared. What it promises about the disk is in the module's own description.

use std::{ops::Range, time::Duration};

use tokio::time::Instant;

use super::{
    Connector, ImagingError, Layout, Volume,
    climb::{Climb, Pace},
    digests::{Digests, digest_of},
    disk::Disk,
    flight::{Flight, Landed, watched},
    lanes::{Lanes, News, is_busy},
    least_rate::{LeastRate, Pass, RateWatch},
    line::Line,
    plan::Plan,
    reader::{Filling, Piece, Pieces, Purpose, read_ahead, read_whole},
    step::Step,
};
use crate::{
    model::{callback::DiskRange, spec::Verify, status::ImagingStage},
    progress::{Cancel, Meter, Watch},
};

/// Bytes of the disk between two flushes; twice as many at most have to be written again when a connection breaks. Halved down to
/// [`FLUSH_BYTES_MIN`] each time one does, so that a line that never lasts long still gets somewhere.
const FLUSH_BYTES: u64 = 64 << 20;
const FLUSH_BYTES_MIN: u64 = 4 << 20;
/// Longest time between two flushes while something is written: a slow disk must not lose minutes.
const FLUSH_PERIOD: Duration = Duration::from_secs(5);
/// Commands whose results wait for those of earlier ones. They bound the zeros under way; data is bounded by its buffers.
const COMMANDS_MAX: usize = 64;
/// Pieces being compared at once: each holds what was read beside what is wanted. A connection keeps no more data in flight.
pub(super) const COMPARES_MAX: usize = 8;
/// For leaving a disk that is written.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// What is to be written, and how patiently.
#[derive(Clone, Debug)]
pub struct ImagingOrder {
    /// What the disk is to hold.
    pub layout: Layout,
    /// How it is made sure that the disk holds it.
    pub verify: Verify,
    /// Longest time without any progress.
    pub stall: Duration,
    /// How quick the disk must be, while it is what limits.
    pub least_rate: LeastRate,
}

/// A disk that holds its layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the layout.
    pub bytes: u64,
    /// How long writing took.
    pub writing: Duration,
    /// How long reading back took.
    pub verifying: Duration,
    /// With [`Verify::Node`]: what the disk holds, for the machine to compare.
    pub ranges: Vec<DiskRange>,
}

/// Writes a layout to an opened disk, as [`super::OpenedDisk::write`] describes.
pub(super) async fn write<C: Connector>(
    connector: &C,
    disk: Disk<C::Volume>,
    pace: Pace,
    order: &ImagingOrder,
    meter: &Meter,
    cancel: Cancel,
) -> Result<Written, ImagingError> {
    let watch = Watch { cancel, stall: order.stall, meter };
    let plan = Plan::new(&order.layout, disk.geometry());
    let mut line = Line::new(connector, disk, &watch);
    let mut flight = Flight::default();
    let is_wanted = watched(&watch, async { Ok(()) }).await;
    let plan = match is_wanted.and(plan) {
        Ok(plan) => plan,
        Err(error) => return Err(line.give_up(error, flight, false).await),
    };
    let mut writing = Writing::new(plan, order, &watch, pace);
    let done = loop {
        let lanes = match line.lanes().await {
            Ok(lanes) => lanes,
            Err(error) => break Err(error),
        };
        let Err(error) = writing.go_on(lanes, &mut flight).await else { break Ok(()) };
        if let Err(error) = line.lost(error, writing.step, &mut flight).await {
            break Err(error);
        }
        writing.flush_bytes = (writing.flush_bytes / 2).max(FLUSH_BYTES_MIN);
    };
    if let Err(cause) = done {
        return Err(line.give_up(cause, flight, writing.step > Step::Nothing).await);
    }
    line.close(Instant::now() + CLOSE_MAX).await;
    writing.written().await
}

#[derive(Debug)]
struct Writing<'a> {
    plan: Plan,
    watch: &'a Watch<'a>,
    step: Step,
    flush_bytes: u64,
    climb: Climb,
    rate: RateWatch,
    /// Whether it is read back.
    compares: bool,
    digests: Option<Digests>,
    edges: Vec<DiskRange>,
    began: Instant,
    wrote: Option<Instant>,
}

impl<'a> Writing<'a> {
    fn new(plan: Plan, order: &ImagingOrder, watch: &'a Watch<'a>, pace: Pace) -> Self {
        let verify = order.verify;
        let digests = if verify == Verify::Node { Digests::start(&plan) } else { None };
        // A layout in too many parts to be described to the node is read back.
        let compares = match verify {
            Verify::Full => true,
            Verify::Node => digests.is_none(),
            Verify::None => false,
        };
        watch.meter.begin(ImagingStage::Write, 0, plan.bytes());
        Self {
            plan,
            watch,
            step: Step::Nothing,
            flush_bytes: FLUSH_BYTES,
            climb: Climb::new(pace),
            rate: RateWatch::new(order.least_rate, order.stall),
            compares,
            digests,
            edges: Vec::new(),
            began: Instant::now(),
            wrote: None,
        }
    }

    /// Goes on where the last connection has left it, to the end.
    async fn go_on<C: Connector>(
        &mut self,
        lanes: &mut Lanes<'_, C>,
        flight: &mut Flight,
    ) -> Result<(), ImagingError> {
        let disk = lanes.first().clone();
        loop {
            self.step = match self.step {
                Step::Nothing => Step::Wipe,
                Step::Wipe => {
                    flight.begin(disk.clone().wipe());
                    self.landed(flight).await?;
                    Step::Body(self.plan.body().start)
                }
                Step::Body(from) => {
                    self.body(lanes, flight, from).await?;
                    Step::Tail
                }
                Step::Tail => {
                    self.edge(&disk, flight, self.plan.tail()).await?;
                    Step::Head
                }
                Step::Head => {
                    self.edge(&disk, flight, self.plan.head()).await?;
                    self.wrote = Some(Instant::now());
                    if self.compares {
                        self.watch.meter.begin(ImagingStage::Verify, 0, self.plan.bytes());
                        Step::Compare(0)
                    } else {
                        Step::Done
                    }
                }
                Step::Compare(from) => {
                    self.compare(lanes, flight, from).await?;
                    Step::Done
                }
                Step::Done => return Ok(()),
            };
        }
    }

    /// Writes one end of the disk as a whole and flushes.
    async fn edge<V: Volume>(
        &mut self,
        disk: &Disk<V>,
        flight: &mut Flight,
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
        flight.begin(disk.clone().write(piece));
        self.landed(flight).await?;
        flight.begin(disk.clone().flush(edge.end));
        self.landed(flight).await?;
        self.watch.meter.add(self.plan.bytes_in(&edge));
        Ok(())
    }

    /// Writes the body from there on and flushes, many commands at once, over as many connections as pay.
    async fn body<C: Connector>(
        &mut self,
        lanes: &mut Lanes<'_, C>,
        flight: &mut Flight,
        from: u64,
    ) -> Result<(), ImagingError> {
        let body = self.plan.body();
        let hasher = self.digests.as_ref().map(Digests::sender);
        let purpose = Purpose::Write(hasher);
        let mut pieces = Some(read_ahead(self.plan.clone(), from..body.end, purpose));
        let (mut begun, mut landed, mut flushed) = (from, from, from);
        let mut flush_sent = (from, Instant::now());
        // After a new connection that is less than before.
        self.watch.meter.set(self.plan.bytes_in(&(body.start..from)));
        self.climb.begin();
        let resumed = Resumed::new(self.plan.bytes_in(&(body.start..from)), lanes);
        self.rate.begin(Instant::now(), Pass::Body, resumed.had_bytes);
        while pieces.is_some() || !flight.is_empty() {
            // So that what has to be written again is bounded, however long a flush takes.
            let room = flight.len() < COMMANDS_MAX && begun - flushed < 2 * self.flush_bytes;
            let pieces_now = pieces.as_mut().filter(|_| room);
            match watched(self.watch, next(pieces_now, flight, lanes)).await? {
                Event::Read(None) => pieces = None,
                Event::Read(Some(piece)) => {
                    begun = piece.end();
                    let (lane, disk) = lanes.freest(flight);
                    flight.begin_on(lane, piece.data_bytes(), disk.write(piece));
                }
                Event::Landed(Landed::Command(end)) => {
                    landed = end;
                    self.watch.meter.set(self.plan.bytes_in(&(body.start..landed)));
                }
                Event::Landed(Landed::Flush(covers)) => {
                    flushed = covers;
                    self.step = Step::Body(covers);
                }
                Event::News(News::Opened(opened)) => lanes.take(opened, &mut self.climb),
                Event::News(News::Moved) => {}
            }
            let (sent_to, sent_at) = flush_sent;
            let due = landed - sent_to >= self.flush_bytes
                || landed > sent_to && sent_at.elapsed() >= FLUSH_PERIOD;
            if due && !flight.is_flushing() {
                // It covers what has landed, on whichever connection, and nothing waits for it.
                flight.begin_flush(lanes.first().clone().flush(landed));
                flush_sent = (landed, Instant::now());
            }
            self.adapt(lanes, flight).await?;
            let reader_limits = pieces.is_some() && room && !is_busy(flight);
            self.check_rate(resumed.done_bytes(lanes), !reader_limits)?;
        }
        lanes.open_no_more();
        flight.begin(lanes.first().clone().flush(body.end));
        self.landed(flight).await.map(drop)
    }

    async fn adapt<C: Connector>(
        &mut self,
        lanes: &mut Lanes<'_, C>,
        flight: &Flight,
    ) -> Result<(), ImagingError> {
        let climb = &mut self.climb;
        let adapted = async {
            lanes.adapt(climb, flight).await;
            Ok(())
        };
        watched(self.watch, adapted).await
    }

    /// Reads everything from there on back, many commands at once.
    async fn compare<C: Connector>(
        &mut self,
        lanes: &mut Lanes<'_, C>,
        flight: &mut Flight,
        from: u64,
    ) -> Result<(), ImagingError> {
        let part = from..self.plan.disk().end;
        let mut pieces = Some(read_ahead(self.plan.clone(), part, Purpose::Compare));
        let resumed = Resumed::new(self.plan.bytes_in(&(0..from)), lanes);
        self.rate.begin(Instant::now(), Pass::Compare, resumed.had_bytes);
        while pieces.is_some() || !flight.is_empty() {
            let room = flight.len() < COMPARES_MAX;
            let pieces_now = pieces.as_mut().filter(|_| room);
            match watched(self.watch, next(pieces_now, flight, lanes)).await? {
                Event::Read(None) => pieces = None,
                Event::Read(Some(piece)) => {
                    let (lane, disk) = lanes.freest(flight);
                    flight.begin_on(lane, piece.bytes(), disk.compare(piece));
                }
                Event::News(News::Opened(opened)) => lanes.take(opened, &mut self.climb),
                Event::News(News::Moved) => {}
                Event::Landed(Landed::Command(same_to) | Landed::Flush(same_to)) => {
                    self.step = Step::Compare(same_to);
                    self.watch.meter.set(self.plan.bytes_in(&(0..same_to)));
                }
            }
            self.check_rate(resumed.done_bytes(lanes), pieces.is_none() || !room)?;
        }
        Ok(())
    }

    /// Gives up a disk that was too slow, with so many bytes of the pass done, while it was what
    /// limited.
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

    async fn landed(&self, flight: &mut Flight) -> Result<Landed, ImagingError> {
        watched(self.watch, flight.next()).await
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

/// What a pass has done in all, when it goes on over a connection: the bytes that were flushed or
/// compared before, and those moved since. What has to be written again does not count twice.
#[derive(Clone, Copy, Debug)]
struct Resumed {
    had_bytes: u64,
    moved_before: u64,
}

impl Resumed {
    fn new<C: Connector>(had_bytes: u64, lanes: &Lanes<'_, C>) -> Self {
        Self { had_bytes, moved_before: lanes.moved_bytes() }
    }

    fn done_bytes<C: Connector>(self, lanes: &Lanes<'_, C>) -> u64 {
        self.had_bytes + lanes.moved_bytes().saturating_sub(self.moved_before)
    }
}

enum Event<V> {
    Read(Option<Piece>),
    Landed(Landed),
    News(News<V>),
}

/// The next piece, unless there is no room for it, or the next result, or what else becomes known
/// of the connections.
async fn next<C: Connector>(
    pieces: Option<&mut Pieces>,
    flight: &mut Flight,
    lanes: &mut Lanes<'_, C>,
) -> Result<Event<C::Volume>, ImagingError> {
    let read = async {
        match pieces {
            Some(pieces) => pieces.next().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        news = lanes.news() => Ok(Event::News(news)),
        landed = flight.next() => landed.map(Event::Landed),
        piece = read => piece.map(Event::Read),
    }
}

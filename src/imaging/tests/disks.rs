//! A disk in memory, the ways in which it may misbehave, and connections to it that break.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::imaging::{Connector, Volume, VolumeError};

/// The byte of a disk's old content: a block of it left over is seen at once.
pub(super) const OLD: u8 = 0xAA;

/// The transfer length it states to work best with.
pub(super) const OPTIMAL_BYTES: u32 = 3 << 20;

#[derive(Debug, PartialEq)]
pub(super) enum Quirk {
    None,
    /// Acknowledges writes to this range and forgets them.
    DropsWrites(Range<u64>),
    /// The first write to this offset fails.
    FailsOnceAt(u64),
    /// All commands fail for good from the first write to this offset on.
    GoneFrom(u64),
    /// As [`Quirk::GoneFrom`], with an error for which a new connection is tried in vain.
    UnreachableFrom(u64),
    /// The write to this offset never ends.
    HangsAt(u64),
    /// No command ends from the first write to this offset on.
    DeadFrom(u64),
    /// No command ends after so many calls.
    DeadAfter(usize),
    HangsReading,
    ShortReads,
    /// Every call takes a few milliseconds.
    Slow,
    /// As [`Quirk::Slow`], but a write once begun is performed even if its future is dropped, as
    /// real targets do. Zeros are faster than data, so that a wipe overtakes the writes before it.
    CarriesOut,
    /// Each connection carries one write at a time, for [`WRITE_TIME`], and a flush takes a while.
    Narrow(Further),
    /// Performs one command of 64 KiB after the other, in turn for all calls, in [`CREEP`] each.
    Creeps {
        /// Each connection breaks after so many.
        breaks_after: u64,
    },
    /// Each connection breaks after so many calls, so often; then some of what was not flushed is
    /// lost.
    Breaks {
        calls: usize,
        times: usize,
    },
    /// The connection breaks after so many calls, and the next one leads to a disk of another size.
    TurnsInto {
        calls: usize,
        bytes: u64,
    },
}

/// How long a creeping disk takes for a command of [`CREEP_BYTES`].
pub(super) const CREEP: Duration = Duration::from_millis(2);
pub(super) const CREEP_BYTES: u64 = 64 << 10;

/// The time of a write on a narrow connection.
pub(super) const WRITE_TIME: Duration = Duration::from_millis(30);

/// The effect of further connections to a narrow disk, while the first is open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Further {
    /// From the first further connection on, every write takes a quarter of the time.
    Helps,
    /// The connections write one after the other, each in twice the time.
    Disturbs,
    Refused,
    /// Further connections lead to a disk of another size.
    OtherDisk,
    /// Further connections help, but the second breaks after so many writes in all; then some of
    /// the unflushed data is lost.
    Breaks(usize),
}

/// A write: on which connection it was, and how many were open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wrote {
    pub(super) connection: usize,
    pub(super) open: usize,
}

/// An act of a disk, in the order of completion.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Did {
    Write(Range<u64>),
    Zero(Range<u64>),
    Read(Range<u64>),
    Flush,
}

/// Writes of which no flush has taken care.
#[derive(Debug, Default)]
struct Cache {
    /// The content of the disk without them.
    durable: Vec<u8>,
    writes: Vec<(u64, Bytes)>,
}

#[derive(Debug)]
pub(super) struct MemoryDisk {
    me: Weak<Self>,
    content: Mutex<Vec<u8>>,
    bytes: u64,
    block: u32,
    quirk: Quirk,
    /// Whether the quirk has shown.
    shown: AtomicBool,
    cache: Mutex<Cache>,
    did: Mutex<Vec<Did>>,
    calls: watch::Sender<usize>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    most_reading: AtomicUsize,
    connections: AtomicUsize,
    refused: AtomicUsize,
    open: AtomicUsize,
    wrote: Mutex<Vec<Wrote>>,
    /// For connections that disturb each other.
    one_at_a_time: Arc<tokio::sync::Mutex<()>>,
}

impl MemoryDisk {
    pub(super) fn new(bytes: u64, block: u32, quirk: Quirk) -> Arc<Self> {
        let old = vec![OLD; usize::try_from(bytes).unwrap()];
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            content: Mutex::new(old.clone()),
            bytes,
            block,
            quirk,
            shown: AtomicBool::new(false),
            cache: Mutex::new(Cache { durable: old, writes: Vec::new() }),
            did: Mutex::default(),
            calls: watch::channel(0).0,
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
            most_reading: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            wrote: Mutex::default(),
            one_at_a_time: Arc::default(),
        })
    }

    pub(super) fn content(&self) -> Vec<u8> {
        self.content.lock().unwrap().clone()
    }

    /// Replaces the content at this offset.
    fn put(&self, offset: u64, data: &[u8]) {
        let at = usize::try_from(offset).unwrap();
        self.content.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
    }

    pub(super) fn did(&self) -> Vec<Did> {
        self.did.lock().unwrap().clone()
    }

    /// Whether everything it acknowledged is durable.
    pub(super) fn is_flushed(&self) -> bool {
        self.cache.lock().unwrap().writes.is_empty()
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }

    pub(super) fn most_under_way(&self) -> usize {
        self.most_under_way.load(Ordering::SeqCst)
    }

    /// The most calls that were under way while one of them read.
    pub(super) fn most_reading(&self) -> usize {
        self.most_reading.load(Ordering::SeqCst)
    }

    /// Connections there have been.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Connections nobody has closed.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Connections that were refused.
    pub(super) fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    /// All writes, in the order of completion.
    pub(super) fn wrote(&self) -> Vec<Wrote> {
        self.wrote.lock().unwrap().clone()
    }

    /// Count of the disk's calls that have begun.
    pub(super) fn calls(&self) -> usize {
        *self.calls.borrow()
    }

    /// Waits until so many calls have begun.
    pub(super) async fn wait_for_calls(&self, count: usize) {
        self.calls.subscribe().wait_for(|calls| *calls >= count).await.unwrap();
    }

    /// The power fails: of the writes since the last flush only those that `keeps` chooses have
    /// happened.
    pub(super) fn lose(&self, keeps: impl FnMut() -> bool) {
        let content = self.survives(keeps);
        let mut cache = self.cache.lock().unwrap();
        cache.writes.clear();
        self.put(0, &content);
        cache.durable = content;
    }

    /// The content of the disk after a power failure.
    pub(super) fn survives(&self, mut keeps: impl FnMut() -> bool) -> Vec<u8> {
        let cache = self.cache.lock().unwrap();
        let mut content = cache.durable.clone();
        for (offset, data) in cache.writes.iter().filter(|_| keeps()) {
            let from = usize::try_from(*offset).unwrap();
            content[from..from + data.len()].copy_from_slice(data);
        }
        content
    }

    async fn begin(&self) -> UnderWay<'_> {
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_under_way.fetch_max(now, Ordering::SeqCst);
        let under_way = UnderWay(&self.under_way);
        self.calls.send_modify(|calls| *calls += 1);
        if matches!(self.quirk, Quirk::Slow | Quirk::CarriesOut) {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        if matches!(self.quirk, Quirk::DeadAfter(calls) if *self.calls.borrow() > calls) {
            std::future::pending::<()>().await;
        }
        under_way
    }

    fn check_range(&self, offset: u64, bytes: u64) {
        let block = u64::from(self.block);
        assert!(bytes > 0, "nothing to do at {offset}");
        assert!(
            offset.is_multiple_of(block) && bytes.is_multiple_of(block),
            "{offset}+{bytes} is not whole blocks"
        );
        assert!(offset + bytes <= self.bytes, "{offset}+{bytes} is beyond the end");
    }

    async fn carry_out(
        &self,
        link: &Link,
        offset: u64,
        data: Bytes,
        zero: bool,
    ) -> Result<(), VolumeError> {
        let _under_way = self.begin().await;
        self.check_range(offset, data.len() as u64);
        if let Quirk::Narrow(further) = self.quirk {
            let _turn = link.turn.lock().await;
            tokio::time::sleep(match further {
                Further::Helps | Further::Breaks(_) if self.connections() > 1 => WRITE_TIME / 4,
                Further::Disturbs if self.open() > 1 => WRITE_TIME * 2,
                _ => WRITE_TIME,
            })
            .await;
        }
        if self.quirk == Quirk::CarriesOut && data != vec![0; data.len()] {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        self.misbehave(offset).await?;
        let range = offset..offset + data.len() as u64;
        let mut cache = self.cache.lock().unwrap();
        self.put(offset, &data);
        if let Quirk::DropsWrites(dropped) = &self.quirk
            && range.contains(&dropped.start)
        {
            let old = vec![OLD; usize::try_from(dropped.end - dropped.start).unwrap()];
            self.put(dropped.start, &old);
        }
        self.wrote.lock().unwrap().push(Wrote { connection: link.number, open: self.open() });
        // A copy: the buffer goes back to whoever lent it.
        cache.writes.push((offset, Bytes::copy_from_slice(&data)));
        self.did.lock().unwrap().push(if zero { Did::Zero(range) } else { Did::Write(range) });
        Ok(())
    }

    async fn misbehave(&self, offset: u64) -> Result<(), VolumeError> {
        let show = |at: u64| at == offset && !self.shown.swap(true, Ordering::SeqCst);
        match self.quirk {
            Quirk::FailsOnceAt(at) if show(at) => return Err(error("medium error", false)),
            Quirk::HangsAt(at) if at == offset => std::future::pending().await,
            Quirk::GoneFrom(at) | Quirk::DeadFrom(at) | Quirk::UnreachableFrom(at) => {
                show(at);
            }
            _ => return Ok(()),
        }
        if !self.shown.load(Ordering::SeqCst) {
            return Ok(());
        }
        match self.quirk {
            Quirk::GoneFrom(_) => Err(error("gone", false)),
            Quirk::UnreachableFrom(_) => Err(error("unreachable", true)),
            _ => std::future::pending().await,
        }
    }

    async fn read(&self, offset: u64, bytes: u64) -> Result<Bytes, VolumeError> {
        let _under_way = self.begin().await;
        self.most_reading.fetch_max(self.under_way(), Ordering::SeqCst);
        self.check_range(offset, bytes);
        if self.quirk == Quirk::HangsReading {
            return std::future::pending().await;
        }
        self.did.lock().unwrap().push(Did::Read(offset..offset + bytes));
        let bytes = if self.quirk == Quirk::ShortReads { bytes - 512 } else { bytes };
        let from = usize::try_from(offset).unwrap();
        let to = from + usize::try_from(bytes).unwrap();
        Ok(Bytes::copy_from_slice(&self.content.lock().unwrap()[from..to]))
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        let _under_way = self.begin().await;
        self.misbehave(u64::MAX).await?;
        if matches!(self.quirk, Quirk::Narrow(_)) {
            tokio::time::sleep(WRITE_TIME / 4).await;
        }
        let mut cache = self.cache.lock().unwrap();
        let Cache { durable, writes } = &mut *cache;
        for (offset, data) in writes.drain(..) {
            let from = usize::try_from(offset).unwrap();
            durable[from..from + data.len()].copy_from_slice(&data);
        }
        self.did.lock().unwrap().push(Did::Flush);
        Ok(())
    }
}

impl Connector for MemoryDisk {
    type Volume = Connection;

    async fn connect(&self) -> Result<Arc<Connection>, VolumeError> {
        // A dead disk does not let anybody in either.
        self.misbehave(u64::MAX).await?;
        if matches!(self.quirk, Quirk::DeadAfter(calls) if *self.calls.borrow() > calls) {
            std::future::pending::<()>().await;
        }
        if self.quirk == Quirk::Narrow(Further::Refused) && self.open() > 0 {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(error("too many", true));
        }
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        let bytes = match self.quirk {
            Quirk::TurnsInto { bytes, .. } if number > 0 => bytes,
            Quirk::Narrow(Further::OtherDisk) if number > 0 => 2 * self.bytes,
            _ => self.bytes,
        };
        let calls_left = match self.quirk {
            Quirk::Breaks { calls, times } if number < times => calls,
            Quirk::TurnsInto { calls, .. } if number == 0 => calls,
            _ => usize::MAX,
        };
        let turn = match self.quirk {
            Quirk::Narrow(Further::Disturbs) | Quirk::Creeps { .. } => {
                Arc::clone(&self.one_at_a_time)
            }
            _ => Arc::default(),
        };
        Ok(Arc::new(Connection {
            disk: self.me.upgrade().unwrap(),
            link: Arc::new(Link { number, turn }),
            bytes,
            calls_left: AtomicUsize::new(calls_left),
            broken: watch::channel(false).0,
            moved_bytes: AtomicU64::new(0),
        }))
    }

    async fn close(&self, connection: Arc<Connection>) {
        if self.quirk == Quirk::CarriesOut {
            while self.under_way() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        connection.broken.send_replace(true);
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection to a [`MemoryDisk`].
#[derive(Debug)]
pub(super) struct Connection {
    disk: Arc<MemoryDisk>,
    link: Arc<Link>,
    bytes: u64,
    calls_left: AtomicUsize,
    broken: watch::Sender<bool>,
    moved_bytes: AtomicU64,
}

/// The link that a connection's writes share.
#[derive(Debug)]
struct Link {
    number: usize,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Connection {
    /// Carries a call out unless the connection breaks meanwhile.
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, VolumeError>>,
    ) -> Result<T, VolumeError> {
        let less = |left: usize| left.checked_sub(1);
        let breaks = match self.disk.quirk {
            Quirk::Narrow(Further::Breaks(writes)) => {
                self.link.number == 1 && self.disk.wrote.lock().unwrap().len() >= writes
            }
            _ => self.calls_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_err(),
        };
        if breaks && !self.broken.send_replace(true) {
            // Every other write was lucky.
            let mut lucky = false;
            self.disk.lose(|| {
                lucky = !lucky;
                lucky
            });
        }
        let mut broken = self.broken.subscribe();
        tokio::select! {
            biased;
            _ = broken.wait_for(|broken| *broken) => Err(error("connection lost", true)),
            done = call => done,
        }
    }

    async fn put(&self, offset: u64, data: Bytes, zero: bool) -> Result<(), VolumeError> {
        let bytes = data.len() as u64;
        if let Quirk::Creeps { breaks_after } = self.disk.quirk {
            self.call(self.creep(bytes, breaks_after)).await?;
            return self.call(self.disk.carry_out(&self.link, offset, data, zero)).await;
        }
        self.put_whole(offset, data, zero).await?;
        self.moved_bytes.fetch_add(bytes, Ordering::SeqCst);
        Ok(())
    }

    async fn creep(&self, bytes: u64, breaks_after: u64) -> Result<(), VolumeError> {
        for _ in 0..bytes.div_ceil(CREEP_BYTES) {
            let _turn = self.link.turn.lock().await;
            tokio::time::sleep(CREEP).await;
            let moved_bytes = self.moved_bytes.fetch_add(CREEP_BYTES, Ordering::SeqCst);
            if moved_bytes >= breaks_after.saturating_mul(CREEP_BYTES) {
                self.broken.send_replace(true);
            }
        }
        Ok(())
    }

    async fn put_whole(&self, offset: u64, data: Bytes, zero: bool) -> Result<(), VolumeError> {
        if self.disk.quirk != Quirk::CarriesOut {
            return self.call(self.disk.carry_out(&self.link, offset, data, zero)).await;
        }
        let (disk, link) = (Arc::clone(&self.disk), Arc::clone(&self.link));
        tokio::spawn(async move { disk.carry_out(&link, offset, data, zero).await }).await.unwrap()
    }
}

impl Volume for Connection {
    fn block_bytes(&self) -> u32 {
        self.disk.block
    }

    fn capacity_bytes(&self) -> u64 {
        self.bytes
    }

    fn optimal_bytes(&self) -> u32 {
        OPTIMAL_BYTES
    }

    fn moved_bytes(&self) -> u64 {
        self.moved_bytes.load(Ordering::SeqCst)
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        self.put(offset, data, false).await
    }

    async fn zero(&self, offset: u64, bytes: u64) -> Result<(), VolumeError> {
        let zeros = Bytes::from(vec![0; usize::try_from(bytes).unwrap()]);
        self.put(offset, zeros, true).await
    }

    async fn read(&self, offset: u64, bytes: u64) -> Result<Bytes, VolumeError> {
        let data = self.call(self.disk.read(offset, bytes)).await?;
        self.moved_bytes.fetch_add(bytes, Ordering::SeqCst);
        Ok(data)
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        self.call(self.disk.flush()).await
    }
}

struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn error(message: &str, reconnect: bool) -> VolumeError {
    VolumeError { code: "Test", hint: "", message: message.to_owned(), reconnect }
}

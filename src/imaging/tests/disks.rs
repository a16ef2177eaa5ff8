//! A disk in a plain file, and the ways in which it may misbehave.

use std::{
    fs::File,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::imaging::{Volume, VolumeError};

/// What a disk holds before: a block of it left over is seen at once.
pub(super) const OLD: u8 = 0xAA;

#[derive(Debug, PartialEq)]
pub(super) enum Quirk {
    None,
    /// Acknowledges writes to this range and forgets them.
    DropsWrites(Range<u64>),
    /// The first write to this offset fails.
    FailsOnceAt(u64),
    /// From the first write to this offset on, everything fails.
    GoneFrom(u64),
    /// The write to this offset never ends.
    HangsAt(u64),
    /// From the first write to this offset on, nothing ends.
    DeadFrom(u64),
    HangsReading,
    ShortReads,
    /// Every call takes a few milliseconds.
    Slow,
    /// The same, and a write once begun is carried out, whether anybody waits for it or not: so do real targets. Zeros are
    /// faster than data, so that a wipe overtakes the writes before it.
    CarriesOut,
}

/// What a disk has done, in the order of completion.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Did {
    Write(Range<u64>),
    Flush,
}

#[derive(Debug)]
pub(super) struct FileDisk {
    me: Weak<Self>,
    file: File,
    bytes: u64,
    block: u32,
    quirk: Quirk,
    /// Whether the quirk has shown.
    shown: AtomicBool,
    did: Mutex<Vec<Did>>,
    calls: watch::Sender<usize>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

impl FileDisk {
    pub(super) fn new(bytes: u64, block: u32, quirk: Quirk) -> Arc<Self> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![OLD; usize::try_from(bytes).unwrap()], 0).unwrap();
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            file,
            bytes,
            block,
            quirk,
            shown: AtomicBool::new(false),
            did: Mutex::default(),
            calls: watch::channel(0).0,
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        })
    }

    pub(super) fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.bytes).unwrap()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub(super) fn did(&self) -> Vec<Did> {
        self.did.lock().unwrap().clone()
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.did().last() == Some(&Did::Flush)
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }

    pub(super) fn most_under_way(&self) -> usize {
        self.most_under_way.load(Ordering::SeqCst)
    }

    /// Waits until so many calls have begun.
    pub(super) async fn wait_for_calls(&self, count: usize) {
        self.calls.subscribe().wait_for(|calls| *calls >= count).await.unwrap();
    }

    async fn begin(&self) -> UnderWay<'_> {
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_under_way.fetch_max(now, Ordering::SeqCst);
        let under_way = UnderWay(&self.under_way);
        self.calls.send_modify(|calls| *calls += 1);
        if matches!(self.quirk, Quirk::Slow | Quirk::CarriesOut) {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        under_way
    }

    fn check_range(&self, offset: u64, bytes: u64) {
        let block = u64::from(self.block);
        assert!(
            offset.is_multiple_of(block) && bytes.is_multiple_of(block),
            "{offset}+{bytes} is not whole blocks"
        );
        assert!(offset + bytes <= self.bytes, "{offset}+{bytes} is beyond the end");
    }

    async fn carry_out(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        let _under_way = self.begin().await;
        self.check_range(offset, data.len() as u64);
        if self.quirk == Quirk::CarriesOut && data != vec![0; data.len()] {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        self.misbehave(offset).await?;
        let range = offset..offset + data.len() as u64;
        self.file.write_all_at(&data, offset).unwrap();
        if let Quirk::DropsWrites(dropped) = &self.quirk
            && range.contains(&dropped.start)
        {
            let old = vec![OLD; usize::try_from(dropped.end - dropped.start).unwrap()];
            self.file.write_all_at(&old, dropped.start).unwrap();
        }
        self.did.lock().unwrap().push(Did::Write(range));
        Ok(())
    }

    async fn misbehave(&self, offset: u64) -> Result<(), VolumeError> {
        let show = |at: u64| at == offset && !self.shown.swap(true, Ordering::SeqCst);
        match self.quirk {
            Quirk::FailsOnceAt(at) if show(at) => return Err(error("medium error")),
            Quirk::HangsAt(at) if at == offset => std::future::pending().await,
            Quirk::GoneFrom(at) | Quirk::DeadFrom(at) => drop(show(at)),
            Quirk::FailsOnceAt(_)
            | Quirk::HangsAt(_)
            | Quirk::None
            | Quirk::DropsWrites(_)
            | Quirk::HangsReading
            | Quirk::ShortReads
            | Quirk::Slow
            | Quirk::CarriesOut => return Ok(()),
        }
        if !self.shown.load(Ordering::SeqCst) {
            Ok(())
        } else if matches!(self.quirk, Quirk::GoneFrom(_)) {
            Err(error("gone"))
        } else {
            std::future::pending().await
        }
    }
}

impl Volume for FileDisk {
    fn block_bytes(&self) -> u32 {
        self.block
    }

    fn capacity_bytes(&self) -> u64 {
        self.bytes
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        if self.quirk != Quirk::CarriesOut {
            return self.carry_out(offset, data).await;
        }
        let me = self.me.upgrade().unwrap();
        tokio::spawn(async move { me.carry_out(offset, data).await }).await.unwrap()
    }

    async fn read(&self, offset: u64, bytes: u64) -> Result<Bytes, VolumeError> {
        let _under_way = self.begin().await;
        self.check_range(offset, bytes);
        if self.quirk == Quirk::HangsReading {
            return std::future::pending().await;
        }
        let bytes = if self.quirk == Quirk::ShortReads { bytes - 512 } else { bytes };
        let mut data = vec![0; usize::try_from(bytes).unwrap()];
        self.file.read_exact_at(&mut data, offset).unwrap();
        Ok(data.into())
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        let _under_way = self.begin().await;
        self.misbehave(u64::MAX).await?;
        self.did.lock().unwrap().push(Did::Flush);
        Ok(())
    }
}

struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn error(message: &str) -> VolumeError {
    VolumeError { code: "Test", message: message.to_owned(), reconnect: false }
}

//! Decodes QEMU's disk format qcow2.
//!
//! The decoder uses it for a file with qcow2's signature. It must never follow a reference to
//! another file, read zeros past the file's end, or keep more tables in memory than the first
//! level. Section names are those of QEMU's docs/interop/qcow2.txt.

mod cluster;
mod header;
mod tables;

use std::{
    fs::File,
    num::NonZero,
    os::unix::fs::FileExt as _,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

pub(super) use self::header::Header;
use self::{
    cluster::Cluster,
    tables::{Extent, ExtentSource, Tables},
};
use super::{DecodeError, kind::HEAD_BYTES, sparse, too_large};

/// Most worker threads: with more, the disk is the limit.
const WORKERS_MAX: usize = 4;

/// Most units between the workers and the reported progress.
const REPORTED_MAX: usize = 64;

/// Writes the disk's bytes to the empty file `into`. Reports the done bytes and the total.
pub(super) fn decode(
    image: &File,
    into: &File,
    bytes_max: u64,
    tell: &mut dyn FnMut(u64, u64) -> Result<(), DecodeError>,
) -> Result<u64, DecodeError> {
    let mut head = [0; HEAD_BYTES];
    let head_bytes = image.read_at(&mut head, 0)?;
    let header = Header::parse(head.get(..head_bytes).unwrap_or_default())?;
    let bytes = header.bytes;
    too_large(bytes, true, bytes_max)?;
    let work = Work { tables: Tables::open(image, header)?, image, into, next: AtomicU64::new(0) };
    into.set_len(bytes)?;
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(WORKERS_MAX);
    thread::scope(|scope| {
        let (reporter, reported) = sync_channel(REPORTED_MAX);
        for _ in 0..workers {
            let (work, reporter) = (&work, reporter.clone());
            thread::Builder::new().name("qcow2".to_owned()).spawn_scoped(scope, move || {
                // The receiver is gone after another worker's failure or a cancellation.
                work.run(&reporter).or_else(|error| reporter.send(Err(error))).unwrap_or_default();
            })?;
        }
        drop(reporter);
        let mut done = 0;
        for unit_end in reported {
            done = done.max(unit_end?);
            tell(done, bytes)?;
        }
        Ok(bytes)
    })
}

/// The state that the workers share.
struct Work<'a> {
    tables: Tables<'a>,
    image: &'a File,
    into: &'a File,
    /// Offset of the next free unit.
    next: AtomicU64,
}

impl Work<'_> {
    /// Copies one unit of the disk after the other until none is left.
    fn run(&self, reporter: &SyncSender<Result<u64, DecodeError>>) -> Result<(), DecodeError> {
        let mut cluster = Cluster::new(self.tables.header())?;
        let (unit, disk) = (self.tables.unit_bytes(), self.tables.header().bytes);
        let mut buffer = vec![0; usize::try_from(unit).unwrap_or(usize::MAX)];
        loop {
            let at = self.next.fetch_add(unit, Ordering::Relaxed);
            if at >= disk {
                return Ok(());
            }
            let mut disk_at = at;
            for extent in self.tables.extents(at)? {
                self.copy(disk_at, &extent, &mut cluster, &mut buffer)?;
                disk_at += extent.bytes;
            }
            // A hole may be larger than a unit.
            self.next.fetch_max(disk_at, Ordering::Relaxed);
            if reporter.send(Ok(disk_at)).is_err() {
                return Ok(());
            }
        }
    }

    fn copy(
        &self,
        disk_at: u64,
        extent: &Extent,
        cluster: &mut Cluster,
        buffer: &mut [u8],
    ) -> Result<(), DecodeError> {
        let bytes = usize::try_from(extent.bytes).unwrap_or(usize::MAX);
        let bytes = match extent.at {
            ExtentSource::Zeros => return Ok(()),
            ExtentSource::Plain { at } => {
                let buffer = buffer.get_mut(..bytes).unwrap_or_default();
                self.image.read_exact_at(buffer, at)?;
                buffer
            }
            ExtentSource::Packed { at, bytes: packed } => {
                cluster.read(self.image, at, packed)?.get(..bytes).unwrap_or_default()
            }
        };
        Ok(sparse::write(self.into, disk_at, bytes)?)
    }
}

//! QEMU's disk format, read.
//!
//! Called with a file whose first bytes say that it is qcow2. It must never follow a reference to
//! another file, take what lies past the file's end for zeros, or hold more of the tables than the
//! first level. The format is QEMU's docs/interop/qcow2.txt, which the section names here are from.

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
    tables::{Extent, Tables, Where},
};
use super::{DecodeError, kind::HEAD_BYTES, sparse, too_large};

/// More do not help: the disk is the limit then.
const WORKERS_MAX: usize = 4;

/// Units that the workers may be ahead of the reported progress.
const REPORTED_MAX: usize = 64;

/// Writes the disk's bytes to `into`, an empty file. Tells how many are done, and of how many.
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
                // Nobody listens once another worker failed or the work was cancelled.
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
    /// Begin of the next unit that no worker has taken.
    next: AtomicU64,
}

impl Work<'_> {
    /// Takes one unit of the disk after the other until none is left.
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
            Where::Nowhere => return Ok(()),
            Where::Plain { at } => {
                let buffer = buffer.get_mut(..bytes).unwrap_or_default();
                self.image.read_exact_at(buffer, at)?;
                buffer
            }
            Where::Packed { at, bytes: packed } => {
                cluster.read(self.image, at, packed)?.get(..bytes).unwrap_or_default()
            }
        };
        Ok(sparse::write(self.into, disk_at, bytes)?)
    }
}

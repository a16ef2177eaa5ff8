//! Writes a layout to a disk and reads it back.
//!
//! The agent uses it: [`open`] connects and returns the disk's geometry, and [`OpenedDisk::write`]
//! continues with a meter and a cancellation. It must never leave a disk that boots from half an
//! image, write after its return, or hold more than a few MiB of an image in memory.
//!
//! The order of the writes keeps a half-written disk from booting. The write zeroes the tables at
//! both ends first. Then it writes the body, the last MiB, which may hold a backup of the tables,
//! and at the end the first MiB, without which nothing boots. It flushes the disk between them.
//! After any failure that follows the first write, it zeroes both ends again.
//!
//! A network path may give a single connection only a part of its bandwidth. So the write of a body
//! tries further connections, and keeps each one that makes it clearly faster. A write that must
//! follow another waits for all connections.
//!
//! When a connection breaks, the write replaces all connections. Flushed bytes are on the disk;
//! bytes that were only acknowledged may be lost, and the write repeats them. So it flushes often,
//! beside its other commands. A write that was killed with its agent resumes from its last flush in
//! the same way: see [`Checkpoint`].

mod advice;
mod buffer_pool;
mod connection_pool;
mod digests;
mod disk;
mod file;
mod in_flight;
mod layout;
mod least_rate;
mod open;
mod plan;
mod reader;
mod reconnecting_writer;
mod scale_up;
mod step;
mod table;
mod thresholds;
mod write;
mod zeros;

use std::{future::Future, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;

#[cfg(any(test, fuzzing))]
pub use self::layout::fuzz::fuzz;
pub use self::{
    file::ImageFile,
    layout::{
        CONFIG_DRIVE_BYTES, Content, Geometry, Layout, LayoutError, Parts, Segment, needed_bytes,
        partitioned, whole_disk, whole_disk_needs,
    },
    least_rate::{LeastRate, MeasuredRate},
    open::{OpenedDisk, open},
    write::{Checkpoint, ImagingOrder, Written},
};
use crate::model::{size::show_bytes, status::ImagingStage};

/// A connected disk. Offsets and lengths are whole blocks; many calls may run at once.
pub trait Volume: Send + Sync + 'static {
    /// Bytes of a block: a power of two from 512 to 65536.
    fn block_bytes(&self) -> u32;

    /// Size in bytes.
    fn capacity_bytes(&self) -> u64;

    /// Optimal transfer length in bytes (SBC-3 §6.5.3); 0 if the disk reports none. Any number.
    fn optimal_bytes(&self) -> u32;

    /// Bytes of all commands executed on this connection. A call may send many commands: those that
    /// have ended count before the call returns.
    fn moved_bytes(&self) -> u64;

    /// Writes `data` at `offset`. The write of a dropped future may or may not happen.
    fn write(
        &self,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = Result<(), VolumeError>> + Send;

    /// Reads exactly `bytes` bytes at `offset`.
    fn read(
        &self,
        offset: u64,
        bytes: u64,
    ) -> impl Future<Output = Result<Bytes, VolumeError>> + Send;

    /// Makes `bytes` bytes at `offset` read as zeros: by a cheap method if that is certain, else by
    /// writing zeros.
    fn zero(&self, offset: u64, bytes: u64)
    -> impl Future<Output = Result<(), VolumeError>> + Send;

    /// Makes every acknowledged write of any connection durable, while other calls continue.
    fn flush(&self) -> impl Future<Output = Result<(), VolumeError>> + Send;
}

/// Opens connections to one disk.
pub trait Connector: Sync {
    /// A connection to the disk.
    type Volume: Volume;

    /// Connects once, within the connector's own time limit. Every connection leads to the same
    /// disk and its one cache.
    fn connect(&self) -> impl Future<Output = Result<Arc<Self::Volume>, VolumeError>> + Send;

    /// Closes a connection, also while calls run: after the return no call writes any more.
    /// Dropping the future and then the volume cuts the connection.
    fn close(&self, volume: Arc<Self::Volume>) -> impl Future<Output = ()> + Send;
}

/// The hint for a disk that fails during a write.
pub const DISK_HINT: &str = "look at the machine, its disk and the network to it";

/// A failure of a volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct VolumeError {
    /// Short stable name in CamelCase for programs.
    pub code: &'static str,
    /// A hint for an administrator whose disk cannot be opened.
    pub hint: &'static str,
    /// Description of the failure, with the disk's name.
    pub message: String,
    /// Whether a new connection may help.
    pub reconnect: bool,
}

/// A failure to write a disk.
#[derive(Debug, thiserror::Error)]
pub enum ImagingError {
    /// An image file cannot be read.
    #[error("image {}: {source}", path.display())]
    File {
        /// The image.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The disk cannot hold the image. Nothing was written.
    #[error(
        "the image has {}, the disk only {}",
        show_bytes(*image_bytes), show_bytes(*disk_bytes)
    )]
    TooBig {
        /// Bytes of the image, up to a whole block.
        image_bytes: u64,
        /// Bytes of the disk.
        disk_bytes: u64,
    },
    /// The layout contradicts itself. Nothing was written.
    #[error("the segment at byte {at} does not begin at a free block")]
    Misplaced {
        /// Offset on the disk in bytes.
        at: u64,
    },
    /// The disk has blocks of an impossible size. Nothing was written.
    #[error("the disk claims blocks of {0} bytes; must be a power of two from 512 to 65536")]
    Blocks(u32),
    /// The disk, or the network to it, failed.
    #[error("{doing} the disk at {}: {source}", show_bytes(*offset))]
    Volume {
        /// `writing`, `reading`, `flushing` or `wiping`.
        doing: &'static str,
        /// Offset on the disk in bytes.
        offset: u64,
        /// The disk's error.
        source: VolumeError,
    },
    /// No connection could be opened.
    #[error("connecting to the disk: {0}")]
    Connection(VolumeError),
    /// The connection broke, and no other could be made before the limit.
    #[error("{broke}; no new connection for {} s: {last}", after.as_secs())]
    Lost {
        /// The first failure.
        broke: Box<ImagingError>,
        /// Duration of the tries.
        after: Duration,
        /// The failure of the last try.
        last: VolumeError,
    },
    /// A new connection led to a disk of another size, or with other blocks.
    #[error(
        "the disk had {} in blocks of {}, and after a new connection {} in blocks of {}",
        show_bytes(had.bytes), had.block_bytes, show_bytes(has.bytes), has.block_bytes
    )]
    OtherDisk {
        /// Geometry before.
        had: Geometry,
        /// Geometry now.
        has: Geometry,
    },
    /// The disk was slower than the least rate.
    #[error(
        "{} went at {}/s in {} s of waiting for the disk, less than {}/s, at {} of {}",
        stage.as_str(),
        show_bytes(slow.bytes_per_s),
        slow.over.as_secs(),
        show_bytes(*least_bytes_per_s),
        show_bytes(*done_bytes),
        show_bytes(*total_bytes)
    )]
    TooSlow {
        /// The stage.
        stage: ImagingStage,
        /// The rate, and the time of its measurement.
        slow: MeasuredRate,
        /// Lowest rate in bytes per second.
        least_bytes_per_s: u64,
        /// Bytes done.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// The disk made no progress within the stall limit.
    #[error(
        "{} made no progress for {} s at {} of {}",
        stage.as_str(), after.as_secs(), show_bytes(*done_bytes), show_bytes(*total_bytes)
    )]
    Stalled {
        /// The stage.
        stage: ImagingStage,
        /// The limit.
        after: Duration,
        /// Bytes done.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// The disk's content differs from the written bytes.
    #[error("the disk does not hold what was written: bytes {from} to {to} differ from the image")]
    Differs {
        /// First wrong block, in bytes.
        from: u64,
        /// End of the wrong blocks, in bytes.
        to: u64,
    },
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The write failed, and then the wipe of the tables: the disk may boot from half an image.
    #[error("{cause}; then the half-written disk could not be wiped: {wipe}")]
    NotWiped {
        /// The failure of the write.
        cause: Box<ImagingError>,
        /// The failure of the wipe.
        wipe: Box<ImagingError>,
    },
}

impl ImagingError {
    /// Whether a new connection may help.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Volume { source, .. } | Self::Connection(source) if source.reconnect)
    }
}

#[cfg(test)]
mod tests;

//! From files to a disk: write what a layout says, read it back.
//!
//! Called by the agent with a meter to look at and a way to cancel. It must never leave a disk that boots from half an image, never
//! write after it has returned, and never hold more of an image in memory than a few MiB.
//!
//! The order of writing is the safety: the tables at both ends are zeroed first, the body follows, then the last MiB, which may hold a backup
//! of the tables, and at last the first one, without which nothing boots; between them the disk is flushed. Whatever goes wrong after the
//! first write, both ends are zeroed again.
//!
//! A path may give a single connection only a part of itself. So while the body is written, further ones are tried, and kept if data lands
//! clearly quicker. Whatever has to be behind something else waits for all of them.
//!
//! A connection that breaks is made anew, and all others with it. What has been flushed is on the disk; what has only been acknowledged may be lost, and is written
//! again. So the disk is flushed often, beside the writes.

mod advice;
mod climb;
mod digests;
mod disk;
mod file;
mod flight;
mod lanes;
mod layout;
mod least_rate;
mod line;
mod plan;
mod pool;
mod reader;
mod table;
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
    write::{Order, Written, write_disk},
};
use crate::model::{size::show_bytes, status::ImagingStage};

/// A disk to write to. Offsets and lengths are whole blocks; many calls may be under way at once.
pub trait Volume: Send + Sync + 'static {
    /// Bytes in a block: a power of two from 512 to 65536.
    fn block_bytes(&self) -> u32;

    /// Bytes in all.
    fn capacity_bytes(&self) -> u64;

    /// Bytes of all commands that it has carried out since it was connected. A call may be many
    /// commands: those that have ended count while the call is still under way.
    fn moved_bytes(&self) -> u64;

    /// Writes `data` at `offset`. Dropping the future gives the write up: it may or may not have happened.
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

    /// Makes `bytes` bytes at `offset` read as zeros, whatever was there: cheaply where that is certain, else by writing zeros.
    fn zero(&self, offset: u64, bytes: u64)
    -> impl Future<Output = Result<(), VolumeError>> + Send;

    /// Makes durable what has been acknowledged so far, on any connection, while other calls go on.
    fn flush(&self) -> impl Future<Output = Result<(), VolumeError>> + Send;
}

/// The way to one disk.
pub trait Connector: Sync {
    /// A connection to it.
    type Volume: Volume;

    /// Connects, once; within a time limit of its own. Others may be open: all of them lead to the same disk and its one cache.
    fn connect(&self) -> impl Future<Output = Result<Arc<Self::Volume>, VolumeError>> + Send;

    /// Closes a connection, also while calls are under way: when this returns, none of them writes any more. Dropping the future
    /// and then the volume cuts the connection.
    fn close(&self, volume: Arc<Self::Volume>) -> impl Future<Output = ()> + Send;
}

/// What went wrong with a volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct VolumeError {
    /// A short stable name in CamelCase for programs.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// Whether a new connection may help.
    pub reconnect: bool,
}

/// Why an image is not on the disk.
#[derive(Debug, thiserror::Error)]
pub enum ImagingError {
    /// The file cannot be opened or read.
    #[error("image {}: {source}", path.display())]
    File {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk cannot hold the image. Nothing was written.
    #[error("the image has {}, the disk only {}", show_bytes(*image_bytes), show_bytes(*disk_bytes))]
    TooBig {
        /// Bytes of the image, up to a whole block.
        image_bytes: u64,
        /// Bytes of the disk.
        disk_bytes: u64,
    },
    /// The layout contradicts itself. Nothing was written.
    #[error("what is to be written at byte {at} does not begin at a free block")]
    Misplaced {
        /// Where, in bytes.
        at: u64,
    },
    /// The disk has blocks nothing can be done with. Nothing was written.
    #[error("the disk claims blocks of {0} bytes; must be a power of two from 512 to 65536")]
    Blocks(u32),
    /// The disk, or the way to it, failed.
    #[error("{doing} the disk at {}: {source}", show_bytes(*offset))]
    Volume {
        /// `writing`, `reading`, `flushing` or `wiping`.
        doing: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// What it said.
        source: VolumeError,
    },
    /// There is no connection to the disk.
    #[error("connecting to the disk: {0}")]
    Connection(VolumeError),
    /// The connection broke, and no other could be made before the limit.
    #[error("{broke}; no new connection for {} s: {last}", after.as_secs())]
    Lost {
        /// What broke first.
        broke: Box<ImagingError>,
        /// How long it was tried.
        after: Duration,
        /// Why the last try failed.
        last: VolumeError,
    },
    /// A new connection led to a disk of another size, or with other blocks.
    #[error("the disk had {} in blocks of {}, and after a new connection {} in blocks of {}", show_bytes(had.bytes), had.block_bytes, show_bytes(has.bytes), has.block_bytes)]
    OtherDisk {
        /// What it had.
        had: Geometry,
        /// What it has.
        has: Geometry,
    },
    /// The disk took or gave its data too slowly, for as long as that was measured.
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
        /// In which stage.
        stage: ImagingStage,
        /// How quick it was, and for how long that was measured.
        slow: MeasuredRate,
        /// How quick it must be.
        least_bytes_per_s: u64,
        /// Bytes done.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// No progress for too long.
    #[error("{} made no progress for {} s at {} of {}", stage.as_str(), after.as_secs(), show_bytes(*done_bytes), show_bytes(*total_bytes))]
    Stalled {
        /// In which stage.
        stage: ImagingStage,
        /// The limit.
        after: Duration,
        /// How far it got.
        done_bytes: u64,
        /// Of how much.
        total_bytes: u64,
    },
    /// The disk does not hold what was written to it.
    #[error("the disk does not hold what was written: bytes {from} to {to} differ from the image")]
    Differs {
        /// First wrong block, in bytes.
        from: u64,
        /// End of the wrong blocks, in bytes.
        to: u64,
    },
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// It failed, and the tables on the disk could not be wiped after it: the disk may boot from half an image.
    #[error("{cause}; then the half-written disk could not be wiped: {wipe}")]
    NotWiped {
        /// What went wrong first.
        cause: Box<ImagingError>,
        /// And then.
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

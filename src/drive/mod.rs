//! Small file systems, made in memory or looked at: what stands beside the root file system on a disk that hostler lays out.
//!
//! Called by the agent before a disk is written. What is made depends on what goes in only, so that a repeated attempt writes the same
//! bytes. An image is not to be trusted: reading one must never panic, never take more memory or time than its bounds, and never follow a
//! link out of where it looks. Nothing here touches a disk, and what users wrote never gets onto a command line.

use std::io;

mod config_drive;
mod fat;
mod fat_name;
mod iso;

pub use config_drive::config_drive;

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The file system cannot be read from a disk with such blocks.
    #[error(
        "the disk has blocks of {block_bytes} bytes, {filesystem} has {bytes_max} at most{hint}"
    )]
    Blocks {
        /// `vfat` or `iso9660`.
        filesystem: &'static str,
        /// The disk's, in bytes.
        block_bytes: u32,
        /// The file system's largest, in bytes.
        bytes_max: u32,
        /// What would be right, with `; ` before it; may be empty.
        hint: &'static str,
    },
    /// What was to be in it does not fit.
    #[error("making {what}: {source}")]
    Make {
        /// What was being made.
        what: &'static str,
        /// Why it cannot be.
        source: io::Error,
    },
}

/// A path's directory and its last name.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

//! Makes and probes the small file systems of a disk layout, beside the root file system.
//!
//! The agent uses it before it writes a disk. The output depends on the input only, so that a
//! repeated attempt writes the same bytes. An image is not trusted: reading one must never panic,
//! exceed its limits of memory and time, or follow a link. This module never touches a disk, and
//! never passes a user's text on a command line.

use std::{borrow::Cow, io};

use crate::model::{ids::hex, size::show_bytes};

mod advice;
mod boot_call;
mod config_drive;
mod ephemeral;
mod esp;
mod fat;
mod fat_name;
mod iso;
mod probe;
mod swap;

pub use config_drive::{config_drive, config_drive_calling};
pub use ephemeral::{EPHEMERAL_LABEL, ephemeral, mke2fs_is_there};
pub use esp::esp;
pub use probe::{FileSystem, FileSystemKind, check_disk, probe};
pub use swap::swap_header;

/// A failure to make or read a file system.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// A machine cannot read the file system from a disk with these blocks.
    #[error(
        "the disk has blocks of {block_bytes} bytes, {filesystem} has {bytes_max} at most{hint}"
    )]
    Blocks {
        /// `vfat` or `iso9660`.
        filesystem: &'static str,
        /// The disk's block size in bytes.
        block_bytes: u32,
        /// The file system's largest block size in bytes.
        bytes_max: u32,
        /// A hint that begins with `; `; may be empty.
        hint: &'static str,
    },
    /// The file system cannot be made.
    #[error("making {what}: {source}")]
    Make {
        /// The name of the file system.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The partition is too small for the file system.
    #[error("{what} of {}, needs at least {}", show_bytes(*bytes), show_bytes(*bytes_min))]
    TooSmall {
        /// The name of the file system.
        what: &'static str,
        /// The partition's size in bytes.
        bytes: u64,
        /// The least size in bytes.
        bytes_min: u64,
    },
    /// The program that makes ext4 is missing.
    #[error("mke2fs is not there; install e2fsprogs")]
    NoMke2fs,
    /// An image cannot be read.
    #[error("reading the image: {source}")]
    Read {
        /// The cause.
        source: io::Error,
    },
    /// An image has no loader for UEFI.
    #[error(
        "the image brings no boot files (/boot/efi/{loader}){found}; use a whole-disk image or \
         boot.after = \"network\""
    )]
    NoBootFiles {
        /// The path of the loader on the partition.
        loader: String,
        /// The image's boot files, after `: `; may be empty.
        found: String,
    },
    /// An image's boot files cannot be copied.
    #[error(
        "the image's boot files: {message}; use a whole-disk image or boot.after = \"network\""
    )]
    BootFiles {
        /// The cause.
        message: String,
    },
    /// An image is no bootable disk.
    #[error("the image is no whole disk: {why}")]
    NotDisk {
        /// The detected content, and the right setting.
        why: String,
    },
    /// An image is no file system that can be a root.
    #[error(
        "the image is {found}; a partition image must be all of an ext2, ext3, ext4, xfs or btrfs \
         file system"
    )]
    NotRoot {
        /// The detected content, and the right setting.
        found: String,
    },
}

/// A file of a small file system: its path and its content.
type DriveFile<'a> = (&'static str, Cow<'a, [u8]>);

/// Splits a path into its directory and its last name.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Formats sixteen bytes as a UUID (RFC 9562 §4): lower-case, with hyphens.
fn hyphenated(uuid: [u8; 16]) -> String {
    let hex = hex(&uuid);
    let groups = [0..8, 8..12, 12..16, 16..20, 20..32];
    groups.map(|group| hex.get(group).unwrap_or_default()).join("-")
}

#[cfg(test)]
mod tests;

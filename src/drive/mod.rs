//! Makes and probes the small file systems beside the root file system of a disk that hostler lays
//! out.
//!
//! Called by the agent before a disk is written. The output depends on the input only, so that a
//! repeated attempt writes the same bytes. An image is not to be trusted: reading one must never
//! panic, never take more memory or time than its bounds, and never follow a link out of where it
//! looks. Nothing here touches a disk, and what users wrote never gets onto a command line.

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
        /// The right choice, with `; ` before it; may be empty.
        hint: &'static str,
    },
    /// The file system cannot be made.
    #[error("making {what}: {source}")]
    Make {
        /// The name of the file system in making.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The file system has too little room.
    #[error("{what} of {}, needs at least {}", show_bytes(*bytes), show_bytes(*bytes_min))]
    TooSmall {
        /// The name of the file system.
        what: &'static str,
        /// Bytes it would have.
        bytes: u64,
        /// Bytes it needs.
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
    /// An image has nothing that UEFI boots.
    #[error(
        "the image brings no boot files (/boot/efi/EFI/BOOT/BOOTX64.EFI){found}; use a \
         whole-disk image or boot.after = \"network\""
    )]
    NoBootFiles {
        /// The boot files of the image, with `: ` before them; may be empty.
        found: String,
    },
    /// An image's boot files cannot be taken from it.
    #[error(
        "the image's boot files: {message}; use a whole-disk image or boot.after = \"network\""
    )]
    BootFiles {
        /// The cause.
        message: String,
    },
    /// An image is nothing that a machine can boot from.
    #[error("the image is no whole disk: {why}")]
    NotDisk {
        /// The kind of the image, and the right one.
        why: String,
    },
    /// An image is nothing that a system can have as its root.
    #[error(
        "the image is {found}; a partition image must be all of an ext2, ext3, ext4, xfs or btrfs \
         file system"
    )]
    NotRoot {
        /// The kind of the image, and the right one.
        found: String,
    },
}

/// A file of a small file system: its path and its content.
type DriveFile<'a> = (&'static str, Cow<'a, [u8]>);

/// A path's directory and its last name.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Sixteen bytes as a UUID is written (RFC 9562 §4): lower-case, with hyphens.
fn hyphenated(uuid: [u8; 16]) -> String {
    let hex = hex(&uuid);
    let groups = [0..8, 8..12, 12..16, 16..20, 20..32];
    groups.map(|group| hex.get(group).unwrap_or_default()).join("-")
}

#[cfg(test)]
mod tests;

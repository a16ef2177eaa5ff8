//! Recognizes the file system of an image by its superblock.
//!
//! The agent uses it for images of one file system: the kernel arguments name the root's UUID, and
//! the partition needs the size.

use std::io;

use super::{DriveError, hyphenated};
use crate::{
    checked_file::CheckedFile,
    model::{ids::hex, size::show_bytes},
};

/// The boot signature and its offset, on disks that a BIOS boots and on those with a GUID partition
/// table (UEFI 2.10 §5.2.1).
const BOOT_SIGNATURE: (u64, &[u8]) = (510, b"\x55\xaa");
/// The identifier and its offset in the first volume descriptor of an ISO 9660 file system
/// (ECMA-119 §6.7.1).
const ISO_ID: (u64, &[u8]) = (32 * 1024 + 1, b"CD001");
/// The magic of an x86 kernel and its offset; such a kernel has a boot signature too (Linux x86
/// boot protocol).
const LINUX_ID: (u64, &[u8]) = (514, b"HdrS");
/// Most bytes of an unknown image in a message.
const SHOWN_BYTES: usize = 40;

/// The file system of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// The file system's type.
    pub kind: FileSystemKind,
    /// The UUID as the kernel and blkid write it: lower-case, with hyphens.
    pub uuid: String,
    /// The file system's size on a partition in bytes, at most the image's.
    pub bytes: u64,
}

/// A kind of file system that can be a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystemKind {
    /// ext2: without a journal.
    Ext2,
    /// ext3: ext2 with a journal.
    Ext3,
    /// ext4: with a feature that ext3 does not have.
    Ext4,
    /// The XFS file system.
    Xfs,
    /// Btrfs, on one device.
    Btrfs,
}

impl FileSystemKind {
    /// The name that Linux and blkid use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

/// Recognizes the file system that fills an image. The error is the reason if it cannot be a root,
/// or is not all of it.
pub fn probe(image: &CheckedFile) -> Result<FileSystem, DriveError> {
    let failed = |source| DriveError::Read { source };
    let file_bytes = image.bytes();
    let found = [ext, xfs, btrfs].iter().find_map(|look| look(image).transpose());
    let Some(found) = found else {
        return Err(DriveError::NotRoot { found: other(image).map_err(failed)? });
    };
    let Superblock { kind, uuid, bytes, obstacle } = found.map_err(failed)?;
    let name = kind.as_str();
    if let Some(obstacle) = obstacle {
        return Err(DriveError::NotRoot { found: format!("{name} {obstacle}") });
    }
    if bytes == 0 || bytes > file_bytes {
        let (all, there) = (show_bytes(bytes), show_bytes(file_bytes));
        let found = format!("{name} of {all}, of which only {there} are there");
        return Err(DriveError::NotRoot { found });
    }
    if uuid == [0; 16] {
        return Err(DriveError::NotRoot { found: format!("{name} without a UUID") });
    }
    Ok(FileSystem { kind, uuid: hyphenated(uuid), bytes })
}

/// Checks that an image is a disk that a machine may boot: with a boot signature, or an ISO 9660
/// file system. The error names the content otherwise.
pub fn check_disk(image: &CheckedFile) -> Result<(), DriveError> {
    let failed = |source| DriveError::Read { source };
    let why = signed_in_vain(image).transpose().or_else(|| {
        let found = unsigned(image).transpose()?;
        Some(found.map(|found| {
            format!(
                "it has neither a boot signature (55 aa at byte 510) nor an ISO 9660 file system, \
                 but is {found}"
            )
        }))
    });
    let why = why.transpose().map_err(failed)?;
    why.map_or(Ok(()), |why| Err(DriveError::NotDisk { why }))
}

/// Describes an image with a boot signature that is no bootable disk.
fn signed_in_vain(image: &CheckedFile) -> io::Result<Option<String>> {
    if has(image, ISO_ID.0, ISO_ID.1)? || !has(image, BOOT_SIGNATURE.0, BOOT_SIGNATURE.1)? {
        return Ok(None);
    }
    Ok(if has(image, LINUX_ID.0, LINUX_ID.1)? {
        Some("it is a Linux kernel; use image.kernel for it".to_owned())
    } else if is_empty_record(image)? {
        let found = "it has a master boot record without partitions and without a boot loader";
        Some(found.to_owned())
    } else {
        None
    })
}

/// Describes an image without a boot signature.
fn unsigned(image: &CheckedFile) -> io::Result<Option<String>> {
    if has(image, BOOT_SIGNATURE.0, BOOT_SIGNATURE.1)? || has(image, ISO_ID.0, ISO_ID.1)? {
        return Ok(None);
    }
    if let Some(found) = [ext, xfs, btrfs].iter().find_map(|look| look(image).transpose()) {
        let name = found?.kind.as_str();
        return Ok(Some(format!(
            "the file system {name} without a partition table; use image.kind = \"partition\""
        )));
    }
    if has(image, 512, b"EFI PART")? {
        let found = "a GUID partition table whose protective master boot record is missing";
        return Ok(Some(found.to_owned()));
    }
    if let Some(name) = known(image)? {
        return Ok(Some(name.to_owned()));
    }
    let Some(Window(head)) = Window::at(image, 0)? else { return Ok(Some("empty".to_owned())) };
    let there = usize::try_from(image.bytes()).unwrap_or(usize::MAX);
    let head = head.get(..there.min(SHOWN_BYTES)).unwrap_or(&head);
    Ok(Some(if head.iter().all(|byte| *byte == 0) {
        "zeros where a disk begins".to_owned()
    } else if head.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n')) {
        format!("a text that begins with {:?}", String::from_utf8_lossy(head))
    } else {
        format!("something unknown that begins with {}", hex(head.get(..8).unwrap_or(head)))
    }))
}

/// Whether the first 512 bytes hold only the signature and the disk's identifier.
fn is_empty_record(image: &CheckedFile) -> io::Result<bool> {
    let Some(Window(record)) = Window::at(image, 0)? else { return Ok(true) };
    let parts = [0..440, 446..510].map(|part| record.get(part).unwrap_or_default());
    Ok(parts.into_iter().flatten().all(|byte| *byte == 0))
}

/// The content of a superblock.
struct Superblock {
    kind: FileSystemKind,
    uuid: [u8; 16],
    bytes: u64,
    /// The reason why the file system cannot be a root.
    obstacle: Option<&'static str>,
}

type Found = io::Result<Option<Superblock>>;

/// Recognizes ext2, ext3 and ext4 (Linux, `struct ext4_super_block`), and distinguishes them as
/// blkid does.
fn ext(image: &CheckedFile) -> Found {
    const MAGIC: u16 = 0xef53;
    const HAS_JOURNAL: u32 = 0x4;
    const IS_JOURNAL: u32 = 0x8;
    // ext3's features that forbid mounting, and those that forbid writing.
    const EXT3_INCOMPATIBLE: u32 = 0x2 | 0x4 | 0x10;
    const EXT3_READ_ONLY: u32 = 0x1 | 0x2 | 0x4;
    let Some(block) = Window::at(image, 1024)? else { return Ok(None) };
    if u16::from_le_bytes(block.bytes(0x38)) != MAGIC {
        return Ok(None);
    }
    let number = |at| u32::from_le_bytes(block.bytes(at));
    let [compatible, incompatible, read_only] = [0x5c, 0x60, 0x64].map(number);
    let kind = if incompatible & !EXT3_INCOMPATIBLE != 0 || read_only & !EXT3_READ_ONLY != 0 {
        FileSystemKind::Ext4
    } else if compatible & HAS_JOURNAL != 0 {
        FileSystemKind::Ext3
    } else {
        FileSystemKind::Ext2
    };
    let (blocks, block_bytes) = ext_size(&block);
    Ok(Some(Superblock {
        kind,
        uuid: block.bytes(0x68),
        bytes: blocks.saturating_mul(block_bytes),
        obstacle: (incompatible & IS_JOURNAL != 0).then_some("journal of another file system"),
    }))
}

/// The declared dimensions of an ext2, ext3 or ext4 file system.
pub(super) struct Ext4Measures {
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Block groups.
    pub groups: u64,
}

/// Reads the dimensions of an image with such a file system.
pub(super) fn ext4_measures(image: &CheckedFile) -> io::Result<Ext4Measures> {
    let block = Window::at(image, 1024)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let (blocks, block_bytes) = ext_size(&block);
    let in_group = u64::from(u32::from_le_bytes(block.bytes(0x20)));
    Ok(Ext4Measures { block_bytes, groups: blocks.checked_div(in_group).unwrap_or(u64::MAX) })
}

/// The number of blocks, and the bytes of a block.
fn ext_size(block: &Window) -> (u64, u64) {
    const IS_64_BIT: u32 = 0x80;
    let number = |at| u32::from_le_bytes(block.bytes(at));
    let high = if number(0x60) & IS_64_BIT == 0 { 0 } else { u64::from(number(0x150)) << 32 };
    (u64::from(number(0x4)) | high, 1024_u64.checked_shl(number(0x18)).unwrap_or(0))
}

/// Recognizes XFS (XFS Algorithms and Data Structures, superblocks).
fn xfs(image: &CheckedFile) -> Found {
    let Some(block) = Window::at(image, 0)? else { return Ok(None) };
    let is_xfs = &block.bytes(0) == b"XFSB";
    let (block_bytes, blocks) =
        (u32::from_be_bytes(block.bytes(4)), u64::from_be_bytes(block.bytes(8)));
    Ok(is_xfs.then(|| Superblock {
        kind: FileSystemKind::Xfs,
        uuid: block.bytes(32),
        bytes: blocks.saturating_mul(block_bytes.into()),
        obstacle: None,
    }))
}

/// Recognizes Btrfs (Linux, `struct btrfs_super_block`).
fn btrfs(image: &CheckedFile) -> Found {
    let Some(block) = Window::at(image, 64 * 1024)? else { return Ok(None) };
    let is_btrfs = &block.bytes(0x40) == b"_BHRfS_M";
    let devices = u64::from_le_bytes(block.bytes(0x88));
    Ok(is_btrfs.then(|| Superblock {
        kind: FileSystemKind::Btrfs,
        uuid: block.bytes(0x20),
        bytes: u64::from_le_bytes(block.bytes(0x70)),
        obstacle: (devices != 1).then_some("on several devices"),
    }))
}

/// Describes other content, for the message.
fn other(image: &CheckedFile) -> io::Result<String> {
    // ISO 9660 comes first, because many of these images are disks too.
    if has(image, ISO_ID.0, ISO_ID.1)? {
        return Ok("an ISO 9660 file system".to_owned());
    }
    if let Some(name) = known(image)? {
        return Ok(name.to_owned());
    }
    let is_disk = has(image, 512, b"EFI PART")? || has(image, BOOT_SIGNATURE.0, BOOT_SIGNATURE.1)?;
    Ok(if is_disk {
        "a whole disk; use image.kind = \"disk\"".to_owned()
    } else {
        "no known file system".to_owned()
    })
}

/// Recognizes formats that are neither a root file system nor a disk.
fn known(image: &CheckedFile) -> io::Result<Option<&'static str>> {
    const KNOWN: [(&str, u64, &[u8]); 10] = [
        ("a FAT file system", 54, b"FAT"),
        ("a FAT file system", 82, b"FAT32"),
        ("swap space", 4086, b"SWAPSPACE2"),
        ("an encrypted volume", 0, b"LUKS\xba\xbe"),
        ("a volume of LVM", 512, b"LABELONE"),
        ("a SquashFS", 0, b"hsqs"),
        ("an F2FS file system", 1024, b"\x10\x20\xf5\xf2"),
        ("an EROFS file system", 1024, b"\xe2\xe1\xf5\xe0"),
        ("an EFI program", 0, b"MZ"),
        ("a Linux program", 0, b"\x7fELF"),
    ];
    for (name, at, magic) in KNOWN {
        if has(image, at, magic)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn has(image: &CheckedFile, at: u64, magic: &[u8]) -> io::Result<bool> {
    let window = Window::at(image, at)?;
    Ok(window.is_some_and(|window| window.0.starts_with(magic)))
}

/// A part of an image.
struct Window([u8; Self::BYTES]);

impl Window {
    /// Enough for the fields read of any superblock.
    const BYTES: usize = 512;

    /// Reads the part at an offset; `None` beyond the image's end, and zeros for bytes that the
    /// image lacks.
    fn at(image: &CheckedFile, at: u64) -> io::Result<Option<Self>> {
        let mut window = Self([0; Self::BYTES]);
        let filled = image.read_at(&mut window.0, at)?;
        Ok((filled > 0).then_some(window))
    }

    /// The bytes at an offset of this part.
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let from = self.0.get(at..).unwrap_or_default();
        from.first_chunk().copied().unwrap_or([0; N])
    }
}

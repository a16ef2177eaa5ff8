//! Entry point of the fuzz target, and of a property test: lays out an image that begins with
//! arbitrary bytes, for an arbitrary disk.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use rustix::fs::{MemfdFlags, memfd_create};

use super::{Geometry, whole_disk};
use crate::imaging::{ImageFile, table::gpt};

const MIB: u64 = 1 << 20;

/// Lays out an image. The first three bytes are the sizes of image and disk in MiB, and flags: bit
/// 0 blocks of 4096 bytes, 1 a config drive, 2 corrected checksums, and from bit 3 on the optimal
/// transfer length in 256 KiB. The image begins with the other bytes.
pub fn fuzz(bytes: &[u8]) {
    let Some(([image_mib, disk_mib, mode], begin)) = bytes.split_first_chunk() else { return };
    let block_bytes: u32 = if mode & 1 == 0 { 512 } else { 4096 };
    let mut begin = begin.to_vec();
    if mode & 4 != 0 {
        gpt::seal(&mut begin, block_bytes as usize);
    }
    let image_bytes = (u64::from(*image_mib) * MIB).max(begin.len() as u64);
    let bytes = u64::from(*disk_mib) * MIB;
    let disk = Geometry { bytes, block_bytes, optimal_bytes: u32::from(mode >> 3) << 18 };
    let drive = (mode & 2 != 0).then(|| vec![7; 4096].into());
    if let Ok(image) = image(&begin, image_bytes) {
        // An unsound layout is an error of its own kind, which must never occur.
        let layout = whole_disk(&image, disk, drive, &mut || [7; 16]);
        assert!(!matches!(layout, Err(super::LayoutError::Unsound { .. })), "{layout:?}");
    }
}

/// Makes a file in memory that begins with these bytes.
fn image(begin: &[u8], bytes: u64) -> io::Result<ImageFile> {
    let file = File::from(memfd_create("image", MemfdFlags::CLOEXEC)?);
    file.write_all_at(begin, 0)?;
    file.set_len(bytes)?;
    ImageFile::new(Arc::new(file), Path::new("image"))
}

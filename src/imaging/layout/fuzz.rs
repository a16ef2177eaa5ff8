//! The way in for the fuzz target, and nowhere else: an image that begins with any bytes, for any disk.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use rustix::fs::{MemfdFlags, memfd_create};

use super::{Geometry, whole_disk};
use crate::imaging::{ImageFile, table::gpt};

const MIB: u64 = 1 << 20;

/// The first three bytes say how big the image and the disk are, in MiB, and: bit 0 blocks of 4096 bytes, 1 with a config drive, 2 with
/// checksums made right. The rest is what the image begins with.
pub fn fuzz(bytes: &[u8]) {
    let Some(([image_mib, disk_mib, mode], begin)) = bytes.split_first_chunk() else { return };
    let block_bytes = if mode & 1 == 0 { 512 } else { 4096 };
    let mut begin = begin.to_vec();
    if mode & 4 != 0 {
        gpt::seal(&mut begin, block_bytes);
    }
    let Ok(file) = memfd_create("image", MemfdFlags::CLOEXEC).map(File::from) else { return };
    let image_bytes = (u64::from(*image_mib) * MIB).max(begin.len() as u64);
    let made = file.write_all_at(&begin, 0).and_then(|()| file.set_len(image_bytes));
    let image = made.and_then(|()| ImageFile::new(Arc::new(file), Path::new("image")));
    let bytes = u64::from(*disk_mib) * MIB;
    let disk = Geometry { bytes, block_bytes: block_bytes as u32, optimal_bytes: 0 };
    let drive = (mode & 2 != 0).then(|| vec![7; 4096].into());
    if let Ok(image) = image {
        // A layout that is not sound is an error of its own kind, and there must be none.
        let layout = whole_disk(&image, disk, drive, &mut || [7; 16]);
        assert!(!matches!(layout, Err(super::LayoutError::Unsound { .. })), "{layout:?}");
    }
}

//! A volume whose numbers have been checked, and the few things done with it.
//!
//! Called by writing and verifying. What the volume says about itself comes from the far end and is not believed.

use std::sync::Arc;

use bytes::Bytes;

use super::{ImageFile, ImagingError, Volume, VolumeError, flight::CHUNK_BYTES};

/// What is wiped at either end: the MBR and both copies of a GPT, each with 128 KiB of entries at 4096-byte blocks (UEFI 2.10 §5.3), and
/// what a BIOS boot loader keeps before the first partition. One chunk, so that one single write makes the disk bootable.
pub(super) const EDGE_BYTES: u64 = CHUNK_BYTES;

const BLOCK_BYTES_MIN: u32 = 512;
const BLOCK_BYTES_MAX: u32 = 64 << 10;

#[derive(Debug)]
pub(super) struct Disk<V> {
    volume: Arc<V>,
    block_bytes: u64,
    /// Whole blocks only.
    bytes: u64,
}

impl<V> Clone for Disk<V> {
    fn clone(&self) -> Self {
        Self { volume: Arc::clone(&self.volume), ..*self }
    }
}

impl<V: Volume> Disk<V> {
    pub(super) fn of(volume: Arc<V>) -> Result<Self, ImagingError> {
        let block = volume.block_bytes();
        if !block.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block) {
            return Err(ImagingError::Blocks(block));
        }
        let block_bytes = u64::from(block);
        let bytes = volume.capacity_bytes() / block_bytes * block_bytes;
        Ok(Self { volume, block_bytes, bytes })
    }

    /// Whether the image fits.
    pub(super) fn takes(&self, image: &ImageFile) -> Result<(), ImagingError> {
        let image_bytes = self.padded(image.bytes());
        if image_bytes <= self.bytes {
            Ok(())
        } else {
            Err(ImagingError::TooBig { image_bytes, disk_bytes: self.bytes })
        }
    }

    /// Zeroes both ends and flushes.
    pub(super) async fn wipe(&self) -> Result<(), ImagingError> {
        let edge = EDGE_BYTES.min(self.bytes);
        for at in [0, self.bytes - edge] {
            let zeros = vec![0; usize::try_from(edge).unwrap_or_default()];
            let wiped = self.volume.write(at, zeros.into()).await;
            wiped.map_err(|source| failed("wiping", at, source))?;
        }
        self.flush().await
    }

    /// Copies a chunk of the image, the last one padded with zeros to a whole block. Returns the bytes of the image copied.
    pub(super) async fn copy(
        self,
        image: ImageFile,
        at: u64,
        bytes: u64,
    ) -> Result<u64, ImagingError> {
        let mut chunk = image.read(at, bytes).await?;
        chunk.resize(usize::try_from(self.padded(bytes)).unwrap_or_default(), 0);
        let written = self.volume.write(at, chunk.into()).await;
        written.map_err(|source| failed("writing", at, source))?;
        Ok(bytes)
    }

    /// Reads a chunk back, without its padding.
    pub(super) async fn read(self, at: u64, bytes: u64) -> Result<Bytes, ImagingError> {
        let padded = self.padded(bytes);
        let read = self.volume.read(at, padded).await.and_then(|chunk| {
            let got = chunk.len() as u64;
            if got == padded { Ok(chunk) } else { Err(short_read(got, padded)) }
        });
        let mut chunk = read.map_err(|source| failed("reading", at, source))?;
        chunk.truncate(usize::try_from(bytes).unwrap_or_default());
        Ok(chunk)
    }

    pub(super) async fn flush(&self) -> Result<(), ImagingError> {
        self.volume.flush().await.map_err(|source| failed("flushing", 0, source))
    }

    /// Bytes of a block.
    pub(super) fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    fn padded(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.block_bytes).saturating_mul(self.block_bytes)
    }
}

fn failed(doing: &'static str, offset: u64, source: VolumeError) -> ImagingError {
    ImagingError::Volume { doing, offset, source }
}

fn short_read(got: u64, wanted: u64) -> VolumeError {
    VolumeError {
        code: "ShortRead",
        message: format!("{got} bytes came back instead of {wanted}"),
        reconnect: false,
    }
}

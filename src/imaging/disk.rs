//! A volume with validated numbers, and the operations of the passes on it.
//!
//! Every pass uses it. The volume's numbers come from the target, so that this module must validate
//! each of them.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    DISK_HINT, Geometry, ImagingError, Volume, VolumeError,
    plan::EDGE_BYTES,
    reader::{Filling, Piece},
    zeros::{is_zero, zeros},
};

const BLOCK_BYTES_MIN: u32 = 512;
const BLOCK_BYTES_MAX: u32 = 64 << 10;

/// A connected disk. Clones share the connection.
#[derive(Debug)]
pub(super) struct ConnectedDisk<V> {
    volume: Arc<V>,
    geometry: Geometry,
}

impl<V> Clone for ConnectedDisk<V> {
    fn clone(&self) -> Self {
        Self { volume: Arc::clone(&self.volume), ..*self }
    }
}

impl<V: Volume> ConnectedDisk<V> {
    pub(super) fn of(volume: Arc<V>) -> Result<Self, ImagingError> {
        let block_bytes = volume.block_bytes();
        if !block_bytes.is_power_of_two()
            || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes)
        {
            return Err(ImagingError::Blocks(block_bytes));
        }
        let capacity = volume.capacity_bytes();
        let bytes = capacity - capacity % u64::from(block_bytes);
        // Geometries are compared without the optimal transfer length: another one does not mean
        // another disk.
        Ok(Self { volume, geometry: Geometry { bytes, block_bytes, optimal_bytes: 0 } })
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The disk's optimal transfer length in bytes; 0 if it reports none.
    pub(super) fn optimal_bytes(&self) -> u32 {
        self.volume.optimal_bytes()
    }

    /// Bytes of the commands executed on this connection.
    pub(super) fn moved_bytes(&self) -> u64 {
        self.volume.moved_bytes()
    }

    pub(super) fn into_volume(self) -> Arc<V> {
        self.volume
    }

    /// Zeroes both ends of the disk and flushes. It writes zeros, because a zeroing request would
    /// leave the method to the disk.
    pub(super) async fn wipe(self) -> Result<u64, ImagingError> {
        let edge = EDGE_BYTES.min(self.geometry.bytes);
        for at in [0, self.geometry.bytes - edge] {
            let zeros = zeros(usize::try_from(edge).unwrap_or_default());
            let wiped = self.volume.write(at, zeros).await;
            wiped.map_err(|source| failed("wiping", at, source))?;
        }
        self.flush(0).await
    }

    /// Writes a piece; returns its end.
    pub(super) async fn write(self, piece: Piece) -> Result<u64, ImagingError> {
        let (at, end) = (piece.at, piece.end());
        let written = match piece.filling {
            Filling::Data(data) => self.volume.write(at, data).await,
            Filling::Zeros(bytes) => self.volume.zero(at, bytes).await,
        };
        written.map_err(|source| failed("writing", at, source))?;
        Ok(end)
    }

    /// Reads a piece back and compares; returns its end.
    pub(super) async fn compare(self, piece: Piece) -> Result<u64, ImagingError> {
        let (at, bytes) = (piece.at, piece.bytes());
        let read = self.volume.read(at, bytes).await.and_then(|found| {
            let got = found.len() as u64;
            if got == bytes { Ok(found) } else { Err(short_read(got, bytes)) }
        });
        let found = read.map_err(|source| failed("reading", at, source))?;
        let wanted = match piece.filling {
            Filling::Data(data) if data == found => return Ok(at + bytes),
            Filling::Zeros(_) if is_zero(&found) => return Ok(at + bytes),
            Filling::Data(data) => data,
            Filling::Zeros(_) => Bytes::from(vec![0; found.len()]),
        };
        let (from, to) = first_bad_blocks(&wanted, &found, self.geometry.block_bytes);
        Err(ImagingError::Differs { from: at + from, to: at + to })
    }

    /// Flushes the disk's acknowledged writes; returns `covers`.
    pub(super) async fn flush(self, covers: u64) -> Result<u64, ImagingError> {
        let flushed = self.volume.flush().await;
        flushed.map(|()| covers).map_err(|source| failed("flushing", 0, source))
    }
}

/// The first run of blocks that differ, as offsets of its begin and end.
fn first_bad_blocks(wanted: &[u8], found: &[u8], block_bytes: u32) -> (u64, u64) {
    let size = usize::try_from(block_bytes).unwrap_or(usize::MAX).max(1);
    let blocks = || wanted.chunks(size).zip(found.chunks(size));
    let good = blocks().take_while(|(wanted, found)| wanted == found).count();
    let bad = blocks().skip(good).take_while(|(wanted, found)| wanted != found).count();
    let offset = |blocks: usize| blocks as u64 * u64::from(block_bytes);
    (offset(good), offset(good + bad))
}

fn failed(doing: &'static str, offset: u64, source: VolumeError) -> ImagingError {
    ImagingError::Volume { doing, offset, source }
}

fn short_read(got: u64, wanted: u64) -> VolumeError {
    VolumeError {
        code: "ShortRead",
        hint: DISK_HINT,
        message: format!("{got} bytes came back instead of {wanted}"),
        reconnect: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_of_bad_blocks_is_named_from_its_begin_to_its_end() {
        let wanted = vec![7; 5000];
        for (spoilt, range) in [
            (&[0][..], (0, 512)),
            (&[600, 1100], (512, 1536)),
            (&[600, 1600], (512, 1024)),
            (&[4999], (4608, 5120)),
        ] {
            let mut found = wanted.clone();
            for at in spoilt {
                found[*at] = 8;
            }
            assert_eq!(first_bad_blocks(&wanted, &found, 512), range, "{spoilt:?}");
        }
    }
}

//! A logical unit behind iSCSI as the disk the imaging pipeline writes to.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::{
    imaging::{Volume, VolumeError},
    iscsi::{ErrorKind, IscsiError, Lun},
};

impl Volume for Lun {
    fn block_bytes(&self) -> u32 {
        Lun::block_bytes(self)
    }

    fn capacity_bytes(&self) -> u64 {
        Lun::capacity_bytes(self)
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        for piece in pieces(data.len(), self.max_transfer_bytes()) {
            let at = offset + piece.start as u64;
            Lun::write(self, at, data.slice(piece)).await.map_err(|error| volume_error(&error))?;
        }
        Ok(())
    }

    async fn read(&self, offset: u64, bytes: u64) -> Result<Bytes, VolumeError> {
        // The pipeline reads in chunks of a few MiB at most.
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut data = BytesMut::with_capacity(bytes);
        for piece in pieces(bytes, self.max_transfer_bytes()) {
            let at = offset + piece.start as u64;
            let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            let read = Lun::read(self, at, length).await.map_err(|error| volume_error(&error))?;
            data.extend_from_slice(&read);
        }
        Ok(data.freeze())
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        Lun::flush(self).await.map_err(|error| volume_error(&error))
    }
}

/// What one command may carry is for the target to say; some disk controllers take less than 256 KiB, which is less than a chunk.
fn pieces(bytes: usize, most: u32) -> impl Iterator<Item = Range<usize>> {
    let step = usize::try_from(most).unwrap_or(usize::MAX).max(1);
    (0..bytes).step_by(step).map(move |start| start..bytes.min(start.saturating_add(step)))
}

fn volume_error(error: &IscsiError) -> VolumeError {
    let reconnect = matches!(
        error.kind,
        ErrorKind::TargetGone(_) | ErrorKind::TimedOut(_) | ErrorKind::Digest(_)
    );
    VolumeError {
        code: super::faults::iscsi_code(&error.kind),
        message: error.to_string(),
        reconnect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_cut_to_what_the_target_takes_and_nothing_is_left_out() {
        let cut = |bytes, most| pieces(bytes, most).collect::<Vec<_>>();
        assert_eq!(cut(10, 4), [0..4, 4..8, 8..10]);
        assert_eq!(cut(8, 4), [0..4, 4..8]);
        assert_eq!(cut(3, 4).len(), 1);
        assert!(cut(0, 4).is_empty());
    }
}

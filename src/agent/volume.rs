//! A logical unit behind iSCSI as the disk the imaging pipeline writes to.

use bytes::Bytes;

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
        Lun::write(self, offset, data).await.map_err(|error| volume_error(&error))
    }

    async fn read(&self, offset: u64, bytes: u64) -> Result<Bytes, VolumeError> {
        // The pipeline reads in chunks of a few MiB at most.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Lun::read(self, offset, bytes).await.map(Bytes::from).map_err(|error| volume_error(&error))
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        Lun::flush(self).await.map_err(|error| volume_error(&error))
    }
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

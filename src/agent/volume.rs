//! Connects the imaging pipeline to an iSCSI logical unit. Called by `install.rs`.

use std::{net::SocketAddr, ops::Range, sync::Arc};

use bytes::Bytes;
use tracing::warn;

use crate::{
    imaging::{Connector, Volume, VolumeError},
    iscsi::{Chap, IscsiError, IscsiErrorKind, IscsiOptions, Lun, TargetAddress},
    lifecycle::Target,
    model::fault::{Advice, Advise as _},
};

/// The disk of the target that a ramdisk offers.
#[derive(Debug)]
pub(super) struct TargetDisk {
    address: TargetAddress,
    /// `None`: the target requires no CHAP, and the spec allows that.
    chap: Option<Chap>,
}

impl TargetDisk {
    pub(super) fn new(target: &Target) -> Self {
        let address = TargetAddress {
            portal: SocketAddr::new(target.address, target.port),
            iqn: target.iqn.clone(),
            lun: u16::from(target.lun),
        };
        let chap = target.chap_password.clone().map(|secret| Chap {
            username: target.chap_username.clone(),
            secret,
            mutual: None,
        });
        Self { address, chap }
    }
}

impl Connector for TargetDisk {
    type Volume = Lun;

    async fn connect(&self) -> Result<Arc<Lun>, VolumeError> {
        let lun = Lun::connect(&self.address, self.chap.as_ref(), &IscsiOptions::default()).await;
        lun.map(Arc::new).map_err(|error| volume_error(&error))
    }

    async fn close(&self, lun: Arc<Lun>) {
        if let Err(error) = Lun::clone(&lun).logout().await {
            warn!(%error, "iSCSI logout failed; the connection is closed");
        }
    }
}

impl Volume for Lun {
    fn block_bytes(&self) -> u32 {
        Lun::block_bytes(self)
    }

    fn capacity_bytes(&self) -> u64 {
        Lun::capacity_bytes(self)
    }

    fn optimal_bytes(&self) -> u32 {
        Lun::optimal_bytes(self).unwrap_or_default()
    }

    fn moved_bytes(&self) -> u64 {
        Lun::moved_bytes(self)
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        for piece in pieces(data.len(), self.max_transfer_bytes()) {
            let at = offset + piece.start as u64;
            Lun::write(self, at, data.slice(piece)).await.map_err(|error| volume_error(&error))?;
        }
        Ok(())
    }

    async fn read(&self, offset: u64, bytes: u64) -> Result<Bytes, VolumeError> {
        // The pipeline reads at most a few MiB at once.
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut data = Bytes::new();
        for piece in pieces(bytes, self.max_transfer_bytes()) {
            let at = offset + piece.start as u64;
            let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            let read = Lun::read(self, at, length).await.map_err(|error| volume_error(&error))?;
            // Usually there is a single piece, without anything to concatenate.
            data = if data.is_empty() { read } else { [data, read].concat().into() };
        }
        Ok(data)
    }

    async fn zero(&self, offset: u64, bytes: u64) -> Result<(), VolumeError> {
        self.write_zeros(offset, bytes).await.map_err(|error| volume_error(&error))
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        Lun::flush(self).await.map_err(|error| volume_error(&error))
    }
}

/// Splits a transfer into ranges for one command each: some disk controllers accept less than 256
/// KiB, which is less than a chunk.
fn pieces(bytes: usize, most: u32) -> impl Iterator<Item = Range<usize>> {
    let step = usize::try_from(most).unwrap_or(usize::MAX).max(1);
    (0..bytes).step_by(step).map(move |start| start..bytes.min(start.saturating_add(step)))
}

fn volume_error(error: &IscsiError) -> VolumeError {
    let reconnect = match &error.kind {
        IscsiErrorKind::Unreachable(_)
        | IscsiErrorKind::TargetGone(_)
        | IscsiErrorKind::TimedOut(_)
        | IscsiErrorKind::Digest(_) => true,
        IscsiErrorKind::LoginRefused(refusal) => refusal.may_pass(),
        _ => false,
    };
    let Advice { code, hint, .. } = error.advice();
    VolumeError { code, hint, message: error.to_string(), reconnect }
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

//! Opens the machine's disk, so that its layout can be made before the first write.
//!
//! The agent calls it once per write. The opened disk keeps its connection for the write. Opening
//! must never write.

use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::{
    Connector, Geometry, ImagingError, ImagingOrder, Written, connection_pool::connect,
    disk::ConnectedDisk, thresholds::WriteThresholds, write::write,
};
use crate::progress::{Cancel, Meter, stopped};

/// Connection attempts before the disk counts as unusable: a ramdisk's target may need a moment,
/// and an old session of the agent may linger.
const OPEN_TRIES: u32 = 5;
/// The pause between two attempts.
const OPEN_PAUSE: Duration = Duration::from_secs(2);

/// A connected disk without any write so far.
///
/// End it with [`OpenedDisk::write`] or [`OpenedDisk::close`]: dropping it cuts the connection.
#[derive(Debug)]
pub struct OpenedDisk<'a, C: Connector> {
    connector: &'a C,
    disk: ConnectedDisk<C::Volume>,
}

/// Connects to a disk, with a few attempts. `cancel`, or dropping the future, cancels it.
pub async fn open<C: Connector>(
    connector: &C,
    mut cancel: Cancel,
) -> Result<OpenedDisk<'_, C>, ImagingError> {
    tokio::select! {
        biased;
        () = stopped(&mut cancel) => Err(ImagingError::Cancelled),
        opened = open_patiently(connector) => opened,
    }
}

async fn open_patiently<C: Connector>(connector: &C) -> Result<OpenedDisk<'_, C>, ImagingError> {
    let mut tries = 1;
    loop {
        match connect(connector).await {
            Ok(disk) => return Ok(OpenedDisk { connector, disk }),
            Err(ImagingError::Connection(error)) if tries < OPEN_TRIES => {
                warn!(%error, tries, "iSCSI login failed; trying again");
                tries += 1;
                sleep(OPEN_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

impl<C: Connector> OpenedDisk<'_, C> {
    /// Size, blocks and optimal transfer length, as the disk reports them.
    pub fn geometry(&self) -> Geometry {
        Geometry { optimal_bytes: self.disk.optimal_bytes(), ..self.disk.geometry() }
    }

    /// Writes the layout, each segment padded with zeros to a whole block, flushes, and reads it
    /// back or returns the expected digests.
    ///
    /// A layout that does not fit leaves the disk untouched. The write replaces broken connections,
    /// until the stall limit passes without progress. After any failure or cancellation it zeroes
    /// both ends of the disk, if necessary over a new connection; [`ImagingError::NotWiped`]
    /// reports that this failed. It closes every connection before it returns. After `cancel` it
    /// returns within about a second; dropping the future stops the write, but wipes nothing.
    ///
    /// A long write of a body uses several connections, if they make it faster.
    pub async fn write(
        self,
        order: &ImagingOrder,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Written, ImagingError> {
        self.write_at(WriteThresholds::default(), order, meter, cancel).await
    }

    /// Writes the layout with other thresholds.
    pub(super) async fn write_at(
        self,
        thresholds: WriteThresholds,
        order: &ImagingOrder,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Written, ImagingError> {
        write(self.connector, self.disk, thresholds, order, meter, cancel).await
    }

    /// Closes the connection without a write.
    pub async fn close(self) {
        self.connector.close(self.disk.into_volume()).await;
    }
}

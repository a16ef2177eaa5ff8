//! Opens the machine's disk, so that its layout can be made before the first write.
//!
//! Called by the agent once per write. The opened disk keeps its connection for the write. It must
//! never write by itself.

use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::{
    Connector, Geometry, ImagingError, ImagingOrder, Written, connection_pool::connect,
    disk::ConnectedDisk, thresholds::WriteThresholds, write::write,
};
use crate::progress::{Cancel, Meter, stopped};

/// Tries to connect before the disk is given up: a ramdisk's target may need a moment, and an old
/// session of ours may linger.
const OPEN_TRIES: u32 = 5;
/// The pause between two of them.
const OPEN_PAUSE: Duration = Duration::from_secs(2);

/// A connected disk that nothing was written to.
///
/// End it with [`OpenedDisk::write`] or [`OpenedDisk::close`]: dropping it cuts the connection.
#[derive(Debug)]
pub struct OpenedDisk<'a, C: Connector> {
    connector: &'a C,
    disk: ConnectedDisk<C::Volume>,
}

/// Connects to a disk, with a few tries. Cancel by `cancel`, or drop the future.
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
    /// Size, blocks and preferred transfer length, as the disk states them.
    pub fn geometry(&self) -> Geometry {
        Geometry { optimal_bytes: self.disk.optimal_bytes(), ..self.disk.geometry() }
    }

    /// Writes the layout, each segment padded with zeros to a whole block, flushes, and reads it
    /// back or returns the digests of what must be there.
    ///
    /// A layout that does not fit leaves the disk untouched. The write replaces a connection that
    /// breaks, until the stall limit passes without progress. After any failure or cancellation it
    /// zeroes both ends of the disk, if need be on a new connection; [`ImagingError::NotWiped`]
    /// says that this did not work. It closes every connection before it returns. After `cancel` it
    /// returns within about a second; dropping the future stops the writing, but wipes nothing.
    ///
    /// A body that takes a while is spread over several connections, if they make it quicker.
    pub async fn write(
        self,
        order: &ImagingOrder,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Written, ImagingError> {
        self.write_at(WriteThresholds::default(), order, meter, cancel).await
    }

    /// The same, with other thresholds.
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

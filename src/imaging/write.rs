//! Writing an image to a volume, in the order that keeps a half-written disk from booting.
//!
//! Called once per attempt, after the checksum has been compared. What it promises about the disk is in the room's own description.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    ImageFile, ImagingError, Volume, VolumeError,
    disk::{Disk, EDGE_BYTES},
    flight::{Watch, chunks},
    verify::verify,
};
use crate::{
    model::{spec::Verify, status::ImagingStage},
    progress::{Cancel, Meter},
};

/// For wiping after a failure: on a live volume it takes milliseconds, on a dead one there is nothing to wait for.
const WIPE_MAX: Duration = Duration::from_secs(10);

/// What is to be written, and how patiently.
#[derive(Clone, Debug)]
pub struct Order {
    /// The image.
    pub image: ImageFile,
    /// Whether everything is read back and compared.
    pub verify: Verify,
    /// Longest time without a chunk done.
    pub stall: Duration,
}

/// A disk that holds its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the image.
    pub image_bytes: u64,
    /// How long writing took.
    pub writing: Duration,
    /// How long reading back took.
    pub verifying: Duration,
}

/// Writes the image, padded with zeros to a whole block, flushes, reads everything back and compares its digest.
///
/// Nothing is touched when the image does not fit. After any later failure or cancellation it waits until no write is under way and zeroes
/// both ends of the disk. [`ImagingError::NotWiped`] says that this did not work: try [`wipe`] on a new connection. A command that does
/// not end within ten seconds is given up and may still happen, so after every error close the connection before doing anything else.
/// Cancel by `cancel`: dropping the future stops the writing, but nobody wipes.
pub async fn write_image<V: Volume>(
    volume: Arc<V>,
    order: &Order,
    meter: &Meter,
    cancel: Cancel,
) -> Result<Written, ImagingError> {
    let disk = Disk::of(volume)?;
    disk.takes(&order.image)?;
    let watch = Watch { cancel, stall: order.stall, meter };
    // Cancelled before it began: then the disk stays as it was.
    watch.step(async { Ok(()) }).await?;
    match write_and_verify(&disk, order, &watch).await {
        Ok(written) => Ok(written),
        Err(cause) => Err(wipe_after(&disk, cause).await),
    }
}

/// Zeroes the first and the last MiB of a disk and flushes, so that nothing boots from it.
pub async fn wipe<V: Volume>(volume: Arc<V>) -> Result<(), ImagingError> {
    Disk::of(volume)?.wipe().await
}

async fn write_and_verify<V: Volume>(
    disk: &Disk<V>,
    order: &Order,
    watch: &Watch<'_>,
) -> Result<Written, ImagingError> {
    let began = Instant::now();
    let image = &order.image;
    let head = EDGE_BYTES.min(image.bytes());
    watch.meter.begin(ImagingStage::Write, 0, image.bytes());
    let wiping = disk.clone();
    watch.fly(std::iter::once(async move { wiping.wipe().await }), Ok).await?;
    let landed = |bytes| {
        watch.meter.add(bytes);
        Ok(())
    };
    let copies =
        |range| chunks(range).map(|(at, bytes)| disk.clone().copy(image.clone(), at, bytes));
    watch.fly(copies(head..image.bytes()), landed).await?;
    watch.step(disk.flush()).await?;
    watch.fly(copies(0..head), landed).await?;
    watch.step(disk.flush()).await?;
    let written = Instant::now();
    if order.verify == Verify::Full {
        verify(disk, order, watch).await?;
    }
    Ok(Written {
        image_bytes: image.bytes(),
        writing: written.duration_since(began),
        verifying: written.elapsed(),
    })
}

async fn wipe_after<V: Volume>(disk: &Disk<V>, cause: ImagingError) -> ImagingError {
    let wiped = timeout(WIPE_MAX, disk.wipe()).await.unwrap_or_else(|_| {
        let message = format!("no answer for {} s", WIPE_MAX.as_secs());
        let source = VolumeError { code: "Timeout", message, reconnect: true };
        Err(ImagingError::Volume { doing: "wiping", offset: 0, source })
    });
    match wiped {
        Ok(()) => cause,
        Err(wipe) => ImagingError::NotWiped { cause: Box::new(cause), wipe: Box::new(wipe) },
    }
}

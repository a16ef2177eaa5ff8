//! From a spec's image to a machine's disk: the two operations that move data.
//!
//! Started by the operations. Nothing is written before the target was found to be the disk that the ramdisk reported.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use crate::{
    image::Entry,
    imaging::{self, Geometry, ImageFile, Layout, LeastRate, Order},
    iscsi::{IscsiError, Lun},
    lifecycle::{DiskSize, Outcome, PreparedImage, Target},
    model::{
        fault::{CANCELLED, Fault, OTHER_MACHINE, Step},
        ids::Digest,
        secret::AttemptKey,
        size::show_bytes,
        spec::NodeSpec,
        system_guid::SystemGuid,
    },
    progress::{Cancel, Meter, Watch, stopped},
};

use super::{
    faults,
    layout::{self, Needs, Source},
    volume::{TargetDisk, log_out},
    work::Operations,
};

/// Logins tried before the target is given up; a ramdisk's target may need a moment, and an old session of ours may linger.
const LOGIN_TRIES: u32 = 5;
/// Between two of them.
const LOGIN_PAUSE: Duration = Duration::from_secs(2);
/// What a disk's least rate is averaged over.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// How often an image may decay in one operation: more often it is the cache's disk that fails.
const DECAYED_MAX: usize = 3;

impl Operations {
    /// The image into the cache, and a key for the attempt.
    pub(super) async fn prepare(
        &self,
        spec: &Arc<NodeSpec>,
        system_guid: Option<SystemGuid>,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        self.deploy_files.check(&spec.boot)?;
        let watch = Watch { cancel, stall: spec.timeouts.imaging_stall, meter };
        let netboot = match &spec.image.netboot {
            Some(netboot) => Some(self.verify_netboot(netboot, &watch).await?),
            None => None,
        };
        let digest = self.library.digest(&spec.image, &watch).await;
        let digest = digest.map_err(|error| Fault::of(Step::Image, &error))?;
        let mut decayed = Vec::new();
        let Needs { disk_bytes, root_uuid } = loop {
            let source = self.source(spec, &digest, &decayed, &watch).await?;
            let (spec, entry) = (Arc::clone(spec), source.entry.clone());
            let looking = tokio::task::spawn_blocking(move || layout::needs(&spec, &source));
            match looking.await.unwrap_or_else(|error| Err(faults::internal(&error))) {
                Err(fault) => decayed.push(self.discard_decayed(entry, fault).await?),
                Ok(needs) => break needs,
            }
        };
        let stages = meter.durations();
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(faults::no_randomness)?;
        let root_partuuid = None;
        let image = PreparedImage { digest, disk_bytes, root_uuid, root_partuuid, netboot };
        Ok(Outcome::Prepared { image, key: AttemptKey::from_bytes(&random), system_guid, stages })
    }

    /// The image in the cache, fetched again if it is no longer there. `decayed` is how it was found to have decayed in this operation.
    async fn source(
        &self,
        spec: &NodeSpec,
        digest: &Digest,
        decayed: &[Fault],
        watch: &Watch<'_>,
    ) -> Result<Source, Fault> {
        if let Some(last) = decayed.get(DECAYED_MAX - 1) {
            return Err(last.clone());
        }
        let entry = self.library.get(&spec.image, digest, watch).await;
        let entry = entry.map_err(|error| {
            let fault = Fault::of(Step::Image, &error);
            match decayed.last() {
                Some(Fault { message, .. }) => {
                    let message = format!("{message}; fetching it again: {}", fault.message);
                    Fault { message, ..fault }
                }
                None => fault,
            }
        })?;
        let image = ImageFile::checked(entry.file.clone(), &entry.path);
        Ok(Source { image, entry })
    }

    /// Whatever failed, failed because the image has decayed in the cache: it is thrown away, so that it is fetched again. Anything else
    /// that failed is handed back as the error.
    async fn discard_decayed(&self, entry: Entry, fault: Fault) -> Result<Fault, Fault> {
        if !entry.file.has_decayed() {
            return Err(fault);
        }
        warn!(image = %entry.path.display(), error = fault.message, "an image decayed in the cache; it is thrown away");
        let library = self.library.clone();
        let discarding = tokio::task::spawn_blocking(move || library.discard(&entry));
        let discarded = discarding.await.map_err(|error| faults::internal(&error))?;
        discarded.map_err(|error| Fault::of(Step::Image, &error))?;
        if fault.code == CANCELLED { Err(fault) } else { Ok(fault) }
    }

    /// The image onto the disk. Should it turn out to have decayed in the cache, it is fetched again and the writing begins anew.
    pub(super) async fn image(
        &self,
        spec: &Arc<NodeSpec>,
        digest: &Digest,
        target: &Target,
        size: DiskSize,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        let watch = Watch { cancel: cancel.clone(), stall: spec.timeouts.imaging_stall, meter };
        let mut decayed = Vec::new();
        loop {
            let source = self.source(spec, digest, &decayed, &watch).await?;
            let entry = source.entry.clone();
            match self.write(spec, source, target, size, meter, cancel.clone()).await {
                Err(fault) => decayed.push(self.discard_decayed(entry, fault).await?),
                imaged => return imaged,
            }
        }
    }

    async fn write(
        &self,
        spec: &Arc<NodeSpec>,
        source: Source,
        target: &Target,
        size: DiskSize,
        meter: &Meter,
        mut cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        let disk = TargetDisk::new(target);
        let lun = tokio::select! {
            lun = log_in(&disk) => lun.map_err(|error| Fault::of(Step::Imaging, &error))?,
            () = stopped(&mut cancel) => return Err(faults::cancelled(Step::Imaging)),
        };
        let layout = tokio::select! {
            layout = lay_out(spec, source, &lun, target, size) => layout,
            () = stopped(&mut cancel) => Err(faults::cancelled(Step::Imaging)),
        };
        let layout = match layout {
            Ok(layout) => layout,
            Err(fault) => {
                log_out(lun).await;
                return Err(fault);
            }
        };
        let root_partuuid = layout.root_partuuid().map(str::to_owned);
        let order = Order {
            layout,
            verify: spec.image.verify,
            stall: spec.timeouts.imaging_stall,
            least_rate: LeastRate { bytes_per_s: self.imaging_rate_min, over: RATE_WINDOW },
        };
        let disk_bytes = lun.capacity_bytes();
        disk.hand_over(lun);
        let written = imaging::write_disk(&disk, &order, meter, cancel)
            .await
            .map_err(|error| Fault::of(Step::Imaging, &error))?;
        info!(node = %spec.name, bytes = written.bytes, writing = ?written.writing, verifying = ?written.verifying, "image written");
        let stages = meter.durations();
        Ok(Outcome::Imaged { verify: written.ranges, disk_bytes, root_partuuid, stages })
    }
}

/// What is to be on the target's disk, if that is the one that was asked for.
async fn lay_out(
    spec: &Arc<NodeSpec>,
    source: Source,
    lun: &Lun,
    target: &Target,
    size: DiskSize,
) -> Result<Layout, Fault> {
    let (bytes, block_bytes) = (lun.capacity_bytes(), lun.block_bytes());
    check_size(target, bytes, size)?;
    let optimal_bytes = lun.optimal_bytes().unwrap_or_default();
    let disk = Geometry { bytes, block_bytes, optimal_bytes };
    layout::layout(Arc::clone(spec), source, disk).await
}

/// Nothing may be written to a disk that is not the one meant.
fn check_size(target: &Target, bytes: u64, size: DiskSize) -> Result<(), Fault> {
    let has = format!("target {}: its disk has {} ({bytes} bytes)", target.iqn, show_bytes(bytes));
    match size {
        DiskSize::Exactly(wanted) if bytes != wanted => {
            let wanted_shown = show_bytes(wanted);
            let message = format!("{has}, the one asked for has {wanted_shown} ({wanted} bytes)");
            Err(Fault::passing(Step::Imaging, "WrongDisk", message, OTHER_MACHINE))
        }
        DiskSize::AtLeast(needed) if bytes < needed => Err(Fault::lasting(
            Step::Imaging,
            "DiskTooSmall",
            format!("{has}, what is to be on it {} ({needed} bytes)", show_bytes(needed)),
            "choose a larger disk with [root_device] or a smaller image",
        )),
        DiskSize::Exactly(_) | DiskSize::AtLeast(_) => Ok(()),
    }
}

async fn log_in(disk: &TargetDisk) -> Result<Lun, IscsiError> {
    let mut tries = 1;
    loop {
        match disk.log_in().await {
            Err(error) if tries < LOGIN_TRIES => {
                warn!(%error, tries, "iSCSI login failed; trying again");
                tries += 1;
                tokio::time::sleep(LOGIN_PAUSE).await;
            }
            result => return result,
        }
    }
}

//! From a spec's image to a machine's disk: the two operations that move data.
//!
//! Started by the workshop. Nothing is written before the target was found to be the disk that the ramdisk reported.

use std::{fs, sync::Arc, time::Duration};

use tracing::{info, warn};

use crate::{
    image::ImageError,
    imaging::{self, Geometry, ImageFile, Layout, Order},
    iscsi::{IscsiError, Lun},
    lifecycle::{Outcome, PreparedImage, Target},
    model::{
        boot::Arch,
        fault::{Fault, Step},
        ids::Digest,
        secret::AttemptKey,
        size::show_bytes,
        spec::NodeSpec,
        system_guid::SystemGuid,
    },
    progress::{Cancel, Meter, Watch, stopped},
};

use super::{
    deploy_files, faults,
    layout::{self, Needs, Source},
    volume::{TargetDisk, log_out},
    work::Workshop,
};

/// Logins tried before the target is given up; a ramdisk's target may need a moment, and an old session of ours may linger.
const LOGIN_TRIES: u32 = 5;
/// Between two of them.
const LOGIN_PAUSE: Duration = Duration::from_secs(2);
impl Workshop {
    /// The image into the cache, and a key for the attempt.
    pub(super) async fn prepare(
        &self,
        spec: &Arc<NodeSpec>,
        system_guid: Option<SystemGuid>,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        self.check_boot_files(spec.boot.arch)?;
        let watch = Watch { cancel, stall: spec.timeouts.imaging_stall, meter };
        let digest = self.library.digest(&spec.image, &watch).await;
        let digest = digest.map_err(|error| faults::of_image(&error))?;
        let source = self.source(spec, &digest, &watch).await?;
        let stages = meter.durations();
        let spec = Arc::clone(spec);
        let looking = tokio::task::spawn_blocking(move || layout::needs(&spec, &source));
        let Needs { disk_bytes, root_uuid } =
            looking.await.unwrap_or_else(|error| Err(faults::internal(&error)))?;
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(faults::no_randomness)?;
        let image = PreparedImage { digest, disk_bytes, root_uuid };
        Ok(Outcome::Prepared { image, key: AttemptKey::from_bytes(&random), system_guid, stages })
    }

    /// Whether the deploy kernel and ramdisk for such a machine are there.
    fn check_boot_files(&self, arch: Arch) -> Result<(), Fault> {
        let fault = |message: String| {
            let hint = "make them with `hostler ramdisk build`, and see [ramdisk]";
            Fault::passing(Step::Preflight, "BootFilesMissing", message, hint)
        };
        let paths = deploy_files(&self.ramdisk, arch).ok_or_else(|| {
            fault(
                "no deploy boot files for an aarch64 machine: [ramdisk.aarch64] is missing".into(),
            )
        })?;
        for path in paths {
            fs::File::open(path)
                .map_err(|error| fault(format!("deploy boot file {}: {error}", path.display())))?;
        }
        Ok(())
    }

    /// The image in the cache, fetched again if it is no longer there.
    async fn source(
        &self,
        spec: &NodeSpec,
        digest: &Digest,
        watch: &Watch<'_>,
    ) -> Result<Source, Fault> {
        let entry = self.library.get(&spec.image, digest, watch).await;
        let entry = entry.map_err(|error| faults::of_image(&error))?;
        let image = ImageFile::new(Arc::clone(&entry.file), &entry.path).map_err(|error| {
            faults::of_image(&ImageError::Cache { path: entry.path.clone(), error })
        })?;
        Ok(Source { image, entry })
    }

    /// The image onto the disk.
    pub(super) async fn image(
        &self,
        spec: &Arc<NodeSpec>,
        digest: &Digest,
        target: &Target,
        disk_bytes: u64,
        meter: &Meter,
        mut cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        let watch = Watch { cancel: cancel.clone(), stall: spec.timeouts.imaging_stall, meter };
        let source = self.source(spec, digest, &watch).await?;
        let disk = TargetDisk::new(target);
        let lun = tokio::select! {
            lun = log_in(&disk) => lun.map_err(|error| faults::of_iscsi(&error))?,
            () = stopped(&mut cancel) => return Err(faults::cancelled(Step::Imaging)),
        };
        let layout = tokio::select! {
            layout = lay_out(spec, source, &lun, target, disk_bytes) => layout,
            () = stopped(&mut cancel) => Err(faults::cancelled(Step::Imaging)),
        };
        let layout = match layout {
            Ok(layout) => layout,
            Err(fault) => {
                log_out(lun).await;
                return Err(fault);
            }
        };
        let order = Order { layout, verify: spec.image.verify, stall: spec.timeouts.imaging_stall };
        disk.hand_over(lun);
        let written = imaging::write_disk(&disk, &order, meter, cancel)
            .await
            .map_err(|error| faults::of_imaging(Step::Imaging, &error))?;
        info!(node = %spec.name, bytes = written.bytes, writing = ?written.writing, verifying = ?written.verifying, "image written");
        Ok(Outcome::Imaged { verify: written.ranges, stages: meter.durations() })
    }
}

/// What is to be on the target's disk, if that is the one that was asked for.
async fn lay_out(
    spec: &Arc<NodeSpec>,
    source: Source,
    lun: &Lun,
    target: &Target,
    disk_bytes: u64,
) -> Result<Layout, Fault> {
    let (bytes, block_bytes) = (lun.capacity_bytes(), lun.block_bytes());
    if bytes != disk_bytes {
        let message = format!(
            "target {}: its disk has {} ({bytes} bytes), the one asked for has {} ({disk_bytes} bytes)",
            target.iqn,
            show_bytes(bytes),
            show_bytes(disk_bytes)
        );
        return Err(Fault::passing(Step::Imaging, "WrongDisk", message, faults::OTHER_MACHINE));
    }
    let optimal_bytes = lun.optimal_bytes().unwrap_or_default();
    let disk = Geometry { bytes, block_bytes, optimal_bytes };
    layout::layout(Arc::clone(spec), source, disk).await
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

//! Prepares a spec's image in the cache, and writes it to a machine's disk.
//!
//! Called by the operations. It must never write before the target's size proves to be that of the
//! chosen disk.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use crate::{
    boot_call,
    image::Entry,
    imaging::{self, Geometry, ImageFile, ImagingError, ImagingOrder, LeastRate, Written},
    lifecycle::{DiskSize, Outcome, PreparedImage, Target},
    model::{
        fault::{CANCELLED, Fault, OTHER_MACHINE, Step},
        ids::Digest,
        secret::{AttemptKey, BootToken, Secret},
        size::show_bytes,
        spec::{BootCheck, NodeSpec},
        system_guid::SystemGuid,
    },
    progress::{Cancel, Meter, Watch, stopped},
};

use super::{
    checkpoint::ResumableWrite,
    faults,
    layout::{self, CachedImage, LaidOut, Needs, Seed},
    volume::TargetDisk,
    work::{DiskWrite, Operations},
};

/// The time over which a disk's rate is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// Most repetitions because of a decayed image in one operation: more of them mean that the cache's
/// disk fails.
const DECAYED_MAX: usize = 3;

fn random<const BYTES: usize>() -> Result<[u8; BYTES], Fault> {
    let mut random = [0; BYTES];
    getrandom::fill(&mut random).map_err(faults::no_randomness)?;
    Ok(random)
}

impl Operations {
    /// Fetches the image into the cache, and makes the attempt's key.
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
            let measuring = tokio::task::spawn_blocking(move || layout::needs(&spec, &source));
            match measuring.await.unwrap_or_else(|error| Err(faults::internal(&error))) {
                Err(fault) => decayed.push(self.discard_decayed(entry, fault).await?),
                Ok(needs) => break needs,
            }
        };
        let stages = meter.durations();
        let key = AttemptKey::from_bytes(&random()?);
        let boot_token = match spec.boot_check {
            BootCheck::Call => Some(BootToken::from_bytes(&random()?)),
            BootCheck::None | BootCheck::Tcp { .. } => None,
        };
        let root_partuuid = None;
        let image =
            PreparedImage { digest, disk_bytes, root_uuid, root_partuuid, netboot, boot_token };
        Ok(Outcome::Prepared { image, key, system_guid, stages })
    }

    /// Gets the image from the cache, or fetches it again. `decayed` has the faults of decayed
    /// images in this operation so far.
    async fn source(
        &self,
        spec: &NodeSpec,
        digest: &Digest,
        decayed: &[Fault],
        watch: &Watch<'_>,
    ) -> Result<CachedImage, Fault> {
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
        Ok(CachedImage { image, entry })
    }

    /// Discards a decayed image, so that the next request fetches it again, and returns the fault.
    /// The error is any other fault.
    async fn discard_decayed(&self, entry: Entry, fault: Fault) -> Result<Fault, Fault> {
        if !entry.file.has_decayed() {
            return Err(fault);
        }
        let image = entry.path.display();
        warn!(%image, error = fault.message, "an image decayed in the cache and is discarded");
        let library = self.library.clone();
        let discarding = tokio::task::spawn_blocking(move || library.discard(&entry));
        let discarded = discarding.await.map_err(|error| faults::internal(&error))?;
        discarded.map_err(|error| Fault::of(Step::Image, &error))?;
        if fault.code == CANCELLED { Err(fault) } else { Ok(fault) }
    }

    /// Writes the image to the disk. If the cached image has decayed, the operation fetches it
    /// again.
    pub(super) async fn image(
        &self,
        wanted: DiskWrite<'_>,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        let DiskWrite { spec, image, .. } = wanted;
        let watch = Watch { cancel: cancel.clone(), stall: spec.timeouts.imaging_stall, meter };
        let mut decayed = Vec::new();
        loop {
            let source = self.source(spec, image, &decayed, &watch).await?;
            let entry = source.entry.clone();
            match self.write(wanted, source, meter, cancel.clone()).await {
                Err(fault) => decayed.push(self.discard_decayed(entry, fault).await?),
                imaged => return imaged,
            }
        }
    }

    async fn write(
        &self,
        wanted: DiskWrite<'_>,
        source: CachedImage,
        meter: &Meter,
        mut cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        let DiskWrite { spec, image, target, boot_token, .. } = wanted;
        let salt = u32::from_be_bytes(random()?);
        let url = boot_token.map(|token| boot_call::url(self.boot_calls_at, &spec.name, token));
        let target_disk = TargetDisk::new(target);
        let disk = imaging::open(&target_disk, cancel.clone()).await;
        let disk = disk.map_err(|error| faults::of_opening(&error))?;
        let geometry = disk.geometry();
        let write = ResumableWrite::new(&self.checkpoints, &spec.name, image, target, geometry);
        let laid_out = match &write {
            Ok(write) => tokio::select! {
                laid_out = lay_out(wanted, source, geometry, write.seed().clone(), url) => laid_out,
                () = stopped(&mut cancel) => Err(faults::cancelled(Step::Imaging)),
            },
            Err(fault) => Err(fault.clone()),
        };
        let (write, LaidOut { layout, fingerprint }) = match (write, laid_out) {
            (Ok(write), Ok(laid_out)) => (write, laid_out),
            (Err(fault), _) | (_, Err(fault)) => {
                disk.close().await;
                return Err(fault);
            }
        };
        let root_partuuid = layout.root_partuuid().map(str::to_owned);
        let salt = target.knows_salt.then_some(salt);
        let (checkpoint, saver) = write.start(fingerprint);
        let order = ImagingOrder {
            layout,
            verify: spec.image.verify,
            salt,
            stall: spec.timeouts.imaging_stall,
            least_rate: LeastRate { bytes_per_s: self.imaging_rate_min, over: RATE_WINDOW },
            checkpoint,
        };
        let written = disk.write(&order, meter, cancel).await;
        drop(order);
        // A stopping agent cancels the write, which the next start resumes.
        saver.end(matches!(written, Err(ImagingError::Cancelled))).await;
        let Written { bytes, writing, verifying, ranges } =
            written.map_err(|error| Fault::of(Step::Imaging, &error))?;
        info!(node = %spec.name, bytes, ?writing, ?verifying, "image written");
        let (stages, disk_bytes) = (meter.durations(), geometry.bytes);
        Ok(Outcome::Imaged { verify: ranges, disk_bytes, root_partuuid, stages })
    }
}

/// Lays out the target's disk after a check of its size.
async fn lay_out(
    DiskWrite { spec, target, size, .. }: DiskWrite<'_>,
    source: CachedImage,
    disk: Geometry,
    seed: Seed,
    url: Option<Secret>,
) -> Result<LaidOut, Fault> {
    check_size(target, disk.bytes, size)?;
    layout::layout(Arc::clone(spec), source, disk, seed, url).await
}

/// Refuses a disk of a wrong size.
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

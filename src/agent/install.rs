//! Moves a spec's image into the cache, and from there to a machine's disk.
//!
//! Started by the operations. Nothing is written before the target was found to be the disk that
//! the ramdisk reported.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use crate::{
    boot_call,
    image::Entry,
    imaging::{self, Geometry, ImageFile, ImagingOrder, Layout, LeastRate, Written},
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
    faults,
    layout::{self, Needs, Source},
    volume::TargetDisk,
    work::Operations,
};

/// Time over which a disk's lowest rate is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// Times that an image may decay in one operation: more often the cache's disk fails.
const DECAYED_MAX: usize = 3;

/// The disk to write, and what beside the spec is to be on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ImagingGoal<'a> {
    pub(super) target: &'a Target,
    /// The size that tells the target from that of another disk.
    pub(super) size: DiskSize,
    /// The token for the config drive.
    pub(super) boot_token: Option<&'a BootToken>,
}

fn random() -> Result<[u8; 32], Fault> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(faults::no_randomness)?;
    Ok(random)
}

impl Operations {
    /// Fetches the image into the cache, and makes a key for the attempt.
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

    /// The image from the cache, fetched again if it is no longer there. `decayed` holds the
    /// failures in this operation by which it was found to have decayed.
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

    /// Discards a decayed image, so that the next request fetches it again, and returns the fault.
    /// Any other fault is returned as the error.
    async fn discard_decayed(&self, entry: Entry, fault: Fault) -> Result<Fault, Fault> {
        if !entry.file.has_decayed() {
            return Err(fault);
        }
        let image = entry.path.display();
        warn!(%image, error = fault.message, "an image decayed in the cache; it is thrown away");
        let library = self.library.clone();
        let discarding = tokio::task::spawn_blocking(move || library.discard(&entry));
        let discarded = discarding.await.map_err(|error| faults::internal(&error))?;
        discarded.map_err(|error| Fault::of(Step::Image, &error))?;
        if fault.code == CANCELLED { Err(fault) } else { Ok(fault) }
    }

    /// Writes the image to the disk. If it turns out to have decayed in the cache, the operation
    /// fetches it again and writes from the start.
    pub(super) async fn image(
        &self,
        spec: &Arc<NodeSpec>,
        digest: &Digest,
        goal: ImagingGoal<'_>,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        let watch = Watch { cancel: cancel.clone(), stall: spec.timeouts.imaging_stall, meter };
        let mut decayed = Vec::new();
        loop {
            let source = self.source(spec, digest, &decayed, &watch).await?;
            let entry = source.entry.clone();
            match self.write(spec, source, goal, meter, cancel.clone()).await {
                Err(fault) => decayed.push(self.discard_decayed(entry, fault).await?),
                imaged => return imaged,
            }
        }
    }

    async fn write(
        &self,
        spec: &Arc<NodeSpec>,
        source: Source,
        goal: ImagingGoal<'_>,
        meter: &Meter,
        mut cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        let target_disk = TargetDisk::new(goal.target);
        let token = goal.boot_token;
        let url = token.map(|token| boot_call::url(self.boot_calls_at, &spec.name, token));
        let disk = imaging::open(&target_disk, cancel.clone()).await;
        let disk = disk.map_err(|error| faults::of_opening(&error))?;
        let geometry = disk.geometry();
        let layout = tokio::select! {
            layout = lay_out(spec, source, geometry, goal, url) => layout,
            () = stopped(&mut cancel) => Err(faults::cancelled(Step::Imaging)),
        };
        let layout = match layout {
            Ok(layout) => layout,
            Err(fault) => {
                disk.close().await;
                return Err(fault);
            }
        };
        let root_partuuid = layout.root_partuuid().map(str::to_owned);
        let order = ImagingOrder {
            layout,
            verify: spec.image.verify,
            stall: spec.timeouts.imaging_stall,
            least_rate: LeastRate { bytes_per_s: self.imaging_rate_min, over: RATE_WINDOW },
        };
        let disk_bytes = geometry.bytes;
        let written = disk
            .write(&order, meter, cancel)
            .await
            .map_err(|error| Fault::of(Step::Imaging, &error))?;
        let Written { bytes, writing, verifying, .. } = written;
        info!(node = %spec.name, bytes, ?writing, ?verifying, "image written");
        let stages = meter.durations();
        Ok(Outcome::Imaged { verify: written.ranges, disk_bytes, root_partuuid, stages })
    }
}

/// Lays out the target's disk, if it is the one that was asked for.
async fn lay_out(
    spec: &Arc<NodeSpec>,
    source: Source,
    disk: Geometry,
    goal: ImagingGoal<'_>,
    url: Option<Secret>,
) -> Result<Layout, Fault> {
    check_size(goal.target, disk.bytes, goal.size)?;
    layout::layout(Arc::clone(spec), source, disk, url).await
}

/// Refuses a disk of another size than the one meant.
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

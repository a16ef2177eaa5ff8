//! From a spec's image to a machine's disk: the two operations that move data.
//!
//! Started by the workshop. Nothing is written before the target was found to be the disk that the ramdisk reported.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::timeout;
use tracing::{info, warn};

use crate::{
    image::ImageError,
    imaging::{self, ImageFile, ImagingError},
    iscsi::{Chap, IscsiError, Lun, Options, TargetAddress},
    lifecycle::{Outcome, PreparedImage, Target},
    model::{
        fault::{Fault, Step},
        ids::Digest,
        secret::AttemptKey,
        size::show_bytes,
        spec::NodeSpec,
    },
    progress::{Cancel, Meter, Watch, stopped},
};

use super::{faults, work::Workshop};

/// Logins tried before the target is given up; a ramdisk's target may need a moment, and an old session of ours may linger.
const LOGIN_TRIES: u32 = 5;
/// Between two of them.
const LOGIN_PAUSE: Duration = Duration::from_secs(2);
/// For one more try to wipe a half-written disk, login and all: a live target needs far less, and the machine stays on meanwhile.
const WIPE_AGAIN_LIMIT: Duration = Duration::from_secs(10);

impl Workshop {
    /// The image into the cache, and a key for the attempt.
    pub(super) async fn prepare(
        &self,
        spec: &NodeSpec,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        for path in &self.boot_files {
            fs::File::open(path).map_err(|error| {
                let message = format!("deploy boot file {}: {error}", path.display());
                Fault::passing(
                    Step::Preflight,
                    "BootFilesMissing",
                    message,
                    "make them with `hostler ramdisk build`, and see [ramdisk]",
                )
            })?;
        }
        let watch = Watch { cancel, stall: spec.timeouts.imaging_stall, meter };
        let of_image = |error: ImageError| faults::of_image(&error);
        let digest = self.library.digest(&spec.image, &watch).await.map_err(of_image)?;
        let entry = self.library.get(&spec.image, &digest, &watch).await;
        let entry = entry.map_err(|error| faults::of_image(&error))?;
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| {
            Fault::passing(
                Step::Preflight,
                "NoRandomness",
                format!("the system gives no random bytes: {error}"),
                "look at this machine's kernel log, and whether /dev/urandom is there",
            )
        })?;
        let image = PreparedImage { digest, disk_bytes: entry.bytes, root_uuid: None };
        let key = AttemptKey::from_bytes(&random);
        Ok(Outcome::Prepared { image, key, stages: meter.durations() })
    }

    /// The image onto the disk.
    pub(super) async fn image(
        &self,
        spec: &NodeSpec,
        digest: &Digest,
        target: &Target,
        disk_bytes: u64,
        meter: &Meter,
        mut cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        let watch = Watch { cancel: cancel.clone(), stall: spec.timeouts.imaging_stall, meter };
        let of_image = |error: ImageError| faults::of_image(&error);
        let entry = self.library.get(&spec.image, digest, &watch).await;
        let entry = entry.map_err(|error| faults::of_image(&error))?;
        let image = ImageFile::new(Arc::clone(&entry.file), &entry.path)
            .map_err(|error| of_image(ImageError::Cache { path: entry.path.clone(), error }))?;
        let lun = tokio::select! {
            lun = log_in(target) => lun.map_err(|error| faults::of_iscsi(&error))?,
            () = stopped(&mut cancel) => return Err(faults::cancelled(Step::Imaging)),
        };
        if lun.capacity_bytes() != disk_bytes {
            let has_bytes = lun.capacity_bytes();
            let message = format!(
                "target {}: its disk has {} ({has_bytes} bytes), the one asked for has {} ({disk_bytes} bytes)",
                target.iqn,
                show_bytes(has_bytes),
                show_bytes(disk_bytes)
            );
            log_out(lun).await;
            return Err(Fault::passing(Step::Imaging, "WrongDisk", message, faults::OTHER_MACHINE));
        }
        let order =
            imaging::Order { image, verify: spec.image.verify, stall: spec.timeouts.imaging_stall };
        let lun = Arc::new(lun);
        let written = imaging::write_image(Arc::clone(&lun), &order, meter, cancel).await;
        // The pipeline has returned: nobody else holds it.
        if let Some(lun) = Arc::into_inner(lun) {
            log_out(lun).await;
        }
        match written {
            Ok(written) => {
                info!(node = %spec.name, ?written, "image written and verified");
                Ok(Outcome::Imaged { verify: Vec::new(), stages: meter.durations() })
            }
            Err(error) => {
                let error = wipe_again(spec, target, error).await;
                Err(faults::of_imaging(Step::Imaging, &error))
            }
        }
    }
}

async fn log_in(target: &Target) -> Result<Lun, IscsiError> {
    let address = TargetAddress {
        portal: SocketAddr::new(target.address, target.port),
        iqn: target.iqn.clone(),
        lun: u16::from(target.lun),
    };
    let chap = Chap {
        username: target.chap_username.clone(),
        secret: target.chap_password.clone(),
        mutual: None,
    };
    let mut tries = 1;
    loop {
        match Lun::connect(&address, Some(&chap), &Options::default()).await {
            Err(error) if tries < LOGIN_TRIES => {
                warn!(%error, tries, "iSCSI login failed; trying again");
                tries += 1;
                tokio::time::sleep(LOGIN_PAUSE).await;
            }
            result => return result,
        }
    }
}

async fn log_out(lun: Lun) {
    if let Err(error) = lun.logout().await {
        warn!(%error, "iSCSI logout failed; the connection is closed");
    }
}

/// If the old connection could not wipe the half-written disk: one more try on a new one. Returns what is left to be told.
async fn wipe_again(spec: &NodeSpec, target: &Target, error: ImagingError) -> ImagingError {
    let ImagingError::NotWiped { cause, wipe } = error else { return error };
    warn!(node = %spec.name, error = %cause, "imaging failed; wiping the disk on a new connection");
    let again = async {
        let lun = Arc::new(log_in(target).await.map_err(|error| error.to_string())?);
        let wiped = imaging::wipe(Arc::clone(&lun)).await;
        if let Some(lun) = Arc::into_inner(lun) {
            log_out(lun).await;
        }
        wiped.map_err(|error| error.to_string())
    };
    let error = match timeout(WIPE_AGAIN_LIMIT, again).await {
        Ok(Ok(())) => return *cause,
        Ok(Err(error)) => error,
        Err(_) => format!("not done in {} s", WIPE_AGAIN_LIMIT.as_secs()),
    };
    warn!(node = %spec.name, error, "the half-written disk is not wiped");
    ImagingError::NotWiped { cause, wipe }
}

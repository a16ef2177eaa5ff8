//! The kernels and ramdisks that installed machines boot over the network: into the cache,
//! verified, and out of it again when a machine asks.
//!
//! [`Operations`] brings them in, for an attempt and for a machine whose spec was changed; the
//! servers of boot files open them here. A file is known by its digest, and read as a whole before
//! it is served. Nothing here may put one file in the place of another: a machine is served the
//! files in its record.

use tokio::sync::mpsc::WeakSender;

use crate::{
    image::{FetchError, ImageError, Library},
    lifecycle::{Event, Outcome},
    model::{
        fault::{Fault, Step},
        ids::Digest,
        netboot::{Netboot, NetbootFiles},
        spec::NodeSpec,
    },
    netboot::Cached,
    progress::{Cancel, Meter, Watch},
};

use super::work::{Operations, Report};

impl Operations {
    /// Sees that what the machine is served is in the cache, and what its spec wants.
    pub(super) async fn netboot_files(
        &self,
        spec: &NodeSpec,
        served: Option<NetbootFiles>,
        renew: bool,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        let watch = Watch { cancel, stall: spec.timeouts.imaging_stall, meter };
        // Whatever comes of the new files: those that are served are to be there.
        let served = match served {
            Some(files) => Some(self.keep_netboot_files(files, &watch).await),
            None => None,
        };
        let wanted = spec.image.netboot.as_ref();
        let files = match (served, wanted) {
            (Some(Ok(files)), Some(wanted)) if files.are_of(wanted) => Some(files),
            (Some(served), _) if !renew => Some(served?),
            (_, Some(wanted)) if renew => Some(self.verify_netboot(wanted, &watch).await?),
            _ => None,
        };
        Ok(Outcome::NetbootFiles(files))
    }

    /// Puts what a spec wants into the cache.
    pub(super) async fn verify_netboot(
        &self,
        wanted: &Netboot,
        watch: &Watch<'_>,
    ) -> Result<NetbootFiles, Fault> {
        let Netboot { kernel, kernel_checksum, ramdisk, ramdisk_checksum, kernel_args } = wanted;
        let files = NetbootFiles {
            kernel: kernel.clone(),
            kernel_digest: kernel_checksum.clone(),
            ramdisk: ramdisk.clone(),
            ramdisk_digest: ramdisk_checksum.clone(),
            kernel_args: kernel_args.clone(),
        };
        self.keep_netboot_files(files, watch).await
    }

    /// The same files, in the cache and with their digests.
    async fn keep_netboot_files(
        &self,
        mut files: NetbootFiles,
        watch: &Watch<'_>,
    ) -> Result<NetbootFiles, Fault> {
        let NetbootFiles { kernel, kernel_digest, ramdisk, ramdisk_digest, .. } = &mut files;
        for (key, path, digest) in
            [("image.kernel", kernel, kernel_digest), ("image.ramdisk", ramdisk, ramdisk_digest)]
        {
            let kept = keep(&self.library, path, digest.take(), watch).await;
            *digest = Some(kept.map_err(|error| of_file(key, path, &error))?);
        }
        Ok(files)
    }
}

/// Without a digest it becomes known by the one it has now.
async fn keep(
    library: &Library,
    path: &str,
    digest: Option<Digest>,
    watch: &Watch<'_>,
) -> Result<Digest, std::sync::Arc<ImageError>> {
    let digest = match digest {
        Some(digest) => digest,
        None => library.hash(path, watch).await?,
    };
    library.keep(path, &digest, watch).await?;
    Ok(digest)
}

/// A kernel or ramdisk cannot be had. Whoever put it there may put another one there.
fn of_file(key: &str, path: &str, error: &ImageError) -> Fault {
    let (code, message, hint) = match error {
        ImageError::Fetch(FetchError::Checksum { wanted, found, .. }) => (
            "ChecksumMismatch",
            format!("{key} {path}: its checksum is {found}, not {wanted}"),
            "copy the file again, or correct its checksum in the spec",
        ),
        ImageError::Fetch(FetchError::File { source, .. }) => (
            "OwnBootFilesMissing",
            format!("{key} {path}: {source}"),
            "put it under images.dir or images.allowed_dirs, readable for hostler's user",
        ),
        ImageError::Fetch(FetchError::Unusable { reason, .. }) => (
            "OwnBootFilesMissing",
            format!("{key} {path}: {reason}"),
            "put it under images.dir or images.allowed_dirs, readable for hostler's user",
        ),
        error => {
            let fault = Fault::of(Step::Image, error);
            return Fault { message: format!("{key} {path}: {}", fault.message), ..fault };
        }
    };
    Fault::passing(Step::Preflight, code, message, hint)
}

/// Opens files of the cache for the servers of boot files. A file that is missing or has decayed is
/// not served, and the node's machine is to have it again.
pub(super) fn cached(library: Library, reports: WeakSender<Report>) -> Cached {
    Cached::new(move |node, digest| {
        library.open_kept(digest).inspect_err(|_| {
            // A machine that asks again says so again.
            if let Some(reports) = reports.upgrade() {
                drop(reports.try_send((node.clone(), Event::NetbootLost)));
            }
        })
    })
}

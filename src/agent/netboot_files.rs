//! Verifies and caches the kernels and ramdisks of installed machines that boot over the network,
//! and opens them for the boot file servers.
//!
//! [`Operations`] caches the files for an attempt or an update; the boot file servers open them
//! here. A file's name in the cache is its digest, and the whole file is verified before it is
//! served. A machine must never be served another file than those in its record.

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

use super::work::{NodeEvent, Operations};

impl Operations {
    /// Caches the files that the machine is served, and with `renew` those of its spec.
    pub(super) async fn netboot_files(
        &self,
        spec: &NodeSpec,
        served: Option<NetbootFiles>,
        renew: bool,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        let watch = Watch { cancel, stall: spec.timeouts.imaging_stall, meter };
        // The present files come first, because they must stay available if the new ones fail.
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

    /// Verifies and caches a spec's files.
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

    /// Caches the files, and returns them with their digests.
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

/// Caches a file by its digest, or, without one, by its present digest.
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

/// The fault of a kernel or ramdisk, which may pass because an operator may replace the file.
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

/// Opens cached files for the boot file servers. A missing or decayed file is an error, and the
/// node gets an event that has the file cached again.
pub(super) fn cached(library: Library, reports: WeakSender<NodeEvent>) -> Cached {
    Cached::new(move |node, digest| {
        library.open_kept(digest).inspect_err(|_| {
            // If the channel is full, the machine's next request sends the event.
            if let Some(reports) = reports.upgrade() {
                drop(reports.try_send((node.clone(), Event::NetbootLost)));
            }
        })
    })
}

//! Checks of what a node's installation needs, ahead of time.
//!
//! Called by `hostler doctor`. It must never change a machine, a BMC or the image cache: it reads
//! files, and asks BMCs and image servers.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

use crate::{
    bmc::Chassis,
    config::Config,
    image::Library,
    model::{
        fault::{Fault, Step},
        ids::Digest,
        spec::{Image, NodeSpec},
    },
    progress::{Meter, Watch},
};

use super::{boot_files::DeployFiles, power::Bmcs, work::library};

/// Longest wait for a BMC's answers.
const BMC_LIMIT: Duration = Duration::from_secs(15);
/// Longest silence of an image's server.
const SERVER_STALL: Duration = Duration::from_secs(15);

/// The checks, with one configuration.
#[derive(Debug)]
pub(crate) struct Preflight {
    deploy_files: DeployFiles,
    bmcs: Bmcs,
    library: Library,
}

/// An image that its server or file system has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageFound {
    /// The digest in the spec, or in the list that the spec names.
    pub(crate) digest: Digest,
    /// Size of the published file in bytes, without the holes of a local file; `None` if the server
    /// does not report it.
    pub(crate) published_bytes: Option<u64>,
}

impl Preflight {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            deploy_files: DeployFiles::new(config),
            bmcs: Bmcs::new(config),
            library: library(config),
        }
    }

    /// Checks that the deploy kernel and ramdisk for the machine exist.
    pub(crate) fn deploy_files(&self, spec: &NodeSpec) -> Result<(), Fault> {
        self.deploy_files.check(&spec.boot)
    }

    /// Checks that the BMC's password and key can be read, and could be a BMC's.
    pub(crate) fn bmc_secrets(&self, spec: &NodeSpec) -> Result<(), Fault> {
        self.bmcs.check_secrets(spec)
    }

    /// Reads the power state and the boot device: the BMC answers and takes the login with the
    /// privilege of the spec.
    pub(crate) async fn chassis(&self, spec: &NodeSpec) -> Result<Chassis, Fault> {
        let (_stop, never) = watch::channel(false);
        let call = async |bmc: crate::bmc::Bmc, limit: Duration| {
            bmc.chassis(Instant::now() + limit.min(BMC_LIMIT)).await
        };
        self.bmcs.with(Step::Preflight, spec, never, call).await
    }

    /// Looks up the image's digest and asks for the file's size.
    pub(crate) async fn image(&self, image: &Image) -> Result<ImageFound, Fault> {
        let (_stop, cancel) = watch::channel(false);
        let meter = Meter::default();
        let watch = Watch { cancel, stall: SERVER_STALL, meter: &meter };
        let found = async {
            let digest = self.library.digest(image, &watch).await?;
            let published_bytes = self.library.published_bytes(image, &watch).await?;
            Ok(ImageFound { digest, published_bytes })
        };
        found.await.map_err(|error: crate::image::ImageError| Fault::of(Step::Image, &error))
    }
}

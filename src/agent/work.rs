//! Performs the core's operations: power, image and disk. Each operation is a task, which must
//! report exactly once.
//!
//! Started by `effects.rs`. Nothing here may decide what comes next.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    callback,
    config::Config,
    image::{self, Library},
    lifecycle::{DiskSize, Event, NO_ANSWER, Operation, Outcome, Target},
    model::{
        fault::{Fault, Step},
        ids::{Digest, NodeName},
        secret::BootToken,
        spec::{NodeSpec, SSH_PORT},
    },
    port_probe::{self, PortAnswer},
    progress::{Cancel, Meter, stopped},
    store::Checkpoints,
};

use super::{bmc_names::BmcNames, boot_files::DeployFiles, faults, mark::Standing, power::Bmcs};

/// An event of a node from an operation or another task of the agent, for the driver.
pub(super) type NodeEvent = (NodeName, Event);

/// The write of a spec's image to the disk that a ramdisk exports.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskWrite<'a> {
    pub(super) spec: &'a Arc<NodeSpec>,
    /// The digest of the published image.
    pub(super) image: &'a Digest,
    pub(super) target: &'a Target,
    pub(super) size: DiskSize,
    /// The token for the config drive.
    pub(super) boot_token: Option<&'a BootToken>,
}

/// The resources of all operations.
#[derive(Debug)]
pub(super) struct Operations {
    pub(super) library: Library,
    pub(super) checkpoints: Checkpoints,
    pub(super) deploy_files: DeployFiles,
    pub(super) bmcs: Bmcs,
    /// The least rate of a disk in bytes a second; 0: any.
    pub(super) imaging_rate_min: u64,
    pub(super) standing: Standing,
    pub(super) bmc_names: BmcNames,
    /// Where installed systems call.
    pub(super) boot_calls_at: SocketAddr,
}

impl Operations {
    pub(super) fn new(
        config: &Config,
        standing: Standing,
        checkpoints: Checkpoints,
        boot_calls_at: SocketAddr,
    ) -> Self {
        Self {
            imaging_rate_min: config.limits.imaging_rate_min,
            standing,
            checkpoints,
            boot_calls_at,
            bmc_names: BmcNames::default(),
            library: library(config),
            deploy_files: DeployFiles::new(config),
            bmcs: Bmcs::new(config),
        }
    }

    /// Performs an operation. After `cancel`, it returns only once the operation has really
    /// stopped.
    pub(super) async fn perform(
        &self,
        operation: Operation,
        spec: &Arc<NodeSpec>,
        meter: &Meter,
        mut cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        if !matches!(operation, Operation::PollPower | Operation::ConfirmPower) {
            tokio::select! {
                () = self.standing.confirmed() => {}
                () = stopped(&mut cancel) => return Err(faults::cancelled(Step::Preflight)),
            }
        }
        match operation {
            Operation::PollPower => self.bmcs.poll(spec, cancel).await.map(Outcome::Power),
            Operation::ConfirmPower => {
                // The last check: from the next operation on, a clean-up uses the BMC.
                self.bmc_names.check(Step::Preflight, spec).await?;
                self.bmcs.confirm(spec, cancel).await.map(Outcome::Power)
            }
            Operation::Prepare => {
                self.bmc_names.check(Step::Preflight, spec).await?;
                let system_guid = self.bmcs.system_guid(spec, cancel.clone()).await?;
                Box::pin(self.prepare(spec, system_guid, meter, cancel)).await
            }
            Operation::PowerOn => {
                self.bmcs.netboot(spec, cancel).await?;
                Ok(Outcome::PoweredOn)
            }
            Operation::Image { image, target, size, boot_token } => {
                // Boxed, because this future is large, and all others, which are many, must stay
                // small.
                let (image, target, boot_token) = (&image, &target, boot_token.as_ref());
                let wanted = DiskWrite { spec, image, target, size, boot_token };
                Box::pin(self.image(wanted, meter, cancel)).await
            }
            Operation::Release(ramdisk) => {
                tokio::select! {
                    () = callback::ironic::release(ramdisk) => Ok(Outcome::Released),
                    () = stopped(&mut cancel) => Err(faults::cancelled(Step::Completed)),
                }
            }
            Operation::Restart { wanted: leave } => {
                self.bmcs.restart(spec, leave, cancel).await?;
                Ok(Outcome::Restarted(leave))
            }
            Operation::ProbePort { address, port } => {
                let ssh = port == SSH_PORT;
                let answer = tokio::select! {
                    answer = port_probe::probe(&address, port, ssh) => answer,
                    () = stopped(&mut cancel) => return Err(faults::cancelled(Step::FirstBoot)),
                };
                answer
                    .map(|PortAnswer { address, ssh_banner }| Outcome::PortAnswered {
                        address,
                        ssh_banner,
                    })
                    .map_err(|why| Fault::passing(Step::FirstBoot, NO_ANSWER, why, ""))
            }
            Operation::SetPower(wanted) => {
                self.bmc_names.check(Step::Power, spec).await?;
                self.bmcs.set(spec, wanted, cancel).await?;
                Ok(Outcome::PowerSet(wanted))
            }
            Operation::CleanUp => {
                self.bmcs.clean_up(spec, cancel).await?;
                Ok(Outcome::CleanedUp)
            }
            Operation::NetbootFiles { served, renew } => {
                self.netboot_files(spec, served, renew, meter, cancel).await
            }
        }
    }
}

/// Makes the image library of a configuration, for the agent or a command.
pub(crate) fn library(config: &Config) -> Library {
    let images = config.images.clone();
    Library::new(image::LibraryOptions {
        dir: images.dir,
        allowed_dirs: images.allowed_dirs,
        cache_dir: images.cache_dir,
        cache_bytes: images.cache_size,
        published_bytes_max: images.published_max,
        raw_bytes_max: images.raw_max,
    })
}

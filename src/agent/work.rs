//! Carrying out the core's operations: BMC, image and disk. Each operation is a task; it reports exactly once.
//!
//! Started by the driver. Nothing here decides what comes next.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::{
    callback,
    config::Config,
    image::{self, Library},
    ipmi::{Bmc, BmcConfig, IpmiError},
    lifecycle::{Operation, Outcome},
    model::{
        fault::{Fault, Step},
        ids::NodeName,
        power::{BootDevice, BootPersistence, PowerState},
        secret::Secret,
        spec::{self, NodeSpec},
    },
    progress::{Cancel, Meter, stopped},
};

use super::{faults, image_dirs, menu};

/// Looks at power states that may go on at once: each takes a socket, and one of a dead BMC takes it for minutes.
const LOOKS_MAX: usize = 256;
/// Everything operations need.
#[derive(Debug)]
pub(super) struct Workshop {
    pub(super) library: Library,
    secrets: PathBuf,
    /// Kernel and ramdisk: hostler's own, and Ironic's if that may be used.
    pub(super) boot_files: [PathBuf; 2],
    pub(super) ironic_files: Option<[PathBuf; 2]>,
    image_dirs: Vec<PathBuf>,
    bmc_spacing: Duration,
    looks: Semaphore,
    bmcs: Mutex<BTreeMap<NodeName, KnownBmc>>,
}

/// A node's client, kept because it remembers the cipher suite and paces the calls, with what it was made from.
#[derive(Debug)]
struct KnownBmc {
    spec: spec::Bmc,
    password: Secret,
    client: Arc<Bmc>,
}

impl Workshop {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            library: library(config),
            secrets: config.secrets.dir.clone(),
            image_dirs: image_dirs(&config.images),
            boot_files: [config.ramdisk.kernel.clone(), config.ramdisk.initramfs.clone()],
            ironic_files: config
                .ironic
                .as_ref()
                .map(|ironic| [ironic.kernel.clone(), ironic.initramfs.clone()]),
            bmc_spacing: config.limits.bmc_spacing,
            looks: Semaphore::new(LOOKS_MAX),
            bmcs: Mutex::default(),
        }
    }

    /// Does it. When `cancel` says so it stops, and returns only when it has really stopped.
    pub(super) async fn perform(
        &self,
        operation: Operation,
        spec: &Arc<NodeSpec>,
        meter: &Meter,
        cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        use BootDevice::{Disk, Pxe};
        use BootPersistence::{NextBoot, Persistent};
        use PowerState::{Off, On};
        match operation {
            Operation::ObservePower => {
                let look = async |bmc: Arc<Bmc>, limit| {
                    // It is never closed: without a permit, the look goes on all the same.
                    let _permit = self.looks.acquire().await;
                    bmc.power_state(Instant::now() + limit).await
                };
                self.with_bmc(Step::Preflight, spec, cancel, look).await.map(Outcome::Power)
            }
            Operation::Prepare => {
                if let Some(netboot) = &spec.image.netboot {
                    menu::check_own_files(&self.image_dirs, netboot)?;
                }
                self.prepare(spec, meter, cancel).await
            }
            Operation::PowerOn => {
                self.switch_off(Step::PowerOn, spec, Pxe, NextBoot, On, cancel).await?;
                Ok(Outcome::PoweredOn)
            }
            Operation::Image { image, target, size } => {
                self.image(spec, &image, &target, size, meter, cancel).await
            }
            Operation::Release(ramdisk) => {
                let mut cancel = cancel;
                tokio::select! {
                    () = callback::ironic::release(ramdisk) => Ok(Outcome::Released),
                    () = stopped(&mut cancel) => Err(faults::cancelled(Step::Completed)),
                }
            }
            Operation::Restart { leave } => {
                // Off and on instead of a power cycle: that the machine was off is seen, not believed.
                self.switch_off(Step::Restart, spec, own_device(spec), Persistent, leave, cancel)
                    .await?;
                Ok(Outcome::Restarted(leave))
            }
            Operation::SetPower(wanted) => {
                let set = async |bmc: Arc<Bmc>, limit: Duration| {
                    let deadline = || Instant::now() + limit;
                    // A clean-up, or a spec that wanted something else, may have left it to boot from its disk.
                    if wanted == On && own_device(spec) == Pxe {
                        let firmware = spec.boot.firmware;
                        bmc.set_boot_device(Pxe, Persistent, firmware, deadline()).await?;
                    }
                    match wanted {
                        On => bmc.reach_power(On, deadline()).await,
                        // Its own system runs: it gets half of the time to shut down by itself.
                        Off => bmc.soft_off(limit / 2, deadline()).await,
                    }
                };
                self.with_bmc(Step::Power, spec, cancel, set).await?;
                Ok(Outcome::PowerSet(wanted))
            }
            Operation::CleanUp => {
                self.switch_off(Step::Cleanup, spec, Disk, Persistent, Off, cancel).await?;
                Ok(Outcome::CleanedUp)
            }
        }
    }

    /// Off, whatever becomes of the rest; then the boot device; then on, if the machine is to be left so.
    async fn switch_off(
        &self,
        step: Step,
        spec: &NodeSpec,
        device: BootDevice,
        persistence: BootPersistence,
        leave: PowerState,
        cancel: Cancel,
    ) -> Result<(), Fault> {
        let firmware = spec.boot.firmware;
        let call = async |bmc: Arc<Bmc>, limit: Duration| {
            let deadline = || Instant::now() + limit;
            bmc.reach_power(PowerState::Off, deadline()).await?;
            bmc.set_boot_device(device, persistence, firmware, deadline()).await?;
            match leave {
                PowerState::On => bmc.reach_power(PowerState::On, deadline()).await,
                PowerState::Off => Ok(()),
            }
        };
        self.with_bmc(step, spec, cancel, call).await
    }

    /// Makes one call to the node's BMC, `timeouts.power` for each part of it. Dropping the call closes its session.
    async fn with_bmc<T>(
        &self,
        step: Step,
        spec: &NodeSpec,
        mut cancel: Cancel,
        call: impl AsyncFnOnce(Arc<Bmc>, Duration) -> Result<T, IpmiError>,
    ) -> Result<T, Fault> {
        let bmc = self.bmc(step, spec)?;
        tokio::select! {
            result = call(bmc, spec.timeouts.power) => result.map_err(|error| faults::of_bmc(step, spec, &error)),
            () = stopped(&mut cancel) => Err(faults::cancelled(step)),
        }
    }

    /// The node's client. The password is read each time, so that a corrected file counts at once.
    fn bmc(&self, step: Step, spec: &NodeSpec) -> Result<Arc<Bmc>, Fault> {
        let bmc = spec.bmc.as_ref().ok_or_else(|| faults::no_bmc(step))?;
        let path = self.secrets.join(&bmc.password_file);
        let password = read_password(&path).map_err(|error| {
            let message = format!("bmc.password_file {}: {error}", path.display());
            Fault::passing(
                step,
                "PasswordUnreadable",
                message,
                "put the BMC's password there, readable for hostler's user only",
            )
        })?;
        let mut bmcs = self.bmcs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = bmcs.get(&spec.name);
        if let Some(known) = known.filter(|known| known.spec == *bmc && known.password == password)
        {
            return Ok(Arc::clone(&known.client));
        }
        let client = Arc::new(Bmc::new(BmcConfig {
            address: bmc.address.clone(),
            username: bmc.username.clone(),
            password: password.clone(),
            privilege: bmc.privilege,
            cipher_suite: bmc.cipher_suite,
            spacing: self.bmc_spacing,
        }));
        let known = KnownBmc { spec: bmc.clone(), password, client: Arc::clone(&client) };
        bmcs.insert(spec.name.clone(), known);
        Ok(client)
    }
}

/// The image library of this configuration; the agent's, or that of a command.
pub(crate) fn library(config: &Config) -> Library {
    let images = config.images.clone();
    Library::new(image::Options {
        dir: images.dir,
        allowed_dirs: images.allowed_dirs,
        cache_dir: images.cache_dir,
        cache_bytes: images.cache_size,
        published_bytes_max: images.published_max,
        raw_bytes_max: images.raw_max,
    })
}

/// What an installed machine boots from.
fn own_device(spec: &NodeSpec) -> BootDevice {
    if spec.image.netboot.is_some() { BootDevice::Pxe } else { BootDevice::Disk }
}

/// The first line of a password file.
fn read_password(path: &std::path::Path) -> io::Result<Secret> {
    let text = fs::read_to_string(path)?;
    Ok(Secret::new(text.lines().next().unwrap_or_default().to_owned()))
}

/// A new cancel signal: the sender's end for the driver.
pub(super) fn cancel_signal() -> (watch::Sender<bool>, Cancel) {
    watch::channel(false)
}

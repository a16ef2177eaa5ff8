//! Carrying out the core's operations: BMC, image and disk. Each operation is a task; it reports exactly once.
//!
//! Started by the driver. Nothing here decides what comes next.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};
use tracing::{info, warn};

use crate::{
    config::Config,
    imaging::{self, Cancel, Images, ImagingError, Meter},
    ipmi::{Bmc, BmcConfig, IpmiError},
    iscsi::{Chap, IscsiError, Lun, Options, TargetAddress},
    lifecycle::{Operation, Outcome, Target},
    model::{
        fault::{Fault, Step},
        ids::NodeName,
        power::{BootDevice, BootPersistence, PowerState},
        secret::{AttemptKey, Secret},
        size::show_bytes,
        spec::{self, NodeSpec},
    },
};

use super::faults;

/// Looks at power states that may go on at once: each takes a socket, and one of a dead BMC takes it for minutes.
const LOOKS_MAX: usize = 256;
/// Logins tried before the target is given up; a ramdisk's target may need a moment, and an old session of ours may linger.
const LOGIN_TRIES: u32 = 5;
/// Between two of them.
const LOGIN_PAUSE: Duration = Duration::from_secs(2);
/// For one more try to wipe a half-written disk, login and all: a live target needs far less, and the machine stays on meanwhile.
const WIPE_AGAIN_LIMIT: Duration = Duration::from_secs(10);

/// Everything operations need.
#[derive(Debug)]
pub(super) struct Workshop {
    images: Images,
    secrets: PathBuf,
    boot_files: [PathBuf; 2],
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
            images: Images::new(&config.images.dir, config.images.allowed_dirs.clone()),
            secrets: config.secrets.dir.clone(),
            boot_files: [config.ramdisk.kernel.clone(), config.ramdisk.initramfs.clone()],
            bmc_spacing: config.limits.bmc_spacing,
            looks: Semaphore::new(LOOKS_MAX),
            bmcs: Mutex::default(),
        }
    }

    /// Does it. When `cancel` says so it stops, and returns only when it has really stopped.
    pub(super) async fn perform(
        &self,
        operation: Operation,
        spec: &NodeSpec,
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
            Operation::Prepare => self.prepare(spec, meter, cancel).await,
            Operation::PowerOn => {
                self.switch_off(Step::PowerOn, spec, Pxe, NextBoot, On, cancel).await?;
                Ok(Outcome::PoweredOn)
            }
            Operation::Image { target, disk_bytes } => {
                self.image(spec, &target, disk_bytes, meter, cancel).await
            }
            Operation::Restart { leave } => {
                // Off and on instead of a power cycle: that the machine was off is seen, not believed.
                self.switch_off(Step::Restart, spec, Disk, Persistent, leave, cancel).await?;
                Ok(Outcome::Restarted(leave))
            }
            Operation::SetPower(wanted) => {
                let set = async |bmc: Arc<Bmc>, limit: Duration| {
                    let deadline = Instant::now() + limit;
                    match wanted {
                        On => bmc.reach_power(On, deadline).await,
                        // Its own system runs: it gets half of the time to shut down by itself.
                        Off => bmc.soft_off(limit / 2, deadline).await,
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
        let path = self.secrets.join(&spec.bmc.password_file);
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
        if let Some(known) =
            known.filter(|known| known.spec == spec.bmc && known.password == password)
        {
            return Ok(Arc::clone(&known.client));
        }
        let client = Arc::new(Bmc::new(BmcConfig {
            address: spec.bmc.address.clone(),
            username: spec.bmc.username.clone(),
            password: password.clone(),
            privilege: spec.bmc.privilege,
            cipher_suite: spec.bmc.cipher_suite,
            spacing: self.bmc_spacing,
        }));
        let known = KnownBmc { spec: spec.bmc.clone(), password, client: Arc::clone(&client) };
        bmcs.insert(spec.name.clone(), known);
        Ok(client)
    }

    async fn prepare(
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
        let of_imaging = |error: ImagingError| faults::of_imaging(Step::Image, &error);
        let image = self.images.open(&spec.image.source).map_err(of_imaging)?;
        imaging::verify_checksum(
            &image,
            &spec.image.checksum,
            spec.timeouts.imaging_stall,
            meter,
            cancel,
        )
        .await
        .map_err(of_imaging)?;
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| {
            Fault::passing(
                Step::Preflight,
                "NoRandomness",
                format!("the system gives no random bytes: {error}"),
                "look at this machine's kernel log, and whether /dev/urandom is there",
            )
        })?;
        Ok(Outcome::Prepared { image_bytes: image.bytes(), key: AttemptKey::from_bytes(&random) })
    }

    async fn image(
        &self,
        spec: &NodeSpec,
        target: &Target,
        disk_bytes: u64,
        meter: &Meter,
        mut cancel: Cancel,
    ) -> Result<Outcome, Fault> {
        let image = self
            .images
            .open(&spec.image.source)
            .map_err(|error| faults::of_imaging(Step::Imaging, &error))?;
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
        let order = imaging::Order {
            image,
            digest: spec.image.checksum.clone(),
            stall: spec.timeouts.imaging_stall,
        };
        let lun = Arc::new(lun);
        let written = imaging::write_image(Arc::clone(&lun), &order, meter, cancel).await;
        // The pipeline has returned: nobody else holds it.
        if let Some(lun) = Arc::into_inner(lun) {
            log_out(lun).await;
        }
        match written {
            Ok(written) => {
                info!(node = %spec.name, ?written, "image written and verified");
                Ok(Outcome::Imaged)
            }
            Err(error) => {
                let error = wipe_again(spec, target, error).await;
                Err(faults::of_imaging(Step::Imaging, &error))
            }
        }
    }
}

/// Waits until the work is to stop. That nobody can say so any more means the same.
async fn stopped(cancel: &mut Cancel) {
    drop(cancel.wait_for(|stop| *stop).await);
}

/// The first line of a password file.
fn read_password(path: &std::path::Path) -> io::Result<Secret> {
    let text = fs::read_to_string(path)?;
    Ok(Secret::new(text.lines().next().unwrap_or_default().to_owned()))
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

/// A new cancel signal: the sender's end for the driver.
pub(super) fn cancel_signal() -> (watch::Sender<bool>, Cancel) {
    watch::channel(false)
}

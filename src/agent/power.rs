//! Performs the core's power operations by each node's BMC client.
//!
//! Called by the operations. It must never switch a machine on before its boot device is set, nor
//! have two clients for one node: a client keeps the pause between two calls to its BMC.

use std::{
    collections::BTreeMap,
    env, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use zeroize::Zeroizing;

use crate::{
    bmc::{self, Bmc, BmcError, BmcSecrets, Trusted},
    config::Config,
    lifecycle::POLL_LIMIT,
    model::{
        bmc_key::BmcKey,
        fault::{Fault, Step},
        ids::NodeName,
        power::{BootDevice, BootPersistence, PowerState},
        secret::Secret,
        spec::{self, BmcDriver, NodeSpec, Password},
        system_guid::SystemGuid,
    },
    progress::{Cancel, stopped},
    regular_file,
};

use super::{faults, refusals::Refusals};

/// Most BMCs that operators use at once, fewer than the admin socket's connections, of which each
/// takes one.
const BMC_COMMANDS_MAX: usize = 16;

/// Most bytes read of a password file, more than its first line may have.
const PASSWORD_FILE_BYTES_MAX: u64 = 4096;
/// Longest password (IPMI 2.0 §22.30).
const PASSWORD_BYTES_MAX: usize = 20;

/// Serializes the use of a node's BMC, first in, first out. A multi-step operation (off, set boot
/// device, on) holds the lock throughout, so that a poll never mistakes a machine in mid-restart
/// for an unclaimed one that is off.
type BmcLock = Arc<tokio::sync::Mutex<()>>;

/// The BMCs of all nodes.
#[derive(Debug)]
pub(super) struct Bmcs {
    secrets: PathBuf,
    /// The directory of the service's credentials, if it has one.
    credentials: Option<PathBuf>,
    spacing: Duration,
    pub(super) bmc_commands: Semaphore,
    pub(super) refusals: Refusals,
    locks: Mutex<BTreeMap<NodeName, BmcLock>>,
    known: Mutex<BTreeMap<NodeName, KnownBmc>>,
}

/// A node's client with its configuration, kept because the client remembers the cipher suite and
/// the time of the last call.
#[derive(Debug)]
struct KnownBmc {
    spec: spec::Bmc,
    secrets: BmcSecrets,
    client: Bmc,
}

impl Bmcs {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            secrets: config.secrets.dir.clone(),
            credentials: env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            spacing: config.limits.bmc_spacing,
            bmc_commands: Semaphore::new(BMC_COMMANDS_MAX),
            refusals: Refusals::default(),
            locks: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// Polls the power state outside of an attempt: with a shorter limit than in one, and without a
    /// login that the BMC has rejected.
    pub(super) async fn poll(&self, spec: &NodeSpec, cancel: Cancel) -> Result<PowerState, Fault> {
        let step = Step::Preflight;
        let bmc = spec.bmc.as_deref().ok_or_else(|| faults::no_bmc(step))?;
        let secrets = self.secrets(step, bmc)?;
        if let Some(refusal) = self.refusals.of(spec, &secrets) {
            return Err(refusal);
        }
        let client = self.client_with(step, spec, &secrets)?;
        let polled = self.poll_now(spec, client, cancel).await;
        self.refusals.note(spec, secrets, &polled);
        polled
    }

    async fn poll_now(
        &self,
        spec: &NodeSpec,
        client: Bmc,
        mut cancel: Cancel,
    ) -> Result<PowerState, Fault> {
        let step = Step::Preflight;
        let (began, limit) = (Instant::now(), spec.timeouts.power.min(POLL_LIMIT));
        let mut sent_at = None;
        let call = async |bmc: Bmc, _| {
            let now = *sent_at.insert(Instant::now());
            bmc.poll_power_state(now + limit).await
        };
        let (_stop, never) = watch::channel(false);
        tokio::select! {
            state = self.with_client(step, spec, client, never, call) => return state,
            () = stopped(&mut cancel) => {}
        }
        Err(faults::of_cut_poll(spec, began.elapsed(), sent_at.map(|at| at.elapsed())))
    }

    /// Confirms the power state within an attempt.
    pub(super) async fn confirm(
        &self,
        spec: &NodeSpec,
        cancel: Cancel,
    ) -> Result<PowerState, Fault> {
        let ask = async |bmc: Bmc, limit| bmc.power_state(Instant::now() + limit).await;
        self.with(Step::Preflight, spec, cancel, ask).await
    }

    /// Reads the machine's UUID from its BMC, if the ramdisk's must match.
    pub(super) async fn system_guid(
        &self,
        spec: &NodeSpec,
        cancel: Cancel,
    ) -> Result<Option<SystemGuid>, Fault> {
        if !spec.bmc.as_ref().is_some_and(|bmc| bmc.match_system_uuid) {
            return Ok(None);
        }
        let ask = async |bmc: Bmc, limit| bmc.system_guid(Instant::now() + limit).await;
        self.with(Step::Preflight, spec, cancel, ask).await.map(Some)
    }

    /// Switches the machine off and on, into the deploy ramdisk.
    pub(super) async fn netboot(&self, spec: &NodeSpec, cancel: Cancel) -> Result<(), Fault> {
        let (device, once) = (BootDevice::Pxe, BootPersistence::NextBoot);
        self.switch_off(Step::PowerOn, spec, device, once, PowerState::On, cancel).await
    }

    /// Switches the machine off, and, if `leave` is on, on again into the installed system. Two
    /// steps instead of a power cycle, because the BMC must report the machine off.
    pub(super) async fn restart(
        &self,
        spec: &NodeSpec,
        leave: PowerState,
        cancel: Cancel,
    ) -> Result<(), Fault> {
        let always = BootPersistence::Persistent;
        self.switch_off(Step::Restart, spec, own_device(spec), always, leave, cancel).await
    }

    /// Switches the machine off, with its disk as boot device in case somebody switches it on.
    pub(super) async fn clean_up(&self, spec: &NodeSpec, cancel: Cancel) -> Result<(), Fault> {
        let (device, always) = (BootDevice::Disk, BootPersistence::Persistent);
        self.switch_off(Step::Cleanup, spec, device, always, PowerState::Off, cancel).await
    }

    /// Brings an installed machine into its spec's power state.
    pub(super) async fn set(
        &self,
        spec: &NodeSpec,
        wanted: PowerState,
        cancel: Cancel,
    ) -> Result<(), Fault> {
        use PowerState::{Off, On};
        let set = async |bmc: Bmc, limit: Duration| {
            let deadline = || Instant::now() + limit;
            match wanted {
                On => {
                    // Set again, because some BMCs forget it, and a clean-up or an earlier spec may
                    // have set another device.
                    let (always, firmware) = (BootPersistence::Persistent, spec.boot.firmware);
                    bmc.set_boot_device(own_device(spec), always, firmware, deadline()).await?;
                    bmc.reach_power(On, deadline()).await
                }
                // The installed system gets half of the time to shut down.
                Off => bmc.soft_off(limit / 2, deadline()).await,
            }
        };
        self.with(Step::Power, spec, cancel, set).await
    }

    /// Makes one call to the node's BMC, with `timeouts.power` for each part of it. Dropping the
    /// call closes its session.
    pub(super) async fn with<T>(
        &self,
        step: Step,
        spec: &NodeSpec,
        cancel: Cancel,
        call: impl AsyncFnOnce(Bmc, Duration) -> Result<T, BmcError>,
    ) -> Result<T, Fault> {
        let bmc = self.client(step, spec)?;
        self.with_client(step, spec, bmc, cancel, call).await
    }

    async fn with_client<T>(
        &self,
        step: Step,
        spec: &NodeSpec,
        bmc: Bmc,
        mut cancel: Cancel,
        call: impl AsyncFnOnce(Bmc, Duration) -> Result<T, BmcError>,
    ) -> Result<T, Fault> {
        let lock = self.lock_of(&spec.name);
        let call = async {
            let _held = lock.lock().await;
            call(bmc, spec.timeouts.power).await
        };
        tokio::select! {
            result = call => result.map_err(|error| faults::of_bmc(step, spec, &error)),
            () = stopped(&mut cancel) => Err(faults::cancelled(step)),
        }
    }

    fn lock_of(&self, node: &NodeName) -> BmcLock {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(node.clone()).or_default())
    }

    /// Returns the node's client. Reads the password each time, so that a corrected file takes
    /// effect at once.
    pub(super) fn client(&self, step: Step, spec: &NodeSpec) -> Result<Bmc, Fault> {
        let bmc = spec.bmc.as_deref().ok_or_else(|| faults::no_bmc(step))?;
        let secrets = self.secrets(step, bmc)?;
        self.client_with(step, spec, &secrets)
    }

    fn client_with(&self, step: Step, spec: &NodeSpec, secrets: &BmcSecrets) -> Result<Bmc, Fault> {
        let bmc = spec.bmc.as_deref().ok_or_else(|| faults::no_bmc(step))?;
        let mut bmcs = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = bmcs.get(&spec.name);
        if let Some(known) = known.filter(|known| known.spec == *bmc && known.secrets == *secrets) {
            return Ok(known.client.clone());
        }
        // An attempt from before the agent's start has used these secrets already.
        let in_attempt = matches!(step, Step::PowerOn | Step::Restart | Step::Cleanup);
        let trusted = if in_attempt && known.is_none() { Trusted::Yes } else { Trusted::No };
        let client = bmc::open(&spec.name, bmc, secrets, self.spacing, trusted);
        let (spec_bmc, secrets) = (bmc.clone(), secrets.clone());
        let known = KnownBmc { spec: spec_bmc, secrets, client: client.clone() };
        bmcs.insert(spec.name.clone(), known);
        Ok(client)
    }

    /// Checks that the spec's secrets can be read.
    pub(super) fn check_secrets(&self, spec: &NodeSpec) -> Result<(), Fault> {
        let step = Step::Preflight;
        let bmc = spec.bmc.as_deref().ok_or_else(|| faults::no_bmc(step))?;
        self.secrets(step, bmc).map(drop)
    }

    /// Reads the spec's secrets.
    fn secrets(&self, step: Step, bmc: &spec::Bmc) -> Result<BmcSecrets, Fault> {
        let read = bmc
            .password
            .as_ref()
            .map(|password| self.password(step, bmc.driver, password))
            .transpose()?;
        let (password, password_file) = read.unzip();
        let kg = bmc.kg_file.as_ref().map(|name| self.bmc_key(step, name)).transpose()?;
        Ok(BmcSecrets { password, password_file, kg })
    }

    fn bmc_key(&self, step: Step, name: &str) -> Result<BmcKey, Fault> {
        let path = self.secrets.join(name);
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let read = first_line(&path).and_then(|line| line.expose().parse().map_err(invalid));
        read.map_err(|error: io::Error| {
            Fault::missing(
                step,
                "BmcKeyUnreadable",
                format!("bmc.kg_file {}: {error}", path.display()),
                "put the BMC key (K_g) there, as text or as 0x and hex digits, readable for \
                 hostler's user only",
            )
        })
    }

    fn password(
        &self,
        step: Step,
        driver: BmcDriver,
        password: &Password,
    ) -> Result<(Secret, PathBuf), Fault> {
        let (path, shown, hint) = match password {
            Password::PasswordFile(name) => {
                let path = self.secrets.join(name);
                let shown = format!("bmc.password_file {}", path.display());
                (Ok(path), shown, "put the BMC's password there, readable for hostler's user only")
            }
            Password::PasswordCredential(name) => {
                let none = || io::Error::other("the agent was started without credentials");
                let path = self.credentials.as_ref().map(|dir| dir.join(name)).ok_or_else(none);
                let hint = "give it to the agent with LoadCredential= in its unit, and restart it";
                (path, format!("bmc.password_credential {name}"), hint)
            }
        };
        let read = path.and_then(|path| Ok((first_line(&path)?, path)));
        let fits = read.and_then(|(password, path)| Ok((fitting(driver, password)?, path)));
        fits.map_err(|error| {
            Fault::missing(step, "PasswordUnreadable", format!("{shown}: {error}"), hint)
        })
    }

    /// Switches the machine off, sets the boot device, and, if `leave` is on, switches it on.
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
        let call = async |bmc: Bmc, limit: Duration| {
            let deadline = || Instant::now() + limit;
            bmc.reach_power(PowerState::Off, deadline()).await?;
            bmc.set_boot_device(device, persistence, firmware, deadline()).await?;
            match leave {
                PowerState::On => bmc.reach_power(PowerState::On, deadline()).await,
                PowerState::Off => Ok(()),
            }
        };
        self.with(step, spec, cancel, call).await
    }
}

/// The boot device of an installed machine.
fn own_device(spec: &NodeSpec) -> BootDevice {
    if spec.image.netboot.is_some() { BootDevice::Pxe } else { BootDevice::Disk }
}

/// Reads a secret: the first line of a file. An implausible line is an error and never sent,
/// because BMCs count wrong passwords.
fn first_line(path: &Path) -> io::Result<Secret> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    let file = regular_file::open(path)?;
    let start = Zeroizing::new(regular_file::read_start(file, PASSWORD_FILE_BYTES_MAX)?);
    if start.is_empty() {
        return Err(invalid("the file is empty"));
    }
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() as u64 == PASSWORD_FILE_BYTES_MAX {
        return Err(invalid(&format!("no line end in the first {PASSWORD_FILE_BYTES_MAX} bytes")));
    }
    if line.starts_with(b"\xef\xbb\xbf") {
        return Err(invalid("it begins with a byte order mark (BOM); save it without"));
    }
    let text = str::from_utf8(line).map_err(|_| invalid("the first line is not UTF-8"))?;
    if text.chars().all(char::is_whitespace) {
        return Err(invalid("the first line is blank"));
    }
    if text.contains('\0') {
        return Err(invalid("the first line has zero bytes, as UTF-16 has; save it as UTF-8"));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid("the first line has control characters"));
    }
    Ok(Secret::new(text.to_owned()))
}

/// Refuses a password that is too long for IPMI, for instance because it is still encrypted.
fn fitting(driver: BmcDriver, password: Secret) -> io::Result<Secret> {
    let bytes = password.expose().len();
    if driver != BmcDriver::Program && bytes > PASSWORD_BYTES_MAX {
        let why = format!("the first line has {bytes} bytes, IPMI 2.0 allows {PASSWORD_BYTES_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant (bmc): Only a plausible secret is sent, and a missing local file uses up no
    /// attempt.
    #[test]
    fn a_password_that_no_bmc_can_have_is_not_taken_for_one() {
        let by = |driver, text: &str| {
            fitting(driver, Secret::new(text.to_owned())).map_err(|error| error.to_string())
        };
        let fits = |text: &str| by(BmcDriver::Ipmi, text);
        assert!(by(BmcDriver::Program, &"x".repeat(21)).is_ok(), "a program may take longer ones");
        assert_eq!(fits("12345678901234567890").unwrap().expose(), "12345678901234567890");
        for long in ["$ANSIBLE_VAULT;1.1;AES256", "123456789012345678901", "1234567890123456789ä"]
        {
            let why = fits(long).unwrap_err();
            assert!(why.ends_with(&format!("{} bytes, IPMI 2.0 allows 20", long.len())), "{why}");
        }
    }

    /// Invariant (bmc): Only a plausible secret is sent, and a missing local file uses up no
    /// attempt.
    #[test]
    fn only_what_can_be_meant_as_a_secret_is_taken_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edge-07.bmc");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let read = first_line(&path);
            read.map(|secret| secret.expose().to_owned()).map_err(|error| error.to_string())
        };
        for good in ["secret", "secret\n", "secret\r\n", "secret\nmore\n"] {
            assert_eq!(read(good.as_bytes()).as_deref(), Ok("secret"), "{good:?}");
        }
        assert_eq!(read(" p w \n".as_bytes()).as_deref(), Ok(" p w "), "blanks may be meant");
        assert_eq!(read("pässwörd".as_bytes()).as_deref(), Ok("pässwörd"));
        let bad: [(&[u8], &str); 10] = [
            (b"", "empty"),
            (b"\n", "blank"),
            (b"\r\n", "blank"),
            (b"\r", "blank"),
            (b"\nsecret\n", "blank"),
            (b" \t \nsecret\n", "blank"),
            (b"\xef\xbb\xbfsecret\n", "byte order mark"),
            (b"\xef\xbb\xbf\n", "byte order mark"),
            (b"s\0e\0c\0", "UTF-16"),
            (b"\xff\xfes\0", "not UTF-8"),
        ];
        for (bytes, why) in bad {
            let error = read(bytes).unwrap_err();
            assert!(error.contains(why) && !error.contains("secret"), "{bytes:?}: {error}");
        }
        assert!(read(b"sec\rret\r").unwrap_err().contains("control characters"));
    }
}

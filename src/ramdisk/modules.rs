//! Loads kernel modules: LIO always, and drivers for the found hardware.
//!
//! The boot sequence uses it. The ramdisk has no udev: the module polls the devices of every bus
//! for their modalias, because a loaded driver brings up new devices (a virtio bus, SCSI disks). It
//! reports a module that does not load; that is never fatal.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{io::Errno, system::finit_module};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{module_list::ModuleList, sysfs};

/// Interval of the polls for new devices, for as long as the ramdisk runs.
const POLL_EVERY: Duration = Duration::from_millis(200);

/// The modules of the running kernel, and those already tried.
#[derive(Debug)]
pub(super) struct Modules {
    dir: PathBuf,
    list: ModuleList,
    tried: BTreeSet<String>,
    seen: BTreeSet<String>,
}

/// The initramfs has no modules for the running kernel.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path}: {source}; the deploy kernel and the deploy ramdisk must come from one `hostler \
     ramdisk build`"
)]
pub(super) struct NoModules {
    path: String,
    source: io::Error,
}

impl Modules {
    /// Reads the list for the running kernel.
    pub(super) fn open() -> Result<Self, NoModules> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let dir = Path::new("/lib/modules").join(release);
        let path = dir.join("modules.list");
        let text = fs::read_to_string(&path)
            .map_err(|source| NoModules { path: path.display().to_string(), source })?;
        let list = ModuleList::parse(&text);
        Ok(Self { dir, list, tried: BTreeSet::new(), seen: BTreeSet::new() })
    }

    /// Loads the modules that every machine needs.
    pub(super) fn load_always(&mut self) {
        let always = self.list.always.clone();
        self.load(always);
    }

    /// Loads drivers for present and later devices on a separate thread, because a driver may probe
    /// for half a minute. Notifies the receiver once the devices of the first poll have their
    /// drivers.
    pub(super) fn load_drivers(mut self) -> io::Result<oneshot::Receiver<()>> {
        let (ready, done) = oneshot::channel();
        thread::Builder::new().name("drivers".to_owned()).spawn(move || {
            while self.load_for_new_devices() > 0 {}
            // The receiver is gone if the boot sequence has ended.
            ready.send(()).unwrap_or_default();
            loop {
                thread::sleep(POLL_EVERY);
                self.load_for_new_devices();
            }
        })?;
        Ok(done)
    }

    /// Polls every bus; returns the number of new modaliases.
    fn load_for_new_devices(&mut self) -> usize {
        let new: Vec<String> =
            modaliases(Path::new("/sys")).into_iter().filter(|m| !self.seen.contains(m)).collect();
        let wanted = new.iter().flat_map(|modalias| self.list.wanted_by(modalias));
        self.load(wanted.map(ToOwned::to_owned).collect());
        let found = new.len();
        self.seen.extend(new);
        found
    }

    fn load(&mut self, names: Vec<String>) {
        let mut loaded = Vec::new();
        for name in names {
            let needs = self.list.needs.get(&name).cloned().unwrap_or_default();
            for name in needs.into_iter().chain([name]) {
                if self.tried.insert(name.clone()) && insert(&self.dir, &name) {
                    loaded.push(name);
                }
            }
        }
        if !loaded.is_empty() {
            info!("loaded {}", loaded.join(" "));
        }
    }
}

/// The module aliases of every device under `sys` (`/sys`).
fn modaliases(sys: &Path) -> BTreeSet<String> {
    let bus = sys.join("bus");
    sysfs::names(&bus)
        .into_iter()
        .map(|name| bus.join(name).join("devices"))
        .flat_map(|dir| sysfs::names(&dir).into_iter().map(move |name| dir.join(name)))
        .filter_map(|device| sysfs::text(&device.join("modalias")))
        .collect()
}

/// Loads one module, and returns after the probe of its devices; `true` if the kernel did not have
/// it before.
fn insert(dir: &Path, name: &str) -> bool {
    // With `scan=sync` the SCSI scan ends before the load returns; otherwise its end would be
    // unknown.
    let parameters = if name == "scsi_mod" { c"scan=sync" } else { c"" };
    let path = dir.join(format!("{name}.ko"));
    let result = File::open(path)
        .and_then(|file| finit_module(file, parameters, 0).map_err(io::Error::from));
    match result {
        Ok(()) => true,
        Err(error) => {
            // The module is already loaded, or the processor lacks the instructions of an
            // accelerated checksum, which is no error.
            if ![Errno::EXIST, Errno::NODEV]
                .iter()
                .any(|e| Errno::from_io_error(&error) == Some(*e))
            {
                warn!(module = name, %error, "a kernel module did not load");
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_on_every_bus_is_asked() {
        let sys = tempfile::tempdir().unwrap();
        for (device, modalias) in [
            ("bus/pci/devices/0000:00:02.0", Some("pci:v1\n")),
            ("bus/virtio/devices/virtio0", Some("virtio:d1\n")),
            ("bus/virtio/devices/virtio1", Some("virtio:d1\n")),
            ("bus/cpu/devices/cpu0", None),
        ] {
            let dir = sys.path().join(device);
            fs::create_dir_all(&dir).unwrap();
            if let Some(modalias) = modalias {
                fs::write(dir.join("modalias"), modalias).unwrap();
            }
        }
        assert_eq!(
            modaliases(sys.path()).into_iter().collect::<Vec<_>>(),
            ["pci:v1".to_owned(), "virtio:d1".to_owned()]
        );
    }
}

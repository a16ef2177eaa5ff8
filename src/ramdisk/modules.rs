//! Kernel modules: LIO always, drivers as hardware asks for them.
//!
//! Called by the story. There is no udev: the devices on every bus are asked for their modalias, again and again, because a loaded
//! driver brings up new devices (a virtio bus, SCSI disks). A module that does not load is reported, never fatal.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{io::Errno, system::finit_module};
use tracing::{info, warn};

use super::{module_list::ModuleList, sysfs};

/// How often new devices are looked for, for as long as the ramdisk runs.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The modules of the running kernel and which of them have been tried.
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
    "{path}: {source}; the deploy kernel and the deploy ramdisk must come from one `hostler ramdisk build`"
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

    /// Loads what is always needed, then what is there asks for.
    pub(super) fn load_first(&mut self) {
        for name in self.list.always.clone() {
            self.load(&name);
        }
        while self.load_for_new_devices() > 0 {}
    }

    /// Goes on loading for devices that appear later, on a thread of its own: a driver may probe for seconds.
    pub(super) fn load_later(mut self) -> io::Result<()> {
        thread::Builder::new().name("modules".to_owned()).spawn(move || {
            loop {
                self.load_for_new_devices();
                thread::sleep(LOOK_EVERY);
            }
        })?;
        Ok(())
    }

    /// One look at every bus; how many modaliases were new.
    fn load_for_new_devices(&mut self) -> usize {
        let new: Vec<String> =
            modaliases(Path::new("/sys")).into_iter().filter(|m| !self.seen.contains(m)).collect();
        for modalias in &new {
            let wanted: Vec<String> =
                self.list.wanted_by(modalias).map(ToOwned::to_owned).collect();
            for name in wanted {
                self.load(&name);
            }
        }
        let found = new.len();
        self.seen.extend(new);
        found
    }

    fn load(&mut self, name: &str) {
        let needs = self.list.needs.get(name).cloned().unwrap_or_default();
        for name in needs.into_iter().chain([name.to_owned()]) {
            if self.tried.contains(&name) {
                continue;
            }
            match insert(&self.dir.join(format!("{name}.ko"))) {
                Ok(()) => info!(module = name, "loaded"),
                // No such hardware after all (crc32c_intel, kvm-like drivers): nothing is wrong.
                Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {}
                Err(error) => warn!(module = name, %error, "did not load"),
            }
            self.tried.insert(name);
        }
    }
}

/// What every device under `sys` (`/sys`) says it is.
fn modaliases(sys: &Path) -> BTreeSet<String> {
    let bus = sys.join("bus");
    sysfs::names(&bus)
        .into_iter()
        .map(|name| bus.join(name).join("devices"))
        .flat_map(|dir| sysfs::names(&dir).into_iter().map(move |name| dir.join(name)))
        .filter_map(|device| sysfs::text(&device.join("modalias")))
        .collect()
}

fn insert(path: &Path) -> io::Result<()> {
    match finit_module(File::open(path)?, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
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

//! Selects the modules of the initramfs: LIO, drivers of network interfaces and disk controllers,
//! requested modules, and their dependencies.
//!
//! The builder calls it. It reports a driver that the kernel lacks; LIO and requested modules must
//! exist.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    BuildError, MissingFirmware,
    drivers::{BUSES, DIRECTORIES, companions, debian_package, drivers},
    elf,
    modinfo::{ModInfo, normal},
    package::Package,
};
use crate::{model::boot::Arch, ramdisk::module_list::ModuleList};

/// The modules of the iSCSI target, without which the ramdisk cannot serve a disk.
const TARGET: [&str; 3] = ["target_core_mod", "target_core_iblock", "iscsi_target_mod"];

/// Modules that the kernel would request from `modprobe`, which the ramdisk lacks: the checksums
/// that iSCSI and T10-DIF look up by name.
const LOOKED_UP_BY_NAME: [&str; 5] =
    ["crc32c_generic", "crc32c_intel", "crct10dif_generic", "crct10dif_pclmul", "crct10dif_ce"];

/// The selected modules.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// The processors that the modules are for.
    pub(super) arch: Option<Arch>,
    pub(super) list: ModuleList,
    /// Module files by normal name, decompressed.
    pub(super) modules: BTreeMap<String, Vec<u8>>,
    /// Firmware files of the modules that the package has.
    pub(super) firmware: BTreeMap<String, Vec<u8>>,
    /// Firmware files of the modules that the package lacks.
    pub(super) firmware_missing: Vec<MissingFirmware>,
    /// Drivers of every initramfs that this package lacks.
    pub(super) drivers_missing: Vec<String>,
}

/// Selects from the package: the modules of every initramfs, the modules `more`, and with
/// `all_drivers` every driver of a network interface or a disk controller.
pub(super) fn select(
    package: &Package,
    more: &[String],
    all_drivers: bool,
) -> Result<Selection, BuildError> {
    let mut chosen = Chosen::default();
    for name in TARGET {
        if !chosen.add(package, name)? && !package.builtin.contains(name) {
            return Err(BuildError::NoTarget { module: name, release: package.release.clone() });
        }
    }
    for name in LOOKED_UP_BY_NAME {
        chosen.add(package, name)?;
    }
    for name in more.iter().map(|name| normal(name)) {
        if !chosen.add(package, &name)? && !package.builtin.contains(&name) {
            return Err(BuildError::NoModule(package.unknown(&name)));
        }
    }
    let mut drivers_missing = Vec::new();
    let arch = chosen.arch();
    for name in drivers(arch) {
        if !chosen.add(package, name)? && !package.builtin.contains(name) {
            drivers_missing.push(name.to_owned());
        }
    }
    if all_drivers {
        for name in package.modules_in(DIRECTORIES) {
            chosen.add_driver(package, &name)?;
        }
    }
    Ok(Selection { arch, drivers_missing, ..chosen.into_selection(package) })
}

#[derive(Debug, Default)]
struct Chosen {
    files: BTreeMap<String, Vec<u8>>,
    info: BTreeMap<String, ModInfo>,
}

impl Chosen {
    /// The processors that the modules are for.
    fn arch(&self) -> Option<Arch> {
        self.files.values().next().and_then(|module| elf::arch(module))
    }

    /// Adds a module, unless it drives no device of [`BUSES`].
    fn add_driver(&mut self, package: &Package, name: &str) -> Result<(), BuildError> {
        let Some(elf) = package.module(name)? else { return Ok(()) };
        let info = ModInfo::read(&elf).map_err(|_| BuildError::NotAModule(name.to_owned()))?;
        let is_requested_for = |alias: &String| {
            BUSES
                .iter()
                .any(|bus| alias.strip_prefix(bus).is_some_and(|rest| rest.starts_with(':')))
        };
        if info.aliases.iter().any(is_requested_for) {
            self.add(package, name)?;
        }
        Ok(())
    }

    /// Adds a module and its dependencies; `false` if the package does not have it.
    fn add(&mut self, package: &Package, name: &str) -> Result<bool, BuildError> {
        let mut todo = vec![(name.to_owned(), None::<String>)];
        while let Some((name, needed_by)) = todo.pop() {
            if self.info.contains_key(&name) {
                continue;
            }
            let Some(elf) = package.module(&name)? else {
                match needed_by {
                    None => return Ok(false),
                    Some(_) if package.builtin.contains(&name) => continue,
                    Some(by) => return Err(BuildError::MissingModule { module: name, by }),
                }
            };
            let mut info = ModInfo::read(&elf).map_err(|_| BuildError::NotAModule(name.clone()))?;
            info.before.extend(companions(&name).iter().map(|name| (*name).to_owned()));
            todo.extend(info.depends.iter().map(|need| (need.clone(), Some(name.clone()))));
            // A soft dependency may be missing, and may be an alias instead of a module.
            let soft = info.before.iter().chain(&info.after);
            todo.extend(soft.filter(|soft| package.has(soft)).map(|soft| (soft.clone(), None)));
            self.files.insert(name.clone(), elf);
            self.info.insert(name, info);
        }
        Ok(true)
    }

    fn into_selection(self, package: &Package) -> Selection {
        let always = TARGET.iter().chain(&LOOKED_UP_BY_NAME).map(|name| (*name).to_owned());
        let mut list = ModuleList {
            always: always.filter(|name| self.info.contains_key(name)).collect(),
            ..ModuleList::default()
        };
        let (mut firmware, mut firmware_missing) = (BTreeMap::new(), Vec::new());
        for (name, info) in &self.info {
            let mut needs = Vec::new();
            self.load_order(name, &mut BTreeSet::new(), &mut needs);
            needs.pop();
            list.needs.insert(name.clone(), needs);
            for pattern in &info.aliases {
                // A module that follows a driver is loaded for the same hardware.
                let after = info.after.iter().filter(|after| self.info.contains_key(*after));
                list.aliases
                    .extend([name].into_iter().chain(after).map(|n| (pattern.clone(), n.clone())));
            }
            let mut missing = BTreeSet::new();
            for file in &info.firmware {
                match package.firmware(file) {
                    Some((name, contents)) => {
                        firmware.insert(name, contents);
                    }
                    None => {
                        missing.insert(file.clone());
                    }
                }
            }
            if !missing.is_empty() {
                let packages = missing.iter().filter_map(|file| debian_package(file));
                let packages: BTreeSet<&str> = packages.collect();
                firmware_missing.push(MissingFirmware {
                    module: name.clone(),
                    has_some: missing.len() < info.firmware.iter().collect::<BTreeSet<_>>().len(),
                    files: missing.into_iter().collect(),
                    debian_packages: packages.into_iter().map(ToOwned::to_owned).collect(),
                });
            }
        }
        Selection { list, modules: self.files, firmware, firmware_missing, ..Selection::default() }
    }

    /// Appends the dependencies of `name`, each after its own dependencies, and `name` last.
    /// Ignores the link that closes a cycle.
    fn load_order(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) {
        if let Some(info) = self.info.get(name)
            && seen.insert(name.to_owned())
        {
            for need in info.depends.iter().chain(&info.before) {
                self.load_order(need, seen, order);
            }
            order.push(name.to_owned());
        }
    }
}

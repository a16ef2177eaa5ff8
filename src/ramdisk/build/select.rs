//! Which modules go into the initramfs: LIO, the network cards and disk controllers of servers and small edge machines, and what
//! those need.
//!
//! Called by the builder. A driver the kernel does not have is left out; LIO must be there.

use std::collections::{BTreeMap, BTreeSet};

use super::{BuildError, modinfo::ModInfo, package::Package};
use crate::ramdisk::module_list::ModuleList;

/// The target itself. A kernel without them cannot serve a disk.
const TARGET: [&str; 3] = ["target_core_mod", "target_core_iblock", "iscsi_target_mod"];

/// What the kernel would ask a running `modprobe` for, and there is none: the checksums iSCSI and T10-DIF look up by name.
const LOOKED_UP_BY_NAME: [&str; 4] =
    ["crc32c_generic", "crc32c_intel", "crct10dif_generic", "crct10dif_pclmul"];

/// Loaded when the hardware asks.
#[rustfmt::skip]
const DRIVERS: &[&str] = &[
    // Virtual machines
    "virtio_pci", "virtio_mmio", "virtio_net", "virtio_blk", "virtio_scsi", "vmxnet3", "vmw_pvscsi",
    "hv_vmbus", "hv_netvsc", "hv_storvsc",
    // Network cards
    "e1000", "e1000e", "igb", "igc", "ixgbe", "i40e", "ice", "tg3", "bnx2", "bnx2x", "bnxt_en", "mlx4_core", "mlx4_en",
    "mlx5_core", "r8169", "atlantic", "be2net", "qede", "cxgb4", "enic", "ena", "hns3", "hclge",
    // Disk controllers
    "ahci", "ata_piix", "ata_generic", "nvme", "vmd", "megaraid_sas", "mpt3sas", "mptsas", "mptspi", "hpsa", "smartpqi",
    "aacraid", "isci", "hisi_sas_v3_hw", "sdhci_pci", "sdhci_acpi",
    // Disks on them
    "sd_mod", "mmc_block",
];

/// What goes in.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) list: ModuleList,
    /// Module files by normal name, decompressed.
    pub(super) modules: BTreeMap<String, Vec<u8>>,
    /// Firmware files the package has of those the modules may ask for.
    pub(super) firmware: BTreeMap<String, Vec<u8>>,
}

/// Chooses from the package.
pub(super) fn select(package: &Package) -> Result<Selection, BuildError> {
    let mut chosen = Chosen::default();
    for name in TARGET {
        if !chosen.add(package, name)? && !package.builtin.contains(name) {
            return Err(BuildError::NoTarget { module: name, release: package.release.clone() });
        }
    }
    for name in LOOKED_UP_BY_NAME.iter().chain(DRIVERS) {
        chosen.add(package, name)?;
    }
    Ok(chosen.into_selection(package))
}

#[derive(Debug, Default)]
struct Chosen {
    files: BTreeMap<String, Vec<u8>>,
    info: BTreeMap<String, ModInfo>,
}

impl Chosen {
    /// Adds a module and all it needs; `false` when the package does not have it.
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
            let info = ModInfo::read(&elf).map_err(|_| BuildError::NotAModule(name.clone()))?;
            todo.extend(info.depends.iter().map(|need| (need.clone(), Some(name.clone()))));
            // A soft dependency may be absent, and may be an alias rather than a module.
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
        let mut firmware = BTreeMap::new();
        for (name, info) in &self.info {
            let mut needs = Vec::new();
            self.load_order(name, &mut BTreeSet::new(), &mut needs);
            needs.pop();
            list.needs.insert(name.clone(), needs);
            for pattern in &info.aliases {
                // What is to be loaded after a driver is asked for by the same hardware.
                let after = info.after.iter().filter(|after| self.info.contains_key(*after));
                list.aliases
                    .extend([name].into_iter().chain(after).map(|n| (pattern.clone(), n.clone())));
            }
            firmware.extend(info.firmware.iter().filter_map(|file| package.firmware(file)));
        }
        Selection { list, modules: self.files, firmware }
    }

    /// Appends what `name` needs, each after its own needs, and `name` last. A circle is cut where it closes.
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

//! Puts the core's menus into the netboot subsystem's table.
//!
//! Called by `effects.rs` after each step of a node. The kernel command line is made here, where
//! the attempt's key meets the callback listener's address and certificate. A key must never get
//! into a menu of another attempt or into the log.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

use tracing::warn;

use crate::{
    lifecycle::{Menu, Node},
    model::{
        admin::{NicBoot, ServedMenu},
        boot::{BootMenu, RamdiskArgs},
        ids::{MacAddr, NodeName},
        ironic::{self, IronicArgs},
        secret::{AttemptKey, Secret},
        spec::{Boot, DeployRamdisk, NodeSpec},
    },
    netboot::{BootSettings, BootTable, has_ipxe},
};

use super::boot_files::RamdiskKind;

/// Keeps the attempt's key off the console: the kernel prints its command line as a notice, and
/// this shows warnings and worse only, unless `boot.kernel_args` changes that.
const QUIET: &str = "loglevel=5";

/// Writes the boot table.
#[derive(Debug)]
pub(super) struct MenuWriter {
    table: BootTable,
    /// The directory of boot loaders, which decide whether a menu hands over to iPXE.
    loaders: PathBuf,
    api: SocketAddr,
    pin: String,
    /// The endpoint for Ironic's ramdisk, if it is configured.
    ironic: Option<SocketAddr>,
    /// The table's present content, so that only changes are written.
    applied: BTreeMap<NodeName, (Menu, Arc<NodeSpec>)>,
}

impl MenuWriter {
    pub(super) fn new(
        table: BootTable,
        loaders: PathBuf,
        api: SocketAddr,
        pin: String,
        ironic: Option<SocketAddr>,
    ) -> Self {
        Self { table, loaders, api, pin, ironic, applied: BTreeMap::new() }
    }

    /// Writes the node's menu, in one atomic change.
    pub(super) fn apply(&mut self, node: &Node) {
        let name = node.name();
        let (menu, Some(spec)) = (node.menu(), node.spec()) else { return };
        if menu == Menu::Unknown {
            return self.remove(name);
        }
        if let Some((applied, by)) = self.applied.get_mut(name)
            && *applied == menu
            && boots_alike(by, spec)
        {
            // Keeps the newer spec, so that the older one's memory is freed.
            by.clone_from(spec);
            return;
        }
        let wanted = match &menu {
            Menu::Unknown | Menu::LocalDisk => BootMenu::LocalDisk,
            Menu::Network { files: [kernel, ramdisk], command_line } => BootMenu::Network {
                kernel: kernel.clone(),
                ramdisk: ramdisk.clone(),
                command_line: command_line.clone(),
            },
            Menu::Deploy(key) => match spec.boot.ramdisk {
                DeployRamdisk::Hostler => self.deploy_menu(spec, key),
                DeployRamdisk::Ironic => {
                    self.ironic_menu(spec, key, node.iqn()).unwrap_or(BootMenu::LocalDisk)
                }
            },
        };
        let Boot { macs, firmware, loader, .. } = &spec.boot;
        let settings = BootSettings {
            firmware: *firmware,
            loader: *loader,
            ramdisk_limit: spec.timeouts.ramdisk,
        };
        match self.table.set_for(settings, name, macs, &wanted) {
            Ok(()) => drop(self.applied.insert(name.clone(), (menu, Arc::clone(spec)))),
            // Unlikely, because the spec reader checks the kernel arguments.
            Err(error) => {
                let node = name;
                warn!(%node, %error, "the boot menu cannot be made; the node's NICs are unknown");
                self.remove(name);
            }
        }
    }

    fn deploy_menu(&self, spec: &NodeSpec, key: &AttemptKey) -> BootMenu {
        let (node, key) = (spec.name.clone(), key.clone());
        let args = RamdiskArgs { api: self.api, node, key, pin: self.pin.clone() };
        deploy(spec, &args.to_command_line(), false)
    }

    /// Makes the menu of Ironic's ramdisk. `None` without an endpoint or a root device, which the
    /// preparation of an attempt excludes.
    fn ironic_menu(&self, spec: &NodeSpec, key: &AttemptKey, iqn: String) -> Option<BootMenu> {
        let args = IronicArgs {
            api: self.ironic?,
            node: spec.name.clone(),
            key: key.clone(),
            iqn,
            firmware: spec.boot.firmware,
            root_device: ironic::root_device(&spec.root_device).ok()?,
        };
        Some(deploy(spec, &args.to_command_line(), true))
    }

    /// Returns the menus of a NIC, without the attempt's key unless `secrets`.
    pub(super) fn show(&self, mac: MacAddr, secrets: bool) -> Option<NicBoot> {
        let (node, mut menus) = self.table.show(mac, has_ipxe(&self.loaders))?;
        if let Some((Menu::Deploy(key), ..)) = self.applied.get(&node)
            && !secrets
        {
            for ServedMenu { text, .. } in &mut menus {
                *text = Secret::new(text.expose().replace(key.expose(), "<key>"));
            }
        }
        Some(NicBoot { node, menus })
    }

    /// Removes the node's menu, so that its NICs become unknown.
    pub(super) fn remove(&mut self, name: &NodeName) {
        if self.applied.remove(name).is_some() {
            self.table.remove(name);
        }
    }
}

/// Whether two specs give the same boot menu with the same limit.
fn boots_alike(one: &Arc<NodeSpec>, other: &Arc<NodeSpec>) -> bool {
    Arc::ptr_eq(one, other)
        || (&one.boot, &one.root_device, one.timeouts.ramdisk)
            == (&other.boot, &other.root_device, other.timeouts.ramdisk)
}

/// Makes the menu of a ramdisk. Its own words precede the spec's on the command line.
fn deploy(spec: &NodeSpec, needed: &Secret, with_addresses: bool) -> BootMenu {
    let [kernel, initramfs] = RamdiskKind::of(&spec.boot).names().map(str::to_owned);
    let added = spec.boot.kernel_args.iter().map(String::as_str);
    let words: Vec<&str> = [needed.expose(), QUIET].into_iter().chain(added).collect();
    BootMenu::Deploy {
        kernel,
        initramfs,
        command_line: Secret::new(words.join(" ")),
        with_addresses,
    }
}

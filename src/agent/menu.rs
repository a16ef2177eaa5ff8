//! Puts the core's menus into the netboot subsystem's table. The kernel command line is made here,
//! because only here both the attempt's key and the listener's address and certificate are known.

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

/// The kernel prints its command line, and with it the key, as a notice: only warnings and worse go
/// to the console, unless `boot.kernel_args` says otherwise.
const QUIET: &str = "loglevel=5";

/// Keeps the boot table as the core wants it.
#[derive(Debug)]
pub(super) struct MenuWriter {
    table: BootTable,
    /// The directory of boot loaders, which decide whether a menu hands over to iPXE.
    loaders: PathBuf,
    api: SocketAddr,
    pin: String,
    /// The endpoint for Ironic's ramdisk, if it is configured.
    ironic: Option<SocketAddr>,
    /// The table's present content, so that it is touched only when something changed.
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

    /// Makes the node's menu what the core wants it to be; one atomic change.
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
            // The older spec is not kept alive for it.
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
            // The spec's kernel arguments are checked for everything a menu cannot hold.
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

    /// `None` if such a ramdisk would have no endpoint to call, or no disk to search for: before an
    /// attempt both are made sure of.
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

    /// Returns the menus of a NIC. Unless `secrets`, the attempt's key is blank in them.
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

    /// The node's NICs become unknown.
    pub(super) fn remove(&mut self, name: &NodeName) {
        if self.applied.remove(name).is_some() {
            self.table.remove(name);
        }
    }
}

/// Whether the same boot menu is made by both, and as long waited for.
fn boots_alike(one: &Arc<NodeSpec>, other: &Arc<NodeSpec>) -> bool {
    Arc::ptr_eq(one, other)
        || (&one.boot, &one.root_device, one.timeouts.ramdisk)
            == (&other.boot, &other.root_device, other.timeouts.ramdisk)
}

/// Makes the menu of a ramdisk: its own words on the command line, and after them those of the
/// spec.
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

//! Finds the menu for a file name, by the table of boot loaders.
//!
//! The boot table uses it for every request. Pure.

use super::{BOOT_LOADERS, BootLoader};
use crate::model::ids::MacAddr;

/// The menu for a file name.
#[derive(Debug)]
pub(in crate::netboot) enum MenuName {
    /// The boot loader's menu for every machine.
    Common(&'static dyn BootLoader),
    /// The boot loader's menu for a NIC.
    Nic(&'static dyn BootLoader, MacAddr),
    /// A menu's name that identifies no NIC: pxelinux's UUID and `C0A80001`.
    Unknown,
    /// The name is no menu's.
    None,
}

/// Finds the menu for a clean name.
pub(in crate::netboot) fn menu_name(name: &str) -> MenuName {
    let (path, file) = name.rsplit_once('/').unwrap_or(("", name));
    let directory = path.rsplit('/').next().unwrap_or_default();
    if let Some(reader) = BOOT_LOADERS.into_iter().find(|it| it.is_common_menu(directory, file)) {
        return MenuName::Common(reader);
    }
    let nic = |it: &'static dyn BootLoader| Some((it, it.nic_in_name(directory, file)?));
    if let Some((reader, nic)) = BOOT_LOADERS.into_iter().find_map(nic) {
        // 01 is the ARP hardware type of Ethernet.
        let mac = nic.strip_prefix("01-").and_then(|mac| mac.parse().ok());
        return mac.map_or(MenuName::Unknown, |mac| MenuName::Nic(reader, mac));
    }
    let mut own_dirs = BOOT_LOADERS.into_iter().filter_map(BootLoader::own_dir);
    if own_dirs.any(|own| name.starts_with(own)) { MenuName::Unknown } else { MenuName::None }
}

//! The menu that a name means, by the table of boot loaders.
//!
//! Called by the boot table for every request. Pure.

use super::{BOOT_LOADERS, BootLoader};
use crate::model::ids::MacAddr;

/// The menu that a name means.
#[derive(Debug)]
pub(in crate::netboot) enum MenuName {
    /// The boot loader's menu for every machine.
    Common(&'static dyn BootLoader),
    /// The boot loader's menu for a NIC.
    Nic(&'static dyn BootLoader, MacAddr),
    /// A name among the menus' that identifies no NIC: pxelinux's UUID and `C0A80001`.
    Unknown,
    /// Not a menu's name.
    None,
}

/// Finds the menu that a clean name means.
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

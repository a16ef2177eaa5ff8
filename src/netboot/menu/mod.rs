//! Boot menus, and the table of the boot loaders that read them.
//!
//! The boot table uses it when a node's menu changes, and for each request. Pure. A boot loader is
//! a file of this folder, a line in [`BOOT_LOADERS`] and a value of `boot.loader` ([`Loader`]); no
//! other module knows the names and texts of its menus. A menu boots the deploy ramdisk, the
//! installed system's own kernel or the local disk.
//!
//! It must never let a word of a kernel command line become a line or a command of a menu: a line
//! that cannot be written safely for every boot loader is refused.

mod grub;
mod ipxe;
mod names;
mod pxelinux;

use std::{fmt, net::SocketAddr};

pub(super) use self::{
    ipxe::IPXE_PROGRAM,
    names::{MenuName, menu_name},
};
use crate::model::{
    admin::ServedMenu,
    boot::BootMenu,
    ids::{MacAddr, NodeName},
    secret::Secret,
    spec::Loader,
};

/// Every boot loader; the first one that a name matches reads the menu.
pub(super) const BOOT_LOADERS: [&dyn BootLoader; 3] =
    [&pxelinux::Pxelinux, &grub::Grub, &ipxe::Ipxe];

/// A boot loader: the names and texts of its menus.
///
/// It looks for menus in its own directory or in a built-in one: menus have their names in every
/// directory. A `directory` here is the last one of a path, empty if there is none.
pub(super) trait BootLoader: fmt::Debug + Sync {
    /// Its value of `boot.loader`, which also determines the machines that it boots.
    fn loader(&self) -> Loader;

    /// A top-level directory that holds only its menus.
    fn own_dir(&self) -> Option<&'static str> {
        None
    }

    /// Whether this is the common menu of all machines.
    fn is_common_menu(&self, directory: &str, file: &str) -> bool;

    /// The common menu of all machines, which leads to the NIC's own.
    fn common_menu(&self) -> Secret;

    /// The part of a menu's name that identifies the NIC; `None` if the name is none of its menus'.
    fn nic_in_name<'a>(&self, directory: &str, file: &'a str) -> Option<&'a str>;

    /// The usual name of a NIC's menu.
    fn nic_menu_name(&self, mac: MacAddr) -> String;

    /// Renders the menu that boots the local disk.
    fn local_disk(&self) -> Secret;

    /// Renders the menu that boots a kernel.
    fn linux(&self, linux: &Linux<'_>) -> Secret;

    /// Renders the menu by which another boot loader hands over to this one, if it can.
    fn reached_from(&self, _other: Loader, _mac: MacAddr) -> Option<Secret> {
        None
    }
}

/// Longest command line the kernel keeps on x86, in bytes (`COMMAND_LINE_SIZE`), less the boot
/// loaders' own words.
const COMMAND_LINE_BYTES_MAX: usize = 2048 - 256;

/// A menu that cannot be written for every boot loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MenuError {
    /// A character in the kernel command line. The word itself is not shown, because the line holds
    /// the attempt's key.
    #[error(
        "kernel command line: {0:?} in word {1}; only printable ASCII without any of '\"`\\$;|&# \
         reaches a kernel unchanged through pxelinux, GRUB and iPXE"
    )]
    Character(char, usize),
    /// The command line is too long.
    #[error("kernel command line: {0} bytes, at most {COMMAND_LINE_BYTES_MAX} are possible")]
    TooLong(usize),
    /// The TFTP name of a kernel or ramdisk.
    #[error(
        "boot file name: {0:?}; must be letters, digits and `._+-`, in parts divided by `/`, not \
         leading with one"
    )]
    FileName(char),
}

/// The directory of the nodes' own kernels and ramdisks, which holds no other files.
pub(super) const OWN_DIR: &str = "node/";

pub(super) fn own_kernel(node: &NodeName) -> String {
    format!("{OWN_DIR}{node}/kernel")
}

pub(super) fn own_ramdisk(node: &NodeName) -> String {
    format!("{OWN_DIR}{node}/ramdisk")
}

/// The site's and the node's choices for its menus.
#[derive(Clone, Copy, Debug)]
pub(super) struct BootOptions {
    /// The boot loader that leads into an installation.
    pub(super) loader: Loader,
    /// The HTTP server of kernel and ramdisk; without it boot loaders use TFTP.
    pub(super) http: Option<SocketAddr>,
}

/// The machine that asks for a menu.
#[derive(Clone, Copy, Debug)]
pub(super) struct MenuClient {
    pub(super) mac: MacAddr,
    pub(super) abilities: Abilities,
}

/// The ways by which the client of a menu can fetch a kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Abilities {
    /// Whether it runs the pxelinux with HTTP.
    pub(super) lpxelinux: bool,
    /// Whether the boot loader can hand over to iPXE, whose program is in the loader directory.
    pub(super) ipxe: bool,
}

/// A kernel and its ramdisk, by their names for machines.
pub(super) struct Linux<'a> {
    /// Shown on the machine's console.
    title: &'a str,
    kernel: String,
    ramdisk: String,
    /// The kernel command line.
    words: Vec<&'a str>,
    /// Whether the kernel arguments include the address (`ip=`).
    with_addresses: bool,
    mac: MacAddr,
    lpxelinux: bool,
    http: Option<SocketAddr>,
    /// Whether the boot loader tries iPXE before it fetches anything itself.
    ipxe: bool,
}

/// Checks that a menu can be written for every boot loader.
pub(super) fn check(node: &NodeName, menu: &BootMenu) -> Result<(), MenuError> {
    let (kernel, ramdisk, line) = match menu {
        BootMenu::LocalDisk => return Ok(()),
        BootMenu::Deploy { kernel, initramfs, command_line, .. } => {
            (kernel.clone(), initramfs.clone(), command_line.expose())
        }
        BootMenu::Network { command_line, .. } => {
            (own_kernel(node), own_ramdisk(node), command_line.as_str())
        }
    };
    check_name(&kernel)?;
    check_name(&ramdisk)?;
    words(line).map(drop)
}

/// Renders one boot loader's menu for one of the node's NICs.
pub(super) fn render(
    reader: &dyn BootLoader,
    node: &NodeName,
    client: MenuClient,
    options: BootOptions,
    menu: &BootMenu,
) -> Result<Secret, MenuError> {
    check(node, menu)?;
    let MenuClient { mac, abilities: Abilities { lpxelinux, ipxe } } = client;
    let BootOptions { loader, http } = options;
    // iPXE is quicker over HTTP only. Distributions build it without IPv6.
    let by_ipxe = loader == Loader::Auto && http.is_some_and(|address| address.is_ipv4());
    match menu {
        BootMenu::LocalDisk => Ok(reader.local_disk()),
        BootMenu::Deploy { .. } if loader != Loader::Auto && loader != reader.loader() => {
            // Only one boot loader gets the menu of an installation, with its key.
            let chosen = BOOT_LOADERS.iter().find(|it| it.loader() == loader);
            let reached = chosen.and_then(|it| it.reached_from(reader.loader(), mac));
            Ok(reached.unwrap_or_else(|| reader.local_disk()))
        }
        BootMenu::Deploy { kernel, initramfs, command_line, with_addresses } => {
            Ok(reader.linux(&Linux {
                title: "the deploy ramdisk",
                kernel: kernel.clone(),
                ramdisk: initramfs.clone(),
                words: words(command_line.expose())?,
                with_addresses: *with_addresses,
                mac,
                lpxelinux,
                http,
                ipxe: ipxe && by_ipxe,
            }))
        }
        BootMenu::Network { command_line, .. } => Ok(reader.linux(&Linux {
            title: "the installed system's own kernel",
            kernel: own_kernel(node),
            ramdisk: own_ramdisk(node),
            words: words(command_line)?,
            with_addresses: false,
            mac,
            lpxelinux,
            http,
            // An installed system's boot depends on no second boot loader.
            ipxe: false,
        })),
    }
}

/// Renders the menus of one of the node's NICs for every boot loader, under their usual names.
pub(super) fn render_all(
    node: &NodeName,
    mac: MacAddr,
    ipxe: bool,
    options: BootOptions,
    menu: &BootMenu,
) -> Result<Vec<ServedMenu>, MenuError> {
    let client = MenuClient { mac, abilities: Abilities { lpxelinux: false, ipxe } };
    let served = |reader: &&dyn BootLoader| {
        let text = render(*reader, node, client, options, menu)?;
        Ok(ServedMenu { name: reader.nic_menu_name(mac), text })
    };
    BOOT_LOADERS.iter().map(served).collect()
}

/// Splits a command line into words that are valid for every boot loader.
///
/// GRUB adds backslashes before quotes and backslashes when it hands words to the kernel, so these
/// cannot arrive intact. To iPXE `${` is an expansion, a word that begins with `#` a comment, and
/// `;`, `||` and `&&` end a command.
fn words(line: &str) -> Result<Vec<&str>, MenuError> {
    if line.len() > COMMAND_LINE_BYTES_MAX {
        return Err(MenuError::TooLong(line.len()));
    }
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    for (number, word) in (1..).zip(&words) {
        let fit = |c: char| c.is_ascii_graphic() && !"'\"`\\$;|&#".contains(c);
        if let Some(odd) = word.chars().find(|c| !fit(*c)) {
            return Err(MenuError::Character(odd, number));
        }
    }
    Ok(words)
}

/// Checks the name of a kernel or ramdisk, which is hostler's own; other characters are a mistake.
fn check_name(name: &str) -> Result<(), MenuError> {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-' | '/');
    match name.chars().find(|c| !fit(*c)) {
        Some(odd) => Err(MenuError::FileName(odd)),
        None if name.starts_with('/') || name.is_empty() => Err(MenuError::FileName('/')),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;

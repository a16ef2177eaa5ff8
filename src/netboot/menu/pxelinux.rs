//! The menus of pxelinux (BIOS) and of `lpxelinux.0`, the pxelinux with HTTP.
//!
//! The table of boot loaders uses it.

use std::net::SocketAddr;

use super::{BootLoader, Linux, ipxe};
use crate::model::{ids::MacAddr, secret::Secret, spec::Loader};

/// pxelinux, with `pxelinux.cfg/default` and `pxelinux.cfg/01-<mac>`.
#[derive(Debug)]
pub(super) struct Pxelinux;

/// The directory of its menus.
const DIR: &str = "pxelinux.cfg";

impl BootLoader for Pxelinux {
    fn loader(&self) -> Loader {
        Loader::Pxelinux
    }

    fn own_dir(&self) -> Option<&'static str> {
        Some("pxelinux.cfg/")
    }

    fn is_common_menu(&self, directory: &str, file: &str) -> bool {
        (directory, file) == (DIR, "default")
    }

    /// pxelinux asks for this last, after the menu of its NIC: an unclaimed machine boots its own
    /// disk. Without it pxelinux waits for minutes, resets the machine, and comes again.
    fn common_menu(&self) -> Secret {
        self.local_disk()
    }

    fn nic_in_name<'a>(&self, directory: &str, file: &'a str) -> Option<&'a str> {
        (directory == DIR).then_some(file)
    }

    fn nic_menu_name(&self, mac: MacAddr) -> String {
        format!("{DIR}/01-{}", mac.hyphenated())
    }

    fn local_disk(&self) -> Secret {
        Secret::new(LOCAL_DISK.to_owned())
    }

    fn linux(&self, linux: &Linux<'_>) -> Secret {
        // lpxelinux has no IPv6.
        let http = linux.http.filter(|address| linux.lpxelinux && address.is_ipv4());
        render(linux, http)
    }
}

/// `LOCALBOOT 0` leaves through the PXE ROM, which closes the NIC, and the BIOS goes on with its
/// next boot device: the order is the administrator's. `LOCALBOOT -1` would bypass the ROM.
///
/// There is no second way after it: it does not return. Nor can `chain.c32` come first: pxelinux
/// 6.04 runs a module that failed again at once and for ever, a hundred requests a second, whatever
/// `ONERROR` and `ONTIMEOUT` say.
const LOCAL_DISK: &str = "\
SERIAL 0 115200
SAY hostler: booting the local disk
DEFAULT local
PROMPT 0
NOESCAPE 1
LABEL local
  LOCALBOOT 0
";

/// Renders the menu. `::` keeps pxelinux from putting the directory it was loaded from before a
/// name. After a failure `TIMEOUT` (tenths of a second) tries again; `NOESCAPE` keeps a held shift
/// key from stopping the boot; `IPAPPEND` adds `BOOTIF=01-<mac>` (2) and
/// `ip=client:server:gateway:mask` (1).
///
/// With iPXE's program among the loaders, the menu tries iPXE first, and TFTP if the program is
/// gone. Without it, `lpxelinux.0` gets a URL, and uses TFTP if that fails. `pxelinux.0` has no
/// HTTP.
fn render(linux: &Linux<'_>, http: Option<SocketAddr>) -> Secret {
    let Linux { title, kernel, ramdisk, with_addresses, .. } = linux;
    let append = if *with_addresses { 3 } else { 2 };
    let words = linux.words.join(" ");
    let label = |name: &str, server: &str| {
        format!(
            "\
LABEL {name}
  KERNEL {server}{kernel}
  INITRD {server}{ramdisk}
  APPEND {words}
  IPAPPEND {append}
"
        )
    };
    let quicker = match http {
        _ if linux.ipxe => Some(("ipxe", ipxe::label(linux.mac))),
        Some(address) => Some(("linux", label("linux", &format!("http://{address}/")))),
        None => None,
    };
    let (first, labels) = match quicker {
        Some((name, quicker)) => (name, format!("ONERROR tftp\n{quicker}{}", label("tftp", "::"))),
        None => ("linux", label("linux", "::")),
    };
    Secret::new(format!(
        "\
SERIAL 0 115200
SAY hostler: booting {title}
DEFAULT {first}
PROMPT 0
NOESCAPE 1
TIMEOUT 100
{labels}"
    ))
}

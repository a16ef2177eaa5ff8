//! What pxelinux reads (BIOS).
//!
//! Called by the renderer with words that are fit for it.

use std::net::SocketAddr;

use super::Linux;
use crate::model::secret::Secret;

/// What pxelinux asks for last, after the menu of its NIC: a machine that is no node's is let go to its own disk. Without it pxelinux
/// waits for minutes, resets the machine, and comes again.
pub(in crate::netboot) fn default() -> Secret {
    Secret::new(LOCAL_DISK.to_owned())
}

/// `LOCALBOOT 0` leaves through the PXE ROM, which closes the NIC, and the BIOS goes on with its next boot device: the order is the
/// administrator's. `LOCALBOOT -1` would pass the ROM by.
///
/// There is no second way after it: it does not return. Nor can `chain.c32` come first: pxelinux 6.04 runs a module that failed again at
/// once and for ever, a hundred requests a second, whatever `ONERROR` and `ONTIMEOUT` say.
pub(super) const LOCAL_DISK: &str = "\
SERIAL 0 115200
SAY hostler: booting the local disk
DEFAULT local
PROMPT 0
NOESCAPE 1
LABEL local
  LOCALBOOT 0
";

/// `::` keeps pxelinux from putting the directory it was loaded from before a name. After a failure `TIMEOUT` (tenths of a second)
/// tries again; `NOESCAPE` keeps a held shift key from stopping the boot; `IPAPPEND` adds `BOOTIF=01-<mac>` (2) and
/// `ip=client:server:gateway:mask` (1).
///
/// `lpxelinux.0` is given a URL, and goes back to TFTP when that fails. `pxelinux.0` knows
/// no URLs.
pub(super) fn linux(linux: &Linux<'_>, http: Option<SocketAddr>, words: &[&str]) -> Secret {
    let Linux { what, kernel, ramdisk, with_addresses, .. } = linux;
    let append = if *with_addresses { 3 } else { 2 };
    let words = words.join(" ");
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
    let [again, first] = match http {
        Some(address) => {
            ["ONERROR tftp\n".to_owned(), label("linux", &format!("http://{address}/"))]
        }
        None => [String::new(), label("linux", "::")],
    };
    let second = http.map_or_else(String::new, |_| label("tftp", "::"));
    Secret::new(format!(
        "\
SERIAL 0 115200
SAY hostler: booting {what}
DEFAULT linux
PROMPT 0
NOESCAPE 1
TIMEOUT 100
{again}{first}{second}"
    ))
}

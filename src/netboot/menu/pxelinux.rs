//! What pxelinux reads (BIOS).
//!
//! Called by the renderer with words that are fit for it.

use super::Linux;
use crate::model::secret::Secret;

/// What pxelinux asks for last, after the menu of its card: a machine that is no node's is let go to its own disk. Without it pxelinux
/// waits for minutes, resets the machine, and comes again.
pub(in crate::netboot) fn default() -> Secret {
    Secret::new(LOCAL_DISK.to_owned())
}

/// `LOCALBOOT 0` leaves through the PXE ROM, which closes the card, and the BIOS goes on with its next boot device: the order is the
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
/// tries again; `NOESCAPE` keeps a held shift key from stopping the boot; `IPAPPEND 2` adds `BOOTIF=01-<mac>`.
pub(super) fn linux(linux: &Linux<'_>, words: &[&str]) -> Secret {
    let Linux { what, kernel, ramdisk, .. } = linux;
    Secret::new(format!(
        "\
SERIAL 0 115200
SAY hostler: booting {what}
DEFAULT linux
PROMPT 0
NOESCAPE 1
TIMEOUT 100
LABEL linux
  KERNEL ::{kernel}
  INITRD ::{ramdisk}
  APPEND {}
  IPAPPEND 2
",
        words.join(" ")
    ))
}

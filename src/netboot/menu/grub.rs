//! What GRUB reads (UEFI, and BIOS where it is GRUB that is netbooted).
//!
//! Called by the renderer with words that are fit for it, and by the table for what every machine gets.

use std::net::SocketAddr;

use super::Linux;
use crate::model::{ids::MacAddr, secret::Secret};

/// GRUB's own configuration, the same for every machine: hands over to the menu of the NIC it booted from.
///
/// `configfile` returns when there is no such menu: a machine that is no node's is let go to its own disk.
pub(in crate::netboot) fn dispatch() -> Secret {
    Secret::new(format!("configfile (tftp)/grub/grub.cfg-01-${{net_default_mac}}\n{LOCAL_DISK}"))
}

/// Under UEFI GRUB starts the disk's own boot loader itself: first the removable-media path of the UEFI specification (§3.5.1.1), which
/// images have, then what installers call theirs. `chainloader` tells it that its disk is `root`; a pattern that nothing matches is passed
/// over.
///
/// `exit` is no way to the disk there: GRUB 2.06 reports success whatever it is told (`exit 1` too), and firmware that follows the
/// specification (§3.1.1) answers a successful boot option with its setup menu instead of the next option. A BIOS does go on with its next
/// boot device.
///
/// A GRUB image without its modules in the loader directory must have in it: tftp, net and efinet (or pxe), normal, configfile, echo, test,
/// regexp, linux, boot, minicmd, search, chain, fat, `part_gpt` and `part_msdos`.
pub(super) const LOCAL_DISK: &str = "\
echo \"hostler: booting the local disk\"
if [ \"$grub_platform\" = efi ]; then
  for loader in /EFI/BOOT/BOOTX64.EFI /EFI/BOOT/BOOTAA64.EFI; do
    if search --no-floppy --file --set=root $loader; then
      if chainloader $loader; then
        boot
      fi
    fi
  done
  for loader in (hd*,*)/EFI/*/shim*.efi (hd*,*)/EFI/*/grub*.efi (hd*,*)/EFI/*/*/bootmgfw.efi; do
    if regexp --set=1:root '^\\((hd[0-9]+,[^)]+)\\)' $loader; then
      if chainloader $loader; then
        boot
      fi
    fi
  done
fi
exit
";

/// Every word is quoted: between single quotes nothing has a meaning to GRUB's script language.
///
/// Over HTTP where there is a server, as it fills the path; over TFTP where that fails, because an
/// older GRUB has no port in its address, or a GRUB was made without the module. GRUB goes on after
/// a command that failed. A transfer cut short, by an agent that was restarted say, would end in a
/// kernel without its ramdisk, and that in a panic, or in no kernel, and that in whatever boots
/// next. So both are fetched again; each try waits half a minute for an answer. Once loaded the
/// kernel is kept: GRUB 2.06 crashes when it boots one that was loaded twice.
pub(super) fn linux(
    linux: &Linux<'_>,
    http: Option<SocketAddr>,
    mac: MacAddr,
    words: &[&str],
) -> Secret {
    let Linux { what, kernel, ramdisk, .. } = linux;
    // No GRUB of today knows IPv6 with a port.
    let servers = match http {
        Some(http @ SocketAddr::V4(_)) => format!("'(http,{http})' '(tftp)'"),
        Some(SocketAddr::V6(_)) | None => "'(tftp)'".to_owned(),
    };
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    Secret::new(format!(
        "\
echo \"hostler: booting {what}\"
for try in 1 2 3 4 5 6 7 8 9 10; do
  for from in {servers}; do
    if linux $from/{kernel} {} BOOTIF=01-{}; then
      for try in 1 2 3 4 5 6 7 8 9 10; do
        for from in {servers}; do
          if initrd $from/{ramdisk}; then
            boot
          fi
        done
      done
      exit
    fi
  done
done
exit
",
        quoted.join(" "),
        mac.hyphenated()
    ))
}

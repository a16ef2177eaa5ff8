//! GRUB's menus: for UEFI, and for BIOS where GRUB is netbooted there.
//!
//! The table of boot loaders uses it.

use std::net::SocketAddr;

use super::{BootLoader, Linux, ipxe};
use crate::model::{ids::MacAddr, secret::Secret, spec::Loader};

/// GRUB, with `grub.cfg` and `grub.cfg-01-<mac>` in any directory.
#[derive(Debug)]
pub(super) struct Grub;

impl BootLoader for Grub {
    fn loader(&self) -> Loader {
        Loader::Grub
    }

    fn is_common_menu(&self, _directory: &str, file: &str) -> bool {
        file == "grub.cfg"
    }

    /// Loads the menu of the NIC that GRUB booted from.
    ///
    /// `configfile` returns without such a menu: an unclaimed machine then boots its own disk.
    fn common_menu(&self) -> Secret {
        let nic = "configfile (tftp)/grub/grub.cfg-01-${net_default_mac}";
        Secret::new(format!("{nic}\n{LOCAL_DISK}"))
    }

    fn nic_in_name<'a>(&self, _directory: &str, file: &'a str) -> Option<&'a str> {
        file.strip_prefix("grub.cfg-")
    }

    fn nic_menu_name(&self, mac: MacAddr) -> String {
        format!("grub/grub.cfg-01-{mac}")
    }

    fn local_disk(&self) -> Secret {
        Secret::new(LOCAL_DISK.to_owned())
    }

    fn linux(&self, linux: &Linux<'_>) -> Secret {
        render(linux)
    }
}

/// Under UEFI GRUB starts the disk's own boot loader itself: first the removable-media path of the
/// UEFI specification (§3.5.1.1), which images have, then the names that installers use.
/// `chainloader` tells the boot loader that its disk is `root`; a pattern without a match is passed
/// over.
///
/// `exit` is no way to the disk there: GRUB 2.06 reports success whatever it is told (`exit 1`
/// too), and firmware that follows the specification (§3.1.1) answers a successful boot option with
/// its setup menu instead of the next option. A BIOS does go on with its next boot device.
///
/// A GRUB image without its modules in the loader directory must contain: tftp, net and efinet (or
/// pxe), normal, configfile, echo, test, regexp, linux, linux16 (for BIOS), boot,
/// minicmd, search, chain, fat, `part_gpt` and `part_msdos`.
const LOCAL_DISK: &str = "\
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

/// Renders the menu. Every word is quoted: between single quotes nothing has a meaning to GRUB's
/// script language.
///
/// The menu tries iPXE first where its program is among the loaders: GRUB takes ten times as long.
///
/// Over HTTP where there is a server, as it fills the path; over TFTP where that fails, because an
/// older GRUB has no port in its address, or a GRUB was made without the module. GRUB goes on after
/// a command that failed. A transfer cut short, by an agent that was restarted say, would end in a
/// kernel without its ramdisk, and that in a panic, or in no kernel, and that in whatever boots
/// next. So both are fetched again; each try waits half a minute for an answer. Once loaded the
/// kernel is kept: GRUB 2.06 crashes when it boots one that was loaded twice.
fn render(linux: &Linux<'_>) -> Secret {
    let Linux { title, kernel, ramdisk, mac, words, .. } = linux;
    // No GRUB of today knows IPv6 with a port.
    let servers = match linux.http {
        Some(http @ SocketAddr::V4(_)) => format!("'(http,{http})' '(tftp)'"),
        Some(SocketAddr::V6(_)) | None => "'(tftp)'".to_owned(),
    };
    let hand_over = if linux.ipxe { ipxe::commands_for_grub(*mac) } else { String::new() };
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    Secret::new(format!(
        "\
echo \"hostler: booting {title}\"
{hand_over}for try in 1 2 3 4 5 6 7 8 9 10; do
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

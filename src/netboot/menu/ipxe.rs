//! iPXE's scripts, for BIOS and UEFI, and the menus by which other boot loaders hand over to it.
//!
//! Called through the table of boot loaders. iPXE fetches kernel and ramdisk over plain HTTP: the
//! iPXE of distributions and network interfaces trusts public authorities only, so that HTTPS would
//! need an iPXE built for each site. The key is in the script and not in anything that HTTP carries
//! then; a script travels as any other menu does.

use super::{BootLoader, Linux};
use crate::model::{ids::MacAddr, secret::Secret, spec::Loader};

/// `boot.ipxe` or `autoexec.ipxe` in whichever directory, and `ipxe/01-<mac>.ipxe`.
#[derive(Debug)]
pub(super) struct Ipxe;

impl BootLoader for Ipxe {
    fn loader(&self) -> Loader {
        Loader::Ipxe
    }

    fn own_dir(&self) -> Option<&'static str> {
        Some("ipxe/")
    }

    fn is_common_menu(&self, _directory: &str, file: &str) -> bool {
        matches!(file, "boot.ipxe" | "autoexec.ipxe")
    }

    /// Tries the script of each of the machine's NICs, since the first one need not be the one it
    /// was netbooted from.
    ///
    /// `--replace` ends this script when the NIC's own begins, whose `exit` then is the end of
    /// iPXE. An unclaimed machine boots its own disk.
    fn common_menu(&self) -> Secret {
        Secret::new(format!(
            "\
#!ipxe
set nic:int32 0
:nic
isset ${{net${{nic}}/mac}} || goto none
chain --replace ipxe/01-${{net${{nic}}/mac:hexhyp}}.ipxe ||
inc nic
goto nic
:none
{LOCAL_DISK_COMMANDS}"
        ))
    }

    fn nic_in_name<'a>(&self, directory: &str, file: &'a str) -> Option<&'a str> {
        file.strip_suffix(".ipxe").filter(|_| directory == "ipxe")
    }

    fn nic_menu_name(&self, mac: MacAddr) -> String {
        format!("ipxe/01-{}.ipxe", mac.hyphenated())
    }

    fn local_disk(&self) -> Secret {
        Secret::new(format!("#!ipxe\n{LOCAL_DISK_COMMANDS}"))
    }

    fn linux(&self, linux: &Linux<'_>) -> Secret {
        render(linux)
    }

    fn reached_from(&self, other: Loader, mac: MacAddr) -> Option<Secret> {
        match other {
            Loader::Pxelinux => Some(from_pxelinux(mac)),
            Loader::Grub => Some(from_grub(mac)),
            Loader::Ipxe | Loader::Auto => None,
        }
    }
}

/// Only after a failure does UEFI go on with its next boot option (specification §3.1.1).
const LOCAL_DISK_COMMANDS: &str = "\
echo hostler: booting the local disk
iseq ${platform} efi && exit 1 ||
sanboot --no-describe --drive 0x80 || exit 1
";

/// Renders the script. iPXE expands `${…}` wherever it stands and has no quotes: the words must not
/// contain it, nor be one of its separators.
///
/// A download that was cut short, by an agent that was restarted say, is tried again; one that
/// stands still for half a minute counts as such. Under UEFI the kernel asks the firmware for its
/// ramdisk by the name in `initrd=`. `${mac}` is the NIC that has an address.
///
/// An iPXE that another boot loader has handed over to has no address yet. It asks for one on the
/// NIC that the machine was netbooted from, on any other only without that one, and then fetches
/// this script itself: its address need not be the one that the other boot loader had.
fn render(linux: &Linux<'_>) -> Secret {
    let Linux { title, kernel, ramdisk, mac, words, with_addresses, .. } = linux;
    // As pxelinux writes it (`IPAPPEND 1`).
    let addresses =
        if *with_addresses { " ip=${ip}:${next-server}:${gateway}:${netmask}" } else { "" };
    let server = match linux.http {
        Some(address) => format!("http://{address}"),
        None => "tftp://${next-server}".to_owned(),
    };
    let own = Ipxe.nic_menu_name(*mac);
    Secret::new(format!(
        "\
#!ipxe
echo hostler: booting {title}
set nic:int32 0
set try:int32 0
isset ${{ip}} && goto kernel ||
:nic
isset ${{net${{nic}}/mac}} || goto any
iseq ${{net${{nic}}/mac}} {mac} && dhcp net${{nic}} && goto own ||
inc nic
goto nic
:any
dhcp || exit 1
:own
chain --replace {server}/{own} ||
:kernel
kernel --timeout 30000 {server}/{kernel} initrd=ramdisk {} BOOTIF=01-${{mac:hexhyp}}{addresses} && goto ramdisk ||
inc try
iseq ${{try}} 10 && exit 1 ||
sleep 1
goto kernel
:ramdisk
initrd --timeout 30000 --name ramdisk {server}/{ramdisk} && goto boot ||
inc try
iseq ${{try}} 10 && exit 1 ||
sleep 1
goto ramdisk
:boot
boot || exit 1
",
        words.join(" ")
    ))
}

/// iPXE as a Linux kernel, with a script as its ramdisk: the program that boot loaders for BIOS
/// hand over to.
pub(in crate::netboot) const IPXE_PROGRAM: &str = "ipxe.lkrn";

/// Renders the menu for pxelinux.
fn from_pxelinux(mac: MacAddr) -> Secret {
    Secret::new(format!(
        "\
SERIAL 0 115200
SAY hostler: handing over to iPXE
DEFAULT ipxe
PROMPT 0
NOESCAPE 1
TIMEOUT 100
{}",
        label(mac)
    ))
}

/// Renders the label for pxelinux: iPXE as a kernel, and the NIC's script as its ramdisk, which it
/// runs.
pub(super) fn label(mac: MacAddr) -> String {
    format!(
        "\
LABEL ipxe
  KERNEL ::{IPXE_PROGRAM}
  INITRD ::{}
",
        Ipxe.nic_menu_name(mac)
    )
}

/// Renders the menu for GRUB.
///
/// Under UEFI iPXE takes no script: it asks DHCP again, which must know that iPXE gets `boot.ipxe`.
fn from_grub(mac: MacAddr) -> Secret {
    Secret::new(format!(
        "\
echo \"hostler: handing over to iPXE\"
if [ \"$grub_platform\" = efi ]; then
  if chainloader (tftp)/snponly.efi; then
    boot
  fi
fi
{}exit
",
        commands_for_grub(mac)
    ))
}

/// Renders the commands for GRUB under BIOS, which continues after them if the program is gone.
///
/// Under UEFI there is no such way: GRUB keeps the network interface to itself, so that iPXE 1.0.0
/// finds none, or hangs, and GRUB's own network is gone when it comes back.
pub(super) fn commands_for_grub(mac: MacAddr) -> String {
    format!(
        "\
if [ \"$grub_platform\" = pc ]; then
  if linux16 (tftp)/{IPXE_PROGRAM}; then
    if initrd16 (tftp)/{}; then
      boot
    fi
  fi
fi
",
        Ipxe.nic_menu_name(mac)
    )
}

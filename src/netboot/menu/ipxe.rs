//! What iPXE reads (BIOS and UEFI), and how the other boot loaders hand over to it.
//!
//! Called by the renderer with words that are fit for it, and by the table for what every machine gets. iPXE fetches kernel and ramdisk
//! over plain HTTP: the iPXE that distributions and network interfaces carry trusts public authorities only, so that HTTPS would need an iPXE
//! built for each site. The key is in the script and not in what HTTP carries then; a script travels as any other menu does.

use std::net::SocketAddr;

use super::Linux;
use crate::model::{ids::MacAddr, secret::Secret};

/// The same for every machine: tries the script of each of its NICs, since the first one need not be the one it was netbooted from.
///
/// `--replace` ends this script when the NIC's own begins, whose `exit` then is the end of iPXE. A machine that is no node's is let go
/// to its own disk.
pub(in crate::netboot) fn dispatch() -> Secret {
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

pub(super) fn local_disk() -> Secret {
    Secret::new(format!("#!ipxe\n{LOCAL_DISK_COMMANDS}"))
}

/// A failure is what makes UEFI go on with its next boot option (specification §3.1.1).
const LOCAL_DISK_COMMANDS: &str = "\
echo hostler: booting the local disk
iseq ${platform} efi && exit 1 ||
sanboot --no-describe --drive 0x80 || exit 1
";

/// iPXE expands `${…}` wherever it stands and has no quotes: the words must not have it, nor be one of its separators.
///
/// A download that was cut short, by an agent that was restarted say, is tried again; one that stands still for half a minute counts as
/// such. Under UEFI the kernel asks the firmware for its ramdisk by the name in `initrd=`. iPXE that another boot loader has handed over
/// to has no address yet. `${mac}` is the NIC that has one.
pub(super) fn linux(linux: &Linux<'_>, http: Option<SocketAddr>, words: &[&str]) -> Secret {
    let Linux { what, kernel, ramdisk, with_addresses, .. } = linux;
    // As pxelinux writes it (`IPAPPEND 1`).
    let addresses =
        if *with_addresses { " ip=${ip}:${next-server}:${gateway}:${netmask}" } else { "" };
    let server = match http {
        Some(address) => format!("http://{address}"),
        None => "tftp://${next-server}".to_owned(),
    };
    Secret::new(format!(
        "\
#!ipxe
echo hostler: booting {what}
isset ${{ip}} || dhcp || exit 1
set try:int32 0
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

/// For pxelinux: iPXE as a kernel, and the NIC's script as its ramdisk, which it runs.
pub(super) fn from_pxelinux(mac: MacAddr) -> Secret {
    Secret::new(format!(
        "\
SERIAL 0 115200
SAY hostler: handing over to iPXE
DEFAULT ipxe
PROMPT 0
NOESCAPE 1
TIMEOUT 100
LABEL ipxe
  KERNEL ::ipxe.lkrn
  INITRD ::ipxe/01-{}.ipxe
",
        mac.hyphenated()
    ))
}

/// For GRUB. Under UEFI iPXE takes no script: it asks DHCP again, which must know that iPXE gets `boot.ipxe`. Under BIOS it is a kernel.
pub(super) fn from_grub(mac: MacAddr) -> Secret {
    Secret::new(format!(
        "\
echo \"hostler: handing over to iPXE\"
if chainloader (tftp)/ipxe.efi; then
  boot
fi
if linux16 (tftp)/ipxe.lkrn; then
  if initrd16 (tftp)/ipxe/01-{}.ipxe; then
    boot
  fi
fi
exit
",
        mac.hyphenated()
    ))
}

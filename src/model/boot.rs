//! Boot menus, and the parameters on the deploy ramdisk's kernel command line.
//!
//! Called by the agent, which writes the command line, by the netboot subsystem, which serves
//! menus, and by the ramdisk, which reads the command line.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::{
    ids::{MacAddr, NodeName},
    netboot::BootFile,
    secret::{AttemptKey, Secret},
};

/// A machine's firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// UEFI, which netboots GRUB.
    Uefi,
    /// PC BIOS, which netboots pxelinux.
    Bios,
}

/// A machine's processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Arch {
    /// 64-bit PC.
    #[default]
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm; its firmware is always UEFI.
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Arch {
    /// Every kind of processors.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The name in specs, which is Linux's (`uname -m`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The end of the names of its UEFI programs (UEFI 2.10 §3.5.1.1): `BOOTX64.EFI` is for a PC,
    /// `grubaa64.efi` for 64-bit Arm.
    pub const fn efi_suffix(self) -> &'static str {
        match self {
            Self::X86_64 => "x64",
            Self::Aarch64 => "aa64",
        }
    }
}

/// The content of a known machine's boot menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootMenu {
    /// Boot the local disk: every node without an attempt, unless it boots from the network.
    LocalDisk,
    /// Boot the installed system's own kernel.
    Network {
        /// The kernel.
        kernel: BootFile,
        /// The initial ramdisk.
        ramdisk: BootFile,
        /// The kernel command line.
        command_line: String,
    },
    /// Boot the deploy ramdisk.
    Deploy {
        /// TFTP name of the kernel, without a leading slash.
        kernel: String,
        /// TFTP name of the initramfs, without a leading slash.
        initramfs: String,
        /// The kernel command line. It holds the attempt's key.
        command_line: Secret,
        /// Whether a capable boot loader appends its addresses from DHCP, as
        /// `ip=client:server:gateway:mask`.
        with_addresses: bool,
    },
}

/// The stage of a machine's boot that a fetched file proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootStage {
    /// The boot loader or one of its modules.
    Loader,
    /// The node's own boot menu.
    Menu,
    /// The deploy kernel.
    Kernel,
    /// The deploy ramdisk.
    Ramdisk,
}

impl BootStage {
    /// The stage in words for messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loader => "boot loader",
            Self::Menu => "boot menu",
            Self::Kernel => "deploy kernel",
            Self::Ramdisk => "deploy ramdisk",
        }
    }
}

/// Evidence of a boot: a machine fetched a file over TFTP or HTTP, or requested a boot loader or a
/// boot menu that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The node, which is known once its address has requested the node's own boot menu. For a
    /// refused file: a node that is expected to netboot.
    pub node: NodeName,
    /// The file's role in the boot.
    pub stage: BootStage,
    /// The file's name in the request.
    pub path: String,
    /// The client's address.
    pub peer: IpAddr,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Whether the client acknowledged the last byte; over HTTP, whether all bytes were sent.
    pub complete: bool,
    /// How often the file was requested and refused; 0: it was sent.
    pub refused_times: u32,
    /// The network interface, of no known node, that requested a boot menu.
    pub unknown_mac: Option<MacAddr>,
}

/// The deploy ramdisk's parameters: the agent's address and certificate, the node, and the
/// attempt's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamdiskArgs {
    /// The callback listener.
    pub api: SocketAddr,
    /// The node's name.
    pub node: NodeName,
    /// The attempt's key.
    pub key: AttemptKey,
    /// SHA-256 of the agent's certificate (DER), 64 lower-case hex digits.
    pub pin: String,
}

impl RamdiskArgs {
    /// Formats the parameters as words of the kernel command line.
    pub fn to_command_line(&self) -> Secret {
        Secret::new(format!(
            "hostler.api={} hostler.node={} hostler.key={} hostler.pin={}",
            self.api,
            self.node,
            self.key.expose(),
            self.pin
        ))
    }

    /// Parses a kernel command line. The first word of each name wins, so that no later word can
    /// replace it.
    pub fn from_command_line(text: &str) -> Result<Self, String> {
        let word = |name: &str| {
            text.split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(|| {
                    format!("kernel command line: {name}= is missing; hostler puts it there")
                })
        };
        let pin = word("hostler.pin")?.to_owned();
        if pin.len() != 64 || !pin.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("kernel command line: hostler.pin must have 64 hex digits".to_owned());
        }
        Ok(Self {
            api: word("hostler.api")?
                .parse()
                .map_err(|_| "kernel command line: hostler.api must be address:port".to_owned())?,
            node: word("hostler.node")?.parse()?,
            key: word("hostler.key")?
                .parse()
                .map_err(|e: &str| format!("kernel command line: hostler.key: {e}"))?,
            pin,
        })
    }
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uefi => "uefi",
            Self::Bios => "bios",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> RamdiskArgs {
        RamdiskArgs {
            api: "192.0.2.1:8443".parse().unwrap(),
            node: "edge-07".parse().unwrap(),
            key: AttemptKey::from_bytes(&[1; 32]),
            pin: "ab".repeat(32),
        }
    }

    #[test]
    fn the_ramdisk_reads_what_the_agent_wrote() {
        let line = format!(
            "BOOT_IMAGE=deploy/vmlinuz {} console=ttyS0",
            args().to_command_line().expose()
        );
        assert_eq!(RamdiskArgs::from_command_line(&line), Ok(args()));
    }

    #[test]
    fn words_added_later_cannot_replace_the_agents() {
        let line = format!(
            "{} hostler.pin={} hostler.node=other",
            args().to_command_line().expose(),
            "00".repeat(32)
        );
        assert_eq!(RamdiskArgs::from_command_line(&line), Ok(args()));
    }

    #[test]
    fn a_missing_or_bad_word_is_named() {
        assert!(RamdiskArgs::from_command_line("quiet").unwrap_err().contains("hostler.pin"));
        let line = args()
            .to_command_line()
            .expose()
            .replace("hostler.api=192.0.2.1:8443", "hostler.api=nowhere");
        assert!(RamdiskArgs::from_command_line(&line).unwrap_err().contains("hostler.api"));
    }
}

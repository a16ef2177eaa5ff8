//! `hostler dhcp-snippet`: configuration of the site's DHCP server, by which its machines netboot
//! from this agent.
//!
//! The snippet holds only the boot servers and files: the addresses are the site's own.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use clap::ValueEnum;

use crate::config::{self, Config};

use super::Failure;

/// Firmware's fixed TFTP port: DHCP has no field for another (RFC 2131 §2).
const FIRMWARE_TFTP_PORT: u16 = 69;
/// iPXE's user class in option 77, and its boot file.
const IPXE_USER_CLASS: &str = "iPXE";
const IPXE_FILE: &str = "boot.ipxe";

/// The arguments of `hostler dhcp-snippet`.
#[derive(Debug, clap::Args)]
pub(super) struct DhcpSnippetArgs {
    /// The DHCP server's program.
    #[arg(value_enum)]
    server: Dialect,
    /// The agent's configuration.
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

/// A DHCP server's language.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dialect {
    /// A file in dnsmasq's configuration.
    Dnsmasq,
    /// Client classes of ISC Kea (kea-dhcp4).
    Kea,
    /// Conditions of ISC DHCP (dhcpd).
    Isc,
}

/// A kind of firmware, and its boot loader.
pub(super) struct FirmwareLoader {
    tag: &'static str,
    /// The firmware's numbers in option 93.
    architectures: &'static [u16],
    pub(super) file: &'static str,
    why: &'static str,
}

pub(super) const CHOICES: [FirmwareLoader; 3] = [
    FirmwareLoader {
        tag: "hostler-bios",
        architectures: &[0],
        file: "pxelinux.0",
        why: "BIOS: pxelinux.",
    },
    FirmwareLoader {
        tag: "hostler-uefi-x86_64",
        architectures: &[7, 9],
        file: "grubx64.efi",
        why: "UEFI on x86_64: GRUB; with Secure Boot shimx64.efi instead, which loads it. It is 7 \
            in IANA's registry and 9 in RFC 4578 itself; there is firmware of both minds.",
    },
    FirmwareLoader {
        tag: "hostler-uefi-arm64",
        architectures: &[11],
        file: "grubaa64.efi",
        why: "UEFI on 64-bit Arm: GRUB; with Secure Boot shimaa64.efi instead, which loads it.",
    },
];
const IPXE_TAG: &str = "hostler-ipxe";
const IPXE_WHY: &str = "iPXE, in a network interface or started by a boot loader, says so by its \
    user class (option 77): it gets a script, not a loader.";
const ARCHITECTURE_WHY: &str =
    "Firmware says what it is in option 93 (RFC 4578 §2.1); what is not listed gets nothing.";

/// The advertised address is no IPv4 address, which DHCP for IPv4 needs.
#[derive(Debug, thiserror::Error)]
#[error(
    "network.advertise: {0} is an IPv6 address; DHCP for IPv4 can only send machines to an IPv4 \
     address"
)]
struct NotIpv4(IpAddr);

pub(super) fn print(args: &DhcpSnippetArgs, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let Config { network, tftp, .. } = config::read(&args.config)?;
    let IpAddr::V4(address) = network.advertise else {
        return Err(NotIpv4(network.advertise).into());
    };
    write!(out, "{}", snippet(args.server, address, tftp.listen))?;
    Ok(ExitCode::SUCCESS)
}

fn snippet(dialect: Dialect, address: Ipv4Addr, tftp: SocketAddr) -> String {
    let (place, text) = match dialect {
        Dialect::Dnsmasq => ("a file in /etc/dnsmasq.d", dnsmasq(address)),
        Dialect::Kea => ("\"Dhcp4\" in /etc/kea/kea-dhcp4.conf", kea(address)),
        Dialect::Isc => ("/etc/dhcp/dhcpd.conf", isc(address)),
    };
    let port = tftp.port();
    let warning = if port == FIRMWARE_TFTP_PORT {
        String::new()
    } else {
        format!(
            "# WARNING: [tftp] listen has port {port}. Firmware asks port {FIRMWARE_TFTP_PORT} and \
             no other: unless something forwards that, nothing will boot.\n"
        )
    };
    format!("# Netboot from hostler at {address}: for {place}.\n{warning}{text}")
}

fn dnsmasq(address: Ipv4Addr) -> String {
    let mut lines = vec![
        format!("# {IPXE_WHY}"),
        format!("dhcp-userclass=set:{IPXE_TAG},{IPXE_USER_CLASS}"),
        format!("dhcp-boot=tag:{IPXE_TAG},{IPXE_FILE},,{address}"),
        format!("# {ARCHITECTURE_WHY}"),
    ];
    for FirmwareLoader { tag, architectures, file, why } in CHOICES {
        lines.push(format!("# {why}"));
        for number in architectures {
            lines.push(format!("dhcp-match=set:{tag},option:client-arch,{number}"));
        }
        lines.push(format!("dhcp-boot=tag:{tag},tag:!{IPXE_TAG},{file},,{address}"));
    }
    lines.extend(
        [
            "# The addresses are yours to give, for example:",
            "# dhcp-host=52:54:00:00:00:01,192.0.2.101",
            "# A dnsmasq for this alone, which answers only machines with such a line, also has:",
            "# port=0",
            "# interface=eth1",
            "# dhcp-range=192.0.2.0,static,255.255.255.0",
        ]
        .map(str::to_owned),
    );
    lines.join("\n") + "\n"
}

fn kea(address: Ipv4Addr) -> String {
    let class = |why: &str, name: &str, test: &str, file: &str| {
        format!(
            "  # {why}\n  {{\n    \"name\": \"{name}\",\n    \"test\": \"{test}\",\n    \
             \"next-server\": \"{address}\",\n    \"boot-file-name\": \"{file}\"\n  }}"
        )
    };
    let is_ipxe = format!("option[77].hex == '{IPXE_USER_CLASS}'");
    let mut classes = vec![class(IPXE_WHY, IPXE_TAG, &is_ipxe, IPXE_FILE)];
    for FirmwareLoader { tag, architectures, file, why } in CHOICES {
        let numbers: Vec<String> = architectures
            .iter()
            .map(|number| format!("option[93].hex == 0x{number:04x}"))
            .collect();
        let test = format!("not member('{IPXE_TAG}') and ({})", numbers.join(" or "));
        classes.push(class(why, tag, &test, file));
    }
    format!(
        "# {ARCHITECTURE_WHY}\n\"client-classes\": [\n{}\n]\n\
         # The addresses are yours to give, in \"subnet4\", for example:\n\
         # \"reservations\": \
         [{{ \"hw-address\": \"52:54:00:00:00:01\", \"ip-address\": \"192.0.2.101\" }}]\n",
        classes.join(",\n")
    )
}

fn isc(address: Ipv4Addr) -> String {
    let branch = |FirmwareLoader { architectures, file, why, .. }: &FirmwareLoader| {
        let numbers: Vec<String> = architectures
            .iter()
            .map(|number| format!("option pxe-system-type = 00:{number:02x}"))
            .collect();
        format!("# {why}\nelsif {} {{\n  filename \"{file}\";\n}}\n", numbers.join(" or "))
    };
    let branches: String = CHOICES.iter().map(branch).collect();
    format!(
        "next-server {address};\n# {IPXE_WHY}\n\
         if exists user-class and option user-class = \"{IPXE_USER_CLASS}\" \
         {{\n  filename \"{IPXE_FILE}\";\n}}\n# {ARCHITECTURE_WHY}\n\
         {branches}# The addresses are yours to give, for example:\n\
         # host edge-01 {{ hardware ethernet 52:54:00:00:00:01; fixed-address 192.0.2.101; }}\n"
    )
}

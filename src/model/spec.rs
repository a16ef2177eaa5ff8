//! A node's spec after checking: what one machine should be. `_defaults.toml` and hostler's own
//! defaults are already in it.
//!
//! Made by the spec reader only; read by the core and the agent. There is no invalid value of these
//! types. A password is a reference to a file; only what goes onto a config drive is here itself,
//! so that it is what was checked and what the identity stands for. It can be written to the
//! agent's durable record, so that the last good spec outlives a restart.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    attached::{AttachedContent, MetaData},
    boot::{Arch, Firmware},
    disk::RootDeviceHints,
    ids::{Digest, MacAddr, NodeName},
    netboot::Netboot,
};

mod boot_check;
mod example;
mod timeouts;

pub use boot_check::{BootCheck, SSH_PORT};
pub use timeouts::{FIRST_BOOT_WAIT, ROOT_DEVICE_WAIT, Timeouts};

/// The wanted state of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The node's name: the stem of the spec's file name.
    pub name: NodeName,
    /// The goal for the machine.
    pub goal: Goal,
    /// The power state wanted once deployed. A change of it is an order, performed once; a later
    /// difference is drift.
    pub power: WantedPower,
    /// Start nothing and stop what is under way; keep observing.
    pub paused: bool,
    /// Changing this text is the operator's consent to wipe and reinstall.
    pub redeploy: Option<String>,
    /// How the machine netboots.
    pub boot: Boot,
    /// How its power is controlled; `None`: an operator does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc: Option<Box<Bmc>>,
    /// Which of its disks is written.
    pub root_device: RootDeviceHints,
    /// The image to be installed.
    pub image: Image,
    /// The data for the installed system at its first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_drive: Option<Box<ConfigDrive>>,
    /// How its system shows that it is up. Records leave the default out, so that those of an
    /// earlier version read the same.
    #[serde(default, skip_serializing_if = "BootCheck::is_none")]
    pub boot_check: BootCheck,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// How often a failed attempt is repeated.
    pub retry: Retry,
}

/// The goal for a machine (`state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// Install it and keep it installed.
    Deployed,
    /// Keep it off, serve it nothing, leave its disk as it is.
    Available,
    /// Observe only.
    Unmanaged,
}

/// The power state wanted of a deployed machine (`power`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantedPower {
    /// The machine runs.
    On,
    /// Off, also after an installation.
    Off,
    /// Either state will do.
    Ignore,
}

/// `[boot]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The NICs it may netboot from, at least one, no two alike.
    pub macs: Vec<MacAddr>,
    /// Its firmware.
    pub firmware: Firmware,
    /// Its processors.
    #[serde(default)]
    pub arch: Arch,
    /// The boot loader it is given.
    #[serde(default)]
    pub loader: Loader,
    /// The deploy ramdisk it is given.
    #[serde(default)]
    pub ramdisk: DeployRamdisk,
    /// Whether its iSCSI target has to ask for CHAP. One that does not lets everybody on the deploy
    /// network write the disk.
    #[serde(default = "yes")]
    pub require_chap: bool,
    /// Added to the deploy ramdisk's kernel command line.
    pub kernel_args: Vec<String>,
}

const fn yes() -> bool {
    true
}

/// `boot.loader`: which boot loader takes the machine into an installation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loader {
    /// Whichever asks.
    #[default]
    Auto,
    /// PXELINUX, SYSLINUX's loader for PXE.
    Pxelinux,
    /// GNU GRUB.
    Grub,
    /// iPXE, which the others hand over to: it fetches kernel and ramdisk over HTTP.
    Ipxe,
}

impl Loader {
    /// Every value, with its name in a spec.
    pub const ALL: [(&'static str, Self); 4] = [
        ("auto", Self::Auto),
        ("pxelinux", Self::Pxelinux),
        ("grub", Self::Grub),
        ("ipxe", Self::Ipxe),
    ];

    /// Whether it boots machines with such firmware.
    #[must_use]
    pub const fn boots(self, firmware: Firmware) -> bool {
        match self {
            Self::Pxelinux => matches!(firmware, Firmware::Bios),
            Self::Auto | Self::Grub | Self::Ipxe => true,
        }
    }
}

/// `boot.ramdisk`: whose deploy ramdisk exports the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeployRamdisk {
    /// hostler's own.
    #[default]
    Hostler,
    /// The shell ramdisk of `OpenStack` Ironic's first years. Its target asks nobody for a name and
    /// a secret, and its key travels in clear.
    Ironic,
}

/// `[bmc]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bmc {
    /// Who speaks to it.
    #[serde(default)]
    pub driver: BmcDriver,
    /// Where it answers.
    pub address: BmcAddress,
    /// Its user, at most 16 bytes (IPMI 2.0 §13.28); may be empty.
    pub username: String,
    /// Where its user's password is. Only with [`BmcDriver::Program`] there may be none.
    #[serde(flatten)]
    pub password: Option<Password>,
    /// Where the BMC key (`K_g`) is, if the BMC has one: a plain path relative to the secrets
    /// directory, of a file whose first line is the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kg_file: Option<String>,
    /// The privilege level to ask for.
    pub privilege: Privilege,
    /// The one cipher suite to use; `None` tries 17, then 3, and remembers what worked.
    pub cipher_suite: Option<CipherSuite>,
    /// Whether a ramdisk is believed only if the machine it runs on has the UUID that this BMC
    /// reports.
    #[serde(default)]
    pub match_system_uuid: bool,
    /// Whether what the machine prints on its serial line during an attempt is kept if that fails.
    /// Only with [`BmcDriver::Ipmi`].
    #[serde(default)]
    pub console: bool,
}

/// Where a BMC's password is: the first line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Password {
    /// A plain path relative to the secrets directory.
    PasswordFile(String),
    /// The name of a credential that the service manager gives the agent (systemd.exec,
    /// `LoadCredential=`).
    PasswordCredential(String),
}

/// `bmc.driver`, where there is a BMC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BmcDriver {
    /// hostler itself.
    #[default]
    Ipmi,
    /// The program of that name, for a BMC that only it can talk to.
    Ipmitool,
    /// A program of the administrator's, for whatever else can switch a machine.
    Program,
}

impl BmcDriver {
    /// The driver's name in a spec.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipmi => "ipmi",
            Self::Ipmitool => "ipmitool",
            Self::Program => "program",
        }
    }
}

/// The identity of a machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MachineId {
    /// Its BMC.
    Bmc(BmcAddress),
    /// Its NICs, if it has none.
    Nics(Vec<MacAddr>),
}

/// Where a BMC is, and by that which machine it belongs to: two specs with equal addresses name one
/// machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BmcAddress {
    /// A host and a port: a BMC that speaks a protocol of its own.
    Host(HostPort),
    /// A URL, by whose scheme its driver knows it: `program:/PATH#ADDRESS`.
    Url(String),
}

/// Host and UDP port of a BMC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// A host name or an IPv4 or IPv6 address, without brackets.
    pub host: String,
    /// The RMCP port, usually 623.
    pub port: u16,
}

/// The scheme of a BMC that a program speaks for.
const PROGRAM_SCHEME: &str = "program:";
/// The character between a program's path and the address it is given. No program's path has it.
pub const PROGRAM_SEPARATOR: char = '#';

impl BmcAddress {
    /// The address of a BMC at a host.
    pub fn at(host: impl Into<String>, port: u16) -> Self {
        Self::Host(HostPort { host: host.into(), port })
    }

    /// The address of a BMC that a program speaks for. Which device that is, program and `address`
    /// say together.
    pub fn by_program(program: &str, address: &str) -> Self {
        Self::Url(format!("{PROGRAM_SCHEME}{program}{PROGRAM_SEPARATOR}{address}"))
    }

    /// Host and port, if that is what it is.
    pub const fn host(&self) -> Option<&HostPort> {
        match self {
            Self::Host(host) => Some(host),
            Self::Url(_) => None,
        }
    }

    /// The program's path and the address it is given, if a program speaks for the BMC.
    pub fn program(&self) -> Option<(&str, &str)> {
        match self {
            Self::Host(_) => None,
            Self::Url(url) => url.strip_prefix(PROGRAM_SCHEME)?.split_once(PROGRAM_SEPARATOR),
        }
    }
}

impl FromStr for BmcAddress {
    type Err = String;

    /// Reads an address as it is displayed, and nothing else.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Self::Url(text.to_owned());
        if url.program().is_some_and(|(program, _)| program.starts_with('/')) {
            return Ok(url);
        }
        let parts = text.rsplit_once(':').and_then(|(host, port)| {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let host = bare.unwrap_or(host);
            (!host.is_empty()).then_some(())?;
            Some(Self::at(host, port.parse().ok()?))
        });
        let address = parts.filter(|address| address.to_string() == text);
        address.ok_or_else(|| format!("`{text}` is not host:port"))
    }
}

impl fmt::Display for BmcAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => host.fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// An IPMI session privilege level (IPMI 2.0 §6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Privilege {
    /// Operator, level 3: enough for power and boot device on most BMCs.
    Operator,
    /// Administrator, level 4.
    Administrator,
}

/// An RMCP+ cipher suite hostler speaks (IPMI 2.0 table 22-20).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum CipherSuite {
    /// Suite 3: HMAC-SHA1, HMAC-SHA1-96, AES-CBC-128.
    Sha1,
    /// Suite 17: HMAC-SHA256, HMAC-SHA256-128, AES-CBC-128.
    Sha256,
}

impl TryFrom<u8> for CipherSuite {
    type Error = String;

    fn try_from(id: u8) -> Result<Self, Self::Error> {
        match id {
            3 => Ok(Self::Sha1),
            17 => Ok(Self::Sha256),
            _ => Err(format!("cipher suite {id} is not supported; 17 and 3 are")),
        }
    }
}

impl From<CipherSuite> for u8 {
    fn from(suite: CipherSuite) -> Self {
        match suite {
            CipherSuite::Sha1 => 3,
            CipherSuite::Sha256 => 17,
        }
    }
}

/// `[image]`, and `[partitions]` where that means something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// A path, absolute or relative to the images directory, or an http or https URL.
    pub source: String,
    /// The digest of the file as published, or where it is listed.
    pub checksum: Checksum,
    /// The format that the file is said to have.
    pub format: ImageFormat,
    /// The kind of image.
    #[serde(default)]
    pub kind: ImageKind,
    /// How the disk is checked after it was written.
    #[serde(default)]
    pub verify: Verify,
    /// The files that the installed machine boots over the network; `None`: it boots from its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netboot: Option<Box<Netboot>>,
}

/// `image.checksum`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Checksum {
    /// It is here.
    Inline(Digest),
    /// It is in a file like `SHA256SUMS`: a path like that of an image, or a URL. It is looked up
    /// when an attempt is prepared.
    Listed(String),
}

impl FromStr for Checksum {
    type Err = String;

    /// A digest is told from a place by its algorithm's name, or by consisting of hex digits only.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_place = text.contains('/')
            || !(text.contains(':') || text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if is_place { Ok(Self::Listed(text.to_owned())) } else { text.parse().map(Self::Inline) }
    }
}

impl TryFrom<String> for Checksum {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Checksum> for String {
    fn from(checksum: Checksum) -> Self {
        checksum.to_string()
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(digest) => digest.fmt(f),
            Self::Listed(place) => f.write_str(place),
        }
    }
}

/// `image.format`: inspected, never trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageFormat {
    /// Found by looking into the file.
    Auto,
    /// The disk's bytes as they are. The file may still be compressed as a whole.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// `image.kind`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// A whole disk.
    #[default]
    Disk,
    /// One file system: hostler makes the partitions around it.
    Partition(Partitions),
}

/// `[partitions]`: sizes in bytes. On the disk they lie in the order ESP (where the machine boots
/// from it by UEFI), swap, ephemeral, config drive, root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partitions {
    /// The kind of table.
    pub table: PartitionTable,
    /// Swap space, if any.
    pub swap_bytes: Option<u64>,
    /// A file system for data that may be lost, if any.
    pub ephemeral_bytes: Option<u64>,
    /// The root partition; `None`: all that is left.
    pub root_bytes: Option<u64>,
}

/// `partitions.table`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionTable {
    /// GUID partition table (UEFI 2.10 §5.3).
    Gpt,
    /// Master boot record.
    Msdos,
}

/// `image.verify`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// hostler reads everything back over iSCSI and compares it.
    #[default]
    Full,
    /// The ramdisk hashes its own disk, after its target has stopped.
    Node,
    /// Not at all: what a target acknowledges is believed.
    None,
}

/// `[config_drive]`: cloud-init's data, as a small file system of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDrive {
    /// Its label, and so cloud-init's data source.
    pub label: DriveLabel,
    /// Its file system.
    pub filesystem: DriveFilesystem,
    /// The user data.
    pub user_data: Option<Attachment>,
    /// The network configuration.
    pub network_config: Option<Attachment>,
    /// The vendor data: what user data is merged onto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor_data: Option<Attachment>,
    /// Metadata of the administrator's own, over what hostler says by itself.
    pub meta_data: BTreeMap<String, MetaData>,
}

/// `config_drive.label`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriveLabel {
    /// `config-2`: `OpenStack`'s config drive.
    #[serde(rename = "config-2")]
    Config2,
    /// `cidata`: cloud-init's `NoCloud`.
    #[serde(rename = "cidata")]
    Cidata,
}

/// `config_drive.filesystem`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriveFilesystem {
    /// FAT, as `vfat`.
    Vfat,
    /// ISO 9660 with Rock Ridge or Joliet names.
    Iso9660,
}

/// A file that lies with the specs and was read with them. Its content may hold secrets, so it is
/// never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its path, relative to the spec directory.
    pub path: String,
    /// The file's content.
    pub content: AttachedContent,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.content.as_bytes().len();
        f.debug_struct("Attachment").field("path", &self.path).field("bytes", &bytes).finish()
    }
}

/// `[retry]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Attempts before the node is `failed`, at least 1.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles from there.
    pub backoff: Duration,
}

impl NodeSpec {
    /// The machine's identity.
    pub fn machine(&self) -> MachineId {
        let nics = || MachineId::Nics(self.boot.macs.clone());
        self.bmc.as_ref().map_or_else(nics, |bmc| MachineId::Bmc(bmc.address.clone()))
    }

    /// Where its BMC answers, if it has one.
    pub fn bmc_address(&self) -> Option<&BmcAddress> {
        self.bmc.as_ref().map(|bmc| &bmc.address)
    }
}

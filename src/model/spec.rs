//! A node's checked spec, with `_defaults.toml` and hostler's own defaults applied.
//!
//! Made by the spec reader only; used by the core and the agent. Values of these types are always
//! valid. A password is a reference to a file; only attached files are included, so that exactly
//! the checked content is installed and hashed. A record can hold a spec, so that the last good one
//! survives a restart.

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
    /// The power state after the installation. A change of this value is performed once; a later
    /// difference is drift.
    pub power: WantedPower,
    /// Whether the node is paused: it starts nothing, stops its operation and is only observed.
    pub paused: bool,
    /// Any text; a change of it is the operator's consent to WIPE and reinstall.
    pub redeploy: Option<String>,
    /// How the machine netboots.
    pub boot: Boot,
    /// The machine's BMC; `None`: an operator switches the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc: Option<Box<Bmc>>,
    /// The hints that choose the disk to write.
    pub root_device: RootDeviceHints,
    /// The image to be installed.
    pub image: Image,
    /// The data for the installed system at its first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_drive: Option<Box<ConfigDrive>>,
    /// The check of the installed system's first boot. Records omit the default, so that an earlier
    /// version's records read the same.
    #[serde(default, skip_serializing_if = "BootCheck::is_none")]
    pub boot_check: BootCheck,
    /// The time limits of the steps.
    pub timeouts: Timeouts,
    /// The retries of failed attempts.
    pub retry: Retry,
}

/// The goal for a machine (`state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// Install it and keep it installed.
    Deployed,
    /// Keep it off, serve it nothing, and never touch its disk.
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

/// `[boot]`: how the machine netboots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The MAC addresses of the NICs that it may netboot from: at least one, no duplicates.
    pub macs: Vec<MacAddr>,
    /// The machine's firmware.
    pub firmware: Firmware,
    /// The machine's processors.
    #[serde(default)]
    pub arch: Arch,
    /// The boot loader that installs it.
    #[serde(default)]
    pub loader: Loader,
    /// The deploy ramdisk that installs it.
    #[serde(default)]
    pub ramdisk: DeployRamdisk,
    /// Whether its iSCSI target must require CHAP. Without CHAP, everybody on the deploy network
    /// can write the disk.
    #[serde(default = "yes")]
    pub require_chap: bool,
    /// Additional words of the deploy ramdisk's kernel command line.
    pub kernel_args: Vec<String>,
}

const fn yes() -> bool {
    true
}

/// `boot.loader`: the boot loader for an installation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loader {
    /// Any boot loader that the machine requests.
    #[default]
    Auto,
    /// PXELINUX, SYSLINUX's loader for PXE.
    Pxelinux,
    /// GNU GRUB.
    Grub,
    /// iPXE, which the other loaders chain to; it fetches kernel and ramdisk over HTTP.
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

    /// Whether it boots machines with this firmware.
    #[must_use]
    pub const fn boots(self, firmware: Firmware) -> bool {
        match self {
            Self::Pxelinux => matches!(firmware, Firmware::Bios),
            Self::Auto | Self::Grub | Self::Ipxe => true,
        }
    }
}

/// `boot.ramdisk`: the deploy ramdisk that exports the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeployRamdisk {
    /// hostler's own deploy ramdisk.
    #[default]
    Hostler,
    /// The shell ramdisk of `OpenStack` Ironic's first years. Its target has no authentication, and
    /// it sends its key unencrypted.
    Ironic,
}

/// `[bmc]`: access to the machine's BMC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bmc {
    /// The driver that controls it.
    #[serde(default)]
    pub driver: BmcDriver,
    /// The BMC's address.
    pub address: BmcAddress,
    /// The BMC's user, at most 16 bytes (IPMI 2.0 §13.28); may be empty.
    pub username: String,
    /// The source of the user's password, which is optional with [`BmcDriver::Program`] only.
    #[serde(flatten)]
    pub password: Option<Password>,
    /// The file whose first line is the BMC key (`K_g`), if the BMC has one: a plain path relative
    /// to the secrets directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kg_file: Option<String>,
    /// The privilege level of the session.
    pub privilege: Privilege,
    /// The only cipher suite to use; `None` tries 17, then 3, and remembers the one that worked.
    pub cipher_suite: Option<CipherSuite>,
    /// Whether a ramdisk's machine must have the UUID that this BMC reports.
    #[serde(default)]
    pub match_system_uuid: bool,
    /// Whether a failed attempt's serial console is kept. Only with [`BmcDriver::Ipmi`].
    #[serde(default)]
    pub console: bool,
}

/// The source of a BMC's password: the first line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Password {
    /// A plain path relative to the secrets directory.
    PasswordFile(String),
    /// The name of a credential of the agent's service (systemd.exec, `LoadCredential=`).
    PasswordCredential(String),
}

/// `bmc.driver`, except `none`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BmcDriver {
    /// hostler's own IPMI client.
    #[default]
    Ipmi,
    /// The program `ipmitool`, for a BMC that hostler's client cannot use.
    Ipmitool,
    /// A program of the administrator's, for any other power switch.
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

/// The identity of a machine in records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MachineId {
    /// The address of its BMC.
    Bmc(BmcAddress),
    /// The MAC addresses of its NICs, if it has no BMC.
    Nics(Vec<MacAddr>),
}

/// The address of a BMC, which identifies its machine: two specs with equal addresses name one
/// machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BmcAddress {
    /// The host and port of a BMC on the network.
    Host(HostPort),
    /// A URL whose scheme names the driver: `program:/PATH#ADDRESS`.
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

/// The scheme of a BMC that a program controls.
const PROGRAM_SCHEME: &str = "program:";
/// Separates a program's path, which never has this character, from the address.
pub const PROGRAM_SEPARATOR: char = '#';

impl BmcAddress {
    /// Makes the address of a BMC at a host.
    pub fn at(host: impl Into<String>, port: u16) -> Self {
        Self::Host(HostPort { host: host.into(), port })
    }

    /// Makes the address of a BMC that a program controls. Program and `address` together identify
    /// it.
    pub fn by_program(program: &str, address: &str) -> Self {
        Self::Url(format!("{PROGRAM_SCHEME}{program}{PROGRAM_SEPARATOR}{address}"))
    }

    /// Returns host and port of a BMC on the network.
    pub const fn host(&self) -> Option<&HostPort> {
        match self {
            Self::Host(host) => Some(host),
            Self::Url(_) => None,
        }
    }

    /// Returns the path of the program that controls the BMC and the address for it.
    pub fn program(&self) -> Option<(&str, &str)> {
        match self {
            Self::Host(_) => None,
            Self::Url(url) => url.strip_prefix(PROGRAM_SCHEME)?.split_once(PROGRAM_SEPARATOR),
        }
    }
}

impl FromStr for BmcAddress {
    type Err = String;

    /// Parses an address in exactly its displayed form.
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

/// An RMCP+ cipher suite that hostler supports (IPMI 2.0 table 22-20).
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

/// `[image]`, with `[partitions]` for a partition image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// A path, absolute or relative to the images directory, or an http or https URL.
    pub source: String,
    /// The digest of the published file, or the place of a list with it.
    pub checksum: Checksum,
    /// The declared format of the file.
    pub format: ImageFormat,
    /// The kind of image.
    #[serde(default)]
    pub kind: ImageKind,
    /// How the written disk is verified.
    #[serde(default = "Verify::before_there_was_a_choice")]
    pub verify: Verify,
    /// The boot files of an installed machine that boots over the network; `None`: it boots from
    /// its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netboot: Option<Box<Netboot>>,
}

/// `image.checksum`: the expected digest of the published image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Checksum {
    /// The digest itself.
    Inline(Digest),
    /// The path or URL of a list like `SHA256SUMS`, which is read when an attempt is prepared.
    Listed(String),
}

impl FromStr for Checksum {
    type Err = String;

    /// A text with an algorithm's name, or of hex digits only, is a digest; any other is a place.
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

/// `image.format`: the declared format, which is checked and never trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageFormat {
    /// Detected from the file's content.
    Auto,
    /// The disk's bytes. The file may be compressed as a whole.
    Raw,
    /// QEMU's qcow2.
    Qcow2,
}

/// `image.kind`: a disk or a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// A whole disk.
    #[default]
    Disk,
    /// One file system, for which hostler makes partitions.
    Partition(Partitions),
}

/// `[partitions]`: sizes in bytes. The order on the disk is ESP (if the machine boots from it by
/// UEFI), swap, ephemeral, config drive, root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partitions {
    /// The type of the partition table.
    pub table: PartitionTable,
    /// Swap space, if any.
    pub swap_bytes: Option<u64>,
    /// A file system for data that may be lost, if any.
    pub ephemeral_bytes: Option<u64>,
    /// The size of the root partition; `None`: the rest of the disk.
    pub root_bytes: Option<u64>,
}

/// `partitions.table`: the type of the partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionTable {
    /// GUID partition table (UEFI 2.10 §5.3).
    Gpt,
    /// Master boot record.
    Msdos,
}

/// `image.verify`: how the written disk is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// hostler reads the disk back over iSCSI and compares it.
    Full,
    /// The ramdisk hashes the disk after its target has stopped.
    Node,
    /// No verification: hostler trusts the target's acknowledgements.
    None,
}

impl Verify {
    /// The spec's word for the default. Both ways find a disk that drops writes; Ironic's ramdisk
    /// cannot hash its disk.
    pub fn default_word(ramdisk: DeployRamdisk) -> &'static str {
        match ramdisk {
            DeployRamdisk::Hostler => "node",
            DeployRamdisk::Ironic => "full",
        }
    }

    /// The verification of a record that does not name one.
    fn before_there_was_a_choice() -> Self {
        Self::Full
    }
}

/// `[config_drive]`: data for cloud-init in a small file system of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDrive {
    /// The file system's label, which selects cloud-init's data source.
    pub label: DriveLabel,
    /// The type of the file system.
    pub filesystem: DriveFilesystem,
    /// The user data.
    pub user_data: Option<Attachment>,
    /// The network configuration.
    pub network_config: Option<Attachment>,
    /// The vendor data, which cloud-init merges user data onto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor_data: Option<Attachment>,
    /// The administrator's metadata, which overrides hostler's own.
    pub meta_data: BTreeMap<String, MetaData>,
}

/// `config_drive.label`: the file system's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriveLabel {
    /// `config-2`: `OpenStack`'s config drive.
    #[serde(rename = "config-2")]
    Config2,
    /// `cidata`: cloud-init's `NoCloud`.
    #[serde(rename = "cidata")]
    Cidata,
}

/// `config_drive.filesystem`: the type of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriveFilesystem {
    /// FAT, as `vfat`.
    Vfat,
    /// ISO 9660 with Rock Ridge or Joliet names.
    Iso9660,
}

/// A file in the spec directory that a spec attaches. Its content may be secret: `Debug` shows only
/// its size.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The file's path, relative to the spec directory.
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

/// `[retry]`: the retries of failed attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Attempts until the node is `failed`, at least 1.
    pub attempts: u32,
    /// The pause before the second attempt, which doubles with each further one.
    pub backoff: Duration,
}

impl NodeSpec {
    /// The identity of the spec's machine.
    pub fn machine(&self) -> MachineId {
        let nics = || MachineId::Nics(self.boot.macs.clone());
        self.bmc.as_ref().map_or_else(nics, |bmc| MachineId::Bmc(bmc.address.clone()))
    }

    /// The address of the machine's BMC, if it has one.
    pub fn bmc_address(&self) -> Option<&BmcAddress> {
        self.bmc.as_ref().map(|bmc| &bmc.address)
    }
}

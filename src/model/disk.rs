//! A machine's disks, and the hints that choose the one to write.
//!
//! The ramdisk reports disks, and the core chooses one. The choice fails closed: unless exactly one
//! disk fits, hostler touches none.

mod hints;
mod spelling;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::hints::{Comparison, Multipath, NoRootDevice, RootDeviceHints, SizeHint};
use super::size::show_bytes;

/// One disk, as the deploy ramdisk found it in sysfs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Kernel name without `/dev/` (`vda`, `nvme0n1`).
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// World wide name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// Model. For a SATA disk the full model, of which SCSI shows 16 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The vendor, as SCSI INQUIRY or sysfs names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// SCSI host:channel:target:lun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hctl: Option<String>,
    /// The path by which the disk is attached, like udev's `ID_PATH` (`pci-0000:00:17.0-ata-1.0`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_path: Option<String>,
    /// Whether the disk spins.
    #[serde(default)]
    pub rotational: bool,
    /// Bytes in a logical block (512 or 4096).
    #[serde(default)]
    pub logical_block_size: u32,
    /// Whether the kernel reports a removable disk.
    #[serde(default)]
    pub removable: bool,
    /// Whether the disk is read-only.
    #[serde(default)]
    pub read_only: bool,
}

impl Disk {
    /// Whether both are the same disk of a machine, at different times: by WWN, else by serial
    /// number, else by name.
    pub fn is_same(&self, other: &Self) -> bool {
        let both = |one: &Option<String>, two: &Option<String>| {
            one.as_ref().zip(two.as_ref()).map(|(one, two)| one == two)
        };
        both(&self.wwn, &other.wwn)
            .or_else(|| both(&self.serial, &other.serial))
            .unwrap_or(self.name == other.name)
    }
}

/// Shows for example `vda (8.0 GiB, serial root-1)`.
impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.name, show_bytes(self.size))?;
        for (label, value) in [("serial", &self.serial), ("wwn", &self.wwn), ("model", &self.model)]
        {
            if let Some(value) = value {
                write!(f, ", {label} {value}")?;
            }
        }
        f.write_str(")")
    }
}

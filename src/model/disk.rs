//! A machine's disks, and the hints that choose the one to write.
//!
//! The ramdisk reports disks, the core chooses. Choosing fails closed: unless exactly one disk fits, none is touched.

use std::fmt;

use serde::{Deserialize, Serialize};

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
    /// Model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Vendor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// SCSI host:channel:target:lun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hctl: Option<String>,
    /// Whether it spins.
    #[serde(default)]
    pub rotational: bool,
    /// Bytes in a logical block (512 or 4096).
    #[serde(default)]
    pub logical_block_size: u32,
    /// Whether the kernel calls it removable.
    #[serde(default)]
    pub removable: bool,
    /// Whether it refuses writes.
    #[serde(default)]
    pub read_only: bool,
}

impl Disk {
    /// Whether both are one disk of a machine, at different times: by what the disk itself says, and else by its name.
    pub fn is_same(&self, other: &Self) -> bool {
        let both = |one: &Option<String>, two: &Option<String>| {
            one.as_ref().zip(two.as_ref()).map(|(one, two)| one == two)
        };
        both(&self.wwn, &other.wwn)
            .or_else(|| both(&self.serial, &other.serial))
            .unwrap_or(self.name == other.name)
    }
}

/// `vda (8.0 GiB, serial root-1)`
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

/// `[root_device]`: every hint given must match, and exactly one disk may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDeviceHints {
    /// Kernel name, with or without `/dev/`.
    pub name: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// World wide name, with or without `0x`, `naa.`, `eui.` or `nvme.`.
    pub wwn: Option<String>,
    /// Model.
    pub model: Option<String>,
    /// Vendor.
    pub vendor: Option<String>,
    /// SCSI host:channel:target:lun.
    pub hctl: Option<String>,
    /// Size.
    pub size: Option<SizeHint>,
    /// Whether it spins.
    pub rotational: Option<bool>,
}

/// A size with a comparison, in Ironic's notation: `480GB`, `>= 100GiB` or `s>= 100GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeHint {
    /// How to compare.
    pub comparison: Comparison,
    /// With how many bytes.
    pub bytes: u64,
}

/// How a disk's size is compared with a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    /// Within one percent: a "480GB" disk has 480,103,981,056 bytes.
    About,
    /// Less.
    Less,
    /// Less or equal.
    LessOrEqual,
    /// Equal to the byte.
    Equal,
    /// Greater or equal.
    GreaterOrEqual,
    /// Greater.
    Greater,
}

impl SizeHint {
    /// Reads `480GB`, `>=100GiB`, `s>= 100GiB`, `s== 500107862016`.
    pub fn parse(text: &str) -> Result<Self, String> {
        const OPERATORS: [(&str, Comparison); 6] = [
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("==", Comparison::Equal),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
            ("=", Comparison::Equal),
        ];
        let text = text.trim();
        let bare = text.strip_prefix('s').unwrap_or(text).trim_start();
        let (comparison, rest) = OPERATORS
            .iter()
            .find_map(|(sign, comparison)| Some((*comparison, bare.strip_prefix(sign)?)))
            .unwrap_or((Comparison::About, text));
        Ok(Self { comparison, bytes: super::size::parse_bytes(rest)? })
    }

    fn fits(self, bytes: u64) -> bool {
        match self.comparison {
            Comparison::About => bytes.abs_diff(self.bytes) <= self.bytes / 100,
            Comparison::Less => bytes < self.bytes,
            Comparison::LessOrEqual => bytes <= self.bytes,
            Comparison::Equal => bytes == self.bytes,
            Comparison::GreaterOrEqual => bytes >= self.bytes,
            Comparison::Greater => bytes > self.bytes,
        }
    }
}

impl fmt::Display for SizeHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.comparison {
            Comparison::About => "",
            Comparison::Less => "< ",
            Comparison::LessOrEqual => "<= ",
            Comparison::Equal => "== ",
            Comparison::GreaterOrEqual => ">= ",
            Comparison::Greater => "> ",
        };
        write!(f, "{sign}{} bytes", self.bytes)
    }
}

/// Why no disk was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRootDevice {
    /// Nothing fits.
    #[error("no disk matches {hints}; the machine has {disks}")]
    NoMatch {
        /// The hints as text.
        hints: String,
        /// All disks as text.
        disks: String,
    },
    /// More than one fits.
    #[error("{count} disks match {hints}, must be exactly one: {disks}")]
    Ambiguous {
        /// How many.
        count: usize,
        /// The hints as text.
        hints: String,
        /// The disks that match, as text.
        disks: String,
    },
}

impl RootDeviceHints {
    /// Whether no hint is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The one disk that all hints fit. Without hints: the only writable, non-removable disk.
    pub fn choose<'a>(&self, disks: &'a [Disk]) -> Result<&'a Disk, NoRootDevice> {
        let list = |disks: &[&Disk]| match disks {
            [] => "no disk".to_owned(),
            some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        let fitting: Vec<&Disk> = disks.iter().filter(|disk| self.fits(disk)).collect();
        match fitting.as_slice() {
            [one] => Ok(one),
            [] => Err(NoRootDevice::NoMatch {
                hints: self.to_string(),
                disks: list(&disks.iter().collect::<Vec<_>>()),
            }),
            several => Err(NoRootDevice::Ambiguous {
                count: several.len(),
                hints: self.to_string(),
                disks: list(several),
            }),
        }
    }

    fn fits(&self, disk: &Disk) -> bool {
        let text = |hint: &Option<String>, value: &Option<String>, normal: fn(&str) -> String| {
            hint.as_deref().is_none_or(|hint| {
                value.as_deref().is_some_and(|value| normal(hint) == normal(value))
            })
        };
        !disk.read_only
            && (!self.is_empty() || !disk.removable)
            && self.name.as_deref().is_none_or(|hint| hint.trim_start_matches("/dev/") == disk.name)
            && text(&self.serial, &disk.serial, folded)
            && text(&self.wwn, &disk.wwn, wwn)
            && text(&self.model, &disk.model, folded)
            && text(&self.vendor, &disk.vendor, folded)
            && text(&self.hctl, &disk.hctl, folded)
            && self.size.is_none_or(|hint| hint.fits(disk.size))
            && self.rotational.is_none_or(|hint| hint == disk.rotational)
    }
}

/// Case and surrounding blanks differ between firmware revisions; they carry no meaning.
fn folded(text: &str) -> String {
    text.trim().to_ascii_lowercase()
}

fn wwn(text: &str) -> String {
    let lower = folded(text);
    ["naa.", "eui.", "nvme.", "0x"]
        .iter()
        .find_map(|prefix| lower.strip_prefix(prefix))
        .unwrap_or(&lower)
        .to_owned()
}

/// `serial = "root-1", size >= 100 bytes`, or `an empty [root_device]`
impl fmt::Display for RootDeviceHints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = [
            ("name", &self.name),
            ("serial", &self.serial),
            ("wwn", &self.wwn),
            ("model", &self.model),
            ("vendor", &self.vendor),
            ("hctl", &self.hctl),
        ];
        let mut shown: Vec<String> = texts
            .iter()
            .filter_map(|(key, value)| Some(format!("{key} = {:?}", value.as_deref()?)))
            .collect();
        shown.extend(self.size.map(|size| format!("size {size}")));
        shown.extend(self.rotational.map(|spins| format!("rotational = {spins}")));
        if shown.is_empty() {
            f.write_str("an empty [root_device]")
        } else {
            f.write_str(&shown.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, serial: &str, size: u64) -> Disk {
        Disk {
            name: name.into(),
            serial: Some(serial.into()),
            size,
            logical_block_size: 512,
            ..Disk::default()
        }
    }

    fn serial(text: &str) -> RootDeviceHints {
        RootDeviceHints { serial: Some(text.into()), ..RootDeviceHints::default() }
    }

    #[test]
    fn without_hints_only_an_only_disk_is_chosen() {
        let one = [disk("vda", "root", 8 << 30)];
        assert_eq!(RootDeviceHints::default().choose(&one).unwrap().name, "vda");
        let two = [disk("vda", "root", 8 << 30), disk("vdb", "data", 8 << 30)];
        let error = RootDeviceHints::default().choose(&two).unwrap_err().to_string();
        assert_eq!(
            error,
            "2 disks match an empty [root_device], must be exactly one: vda (8.0 GiB, serial root), vdb (8.0 GiB, serial data)"
        );
    }

    #[test]
    fn a_wrong_hint_fails_and_never_falls_back_to_another_disk() {
        let one = [disk("vda", "root", 8 << 30)];
        let error = serial("other").choose(&one).unwrap_err().to_string();
        assert_eq!(
            error,
            "no disk matches serial = \"other\"; the machine has vda (8.0 GiB, serial root)"
        );
        assert!(
            RootDeviceHints::default()
                .choose(&[])
                .unwrap_err()
                .to_string()
                .ends_with("the machine has no disk")
        );
    }

    #[test]
    fn all_hints_must_match() {
        let disks = [disk("vda", "s1", 100), disk("vdb", "s1", 200)];
        let mut hints = serial(" S1 ");
        assert!(matches!(hints.choose(&disks), Err(NoRootDevice::Ambiguous { count: 2, .. })));
        hints.size = Some(SizeHint::parse("s> 150").unwrap());
        assert_eq!(hints.choose(&disks).unwrap().name, "vdb");
    }

    #[test]
    fn read_only_disks_are_never_chosen_and_removable_ones_only_by_hint() {
        let mut stick = disk("sda", "usb", 1 << 30);
        stick.removable = true;
        assert!(RootDeviceHints::default().choose(std::slice::from_ref(&stick)).is_err());
        assert!(serial("usb").choose(std::slice::from_ref(&stick)).is_ok());
        stick.read_only = true;
        assert!(serial("usb").choose(std::slice::from_ref(&stick)).is_err());
    }

    #[test]
    fn a_bare_size_means_the_size_on_the_label() {
        let label = SizeHint::parse("480GB").unwrap();
        assert!(label.fits(480_103_981_056) && !label.fits(500_107_862_016));
        let least = SizeHint::parse("s>= 100GiB").unwrap();
        assert!(least.fits(100 << 30) && !least.fits((100 << 30) - 1));
        assert!(SizeHint::parse(">= lots").is_err());
    }

    #[test]
    fn wwns_compare_without_their_prefixes() {
        let mut one = disk("sda", "x", 1);
        one.wwn = Some("naa.55CD2E415652ABCD".into());
        let hints = RootDeviceHints {
            wwn: Some("0x55cd2e415652abcd".into()),
            ..RootDeviceHints::default()
        };
        assert!(hints.choose(&[one]).is_ok());
    }
}

//! The hints of `[root_device]`, and the choice by them.
//!
//! Used by the core to judge a ramdisk's lookup. The choice fails closed: unless exactly one disk
//! fits, the result is an error, which has for each disk the line that would choose it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Disk, spelling};

/// Most disks that an error lists: a storage server has 24 or 60 of one kind.
const LISTED_MAX: usize = 20;

/// `[root_device]`: every hint given must match, and exactly one disk may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDeviceHints {
    /// Kernel name, with or without `/dev/`.
    pub name: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// World wide name, in the spelling of the kernel, of udev, or of `/dev/disk/by-id`.
    pub wwn: Option<String>,
    /// The model's name.
    pub model: Option<String>,
    /// The vendor's name.
    pub vendor: Option<String>,
    /// SCSI host:channel:target:lun.
    pub hctl: Option<String>,
    /// The size, compared with an operator.
    pub size: Option<SizeHint>,
    /// Whether the disk spins.
    pub rotational: Option<bool>,
    /// The disk's name in `/dev/disk/by-path`, with or without that directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_path: Option<String>,
    /// The choice among several paths to one disk: never among disks, and no part of the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multipath: Option<Multipath>,
}

/// `root_device.multipath`: the path to a disk that the kernel shows several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Multipath {
    /// The first path, in the order of the kernel's names.
    First,
}

/// A size with a comparison, in Ironic's notation: `480GB`, `>= 100GiB` or `s>= 100GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeHint {
    /// The comparison.
    pub comparison: Comparison,
    /// The size, in bytes.
    pub bytes: u64,
}

/// How a disk's size is compared with a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    /// Within one percent: a "480GB" disk has 480,103,981,056 bytes.
    About,
    /// Less than the size.
    Less,
    /// Less or equal.
    LessOrEqual,
    /// Equal to the byte.
    Equal,
    /// Greater or equal.
    GreaterOrEqual,
    /// Greater than the size.
    Greater,
}

impl SizeHint {
    /// Parses `480GB`, `>=100GiB`, `s>= 100GiB`, `s== 500107862016`.
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
        Ok(Self { comparison, bytes: crate::model::size::parse_bytes(rest)? })
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

/// The reason why no disk is chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRootDevice {
    /// No disk fits.
    #[error("no disk matches {hints}; the machine has {disks}")]
    NoMatch {
        /// The hints as text.
        hints: String,
        /// All disks as text.
        disks: String,
    },
    /// More than one disk fits.
    #[error("{count} disks match {hints}, must be exactly one: {disks}")]
    Ambiguous {
        /// The number of matches.
        count: usize,
        /// The hints as text.
        hints: String,
        /// The disks that match, as text.
        disks: String,
    },
    /// One disk fits, and the kernel shows it several times.
    #[error(
        "{count} paths lead to the one disk that matches {hints}: {disks}; add multipath \
         = \"first\" to [root_device], or choose one path by by_path"
    )]
    Paths {
        /// The number of matches.
        count: usize,
        /// The hints as text.
        hints: String,
        /// The paths as text.
        disks: String,
    },
}

impl RootDeviceHints {
    /// Whether no hint is given.
    pub fn is_empty(&self) -> bool {
        Self { multipath: None, ..self.clone() } == Self::default()
    }

    /// Whether the hints can fit no more than one disk of a machine.
    pub fn name_one(&self) -> bool {
        [&self.name, &self.serial, &self.wwn, &self.hctl, &self.by_path]
            .into_iter()
            .any(Option::is_some)
    }

    /// Chooses the one disk that all hints fit; without hints, the only writable, non-removable
    /// disk.
    pub fn choose<'a>(&self, disks: &'a [Disk]) -> Result<&'a Disk, NoRootDevice> {
        let fitting = self.fitting(disks);
        let (count, hints) = (fitting.len(), self.to_string());
        // `sdb` comes before `sdaa`.
        let first = fitting.iter().min_by_key(|disk| (disk.name.len(), &disk.name));
        let Some(first) = first else {
            let all: Vec<&Disk> = disks.iter().collect();
            return Err(NoRootDevice::NoMatch { hints, disks: self.list(&all, disks) });
        };
        let is_one_disk = fitting.iter().all(|disk| disk.is_another_path_of(first));
        match (count, is_one_disk, self.multipath) {
            (1, ..) | (_, true, Some(Multipath::First)) => Ok(first),
            (_, true, None) => {
                Err(NoRootDevice::Paths { count, hints, disks: self.list(&fitting, disks) })
            }
            _ => Err(NoRootDevice::Ambiguous { count, hints, disks: self.list(&fitting, disks) }),
        }
    }

    fn fitting<'a>(&self, disks: &'a [Disk]) -> Vec<&'a Disk> {
        disks.iter().filter(|disk| self.fits(disk)).collect()
    }

    fn fits(&self, disk: &Disk) -> bool {
        let text =
            |hint: &Option<String>, value: &Option<String>, is_same: fn(&str, &str) -> bool| {
                hint.as_deref()
                    .is_none_or(|hint| value.as_deref().is_some_and(|value| is_same(hint, value)))
            };
        let serial = |hint: &str| spelling::is_serial(hint, disk);
        let model = |hint: &str| spelling::is_model(hint, disk);
        !disk.read_only
            && (!self.is_empty() || !disk.removable)
            && self.name.as_deref().is_none_or(|hint| hint.trim_start_matches("/dev/") == disk.name)
            && self.serial.as_deref().is_none_or(serial)
            && text(&self.wwn, &disk.wwn, spelling::is_same_wwn)
            && self.model.as_deref().is_none_or(model)
            && text(&self.vendor, &disk.vendor, spelling::is_same_text)
            && text(&self.hctl, &disk.hctl, spelling::is_same_text)
            && text(&self.by_path, &disk.by_path, spelling::is_same_path)
            && self.size.is_none_or(|hint| hint.fits(disk.size))
            && self.rotational.is_none_or(|hint| hint == disk.rotational)
    }

    /// Lists disks, each with the attributes of all hints and the line of `[root_device]` that
    /// chooses it among `all`.
    fn list(&self, disks: &[&Disk], all: &[Disk]) -> String {
        let mut texts: Vec<String> =
            disks.iter().take(LISTED_MAX).map(|disk| self.describe(disk, all)).collect();
        match disks.len().saturating_sub(LISTED_MAX) {
            0 if texts.is_empty() => return "no disk".to_owned(),
            0 => {}
            more => texts.push(format!("{more} more")),
        }
        texts.join(", ")
    }

    fn describe(&self, disk: &Disk, all: &[Disk]) -> String {
        let attributes = [
            ("serial", self.serial.is_some(), &disk.serial, true),
            ("wwn", self.wwn.is_some(), &disk.wwn, true),
            ("model", self.model.is_some(), &disk.model, true),
            ("vendor", self.vendor.is_some(), &disk.vendor, false),
            ("hctl", self.hctl.is_some(), &disk.hctl, false),
            ("by_path", self.by_path.is_some(), &disk.by_path, false),
        ];
        let mut more = Vec::new();
        for (key, is_hinted, value, is_shown) in attributes {
            match value {
                Some(value) if is_hinted && !is_shown => more.push(format!("{key} {value}")),
                None if is_hinted => more.push(format!("no {key}")),
                _ => {}
            }
        }
        more.extend(self.size.map(|_| format!("{} bytes", disk.size)));
        more.extend(self.rotational.map(|_| format!("rotational = {}", disk.rotational)));
        more.extend(disk.removable.then(|| "removable".to_owned()));
        more.extend(disk.read_only.then(|| "read-only".to_owned()));
        let shown = disk.to_string();
        let start = shown.strip_suffix(')').unwrap_or(&shown).to_owned();
        let chosen_by = Self::line_for(disk, all).map(|line| format!("; chosen by {line}"));
        let text = [vec![start], more].concat().join(", ");
        format!("{text}{})", chosen_by.unwrap_or_default())
    }

    /// Returns the line that chooses this disk among `all`. Preferred are the disk's own
    /// attributes, then its path, then its name, which may change with any boot.
    fn line_for(disk: &Disk, all: &[Disk]) -> Option<String> {
        let none = Self::default;
        let (serial, wwn) = (disk.serial.clone(), disk.wwn.clone());
        let by_path = disk.by_path.clone();
        let multipath = Some(Multipath::First);
        let candidates = [
            Self { serial, ..none() },
            Self { wwn: wwn.clone(), ..none() },
            Self { wwn, multipath, ..none() },
            Self { by_path, ..none() },
            Self { name: Some(disk.name.clone()), ..none() },
        ];
        let chooses = |hints: &&Self| {
            let chosen = hints.fitting(all);
            let first = chosen.first();
            !hints.is_empty()
                && first.is_some_and(|first| {
                    chosen.len() == 1 && first.name == disk.name
                        || hints.multipath.is_some()
                            && chosen.contains(&disk)
                            && chosen.iter().all(|other| other.is_another_path_of(first))
                })
        };
        candidates.iter().find(chooses).map(|hints| hints.to_string().replace(", ", " and "))
    }
}

/// Shows `serial = "root-1", size >= 100 bytes`, or `an empty [root_device]`.
impl fmt::Display for RootDeviceHints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = [
            ("name", &self.name),
            ("serial", &self.serial),
            ("wwn", &self.wwn),
            ("model", &self.model),
            ("vendor", &self.vendor),
            ("hctl", &self.hctl),
            ("by_path", &self.by_path),
        ];
        let mut shown: Vec<String> = texts
            .iter()
            .filter_map(|(key, value)| Some(format!("{key} = {:?}", value.as_deref()?)))
            .collect();
        shown.extend(self.size.map(|size| format!("size {size}")));
        shown.extend(self.rotational.map(|spins| format!("rotational = {spins}")));
        shown.extend(self.multipath.map(|Multipath::First| "multipath = \"first\"".to_owned()));
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
            "2 disks match an empty [root_device], must be exactly one: \
             vda (8.0 GiB, serial root; chosen by serial = \"root\"), \
             vdb (8.0 GiB, serial data; chosen by serial = \"data\")"
        );
    }

    /// Invariant (machine): Only the disk that all hints chose is exported or written; without
    /// exactly one, none is.
    #[test]
    fn a_wrong_hint_fails_and_never_falls_back_to_another_disk() {
        let one = [disk("vda", "root", 8 << 30)];
        let error = serial("other").choose(&one).unwrap_err().to_string();
        assert_eq!(
            error,
            "no disk matches serial = \"other\"; the machine has vda (8.0 GiB, serial root; \
             chosen by serial = \"root\")"
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

    /// Two paths to one SAS disk, and another disk.
    fn catalog() -> [Disk; 3] {
        let one = Disk {
            wwn: Some("naa.5000c500a1b2c3d4".into()),
            hctl: Some("1:0:0:0".into()),
            by_path: Some("pci-0000:03:00.0-sas-phy0-lun-0".into()),
            ..disk("sdf", "7TKMP00", 480 << 30)
        };
        let other = Disk {
            name: "sde".into(),
            hctl: Some("1:0:1:0".into()),
            by_path: Some("pci-0000:03:00.0-sas-phy4-lun-0".into()),
            ..one.clone()
        };
        [one, other, disk("sdg", "7TKMP01", 480 << 30)]
    }

    /// Invariant (machine): A hint chooses a disk in every tool's spelling, and never by a guess.
    #[test]
    fn two_paths_to_one_disk_are_one_disk_if_the_spec_says_so() {
        let disks = catalog();
        let mut hints = serial("7TKMP00");
        let error = hints.choose(&disks).unwrap_err().to_string();
        let line = "chosen by wwn = \"naa.5000c500a1b2c3d4\" and multipath = \"first\"";
        assert!(error.starts_with("2 paths lead to the one disk that matches"), "{error}");
        assert!(error.matches(line).count() == 2 && error.contains("add multipath"), "{error}");
        hints.multipath = Some(Multipath::First);
        assert_eq!(hints.choose(&disks).unwrap().name, "sde", "the first by name");
        let by_path = Some("pci-0000:03:00.0-sas-phy0-lun-0".to_owned());
        let one = RootDeviceHints { by_path, ..RootDeviceHints::default() };
        assert_eq!(one.choose(&disks).unwrap().name, "sdf");
    }

    /// Invariant (machine): A hint chooses a disk in every tool's spelling, and never by a guess.
    #[test]
    fn paths_to_different_disks_are_never_taken_for_one() {
        let first =
            RootDeviceHints { multipath: Some(Multipath::First), ..RootDeviceHints::default() };
        assert!(matches!(first.choose(&catalog()), Err(NoRootDevice::Ambiguous { count: 3, .. })));
        for change in [
            (|disk| disk.size += 1) as fn(&mut Disk),
            |disk| disk.serial = Some("another".into()),
            |disk| disk.serial = None,
            |disk| disk.wwn = Some("naa.5000c500a1b2c3d5".into()),
            |disk| disk.wwn = None,
            |disk| disk.logical_block_size = 4096,
        ] {
            let [mut one, other, _] = catalog();
            change(&mut one);
            let chosen = first.choose(&[one, other]).map(|disk| disk.name.clone());
            assert!(matches!(chosen, Err(NoRootDevice::Ambiguous { .. })), "{chosen:?}");
        }
        // WWNs of firmware without names for disks.
        for unassigned in ["naa.0000000000000000", "eui.ffffffffffffffff", ""] {
            let [mut one, mut other, _] = catalog();
            for disk in [&mut one, &mut other] {
                (disk.wwn, disk.serial) = (Some(unassigned.to_owned()), None);
            }
            let chosen = first.choose(&[one, other]).map(|disk| disk.name.clone());
            let is_ambiguous = matches!(chosen, Err(NoRootDevice::Ambiguous { .. }));
            assert!(is_ambiguous, "{unassigned}: {chosen:?}");
        }
    }

    /// Invariant (machine): A refusal to choose shows each disk's hinted attributes and the line
    /// that chooses it.
    #[test]
    fn an_error_shows_of_each_disk_what_the_hints_speak_of_and_the_line_that_chooses_it() {
        let [one, _, other] = catalog();
        let hints = RootDeviceHints {
            vendor: Some("Dell".into()),
            hctl: Some("3:2:0:0".into()),
            size: Some(SizeHint::parse("480GB").unwrap()),
            rotational: Some(true),
            ..RootDeviceHints::default()
        };
        let mut nameless = disk("sdh", "", 1 << 30);
        (nameless.serial, nameless.removable) = (None, true);
        let error = hints.choose(&[one, other, nameless]).unwrap_err().to_string();
        for text in [
            "sdf (480.0 GiB, serial 7TKMP00, wwn naa.5000c500a1b2c3d4, no vendor, hctl 1:0:0:0, \
             515396075520 bytes, rotational = false; chosen by serial = \"7TKMP00\")",
            "sdg (480.0 GiB, serial 7TKMP01, no vendor, no hctl, 515396075520 bytes, \
             rotational = false; chosen by serial = \"7TKMP01\")",
            "removable; chosen by name = \"sdh\")",
        ] {
            assert!(error.contains(text), "{text} in {error}");
        }
    }

    #[test]
    fn many_disks_are_listed_in_part() {
        let disks: Vec<Disk> = (0..60).map(|n| disk(&format!("sd{n}"), "same", 1)).collect();
        let error = serial("other").choose(&disks).unwrap_err().to_string();
        assert!(error.ends_with(", 40 more") && error.contains("chosen by name = \"sd19\""));
    }
}

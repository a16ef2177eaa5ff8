//! Compares a hint with a disk's attribute across their spellings: sysfs's, which the ramdisk
//! reads, and those of udev, `lsblk` and `/dev/disk/by-id`, which operators copy.
//!
//! Used by the hints. Two spellings must never count as equal if they could mean two disks.

use super::Disk;

const BY_ID: &str = "/dev/disk/by-id/";
const BY_PATH: &str = "/dev/disk/by-path/";
/// The prefixes that udev puts before `model_serial` in `/dev/disk/by-id`.
const BUSES: [&str; 6] = ["ata-", "nvme-", "scsi-", "usb-", "virtio-", "mmc-"];
/// The prefixes of a WWN, in their order.
const WWN_PREFIXES: [&str; 9] =
    [BY_ID, "wwn-", "scsi-", "nvme-", "naa.", "eui.", "uuid.", "nvme.", "0x"];
/// Characters of a SATA disk's model in SCSI's standard data (SPC-4 §6.6.2).
const SCSI_MODEL_CHARS: usize = 16;

/// Normalizes case and blanks: both differ between firmware revisions, and udev writes a run of
/// blanks as one underscore.
fn words(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| c.is_whitespace() || c == '_');
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_")
}

pub(super) fn is_same_text(hint: &str, value: &str) -> bool {
    words(hint) == words(value)
}

/// Whether a hint is the disk's model. Of a SATA disk, both hint and model may be the full name or
/// SCSI's first 16 characters.
pub(super) fn is_model(hint: &str, disk: &Disk) -> bool {
    let Some(model) = disk.model.as_deref() else { return false };
    let is_ata = disk.vendor.as_deref().is_some_and(|vendor| is_same_text("ATA", vendor));
    let is_cut = |long: &str, short: &str| {
        let start: String = long.trim().chars().take(SCSI_MODEL_CHARS).collect();
        is_same_text(&start, short)
    };
    is_same_text(hint, model) || is_ata && (is_cut(hint, model) || is_cut(model, hint))
}

/// Whether a hint is the disk's serial number, or udev's notion of it: `model_serial`, or a SCSI
/// disk's WWN.
pub(super) fn is_serial(hint: &str, disk: &Disk) -> bool {
    let bare = hint.trim().strip_prefix(BY_ID).unwrap_or(hint.trim());
    let bus = BUSES.iter().find_map(|bus| bare.strip_prefix(bus));
    let is_wwn =
        digits(hint).is_some() && disk.wwn.as_deref().is_some_and(|wwn| is_same_wwn(hint, wwn));
    let is_text = disk.serial.as_deref().is_some_and(|serial| {
        let model = disk.model.as_deref().map(|model| format!("{model}_{serial}"));
        [Some(bare), bus].into_iter().flatten().any(|hint| {
            is_same_text(hint, serial) || model.as_ref().is_some_and(|m| is_same_text(hint, m))
        })
    });
    is_wwn || is_text
}

pub(super) fn is_same_wwn(hint: &str, value: &str) -> bool {
    bare_wwn(hint) == bare_wwn(value)
}

/// Returns a WWN without its prefixes. udev's `scsi_id` puts a digit for the type before the 16 or
/// 32 digits of the name.
fn bare_wwn(text: &str) -> String {
    let mut bare = text.trim().to_lowercase();
    for prefix in WWN_PREFIXES {
        bare = bare.strip_prefix(prefix).map_or(bare.clone(), ToOwned::to_owned);
    }
    match digits(&bare) {
        Some(17 | 33) if bare.starts_with(['2', '3']) => bare.split_off(1),
        _ => bare,
    }
}

/// The number of hexadecimal digits, if it fits a WWN.
fn digits(text: &str) -> Option<usize> {
    let is_hex = text.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(text.len(), 16 | 17 | 32 | 33).then_some(text.len()).filter(|_| is_hex)
}

/// Compares paths across versions of udev: `virtio-pci-` was `pci-`, `ata-1` is `ata-1.0`, and
/// `usbv2-` is `usb-`.
pub(super) fn is_same_path(hint: &str, value: &str) -> bool {
    let normal = |path: &str| {
        let path = path.trim();
        let path = path.strip_prefix(BY_PATH).unwrap_or(path).to_lowercase();
        let path = path.strip_prefix("virtio-pci-").map_or(path.clone(), |p| format!("pci-{p}"));
        let path = path.replace("-usbv2-", "-usb-").replace("-usbv3-", "-usb-");
        match path.rsplit_once("-ata-") {
            Some((_, port)) if !port.contains('.') => format!("{path}.0"),
            _ => path,
        }
    };
    normal(hint) == normal(value)
}

impl Disk {
    /// Whether both are paths to the same disk, with equal attributes. A WWN of one repeated digit
    /// does not count: firmware without a WWN reports it.
    pub(super) fn is_another_path_of(&self, other: &Self) -> bool {
        let same_wwn = |(one, two): (&String, &String)| {
            let name = bare_wwn(one);
            let is_name = name.chars().any(|digit| !name.starts_with(digit));
            is_name && is_same_wwn(one, two)
        };
        self.wwn.as_ref().zip(other.wwn.as_ref()).is_some_and(same_wwn)
            && self.size == other.size
            && self.logical_block_size == other.logical_block_size
            && match (&self.serial, &other.serial) {
                (Some(one), Some(two)) => is_same_text(one, two),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::disk::RootDeviceHints;

    fn disk(serial: &str, model: &str, vendor: &str, wwn: &str) -> Disk {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (serial, model, vendor, wwn) = (text(serial), text(model), text(vendor), text(wwn));
        Disk { name: "sda".into(), size: 480 << 30, serial, model, vendor, wwn, ..Disk::default() }
    }

    /// Whether the hint chooses a machine's only disk.
    fn chosen(key: &str, hint: &str, disk: &Disk) -> bool {
        let (mut hints, hint) = (RootDeviceHints::default(), Some(hint.to_owned()));
        match key {
            "serial" => hints.serial = hint,
            "wwn" => hints.wwn = hint,
            "model" => hints.model = hint,
            "by_path" => hints.by_path = hint,
            _ => hints.vendor = hint,
        }
        hints.choose(std::slice::from_ref(disk)).is_ok()
    }

    /// Invariant (machine): A hint chooses a disk in every tool's spelling, and never by a guess.
    #[test]
    fn what_udev_lsblk_and_by_id_show_of_a_disk_chooses_it() {
        let sata = disk("WD-WX 1A2B3C", "WDC WD40EFRX-68N", "ATA     ", "naa.50014ee20ce3848a");
        let whole = disk("S45PNA0M1", "SAMSUNG MZ7LH480HAHQ-00005", "ATA", "naa.5002538e40a1b2c3");
        let raid =
            disk("00c2b1", "PERC H740P Mini", "DELL", "naa.600508b1001c4d5e9a8b7c6d5e4f3021");
        let nvme =
            disk("S4EVNX0R1", "SAMSUNG MZQLB960", "", "eui.36344730526001460025384500000001");
        let twins = [
            ("serial", "WD-WX_1A2B3C", &sata),
            ("serial", "  wd-wx 1a2b3c ", &sata),
            ("serial", "ata-SAMSUNG_MZ7LH480HAHQ-00005_S45PNA0M1", &whole),
            ("serial", "/dev/disk/by-id/nvme-SAMSUNG_MZQLB960_S4EVNX0R1", &nvme),
            ("serial", "600508b1001c4d5e9a8b7c6d5e4f3021", &raid),
            ("serial", "3600508b1001c4d5e9a8b7c6d5e4f3021", &raid),
            ("model", "WDC_WD40EFRX-68N32N0", &sata),
            ("model", "SAMSUNG MZ7LH480", &whole),
            ("model", "samsung_mz7lh480hahq-00005", &whole),
            ("model", "PERC_H740P_Mini", &raid),
            ("wwn", "0x600508b1001c4d5e9a8b7c6d5e4f3021", &raid),
            ("wwn", "3600508B1001C4D5E9A8B7C6D5E4F3021", &raid),
            ("wwn", "scsi-3600508b1001c4d5e9a8b7c6d5e4f3021", &raid),
            ("wwn", "/dev/disk/by-id/wwn-0x5002538e40a1b2c3", &whole),
            ("wwn", "35002538e40a1b2c3", &whole),
            ("wwn", "nvme-eui.36344730526001460025384500000001", &nvme),
        ];
        for (key, hint, disk) in twins {
            assert!(chosen(key, hint, disk), "{key} = {hint:?} of {disk}");
        }
    }

    /// Invariant (machine): A hint chooses a disk in every tool's spelling, and never by a guess.
    #[test]
    fn what_would_take_a_guess_chooses_nothing() {
        let sata = disk("WD-WX 1A2B3C", "WDC WD40EFRX-68N", "ATA", "naa.50014ee20ce3848a");
        let whole = disk("S45PNA0M1", "SAMSUNG MZ7LH480HAHQ-00005", "ATA", "naa.5002538e40a1b2c3");
        let raid =
            disk("00c2b1", "PERC H740P Mini", "DELL", "naa.600508b1001c4d5e9a8b7c6d5e4f3021");
        let others = [
            ("serial", "WX1A2B3C", &sata),
            ("serial", "1A2B3C", &sata),
            ("model", "WDC", &sata),
            ("model", "WDC WD40EFRX-69N32N0", &sata),
            // The full model is known and differs.
            ("model", "SAMSUNG MZ7LH480HBJR-00005", &whole),
            ("model", "SAMSUNG", &whole),
            // No SATA disk, whose model would be truncated.
            ("model", "PERC H740P Mini Adapter", &raid),
            ("vendor", "Dell Inc.", &raid),
            // The first half only, which the controller's other disks share.
            ("wwn", "0x600508b1001c4d5e", &raid),
            ("wwn", "", &raid),
        ];
        for (key, hint, disk) in others {
            assert!(!chosen(key, hint, disk), "{key} = {hint:?} of {disk}");
        }
    }

    #[test]
    fn a_path_is_the_same_in_every_udevs_spelling() {
        let at = |path: &str| Disk { by_path: Some(path.into()), ..disk("", "", "", "") };
        for (hint, path, is_same) in [
            ("/dev/disk/by-path/pci-0000:00:17.0-ata-1", "pci-0000:00:17.0-ata-1.0", true),
            ("pci-0000:00:17.0-ata-1.0", "pci-0000:00:17.0-ata-1.0", true),
            ("pci-0000:00:17.0-ata-1.1", "pci-0000:00:17.0-ata-1.0", false),
            ("pci-0000:00:17.0-ata-10", "pci-0000:00:17.0-ata-1.0", false),
            ("virtio-pci-0000:00:04.0", "pci-0000:00:04.0", true),
            ("pci-0000:00:14.0-usbv2-0:1:1.0", "pci-0000:00:14.0-usb-0:1:1.0", true),
            ("pci-0000:3b:00.0-scsi-0:2:0:0", "pci-0000:3b:00.0-scsi-0:2:1:0", false),
        ] {
            assert_eq!(chosen("by_path", hint, &at(path)), is_same, "{hint} {path}");
        }
        assert!(!chosen("by_path", "pci-0000:00:04.0", &disk("", "", "", "")));
    }
}

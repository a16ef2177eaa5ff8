//! The identity of this machine: network interfaces, SMBIOS, memory, processors.
//!
//! The boot sequence sends it in the lookup. The module only reads; properties that the firmware
//! does not report are absent.

use std::{collections::BTreeSet, path::Path};

use super::{network, sysfs};
use crate::{model::callback::Lookup, ramdisk::disks::Inventory};

/// Placeholder texts of board makers in unused fields.
const PLACEHOLDERS: [&str; 5] =
    ["to be filled by o.e.m.", "default string", "not specified", "none", "system serial number"];

/// The inventory for the agent.
pub(super) fn describe(Inventory { disks, since }: &Inventory) -> Lookup {
    let sys = Path::new("/sys");
    let dmi = sys.join("class/dmi/id");
    let stated = |name: &str| {
        sysfs::text(&dmi.join(name))
            .filter(|text| !PLACEHOLDERS.contains(&text.to_ascii_lowercase().as_str()))
    };
    Lookup {
        macs: network::nics(sys)
            .into_iter()
            .map(|nic| nic.mac)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        system_uuid: stated("product_uuid").map(|uuid| uuid.to_ascii_lowercase()),
        system_serial: stated("product_serial"),
        disks: disks.clone(),
        disks_same_for_ms: u64::try_from(since.elapsed().as_millis()).ok(),
        memory: sysfs::text(Path::new("/proc/meminfo")).map_or(0, |text| memory(&text)),
        cpus: std::thread::available_parallelism()
            .ok()
            .and_then(|count| u32::try_from(count.get()).ok())
            .unwrap_or(0),
    }
}

/// Bytes of memory by /proc/meminfo; 0 if unknown.
fn memory(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .map_or(0, |kib: u64| kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(memory("MemTotal:        1020304 kB\nMemFree: 1 kB\n"), 1_020_304 * 1024);
        assert_eq!(memory("nothing"), 0);
    }
}

//! `[timeouts]`: the limit of every wait. Used by the core and the spec reader.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `[timeouts]`: the limit of each wait, at least one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// From power on to the ramdisk's iSCSI target.
    pub ramdisk: Duration,
    /// From the deploy ramdisk's first lookup to the appearance of the root device.
    #[serde(default = "root_device_wait", skip_serializing_if = "is_root_device_wait")]
    pub root_device: Duration,
    /// Longest imaging without progress.
    pub imaging_stall: Duration,
    /// The whole imaging.
    pub imaging: Duration,
    /// From the release of the target to the ramdisk's Completed notice.
    pub completed: Duration,
    /// For the BMC to reach a power state; without a BMC, for an operator to netboot the machine.
    pub power: Duration,
    /// From the restart to the installed system's sign that it is up.
    #[serde(default = "first_boot_wait", skip_serializing_if = "is_first_boot_wait")]
    pub first_boot: Duration,
}

/// The default of `timeouts.first_boot`, which records omit, too.
pub const FIRST_BOOT_WAIT: Duration = Duration::from_secs(20 * 60);

const fn first_boot_wait() -> Duration {
    FIRST_BOOT_WAIT
}

fn is_first_boot_wait(wait: &Duration) -> bool {
    *wait == FIRST_BOOT_WAIT
}

/// The default of `timeouts.root_device`. Records omit it, so that an earlier version's records
/// read the same.
pub const ROOT_DEVICE_WAIT: Duration = Duration::from_secs(60);

const fn root_device_wait() -> Duration {
    ROOT_DEVICE_WAIT
}

fn is_root_device_wait(wait: &Duration) -> bool {
    *wait == ROOT_DEVICE_WAIT
}

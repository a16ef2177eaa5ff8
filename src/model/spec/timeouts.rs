//! `[timeouts]`: the limit of every wait.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `[timeouts]`: how long each wait may last, each at least one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// From power on to the ramdisk's iSCSI target.
    pub ramdisk: Duration,
    /// From the deploy ramdisk's first lookup to the appearance of the root device.
    #[serde(default = "root_device_wait", skip_serializing_if = "is_root_device_wait")]
    pub root_device: Duration,
    /// Without any byte of progress while imaging.
    pub imaging_stall: Duration,
    /// The whole imaging.
    pub imaging: Duration,
    /// From the release of the target to the ramdisk's Completed notice.
    pub completed: Duration,
    /// For the BMC to answer and for a power state to be reached; without a BMC, for somebody to
    /// have the machine boot from the network.
    pub power: Duration,
    /// From the restart into the installed system until that shows that it is up.
    #[serde(default = "first_boot_wait", skip_serializing_if = "is_first_boot_wait")]
    pub first_boot: Duration,
}

/// How long the first boot may take unless the spec says otherwise. Records leave it out, too.
pub const FIRST_BOOT_WAIT: Duration = Duration::from_secs(20 * 60);

const fn first_boot_wait() -> Duration {
    FIRST_BOOT_WAIT
}

fn is_first_boot_wait(wait: &Duration) -> bool {
    *wait == FIRST_BOOT_WAIT
}

/// How long the root device is waited for unless the spec says otherwise. Records leave it out, so
/// that those of an earlier version read the same.
pub const ROOT_DEVICE_WAIT: Duration = Duration::from_secs(60);

const fn root_device_wait() -> Duration {
    ROOT_DEVICE_WAIT
}

fn is_root_device_wait(wait: &Duration) -> bool {
    *wait == ROOT_DEVICE_WAIT
}

//! Power and boot devices, in the IPMI specification's words.
//!
//! Used by the core, which decides on them, and by the adapters that drive a BMC.

use serde::{Deserialize, Serialize};

/// A machine's power state as its BMC reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerState {
    /// The machine runs.
    On,
    /// The machine is off.
    Off,
}

impl PowerState {
    /// Returns `on` or `off`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }

    /// The other state.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::On => Self::Off,
            Self::Off => Self::On,
        }
    }
}

/// A chassis control command (IPMI 2.0 §28.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChassisControl {
    /// Power down at once.
    PowerDown,
    /// Power up.
    PowerUp,
    /// Power down, pause, power up.
    PowerCycle,
    /// Hard reset.
    HardReset,
    /// Ask the system to shut down (ACPI).
    SoftShutdown,
}

/// The device that a machine should boot from (IPMI 2.0 §28.13, boot device selector).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootDevice {
    /// The network.
    Pxe,
    /// The default hard disk.
    Disk,
}

/// The time for which a boot device stays set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootPersistence {
    /// For the next boot only.
    NextBoot,
    /// Until it is set again.
    Persistent,
}

//! The IPMI commands that hostler sends, and the decoding of their answers.
//!
//! The client uses this module, which knows no session: a command is a network function, a number
//! and some bytes.

use crate::model::{
    boot::Firmware,
    power::{BootDevice, BootPersistence, ChassisControl, PowerState},
    spec::Privilege,
    system_guid::SystemGuid,
};

/// Network functions (IPMI 2.0 table 5-1).
const CHASSIS: u8 = 0x00;
const APPLICATION: u8 = 0x06;

/// Boot option parameters (IPMI 2.0 table 28-14).
const SET_IN_PROGRESS: u8 = 0;
const FLAG_EXPIRY: u8 = 3;
const INFO_ACKNOWLEDGE: u8 = 4;
const BOOT_FLAGS: u8 = 5;

/// Payload type SOL, first instance (IPMI 2.0 table 13-16).
const CONSOLE: [u8; 2] = [1, 1];
/// Asks for an encrypted and authenticated console (IPMI 2.0 table 24-2).
const PROTECTED: u8 = 0xc0;

/// A request to a BMC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bmc) enum IpmiCommand {
    /// Get Device ID (IPMI 2.0 §20.1).
    GetDeviceId,
    /// Get System GUID (§22.14).
    GetSystemGuid,
    /// Set Session Privilege Level (§22.18).
    SetSessionPrivilege(Privilege),
    /// Close Session (§22.19), with the BMC's own session id.
    CloseSession(u32),
    /// Get Chassis Status (§28.2).
    GetChassisStatus,
    /// Chassis Control (§28.3).
    ChassisControl(ChassisControl),
    /// Set System Boot Options (§28.12), parameter 0: 1 before the other parameters, 2 to commit, 0
    /// at the end.
    SetBootInProgress(u8),
    /// Set System Boot Options, parameter 3: keep the boot flags for longer than 60 seconds.
    KeepBootFlags,
    /// Set System Boot Options, parameter 4: the boot information is for the BIOS, which has not
    /// handled it yet.
    ClearBootAcknowledge,
    /// Set System Boot Options, parameter 5: the boot device.
    SetBootFlags(BootFlags),
    /// Get System Boot Options (§28.13), parameter 5: the boot device.
    GetBootFlags,
    /// Activate Payload (§24.1) for the only SOL payload, encrypted and authenticated.
    OpenConsole,
    /// Deactivate Payload (§24.2) for the SOL payload.
    CloseConsole,
    /// Get Payload Instance Info (§24.4) of the SOL payload: the session that owns it.
    GetConsoleOwner,
}

impl IpmiCommand {
    /// Encodes the command as network function, number and data.
    pub(in crate::bmc) fn encode(self) -> (u8, u8, Vec<u8>) {
        match self {
            Self::GetDeviceId => (APPLICATION, 0x01, vec![]),
            Self::GetSystemGuid => (APPLICATION, 0x37, vec![]),
            Self::SetSessionPrivilege(privilege) => {
                (APPLICATION, 0x3b, vec![privilege_level(privilege)])
            }
            Self::CloseSession(id) => (APPLICATION, 0x3c, id.to_le_bytes().to_vec()),
            Self::GetChassisStatus => (CHASSIS, 0x01, vec![]),
            Self::ChassisControl(control) => (CHASSIS, 0x02, vec![control_code(control)]),
            Self::SetBootInProgress(state) => (CHASSIS, 0x08, vec![SET_IN_PROGRESS, state]),
            Self::KeepBootFlags => (CHASSIS, 0x08, vec![FLAG_EXPIRY, 0x08]),
            Self::ClearBootAcknowledge => (CHASSIS, 0x08, vec![INFO_ACKNOWLEDGE, 1, 1]),
            Self::SetBootFlags(flags) => {
                let [first, second] = flags.encode();
                (CHASSIS, 0x08, vec![BOOT_FLAGS, first, second, 0, 0, 0])
            }
            Self::GetBootFlags => (CHASSIS, 0x09, vec![BOOT_FLAGS, 0, 0]),
            Self::OpenConsole => {
                (APPLICATION, 0x48, [&CONSOLE[..], &[PROTECTED, 0, 0, 0]].concat())
            }
            Self::CloseConsole => (APPLICATION, 0x49, [&CONSOLE[..], &[0; 4]].concat()),
            Self::GetConsoleOwner => (APPLICATION, 0x4b, CONSOLE.to_vec()),
        }
    }

    /// The command in words for messages.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::GetDeviceId => "get device id",
            Self::GetSystemGuid => "get system guid",
            Self::SetSessionPrivilege(_) => "set session privilege level",
            Self::CloseSession(_) => "close session",
            Self::GetChassisStatus => "get chassis status",
            Self::ChassisControl(ChassisControl::PowerDown) => "power off",
            Self::ChassisControl(ChassisControl::PowerUp) => "power on",
            Self::ChassisControl(ChassisControl::PowerCycle) => "power cycle",
            Self::ChassisControl(ChassisControl::HardReset) => "reset",
            Self::ChassisControl(ChassisControl::SoftShutdown) => "ask for a shutdown",
            Self::SetBootInProgress(_)
            | Self::KeepBootFlags
            | Self::ClearBootAcknowledge
            | Self::SetBootFlags(_) => "set boot options",
            Self::GetBootFlags => "get boot options",
            Self::OpenConsole => "open the serial console",
            Self::CloseConsole => "close the serial console",
            Self::GetConsoleOwner => "report the owner of the serial console",
        }
    }
}

/// The number of a privilege level (IPMI 2.0 §22.18).
pub(super) const fn privilege_level(privilege: Privilege) -> u8 {
    match privilege {
        Privilege::Operator => 3,
        Privilege::Administrator => 4,
    }
}

const fn control_code(control: ChassisControl) -> u8 {
    match control {
        ChassisControl::PowerDown => 0,
        ChassisControl::PowerUp => 1,
        ChassisControl::PowerCycle => 2,
        ChassisControl::HardReset => 3,
        ChassisControl::SoftShutdown => 5,
    }
}

/// The power state in the answer to [`IpmiCommand::GetChassisStatus`].
pub(super) fn power_state(answer: &[u8]) -> Option<PowerState> {
    let current = answer.first()?;
    Some(if current & 1 == 1 { PowerState::On } else { PowerState::Off })
}

/// The maker's IANA number in the answer to [`IpmiCommand::GetDeviceId`].
pub(super) fn manufacturer(answer: &[u8]) -> Option<u32> {
    let bytes = answer.get(6..9)?.first_chunk::<3>()?;
    let [low, middle, high] = *bytes;
    Some(u32::from_le_bytes([low, middle, high, 0]) & 0x000f_ffff)
}

/// The UUID in the answer to [`IpmiCommand::GetSystemGuid`]; `None` for an answer of another length
/// or without a UUID.
pub(super) fn system_guid(answer: &[u8]) -> Option<SystemGuid> {
    SystemGuid::new(answer.try_into().ok()?)
}

/// Whether the answer to [`IpmiCommand::GetConsoleOwner`] names no session.
pub(super) fn console_is_closed(answer: &[u8]) -> bool {
    answer.first_chunk() == Some(&[0; 4])
}

/// Supermicro's IANA numbers. Its BMCs have their own selector for the UEFI disk, and accept a
/// wrong one without an error.
const SUPERMICRO: [u32; 2] = [10876, 47488];

/// The first two bytes of the boot flags (IPMI 2.0 table 28-14, parameter 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bmc) struct BootFlags {
    pub(super) valid: bool,
    pub(super) persistent: bool,
    pub(super) efi: bool,
    /// Boot device selector in bits 5 to 2, as on the wire.
    pub(super) selector: u8,
}

impl BootFlags {
    const VALID: u8 = 0x80;
    const PERSISTENT: u8 = 0x40;
    const EFI: u8 = 0x20;
    const SELECTOR_MASK: u8 = 0x3c;
    const PXE: u8 = 0x04;
    const DISK: u8 = 0x08;
    const SUPERMICRO_UEFI_DISK: u8 = 0x24;

    /// The boot flags for a device on a BMC of this manufacturer.
    pub(super) fn choose(
        device: BootDevice,
        persistence: BootPersistence,
        firmware: Firmware,
        manufacturer: Option<u32>,
    ) -> Self {
        let supermicro = manufacturer.is_some_and(|number| SUPERMICRO.contains(&number));
        Self {
            valid: true,
            persistent: persistence == BootPersistence::Persistent,
            efi: firmware == Firmware::Uefi,
            selector: match (device, firmware) {
                (BootDevice::Pxe, _) => Self::PXE,
                (BootDevice::Disk, Firmware::Uefi) if supermicro => Self::SUPERMICRO_UEFI_DISK,
                (BootDevice::Disk, _) => Self::DISK,
            },
        }
    }

    fn encode(self) -> [u8; 2] {
        let bit = |set: bool, mask: u8| if set { mask } else { 0 };
        let first = bit(self.valid, Self::VALID)
            | bit(self.persistent, Self::PERSISTENT)
            | bit(self.efi, Self::EFI);
        [first, self.selector]
    }

    /// The flags in the answer to [`IpmiCommand::GetBootFlags`]; `None` if it is cut short or about
    /// another parameter.
    pub(super) fn decode(answer: &[u8]) -> Option<Self> {
        let [_version, parameter, first, second] = *answer.first_chunk::<4>()?;
        (parameter & 0x7f == BOOT_FLAGS).then_some(Self {
            valid: first & Self::VALID != 0,
            persistent: first & Self::PERSISTENT != 0,
            efi: first & Self::EFI != 0,
            selector: second & Self::SELECTOR_MASK,
        })
    }

    /// The boot device, if hostler knows the selector.
    pub(super) const fn device(self) -> Option<BootDevice> {
        match self.selector {
            Self::PXE => Some(BootDevice::Pxe),
            Self::DISK | Self::SUPERMICRO_UEFI_DISK => Some(BootDevice::Disk),
            _ => None,
        }
    }

    /// Whether the flags set no device.
    pub(super) const fn chooses_nothing(self) -> bool {
        self.selector == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ids::hex;

    fn flags(device: BootDevice, persistence: BootPersistence, firmware: Firmware) -> String {
        let flags = BootFlags::choose(device, persistence, firmware, None);
        hex(&IpmiCommand::SetBootFlags(flags).encode().2)
    }

    #[test]
    fn boot_flags_have_the_bytes_ironic_and_ipmitool_send() {
        use {BootDevice::*, BootPersistence::*, Firmware::*};
        assert_eq!(flags(Pxe, NextBoot, Uefi), "05a004000000");
        assert_eq!(flags(Disk, Persistent, Uefi), "05e008000000");
        assert_eq!(flags(Pxe, NextBoot, Bios), "058004000000");
        assert_eq!(flags(Disk, Persistent, Bios), "05c008000000");
    }

    #[test]
    fn only_supermicros_uefi_disk_has_a_selector_of_its_own() {
        let selector = |device, firmware, maker| {
            BootFlags::choose(device, BootPersistence::Persistent, firmware, maker).selector
        };
        assert_eq!(selector(BootDevice::Disk, Firmware::Uefi, Some(10876)), 0x24);
        assert_eq!(selector(BootDevice::Disk, Firmware::Bios, Some(10876)), 0x08);
        assert_eq!(selector(BootDevice::Pxe, Firmware::Uefi, Some(10876)), 0x04);
        assert_eq!(selector(BootDevice::Disk, Firmware::Uefi, Some(674)), 0x08);
    }

    #[test]
    fn answers_are_read_as_the_specification_lays_them_out() {
        assert_eq!(power_state(&[0x21, 0, 0]), Some(PowerState::On));
        assert_eq!(power_state(&[0x60, 0, 0]), Some(PowerState::Off));
        assert_eq!(power_state(&[]), None);
        let device_id = [0x20, 1, 2, 3, 0x51, 0xbf, 0x7c, 0x2a, 0x00, 1, 2];
        assert_eq!(manufacturer(&device_id), Some(10876));
        assert_eq!(BootFlags::decode(&[1, 4, 0xa0, 4]), None);
        assert_eq!(system_guid(&[7; 16]), SystemGuid::new([7; 16]));
        for none in [&[7; 15][..], &[7; 17], &[0; 16], &[0xff; 16], &[]] {
            assert_eq!(system_guid(none), None);
        }
    }

    #[test]
    fn the_console_is_asked_for_as_pyghmi_and_ipmitool_do() {
        let sent = |command: IpmiCommand| {
            let (function, number, data) = command.encode();
            hex(&[&[function, number], &data[..]].concat())
        };
        assert_eq!(sent(IpmiCommand::OpenConsole), "06480101c0000000");
        assert_eq!(sent(IpmiCommand::CloseConsole), "0649010100000000");
        assert_eq!(sent(IpmiCommand::GetConsoleOwner), "064b0101");
        assert!(console_is_closed(&[0; 12]));
        assert!(!console_is_closed(&[0, 0, 0, 1, 0, 0]) && !console_is_closed(&[0; 3]));
    }

    proptest! {
        #[test]
        fn boot_flags_survive_the_wire(
            valid: bool,
            persistent: bool,
            efi: bool,
            selector in 0u8..16,
        ) {
            let flags = BootFlags { valid, persistent, efi, selector: selector << 2 };
            let [first, second] = flags.encode();
            prop_assert_eq!(BootFlags::decode(&[1, 5, first, second, 0, 0, 0]), Some(flags));
        }

        #[test]
        fn reading_answers_never_panics_on_any_bytes(bytes: Vec<u8>) {
            let _ignored = (power_state(&bytes), manufacturer(&bytes), system_guid(&bytes));
            let _ignored = (BootFlags::decode(&bytes), console_is_closed(&bytes));
        }
    }
}

//! Facts that a BMC reports about its machine and about itself, for operators.
//!
//! An operator's command reads them. This module changes nothing, and no decision depends on it.

use tokio::time::Instant;

use super::{
    call::IpmiCall,
    client::IpmiClient,
    commands::{self, BootFlags, IpmiCommand},
    error::{IpmiError, IpmiErrorKind},
};
use crate::{
    bmc::driver::{BootChoice, Chassis},
    model::{admin::Fact, power::BootPersistence, spec::CipherSuite},
};

/// A BMC's answer to Get Device ID (IPMI 2.0 §20.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BmcDevice {
    /// The manufacturer's IANA enterprise number; 0 if unknown.
    pub manufacturer: u32,
    /// The manufacturer's product number.
    pub product: u16,
    /// Firmware version, major and minor: 2 and 10 are `2.10`.
    pub firmware: (u8, u8),
    /// IPMI version, major and minor.
    pub ipmi: (u8, u8),
    /// The cipher suite of the session.
    pub suite: Option<CipherSuite>,
}

impl IpmiClient {
    /// Reads the power state and the boot device.
    pub async fn chassis(&self, deadline: Instant) -> Result<Chassis, IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        let result = call.chassis().await;
        call.end().await;
        result
    }

    /// Reads the BMC's description of itself.
    pub async fn device(&self, deadline: Instant) -> Result<BmcDevice, IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        let result = call.device().await;
        call.end().await;
        result
    }
}

impl IpmiCall<'_> {
    async fn chassis(&mut self) -> Result<Chassis, IpmiError> {
        let power = self.power_state().await?;
        let boot = match self.optional(IpmiCommand::GetBootFlags).await {
            Ok(answer) => BootFlags::decode(&answer).map(boot_choice),
            Err(IpmiError { kind: IpmiErrorKind::CommandRefused { .. }, .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Chassis { power, boot })
    }

    async fn device(&mut self) -> Result<BmcDevice, IpmiError> {
        let command = IpmiCommand::GetDeviceId;
        let answer = self.command(command).await?;
        BmcDevice::decode(&answer, self.memory.suite)
            .ok_or_else(|| self.error(IpmiErrorKind::BadAnswer { command: command.name() }))
    }
}

fn boot_choice(flags: BootFlags) -> BootChoice {
    let persistence =
        if flags.persistent { BootPersistence::Persistent } else { BootPersistence::NextBoot };
    match flags.device() {
        _ if !flags.valid || flags.chooses_nothing() => BootChoice::Firmware,
        Some(device) => BootChoice::Known(device, persistence),
        None => BootChoice::Other(flags.selector >> 2, persistence),
    }
}

impl BmcDevice {
    /// The facts, as `hostler bmc NODE info` shows them.
    pub(super) fn facts(self) -> Vec<Fact> {
        let Self { manufacturer, product, firmware, ipmi, suite } = self;
        let suite = suite.map(|suite| Fact::new("cipher_suite", &u8::from(suite).to_string()));
        [
            Fact::new("manufacturer", &manufacturer.to_string()),
            Fact::new("product", &product.to_string()),
            Fact::new("firmware", &format!("{}.{:02}", firmware.0, firmware.1)),
            Fact::new("ipmi", &format!("{}.{}", ipmi.0, ipmi.1)),
        ]
        .into_iter()
        .chain(suite)
        .collect()
    }

    /// Decodes the answer to [`IpmiCommand::GetDeviceId`]; `None` if it is cut short.
    fn decode(answer: &[u8], suite: Option<CipherSuite>) -> Option<Self> {
        let [_id, _revision, major, minor, ipmi, _support, _, _, _, product @ ..] =
            *answer.first_chunk::<11>()?;
        Some(Self {
            manufacturer: commands::manufacturer(answer)?,
            product: u16::from_le_bytes(product),
            // The upper bit means that the BMC is updating its firmware. The minor number and
            // IPMI's version are decimal digits, the latter swapped.
            firmware: (major & 0x7f, (minor >> 4) * 10 + (minor & 0x0f)),
            ipmi: (ipmi & 0x0f, ipmi >> 4),
            suite,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::power::BootDevice;

    #[test]
    fn a_device_id_is_read_as_ipmitool_reads_it() {
        let answer = [0x20, 1, 0x82, 0x13, 0x51, 0xbf, 0x7c, 0x2a, 0x00, 0x34, 0x12, 9, 9];
        let suite = Some(CipherSuite::Sha256);
        let device = BmcDevice {
            manufacturer: 10876,
            product: 0x1234,
            firmware: (2, 13),
            ipmi: (1, 5),
            suite,
        };
        assert_eq!(BmcDevice::decode(&answer, suite), Some(device));
        assert_eq!(BmcDevice::decode(&answer[..10], suite), None);
    }

    #[test]
    fn a_boot_choice_counts_only_while_it_is_valid() {
        use BootChoice::{Firmware, Known, Other};
        use BootPersistence::{NextBoot, Persistent};
        for (first, second, choice) in [
            (0x80, 0x04, Known(BootDevice::Pxe, NextBoot)),
            (0xe0, 0x08, Known(BootDevice::Disk, Persistent)),
            // Supermicro's UEFI disk.
            (0xe0, 0x24, Known(BootDevice::Disk, Persistent)),
            (0xc0, 0x14, Other(5, Persistent)),
            (0x00, 0x04, Firmware),
            (0x80, 0x00, Firmware),
        ] {
            let flags = BootFlags::decode(&[1, 5, first, second, 0, 0, 0]).unwrap();
            assert_eq!(boot_choice(flags), choice, "{first:#x} {second:#x}");
        }
    }

    proptest! {
        #[test]
        fn reading_what_a_bmc_is_never_panics_on_any_bytes(bytes: Vec<u8>) {
            let _ignored = BmcDevice::decode(&bytes, None);
            let _ignored = BootFlags::decode(&bytes).map(boot_choice);
        }
    }
}

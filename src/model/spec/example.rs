//! A complete spec for tests and the simulation, so that a new key changes only this literal.

use std::time::Duration;

use super::{
    Bmc, BmcAddress, BmcDriver, Boot, Checksum, DeployRamdisk, Goal, Image, ImageFormat, ImageKind,
    Loader, NodeSpec, Password, Privilege, ROOT_DEVICE_WAIT, Retry, Timeouts, Verify, WantedPower,
};
use crate::model::{
    boot::{Arch, Firmware},
    disk::RootDeviceHints,
    ids::Digest,
};

impl NodeSpec {
    /// A spec of a machine with a BMC and a disk image; every other key has its default.
    ///
    /// For tests and for the simulation only.
    #[doc(hidden)]
    pub fn example() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        Self {
            name: "edge-07".parse().unwrap_or_else(|_| unreachable!("a good name")),
            goal: Goal::Deployed,
            power: WantedPower::On,
            paused: false,
            redeploy: None,
            boot: Boot {
                macs: vec![super::MacAddr::new([0x52, 0x54, 0, 0, 0, 1])],
                firmware: Firmware::Uefi,
                arch: Arch::X86_64,
                loader: Loader::Auto,
                ramdisk: DeployRamdisk::Hostler,
                require_chap: true,
                kernel_args: Vec::new(),
            },
            bmc: Some(Box::new(Bmc {
                driver: BmcDriver::Ipmi,
                address: BmcAddress::at("192.0.2.20", 623),
                username: "admin".to_owned(),
                password: Some(Password::PasswordFile("edge-07.bmc".into())),
                privilege: Privilege::Administrator,
                kg_file: None,
                cipher_suite: None,
                match_system_uuid: false,
                console: false,
            })),
            root_device: RootDeviceHints::default(),
            image: Image {
                source: "disk.raw".to_owned(),
                checksum: Checksum::Inline(Digest::of(b"image")),
                format: ImageFormat::Auto,
                kind: ImageKind::Disk,
                verify: Verify::Full,
                netboot: None,
            },
            config_drive: None,
            boot_check: super::BootCheck::None,
            timeouts: Timeouts {
                ramdisk: minutes(20),
                root_device: ROOT_DEVICE_WAIT,
                imaging_stall: minutes(2),
                imaging: minutes(120),
                completed: minutes(5),
                power: minutes(2),
                first_boot: super::FIRST_BOOT_WAIT,
            },
            retry: Retry { attempts: 3, backoff: minutes(1) },
        }
    }
}

impl Bmc {
    /// Moves the BMC to another host, at the usual port. For tests and for the simulation only.
    #[doc(hidden)]
    pub fn move_to(&mut self, host: impl Into<String>) {
        self.address = BmcAddress::at(host, 623);
    }
}

//! A machine: its power, its firmware, its disks, and the faults of its BMC.
//!
//! Its acts are real, whatever the core assumes. The world asks it; it never asks the core.

use hostler::model::{
    disk::Disk,
    ids::{MacAddr, NodeName},
    secret::BootToken,
    spec::{BmcAddress, NodeSpec},
};
use std::net::IpAddr;

/// The content of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A foreign system, which boots.
    Foreign,
    /// No system at all.
    Wiped,
    /// A part of an image.
    Half,
    /// The whole image of this name.
    Whole(String),
}

/// A disk, and its current writer.
#[derive(Clone, Debug)]
pub(crate) struct Platter {
    pub(crate) disk: Disk,
    pub(crate) content: Content,
    pub(crate) writers: Vec<u64>,
    /// The token with which the disk's system calls, and its node.
    pub(crate) token: Option<(NodeName, BootToken)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Network,
    Disk,
}

/// The faults of a BMC, each with the time of its end.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_field_names, reason = "each says until when")]
pub(crate) struct BmcFaults {
    pub(crate) silent_until: u64,
    pub(crate) slow_until: u64,
    pub(crate) idle_until: u64,
    pub(crate) forgets_until: u64,
    pub(crate) locked_until: u64,
}

/// A fault of the machine itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Quirk {
    #[default]
    None,
    /// The firmware does not netboot.
    NeverNetboots,
    /// The ramdisk gives up with an error.
    RamdiskError,
    /// The ramdisk finds other disks than the spec wants.
    WrongDisks,
    /// The ramdisk boots and never calls the agent.
    Mute,
    /// The iSCSI target stops in the middle of the write, and answers nothing.
    StalledWrite,
    /// The iSCSI target dies in the middle of the write.
    TargetDies,
    /// The ramdisk reports completion too late.
    LateCompleted,
    /// The firmware restarts again and again, and never reaches the network.
    BootLoops,
    /// The installed system never comes up.
    NeverUp,
    /// The installed system comes up after the first boot's time limit.
    LateUp,
    /// The installed system restarts the machine once before it comes up.
    RebootsFirst,
}

/// The target a ramdisk exports.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    /// `None` for a target without a secret, as Ironic's.
    pub(crate) secret: Option<String>,
    pub(crate) platter: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// The address of its BMC, if it has one.
    pub(crate) bmc: BmcAddress,
    pub(crate) has_bmc: bool,
    pub(crate) mac: MacAddr,
    pub(crate) ip: IpAddr,
    pub(crate) on: bool,
    /// Counts power changes: events of an earlier session are void.
    pub(crate) session: u64,
    pub(crate) once: Option<Device>,
    pub(crate) always: Device,
    pub(crate) platters: Vec<Platter>,
    pub(crate) faults: BmcFaults,
    pub(crate) quirk: Quirk,
    pub(crate) export: Option<Export>,
    /// Whether the last power on was hostler's order to boot its installation.
    pub(crate) ordered: bool,
    /// The session in which the installed system came up.
    pub(crate) up: Option<u64>,
    /// Count of starts of the installed system.
    pub(crate) ups: u32,
}

impl Machine {
    /// The n-th machine of a site, with a foreign system on its disk. A machine without a BMC tries
    /// the network first at each boot.
    pub(crate) fn new(n: usize, has_bmc: bool, on: bool) -> Self {
        let octet = u8::try_from(n % 250).unwrap() + 1;
        let disk = |name: &str, size| Disk {
            name: name.to_owned(),
            size,
            serial: Some(format!("{name}-{n}")),
            ..Disk::default()
        };
        let platter =
            |disk| Platter { disk, content: Content::Foreign, writers: Vec::new(), token: None };
        Self {
            bmc: BmcAddress::at(format!("192.0.2.{octet}"), 623),
            has_bmc,
            mac: MacAddr::new([0x52, 0x54, 0, 0, 0, octet]),
            ip: IpAddr::from([198, 51, 100, octet]),
            on,
            session: 0,
            once: None,
            always: if has_bmc { Device::Disk } else { Device::Network },
            platters: vec![platter(disk("vda", 8 << 30)), platter(disk("vdb", 9 << 30))],
            faults: BmcFaults::default(),
            quirk: Quirk::None,
            export: None,
            ordered: false,
            up: None,
            ups: 0,
        }
    }

    /// Whether a spec names this machine.
    pub(crate) fn is_meant(&self, spec: &NodeSpec) -> bool {
        match spec.bmc_address() {
            Some(bmc) => self.has_bmc && self.bmc == *bmc,
            None => spec.boot.macs.contains(&self.mac),
        }
    }

    /// Switches the machine; returns `true` if it came on, and its firmware starts.
    pub(crate) fn switch(&mut self, on: bool) -> bool {
        if self.on == on {
            return false;
        }
        self.on = on;
        self.session += 1;
        self.export = None;
        on
    }

    /// Whether the installed system answers.
    pub(crate) fn is_up(&self) -> bool {
        self.on && self.up == Some(self.session)
    }

    /// The device that the firmware boots; clears a choice for one boot.
    pub(crate) fn boot_device(&mut self) -> Device {
        self.once.take().unwrap_or(self.always)
    }
}

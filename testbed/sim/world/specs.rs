//! The spec files of a site, as its operators write them.

use std::{sync::Arc, time::Duration};

use hostler::model::{
    boot::{Arch, Firmware},
    disk::RootDeviceHints,
    ids::NodeName,
    netboot::Netboot,
    spec::{
        Bmc, BmcAddress, BmcDriver, Boot, Checksum, DeployRamdisk, Goal, Image, ImageFormat,
        ImageKind, Loader, NodeSpec, Password, Privilege, ROOT_DEVICE_WAIT, Retry, Timeouts,
        Verify, WantedPower,
    },
};

use super::Site;

/// A spec file.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// As it is when it can be read.
    pub(crate) spec: NodeSpec,
    /// Whether it cannot.
    pub(crate) broken: bool,
    /// The machine it is meant for.
    pub(crate) home: usize,
}

impl Site {
    /// One spec for each machine, and some machines to spare.
    pub(crate) fn write_first_specs(&mut self) {
        for home in 0..self.machines.len() - self.plan.spares {
            self.write_new_spec(home);
        }
    }

    pub(crate) fn write_new_spec(&mut self, home: usize) {
        let name: NodeName = format!("node-{:03}", self.names).parse().unwrap();
        self.names += 1;
        let spec = self.spec_for(&name, home);
        self.files.insert(name, File { spec, broken: false, home });
    }

    pub(crate) fn spec_for(&self, name: &NodeName, home: usize) -> NodeSpec {
        let minutes = |m: u64| Duration::from_secs(60 * m);
        let machine = &self.machines[home];
        NodeSpec {
            name: name.clone(),
            goal: Goal::Deployed,
            power: WantedPower::On,
            paused: false,
            redeploy: None,
            boot: Boot {
                macs: vec![machine.mac],
                firmware: Firmware::Uefi,
                arch: Arch::X86_64,
                loader: Loader::Auto,
                ramdisk: DeployRamdisk::Hostler,
                require_chap: true,
                kernel_args: Vec::new(),
            },
            bmc: machine.has_bmc.then(|| bmc_at(&machine.bmc)),
            root_device: RootDeviceHints {
                name: Some("vda".to_owned()),
                ..RootDeviceHints::default()
            },
            image: Image {
                source: "disk.raw".to_owned(),
                checksum: image(0),
                format: ImageFormat::Auto,
                kind: ImageKind::Disk,
                // Every third machine reads its own disk back.
                verify: if home.is_multiple_of(3) { Verify::Node } else { Verify::Full },
                // Every fourth boots its own kernel from the network.
                netboot: (home % 4 == 1).then(|| Netboot {
                    kernel: "vmlinuz".to_owned(),
                    kernel_checksum: None,
                    ramdisk: "initrd".to_owned(),
                    ramdisk_checksum: None,
                    kernel_args: Vec::new(),
                }),
            },
            config_drive: None,
            timeouts: Timeouts {
                ramdisk: minutes(20),
                root_device: ROOT_DEVICE_WAIT,
                imaging_stall: minutes(2),
                imaging: minutes(120),
                completed: minutes(5),
                power: power_limit(machine.has_bmc),
            },
            retry: Retry { attempts: 3, backoff: minutes(1) },
        }
    }

    /// The files as one reading of the directory finds them.
    pub(crate) fn read_specs(&self) -> hostler::lifecycle::Specs {
        self.files
            .iter()
            .map(|(name, file)| {
                let problem =
                    || vec![hostler::model::problem::Problem::of_file("f", "half a file")];
                let spec =
                    if file.broken { Err(problem()) } else { Ok(Arc::new(file.spec.clone())) };
                (name.clone(), spec)
            })
            .collect()
    }
}

/// An operator takes longer than a BMC.
fn power_limit(has_bmc: bool) -> Duration {
    Duration::from_secs(60 * if has_bmc { 2 } else { 180 })
}

/// Another BMC, or none.
pub(crate) fn set_bmc(spec: &mut NodeSpec, bmc: Option<Bmc>) {
    spec.timeouts.power = power_limit(bmc.is_some());
    spec.bmc = bmc;
}

pub(crate) fn bmc_at(address: &BmcAddress) -> Bmc {
    Bmc {
        driver: BmcDriver::Ipmi,
        address: address.clone(),
        username: "admin".to_owned(),
        password: Password::PasswordFile("bmc".to_owned()),
        privilege: Privilege::Administrator,
        kg_file: None,
        cipher_suite: None,
        match_system_uuid: false,
        console: false,
    }
}

/// The n-th image's checksum.
pub(crate) fn image(n: u64) -> Checksum {
    format!("sha256:{}", n.to_string().repeat(64)).parse().unwrap()
}

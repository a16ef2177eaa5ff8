//! The spec files of a site, as its operators write them.

use std::{sync::Arc, time::Duration};

use hostler::model::{
    ids::NodeName,
    netboot::Netboot,
    spec::{Bmc, BmcAddress, BootCheck, Checksum, DeployRamdisk, NodeSpec, Verify},
};

use super::site::{File, Site};

impl Site {
    /// Writes one spec for each machine, except for some spare machines.
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
        let machine = &self.machines[home];
        let mut spec = NodeSpec { name: name.clone(), ..NodeSpec::example() };
        spec.boot.macs = vec![machine.mac];
        spec.bmc = machine.has_bmc.then(|| Box::new(bmc_at(&machine.bmc)));
        spec.root_device.name = Some("vda".to_owned());
        spec.image.checksum = image(0);
        // Every third machine reads its own disk back.
        spec.image.verify = if home.is_multiple_of(3) { Verify::Node } else { Verify::Full };
        // Every fourth boots its own kernel from the network.
        let netboot = || Netboot {
            kernel: "vmlinuz".to_owned(),
            kernel_checksum: None,
            ramdisk: "initrd".to_owned(),
            ramdisk_checksum: None,
            kernel_args: Vec::new(),
        };
        spec.image.netboot = (home % 4 == 1).then(|| Box::new(netboot()));
        // Two of three specs have a boot check.
        spec.boot_check = match home % 3 {
            0 => BootCheck::Tcp { port: 80, address: None },
            1 => BootCheck::Call,
            _ => BootCheck::None,
        };
        spec.timeouts.power = power_limit(machine.has_bmc);
        if self.plan.other_ramdisks && home % 5 == 4 && machine.has_bmc {
            spec.boot.ramdisk = DeployRamdisk::Ironic;
            spec.boot.require_chap = false;
            spec.image.verify = Verify::Full;
        }
        spec
    }

    /// The files in one scan of the directory.
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

/// The power limit: an operator takes longer than a BMC.
fn power_limit(has_bmc: bool) -> Duration {
    Duration::from_secs(60 * if has_bmc { 2 } else { 180 })
}

/// Changes or removes the BMC of a spec.
pub(crate) fn set_bmc(spec: &mut NodeSpec, bmc: Option<Box<Bmc>>) {
    spec.timeouts.power = power_limit(bmc.is_some());
    if bmc.is_none() {
        // Ironic's ramdisk needs one.
        spec.boot.ramdisk = DeployRamdisk::Hostler;
    }
    spec.bmc = bmc;
}

pub(crate) fn bmc_at(address: &BmcAddress) -> Bmc {
    let mut bmc = NodeSpec::example().bmc.unwrap();
    bmc.address = address.clone();
    *bmc
}

/// The n-th image's checksum.
pub(crate) fn image(n: u64) -> Checksum {
    format!("sha256:{}", n.to_string().repeat(64)).parse().unwrap()
}

//! The work of operators' BMC commands (`hostler bmc`).
//!
//! Each runs as a task of its own, once the driver has admitted it, and waits for the node's BMC
//! lock like the core's operations.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};
use tracing::warn;

use crate::{
    bmc::{Bmc, BootChoice, Chassis},
    lifecycle::POLL_LIMIT,
    model::{
        admin::{BmcCommand, Fact},
        fault::{Fault, Step},
        power::{BootDevice, BootPersistence, PowerState},
        spec::NodeSpec,
    },
};

use super::power::Bmcs;

/// The facts after a command, or why it was not done.
pub(super) type Done = Result<Vec<Fact>, String>;

impl Bmcs {
    /// Performs a command within the node's `timeouts.power`, counted from when the BMC is free.
    pub(super) async fn command(&self, spec: &NodeSpec, command: BmcCommand) -> Done {
        let Ok(_permit) = self.bmc_commands.try_acquire() else {
            return Err("operators use too many BMCs at once; try again in a while".to_owned());
        };
        let (_stop, cancel) = watch::channel(false);
        let firmware = spec.boot.firmware;
        let call = async |bmc: Bmc, limit: Duration| {
            use PowerState::{Off, On};
            // An operator waits: a silent BMC is told of as soon as by a poll.
            let soon = Instant::now() + limit.min(POLL_LIMIT);
            if !command.changes_nothing() {
                bmc.power_state(soon).await?;
            }
            let deadline = Instant::now() + limit;
            match command {
                BmcCommand::Status => return bmc.chassis(soon).await.map(of_chassis),
                BmcCommand::Info => {
                    let mut facts = way_to(spec);
                    facts.extend(bmc.facts(soon).await?);
                    // Not every BMC says it, and its meaning depends on an order of bytes that only
                    // its maker knows.
                    let guid = bmc.system_guid(soon).await.ok();
                    facts.extend(guid.map(|guid| Fact::new("system_guid", &guid.to_string())));
                    return Ok(facts);
                }
                BmcCommand::On => bmc.reach_power(On, deadline).await?,
                BmcCommand::Off { hard: true } => bmc.reach_power(Off, deadline).await?,
                BmcCommand::Off { hard: false } => bmc.soft_off(limit / 2, deadline).await?,
                // The BMC has to report that it was off.
                BmcCommand::Cycle => {
                    bmc.reach_power(Off, deadline).await?;
                    bmc.reach_power(On, deadline).await?;
                }
                BmcCommand::BootDevice { device, persistent } => {
                    let persistence = persistence(persistent);
                    bmc.set_boot_device(device, persistence, firmware, deadline).await?;
                    return Ok(vec![boot(BootChoice::Known(device, persistence))]);
                }
            }
            Ok(vec![power(if command.switches_off() && command != BmcCommand::Cycle {
                Off
            } else {
                On
            })])
        };
        self.with(Step::Power, spec, cancel, call).await.map_err(|Fault { code, message, hint, .. }| {
            warn!(node = %spec.name, command = command.name(), %code, error = message, "a bmc did \
                not do what an operator wanted");
            format!("{}: {message}; {hint}", spec.name)
        })
    }
}

fn persistence(persistent: bool) -> BootPersistence {
    if persistent { BootPersistence::Persistent } else { BootPersistence::NextBoot }
}

fn power(state: PowerState) -> Fact {
    Fact::new("power", state.as_str())
}

fn boot(choice: BootChoice) -> Fact {
    let until = |persistence| match persistence {
        BootPersistence::NextBoot => "next boot only",
        BootPersistence::Persistent => "always",
    };
    let value = match choice {
        BootChoice::Firmware => "as the firmware is set up".to_owned(),
        BootChoice::Known(BootDevice::Pxe, how) => format!("network, {}", until(how)),
        BootChoice::Known(BootDevice::Disk, how) => format!("disk, {}", until(how)),
        BootChoice::Device(BootDevice::Pxe) => "network".to_owned(),
        BootChoice::Device(BootDevice::Disk) => "disk".to_owned(),
        BootChoice::Other(number, how) => {
            format!("another device (selector {number}), {}", until(how))
        }
    };
    Fact::new("boot", &value)
}

fn of_chassis(chassis: Chassis) -> Vec<Fact> {
    [power(chassis.power)].into_iter().chain(chassis.boot.map(boot)).collect()
}

fn way_to(spec: &NodeSpec) -> Vec<Fact> {
    let bmc = spec.bmc.iter();
    bmc.flat_map(|bmc| {
        let address = Fact::new("address", &bmc.address.to_string());
        [address, Fact::new("driver", bmc.driver.as_str())]
    })
    .collect()
}

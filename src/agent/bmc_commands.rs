//! Performs operators' BMC commands (`hostler bmc`).
//!
//! Called once the driver has admitted a command, in a task for each. A command must wait for the
//! node's BMC lock, as the core's operations do.

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

/// The facts after a command, or the error in words.
pub(super) type CommandResult = Result<Vec<Fact>, String>;

impl Bmcs {
    /// Performs a command within the node's `timeouts.power`, from the moment when the BMC is free.
    pub(super) async fn command(&self, spec: &NodeSpec, command: BmcCommand) -> CommandResult {
        let Ok(_permit) = self.bmc_commands.try_acquire() else {
            return Err("operators use too many BMCs at once; try again in a while".to_owned());
        };
        let (_stop, cancel) = watch::channel(false);
        let firmware = spec.boot.firmware;
        let call = async |bmc: Bmc, limit: Duration| {
            use PowerState::{Off, On};
            // Reports a silent BMC as soon as a poll does, because an operator waits.
            let soon = Instant::now() + limit.min(POLL_LIMIT);
            if !command.changes_nothing() {
                bmc.power_state(soon).await?;
            }
            let deadline = Instant::now() + limit;
            match command {
                BmcCommand::Status => return bmc.chassis(soon).await.map(of_chassis),
                BmcCommand::Info => {
                    let mut facts = connection(spec);
                    facts.extend(bmc.facts(soon).await?);
                    // Optional: not every BMC has one, and its byte order depends on the vendor.
                    let guid = bmc.system_guid(soon).await.ok();
                    facts.extend(guid.map(|guid| Fact::new("system_guid", &guid.to_string())));
                    return Ok(facts);
                }
                BmcCommand::On => bmc.reach_power(On, deadline).await?,
                BmcCommand::Off { hard: true } => bmc.reach_power(Off, deadline).await?,
                BmcCommand::Off { hard: false } => bmc.soft_off(limit / 2, deadline).await?,
                // The BMC must report the machine off in between.
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
        self.with(Step::Power, spec, cancel, call).await.map_err(|fault| {
            let Fault { code, message, hint, .. } = fault;
            warn!(
                node = %spec.name, command = command.name(), %code, error = message,
                "a BMC did not perform an operator's command"
            );
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

fn connection(spec: &NodeSpec) -> Vec<Fact> {
    let bmc = spec.bmc.iter();
    bmc.flat_map(|bmc| {
        let address = Fact::new("address", &bmc.address.to_string());
        [address, Fact::new("driver", bmc.driver.as_str())]
    })
    .collect()
}

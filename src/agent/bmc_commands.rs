//! What operators have BMCs do: `hostler bmc`.
//!
//! Called by the driver, which only admits it: the work is a task that takes its turn with the core's operations. It must never get in the
//! way of an attempt, nor be taken for consent to wipe a disk.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};
use tracing::{info, warn};

use crate::{
    admin::Peer,
    ipmi::{Bmc, BootChoice, Chassis, Device},
    lifecycle::{Node, POLL_LIMIT},
    model::{
        admin::{BmcCommand, Fact},
        fault::{Fault, Step},
        ids::NodeName,
        power::{BootDevice, BootPersistence, PowerState},
        spec::{BmcDriver, NodeSpec},
        status::Phase,
        system_guid::SystemGuid,
    },
};

use super::{driver::Driver, power::Bmcs, work::cancel_signal};

/// What is so after a command, or why it was not done.
pub(super) type Done = Result<Vec<Fact>, String>;

impl Driver {
    /// Has a node's BMC do what an operator wants, if nothing speaks against it. The answer comes when it is done.
    pub(super) fn use_bmc(
        &self,
        name: &NodeName,
        command: BmcCommand,
        Peer { uid, pid }: Peer,
        reply: oneshot::Sender<Done>,
    ) {
        let command_name = command.name();
        let admitted = self
            .executor
            .fleet()
            .node(name)
            .ok_or_else(|| "no such node; `hostler status` lists those that there are".to_owned())
            .and_then(|node| admit(node, command));
        match admitted {
            Ok(spec) => {
                info!(node = %name, uid, pid, command = command_name, "operator uses a bmc");
                self.adapters.start_bmc_command(spec, command, reply);
            }
            Err(why) => {
                info!(node = %name, uid, pid, command = command_name, why, "an operator may not use a bmc");
                // An operator who went away finds it in the log.
                drop(reply.send(Err(format!("{name}: {why}"))));
            }
        }
    }
}

/// The spec to do it by, or why it is not done.
fn admit(node: &Node, command: BmcCommand) -> Result<Arc<NodeSpec>, String> {
    let phase = node.phase().as_str();
    let spec = node.spec().ok_or("has had no valid spec yet, which would say where its BMC is")?;
    if spec.bmc.is_none() {
        return Err("has no BMC (bmc.driver = \"none\"); press its power button".to_owned());
    }
    if command.changes_nothing() {
        return Ok(Arc::clone(spec));
    }
    if !node.is_at_rest() {
        return Err(format!("is {phase}; hostler switches it itself until that is over"));
    }
    if node.phase() == Phase::Invalid {
        return Err(format!("is {phase}; whose machine it is must be settled first"));
    }
    if command.switches_off() && node.is_wiped_when_off() {
        return Err(format!(
            "is {phase}, and hostler would WIPE and install it as soon as it is off; `hostler approve` is the order to WIPE it, and \
             state = \"available\" in its spec keeps its disk"
        ));
    }
    Ok(Arc::clone(spec))
}

impl Bmcs {
    /// Does it, within the node's `timeouts.power` from when the BMC is free.
    pub(super) async fn command(&self, spec: &NodeSpec, command: BmcCommand) -> Done {
        let Ok(_place) = self.bmc_commands.try_acquire() else {
            return Err("operators use too many BMCs at once; try again in a while".to_owned());
        };
        let (_stop, cancel) = cancel_signal();
        let firmware = spec.boot.firmware;
        let call = async |bmc: Arc<Bmc>, limit: Duration| {
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
                    let device = bmc.device(soon).await?;
                    // Not every BMC says it.
                    let guid = bmc.system_guid(soon).await.ok();
                    return Ok(of_device(spec, device, guid));
                }
                BmcCommand::On => bmc.reach_power(On, deadline).await?,
                BmcCommand::Off { hard: true } => bmc.reach_power(Off, deadline).await?,
                BmcCommand::Off { hard: false } => bmc.soft_off(limit / 2, deadline).await?,
                // That it was off is seen, not believed.
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
            warn!(node = %spec.name, command = command.name(), %code, error = message, "a bmc did not do what an operator wanted");
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
        BootChoice::Other(number, how) => {
            format!("another device (selector {number}), {}", until(how))
        }
    };
    Fact::new("boot", &value)
}

fn of_chassis(chassis: Chassis) -> Vec<Fact> {
    [power(chassis.power)].into_iter().chain(chassis.boot.map(boot)).collect()
}

fn of_device(spec: &NodeSpec, device: Device, guid: Option<SystemGuid>) -> Vec<Fact> {
    let Device { manufacturer, product, firmware, ipmi, suite } = device;
    let mut facts = Vec::new();
    if let Some(bmc) = &spec.bmc {
        facts.push(Fact::new("address", &bmc.address.to_string()));
        facts.push(Fact::new(
            "driver",
            match bmc.driver {
                BmcDriver::Ipmi => "ipmi",
                BmcDriver::Ipmitool => "ipmitool",
            },
        ));
    }
    facts.push(Fact::new("manufacturer", &manufacturer.to_string()));
    facts.push(Fact::new("product", &product.to_string()));
    facts.push(Fact::new("firmware", &format!("{}.{:02}", firmware.0, firmware.1)));
    facts.push(Fact::new("ipmi", &format!("{}.{}", ipmi.0, ipmi.1)));
    facts.extend(suite.map(|suite| Fact::new("cipher_suite", &u8::from(suite).to_string())));
    // What it means depends on an order of bytes that only its maker knows.
    facts.extend(guid.map(|guid| Fact::new("system_guid", &guid.to_string())));
    facts
}

//! `hostler bmc`: what a node's BMC is to do or to say, by way of the running agent.
//!
//! The agent's own client is used, because it paces the calls and knows what the BMC accepts; and
//! the agent knows whether it is at work on the machine itself.

use std::{io::Write, process::ExitCode};

use clap::{Subcommand, ValueEnum};

use crate::{
    admin,
    model::{
        admin::{BmcCommand, Fact},
        ids::NodeName,
        power::BootDevice,
        printable::escaped,
    },
};

use super::{AgentPlace, Failure};

pub(super) const NOTES: &str = "The agent gives up after the node's timeouts.power. What changes \
something is refused while the agent is at work on the machine, and a machine that is to be \
installed is not switched off, because that would be taken for consent to WIPE it. A machine that \
is not as its spec wants it has drifted: that is shown, and `hostler retry NODE` puts it right.";

/// The arguments of `hostler bmc`: the node and the command for its BMC.
#[derive(Debug, clap::Args)]
pub(super) struct BmcArgs {
    /// The node's name.
    node: NodeName,
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    place: AgentPlace,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether the machine is on, and what its BMC shows as chosen to boot from.
    Status,
    /// Switch it on.
    On,
    /// Ask its system to shut down, for half of timeouts.power; then cut the power.
    Off {
        /// Cut the power at once.
        #[arg(long)]
        hard: bool,
    },
    /// Cut the power, see that it is off, and switch it on.
    Cycle,
    /// Choose what it boots from, at its next boot.
    Bootdev {
        /// The boot device.
        #[arg(value_enum)]
        device: Device,
        /// At every boot from now on.
        #[arg(long)]
        persistent: bool,
    },
    /// Say what the BMC is.
    Info,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Device {
    /// The network.
    Pxe,
    /// The first disk.
    Disk,
}

/// Prints what is so then, a fact a line.
pub(super) fn bmc(
    BmcArgs { node, command, place }: &BmcArgs,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let command = match *command {
        Command::Status => BmcCommand::Status,
        Command::On => BmcCommand::On,
        Command::Off { hard } => BmcCommand::Off { hard },
        Command::Cycle => BmcCommand::Cycle,
        Command::Bootdev { device, persistent } => {
            let device = match device {
                Device::Pxe => BootDevice::Pxe,
                Device::Disk => BootDevice::Disk,
            };
            BmcCommand::BootDevice { device, persistent }
        }
        Command::Info => BmcCommand::Info,
    };
    let facts = place.ask(async |socket| admin::use_bmc(socket, node, command).await)?;
    let width = facts.iter().map(|fact| fact.name.len()).max().unwrap_or(0);
    for Fact { name, value } in facts {
        writeln!(out, "{name:width$}  {}", escaped(&value))?;
    }
    Ok(ExitCode::SUCCESS)
}

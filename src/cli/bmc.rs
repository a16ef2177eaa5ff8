//! `hostler bmc`: commands and questions to a node's BMC, through the running agent.
//!
//! The agent sends them with its own BMC client, which keeps the pauses between calls and knows the
//! BMC's habits, and the agent knows whether it is working on the machine.

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

use super::{AgentArgs, Failure};

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
    command: BmcSubcommand,
    #[command(flatten)]
    place: AgentArgs,
}

#[derive(Debug, Subcommand)]
enum BmcSubcommand {
    /// Show whether the machine is on, and the boot device that its BMC reports.
    Status,
    /// Switch the machine on.
    On,
    /// Ask the system to shut down, for half of timeouts.power; then cut the power.
    Off {
        /// Cut the power at once.
        #[arg(long)]
        hard: bool,
    },
    /// Cut the power, wait until the machine is off, and switch it on.
    Cycle,
    /// Set the boot device for the next boot.
    Bootdev {
        /// The boot device.
        #[arg(value_enum)]
        device: Device,
        /// Set it for every boot from now on.
        #[arg(long)]
        persistent: bool,
    },
    /// Show the BMC's own properties.
    Info,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Device {
    /// The network.
    Pxe,
    /// The first disk.
    Disk,
}

/// Sends the command, and prints the facts in the answer, one a line.
pub(super) fn bmc(
    BmcArgs { node, command, place }: &BmcArgs,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let command = match *command {
        BmcSubcommand::Status => BmcCommand::Status,
        BmcSubcommand::On => BmcCommand::On,
        BmcSubcommand::Off { hard } => BmcCommand::Off { hard },
        BmcSubcommand::Cycle => BmcCommand::Cycle,
        BmcSubcommand::Bootdev { device, persistent } => {
            let device = match device {
                Device::Pxe => BootDevice::Pxe,
                Device::Disk => BootDevice::Disk,
            };
            BmcCommand::BootDevice { device, persistent }
        }
        BmcSubcommand::Info => BmcCommand::Info,
    };
    let facts = place.ask(async |socket| admin::use_bmc(socket, node, command).await)?;
    let width = facts.iter().map(|fact| fact.name.len()).max().unwrap_or(0);
    for Fact { name, value } in facts {
        writeln!(out, "{name:width$}  {}", escaped(&value))?;
    }
    Ok(ExitCode::SUCCESS)
}

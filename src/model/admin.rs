//! The questions and orders that an operator sends to a running agent, and their answers.
//!
//! The commands make them, the admin subsystem transmits them, the core judges them: each node
//! decides whether an order counts.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    ids::{MacAddr, NodeName},
    power::BootDevice,
    secret::Secret,
};

/// Longest sentence of an [`Answer`], in characters: an answer about ten thousand nodes must stay
/// small.
const MESSAGE_CHARS_MAX: usize = 300;

/// A question to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Question {
    /// An order, answered with an [`Answer`] for each node.
    Order(Order),
    /// Approves that machines of specs which appear from now on are new, although a record was
    /// lost. Machines that are held already stay held. Answered with whether this changed anything.
    ApproveNewMachines,
    /// Asks for the boot menus of a network interface; answered with a [`NicBoot`], or nothing if
    /// no node has the interface.
    ShowBoot {
        /// The interface's address.
        mac: MacAddr,
        /// Whether the menus include the attempt's key.
        secrets: bool,
    },
    /// A command for a node's BMC; answered with the [`Fact`]s afterwards.
    Bmc {
        /// The node.
        node: NodeName,
        /// The command.
        command: BmcCommand,
    },
}

/// An operator's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Consents that held nodes go on, even if that WIPES them.
    Approve(Selection),
    /// Retries failed nodes, and starts the next attempt of waiting ones at once.
    Retry(Selection),
}

impl Order {
    /// The name of the command that sends the order.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Approve(_) => "approve",
            Self::Retry(_) => "retry",
        }
    }

    /// The nodes that the order is for.
    pub const fn selection(&self) -> &Selection {
        match self {
            Self::Approve(selection) | Self::Retry(selection) => selection,
        }
    }
}

/// The nodes an order is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selection {
    /// All nodes that wait for such an order.
    All,
    /// The named nodes.
    Nodes(BTreeSet<NodeName>),
}

/// The outcome of an order at one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The node.
    pub node: NodeName,
    /// Whether the order changed anything.
    pub counted: bool,
    /// The consequence, or the reason why there is none: a sentence whose subject is the node.
    pub message: String,
}

impl Answer {
    /// Makes an answer and truncates a long message.
    pub fn new(node: NodeName, counted: bool, message: &str) -> Self {
        Self { node, counted, message: message.chars().take(MESSAGE_CHARS_MAX).collect() }
    }
}

/// The boot menus of a network interface, one for each boot loader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicBoot {
    /// The node that has the NIC.
    pub node: NodeName,
    /// The menus.
    pub menus: Vec<ServedMenu>,
}

/// A menu for one boot loader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServedMenu {
    /// The name that the boot loader asks for.
    pub name: String,
    /// The text, which may hold the attempt's key.
    pub text: Secret,
}

/// An operator's command for a BMC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BmcCommand {
    /// Report the power state and the boot device.
    Status,
    /// Report the BMC's make and firmware.
    Info,
    /// Switch the machine on.
    On,
    /// Switch the machine off.
    Off {
        /// At once, without an ACPI shutdown.
        hard: bool,
    },
    /// Switch the machine off at once, and on again.
    Cycle,
    /// Choose the boot device.
    BootDevice {
        /// The boot device.
        device: BootDevice,
        /// For every boot, not only the next one.
        persistent: bool,
    },
}

impl BmcCommand {
    /// The name of the subcommand of `hostler bmc`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Info => "info",
            Self::On => "on",
            Self::Off { .. } => "off",
            Self::Cycle => "cycle",
            Self::BootDevice { .. } => "bootdev",
        }
    }

    /// Whether the command only reads.
    pub const fn changes_nothing(self) -> bool {
        matches!(self, Self::Status | Self::Info)
    }

    /// Whether the command switches the machine off, if only for a moment.
    pub const fn switches_off(self) -> bool {
        matches!(self, Self::Off { .. } | Self::Cycle)
    }
}

/// One thing that a BMC reported, as a name and a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// The name, such as `power`.
    pub name: String,
    /// The value, such as `on`.
    pub value: String,
}

impl Fact {
    /// Makes a fact and truncates a long value.
    pub fn new(name: &str, value: &str) -> Self {
        Self { name: name.to_owned(), value: value.chars().take(MESSAGE_CHARS_MAX).collect() }
    }
}

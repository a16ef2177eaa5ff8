//! Orders and questions that an operator sends to a running agent, and their answers.
//!
//! Made by the commands, carried by the admin subsystem, judged by the core. An order is a wish:
//! whether it counts is for the node to say.

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
    /// To be performed; answered with an [`Answer`] for each node.
    Order(Order),
    /// Machines that specs name from now on are new again, whatever was lost: no machine that is
    /// held already is let go. Answered with whether they were not.
    ApproveNewMachines,
    /// The boot menus of a network interface; answered with a [`NicBoot`], or nothing if no node
    /// has it.
    ShowBoot {
        /// The interface's address.
        mac: MacAddr,
        /// Whether the attempt's key is to be in it.
        secrets: bool,
    },
    /// To be done by a node's BMC; answered with what is so then, as [`Fact`]s.
    Bmc {
        /// The node.
        node: NodeName,
        /// The command, under the key that this version of the protocol has for it.
        #[serde(rename = "deed")]
        command: BmcCommand,
    },
}

/// An operator's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Consent: held nodes may go on, even if that wipes them.
    Approve(Selection),
    /// Try again what was given up, and at once what waits for its next attempt.
    Retry(Selection),
}

impl Order {
    /// The order's name: that of its command.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Approve(_) => "approve",
            Self::Retry(_) => "retry",
        }
    }

    /// For which nodes.
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
    /// All that wait for such an order.
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
    /// An answer; a message that is too long is cut.
    pub fn new(node: NodeName, counted: bool, message: &str) -> Self {
        Self { node, counted, message: message.chars().take(MESSAGE_CHARS_MAX).collect() }
    }
}

/// The boot menus of a network interface: one for each boot loader, whichever the machine runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicBoot {
    /// The node that has the NIC.
    pub node: NodeName,
    /// Its menus.
    pub menus: Vec<ServedMenu>,
}

/// A menu for one boot loader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServedMenu {
    /// The name that the boot loader asks for.
    pub name: String,
    /// The text. There may be the attempt's key in it.
    pub text: Secret,
}

/// An operator's command for a BMC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BmcCommand {
    /// Say whether the machine is on, and what it boots from.
    Status,
    /// Say what it is.
    Info,
    /// Switch the machine on.
    On,
    /// Switch it off.
    Off {
        /// At once, without asking its system to shut down.
        hard: bool,
    },
    /// Off at once, and on again.
    Cycle,
    /// Choose what it boots from.
    BootDevice {
        /// The boot device.
        device: BootDevice,
        /// Always, and not at the next boot only.
        persistent: bool,
    },
}

impl BmcCommand {
    /// Its name: that of the command.
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

    /// Whether it only looks.
    pub const fn changes_nothing(self) -> bool {
        matches!(self, Self::Status | Self::Info)
    }

    /// Whether the machine is off in the course of it.
    pub const fn switches_off(self) -> bool {
        matches!(self, Self::Off { .. } | Self::Cycle)
    }
}

/// Something that a BMC said, or that was seen to be so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// The subject: `power`.
    pub name: String,
    /// How it is: `on`.
    pub value: String,
}

impl Fact {
    /// A fact; a value that is too long is cut.
    pub fn new(name: &str, value: &str) -> Self {
        Self { name: name.to_owned(), value: value.chars().take(MESSAGE_CHARS_MAX).collect() }
    }
}

//! What an operator tells a running agent, and what it answers.
//!
//! Made by the commands, carried by the admin room, judged by the core. An order is a wish: whether it counts is for the node to say.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::ids::NodeName;

/// Longest sentence of an [`Answer`], in characters: an answer about ten thousand nodes must stay small.
const MESSAGE_CHARS_MAX: usize = 300;

/// What an operator wants.
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
    /// These.
    Nodes(BTreeSet<NodeName>),
}

/// What an order led to at one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Which.
    pub node: NodeName,
    /// Whether the order changed anything.
    pub counted: bool,
    /// What will happen now, or why nothing will: a sentence whose subject is the node.
    pub message: String,
}

impl Answer {
    /// An answer; a message that is too long is cut.
    pub fn new(node: NodeName, counted: bool, message: &str) -> Self {
        Self { node, counted, message: message.chars().take(MESSAGE_CHARS_MAX).collect() }
    }
}

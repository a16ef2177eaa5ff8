//! `[boot_check]`: how an installed system shows that it is up.

use serde::{Deserialize, Serialize};

/// `[boot_check]`. It is no part of an installation's identity: a machine is never installed again
/// because the check was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "by")]
pub enum BootCheck {
    /// Not at all: the machine counts as installed once it was restarted.
    #[default]
    None,
    /// It calls hostler, with a token from its config drive.
    Call,
    /// A TCP port answers.
    Tcp {
        /// With [`SSH_PORT`], by the banner of SSH.
        port: u16,
        /// A host name or an IPv4 or IPv6 address; `None`: the static address on its config drive,
        /// or else the one that the deploy ramdisk had.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
    },
}

/// The port at which only an SSH server counts as an answer.
pub const SSH_PORT: u16 = 22;

impl BootCheck {
    /// Whether nothing is checked.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

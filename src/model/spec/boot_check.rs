//! `[boot_check]`: how an installed system shows that it is up. Used by the core and the spec
//! reader.

use serde::{Deserialize, Serialize};

/// `[boot_check]`. It is no part of an installation's identity: a changed check never reinstalls a
/// machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "by")]
pub enum BootCheck {
    /// No check: the machine is deployed after its restart.
    #[default]
    None,
    /// The system must call hostler, with a token from its config drive.
    Call,
    /// A TCP port must answer.
    Tcp {
        /// With [`SSH_PORT`], the answer must be SSH's banner.
        port: u16,
        /// A host name or an IPv4 or IPv6 address; `None`: the static address on the config drive,
        /// or else the deploy ramdisk's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
    },
}

/// The port at which only an SSH server counts as an answer.
pub const SSH_PORT: u16 = 22;

impl BootCheck {
    /// Whether there is no check.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

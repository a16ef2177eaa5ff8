//! The results of one try of a command or a login.
//!
//! Transports report them, and the call judges them.

use std::io;

use super::error::IpmiErrorKind;

/// A BMC's answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bmc) struct CommandAnswer {
    /// Completion code: 0 is success (IPMI 2.0 table 5-2).
    pub(in crate::bmc) completion: u8,
    pub(in crate::bmc) data: Vec<u8>,
}

/// The end of an exchange.
#[derive(Debug)]
pub(in crate::bmc) enum Exchange {
    /// The BMC answered.
    Answer(CommandAnswer),
    /// The BMC did not answer, and the channel is lost. Holds the network's error, if it reported
    /// one.
    Silence(Option<io::ErrorKind>),
    /// The channel has carried its last command; the call opens another.
    Spent,
    /// The login for this command failed.
    NotOpened(NotOpened),
    /// The transport failed for an unknown reason, which may pass; holds its message.
    Unclear(String),
    /// The transport cannot be used.
    Unusable(IpmiErrorKind),
}

/// A failed login, and whether the BMC had accepted the suite.
#[derive(Debug)]
pub(in crate::bmc) struct NotOpened {
    pub(in crate::bmc) failure: LoginFailure,
    pub(in crate::bmc) suite_accepted: bool,
    pub(in crate::bmc) network: Option<io::ErrorKind>,
}

/// The ways a login fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bmc) enum LoginFailure {
    /// The BMC sent nothing, or stopped answering.
    Silent,
    /// The BMC refused the suite, or answered with another one.
    SuiteRefused,
    /// The BMC's check value does not match the password. Repeated datagrams can have the same
    /// effect, so that one mismatch proves nothing.
    Mismatch,
    /// The password is right, and the BMC uses another BMC key (`K_g`).
    KeyMismatch,
    /// The BMC knows no such user.
    UnknownUser,
    /// The user may not have the privilege.
    PrivilegeRefused,
    /// Another status (IPMI 2.0 table 13-15), for example: no free session.
    Status(u8),
}

impl LoginFailure {
    /// The failure for a status other than success (IPMI 2.0 table 13-15) in the open session
    /// response.
    pub(in crate::bmc) const fn of_open_response(status: u8) -> Self {
        match status {
            // "Invalid role" (0x09): some BMCs refuse a suite with it, although the request names
            // no role yet.
            0x03..=0x07 | 0x09 | 0x10..=0x12 => Self::SuiteRefused,
            _ => Self::of_rakp(status),
        }
    }

    /// The failure for a status other than success (IPMI 2.0 table 13-15) in RAKP message 2 or 4.
    pub(in crate::bmc) const fn of_rakp(status: u8) -> Self {
        match status {
            0x09 | 0x0a => Self::PrivilegeRefused,
            0x0c | 0x0d => Self::UnknownUser,
            _ => Self::Status(status),
        }
    }
}

//! The ends of one try: of a command, and of a login.
//!
//! Said by the transports, judged by the call.

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
    /// It did not answer, and the channel is lost. The network's word on it, if it gave one.
    Silence(Option<io::ErrorKind>),
    /// The channel has carried all it may; open another.
    Spent,
    /// The login that goes with the command failed.
    NotOpened(NotOpened),
    /// The transport failed in a way of its own that may pass, in its own words.
    Unclear(String),
    /// The transport cannot be used.
    Unusable(IpmiErrorKind),
}

/// The failure to open a session, and whether the BMC took the suite before.
#[derive(Debug)]
pub(in crate::bmc) struct NotOpened {
    pub(in crate::bmc) failure: LoginFailure,
    pub(in crate::bmc) suite_accepted: bool,
    pub(in crate::bmc) network: Option<io::ErrorKind>,
}

/// The ways a login fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bmc) enum LoginFailure {
    /// Nothing was received, or nothing more.
    Silent,
    /// The suite was refused, or another one answered.
    SuiteRefused,
    /// The BMC's check value does not fit the password. A muddled handshake looks the same: once is
    /// no evidence.
    Mismatch,
    /// The BMC knows the password, and made the session's keys from another BMC key (`K_g`).
    KeyMismatch,
    /// The BMC knows no such user.
    UnknownUser,
    /// The user may not have the privilege.
    PrivilegeRefused,
    /// Another status (IPMI 2.0 table 13-15): no free session, or out of step.
    Status(u8),
}

impl LoginFailure {
    /// The meaning of a status other than success (IPMI 2.0 table 13-15) in the answer to the open
    /// session request.
    pub(in crate::bmc) const fn of_open_response(status: u8) -> Self {
        match status {
            // "Invalid role" (0x09), though no role was asked for yet: some say so of a suite that
            // they do not allow.
            0x03..=0x07 | 0x09 | 0x10..=0x12 => Self::SuiteRefused,
            _ => Self::of_rakp(status),
        }
    }

    /// The meaning of a status other than success (IPMI 2.0 table 13-15) in RAKP message 2 or 4.
    pub(in crate::bmc) const fn of_rakp(status: u8) -> Self {
        match status {
            0x09 | 0x0a => Self::PrivilegeRefused,
            0x0c | 0x0d => Self::UnknownUser,
            _ => Self::Status(status),
        }
    }
}

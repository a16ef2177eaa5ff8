//! The transport of IPMI commands and their answers: hostler's own session, or a program.
//!
//! `link` and the ipmitool driver implement it, and calls use it. A transport does not retry: it
//! reports the result of one try.

use std::{fmt, future::Future, io, net::SocketAddr, pin::Pin};

use tokio::time::Instant;

use super::{client::IpmiConfig, error::IpmiErrorKind};
pub(in crate::bmc) use super::{
    commands::IpmiCommand,
    link::{Link, probe},
};
use crate::{bmc::timing::Timing, model::spec::CipherSuite};

/// A future of a transport.
pub(in crate::bmc) type Try<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens channels to a BMC.
pub(in crate::bmc) trait Transport: fmt::Debug + Send + Sync {
    /// Opens a channel to this address with this suite.
    fn open<'a>(
        &'a self,
        config: &'a IpmiConfig,
        tries: Tries,
        address: SocketAddr,
        suite: CipherSuite,
    ) -> Try<'a, Result<Box<dyn Channel>, NotOpened>>;

    /// The properties of this transport's channels.
    fn habits(&self) -> Habits;
}

/// The waits and repetitions of one try.
#[derive(Clone, Copy, Debug)]
pub(in crate::bmc) struct Tries {
    /// The waits for answers.
    pub(in crate::bmc) timing: Timing,
    /// How often each datagram of a login is sent.
    pub(in crate::bmc) sends_max: u32,
}

/// The properties of a transport's channels.
#[derive(Clone, Copy, Debug)]
pub(in crate::bmc) struct Habits {
    /// Whether a channel carries many commands. Otherwise each command is a login, and the call
    /// keeps the pause between two calls also between two commands.
    pub(in crate::bmc) keeps_session: bool,
    /// Handshakes with a wrong check value before the password counts as wrong.
    pub(in crate::bmc) mismatches_max: u32,
}

/// An open connection to the BMC, which carries commands.
pub(in crate::bmc) trait Channel: Send + Sync {
    /// Sends a command and waits for its answer.
    fn exchange(&mut self, command: IpmiCommand) -> Try<'_, Exchange>;

    /// Closes the channel.
    fn close<'a>(self: Box<Self>, deadline: Instant) -> Try<'a, ()>;

    /// Gives the channel's session to a console, if the channel has one.
    fn into_link(self: Box<Self>) -> Option<Link>;
}

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

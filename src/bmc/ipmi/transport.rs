//! The transport of IPMI commands and their answers: hostler's own session, or a program.
//!
//! `rmcp` and the ipmitool driver implement it, and calls use it. A transport does not retry: it
//! reports the result of one try.

use std::{fmt, future::Future, net::SocketAddr, pin::Pin};

use tokio::time::Instant;

use super::config::IpmiConfig;
pub(in crate::bmc) use super::{
    commands::IpmiCommand,
    exchange::{CommandAnswer, Exchange, LoginFailure, NotOpened},
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

//! The way an IPMI command takes to the BMC and its answer back: a session of our own, or a
//! program.
//!
//! Implemented by `rmcp` and by the ipmitool driver, used by the call. A transport knows nothing of
//! trying again: it says how one try ended.

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

    /// The habits of its channels.
    fn habits(&self) -> Habits;
}

/// How long and how often a transport tries.
#[derive(Clone, Copy, Debug)]
pub(in crate::bmc) struct Tries {
    /// The waits for answers.
    pub(in crate::bmc) timing: Timing,
    /// How often a datagram is sent that begins a session.
    pub(in crate::bmc) sends_max: u32,
}

/// The habits of a transport's channels.
#[derive(Clone, Copy, Debug)]
pub(in crate::bmc) struct Habits {
    /// Whether a channel carries many commands. One that carries a single command logs in for each,
    /// so that the pause between two calls is kept between two of them.
    pub(in crate::bmc) keeps_session: bool,
    /// Handshakes whose check value does not fit before the password is called wrong.
    pub(in crate::bmc) mismatches_max: u32,
}

/// A way to the BMC that commands can be sent on.
pub(in crate::bmc) trait Channel: Send + Sync {
    /// Sends a command and waits for its answer.
    fn exchange(&mut self, command: IpmiCommand) -> Try<'_, Exchange>;

    /// Closes the channel.
    fn close<'a>(self: Box<Self>, deadline: Instant) -> Try<'a, ()>;

    /// The session beneath, if there is one that a console can be opened in.
    fn into_link(self: Box<Self>) -> Option<Link>;
}

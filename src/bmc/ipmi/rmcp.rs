//! The transport of hostler's own sessions, over UDP.
//!
//! The driver `ipmi` uses it.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::{
    commands::IpmiCommand,
    config::IpmiConfig,
    exchange::{Exchange, NotOpened},
    handshake::Credentials,
    link::Link,
    transport::{Channel, Habits, Transport, Tries, Try},
};
use crate::model::spec::CipherSuite;

/// The transport of hostler's own sessions, over UDP.
#[derive(Debug)]
pub(super) struct Rmcp;

impl Transport for Rmcp {
    fn open<'a>(
        &'a self,
        config: &'a IpmiConfig,
        Tries { timing, sends_max }: Tries,
        address: SocketAddr,
        suite: CipherSuite,
    ) -> Try<'a, Result<Box<dyn Channel>, NotOpened>> {
        Box::pin(async move {
            let credentials = Credentials {
                username: config.username.clone(),
                password: config.password.clone(),
                kg: config.kg.clone(),
                privilege: config.privilege,
            };
            let link = Link::open(address, credentials, suite, timing, sends_max).await?;
            Ok(Box::new(link) as Box<dyn Channel>)
        })
    }

    fn habits(&self) -> Habits {
        // One or two mismatches happen when the network repeats datagrams and the BMC begins anew
        // each time; four in a row hardly do.
        Habits { keeps_session: true, mismatches_max: 4 }
    }
}

impl Channel for Link {
    fn exchange(&mut self, command: IpmiCommand) -> Try<'_, Exchange> {
        Box::pin(self.send(command))
    }

    fn close<'a>(self: Box<Self>, deadline: Instant) -> Try<'a, ()> {
        Box::pin(Self::close(*self, deadline))
    }

    fn into_link(self: Box<Self>) -> Option<Link> {
        Some(*self)
    }
}

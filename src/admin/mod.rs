//! The admin socket, by which operators command a running agent: one line of JSON each way for each
//! connection.
//!
//! The agent starts the [`Server`] and answers every [`AdminRequest`] from its driver; the commands
//! call [`ask`], [`show_boot`] and [`use_bmc`]. The socket's owner and mode decide who may give
//! orders. The kernel identifies the operator, whom each request names. This module judges nothing
//! about nodes. It must never hand over an order of an unknown or departed operator, and never take
//! a socket from a living agent.
//!
//! ```text
//! → {"version":2,"body":{"order":{"approve":{"nodes":["edge-07"]}}}}
//! ← {"version":2,"body":{"Ok":[{"node":"edge-07","counted":true,"message":"…"}]}}
//! → {"version":2,"body":{"order":{"retry":"all"}}}
//! ← {"version":2,"body":{"Err":"it is stopping"}}
//! ```

mod client;
mod server;
mod wire;

use std::{io, path::PathBuf};

use serde::Serialize;
use tokio::sync::oneshot;

pub use self::{
    client::{approve_new_machines, ask, show_boot, use_bmc},
    server::Server,
    wire::WireError,
};
use crate::model::{admin::Question, printable::escaped};

/// A question of an operator, for the agent's driver.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub struct AdminRequest {
    pub question: Question,
    pub peer: AdminPeer,
    pub reply: AdminReply,
}

/// Takes the answer to a question. One that is closed means that the operator has gone or has an
/// answer already: nothing must be done for the question any more.
#[derive(Debug)]
pub struct AdminReply(oneshot::Sender<Result<Vec<u8>, serde_json::Error>>);

impl AdminReply {
    /// Sends the answer that [`Question`] names, or the reason why there is none. An operator who
    /// went away does not get it.
    pub fn send(self, answer: &Result<impl Serialize, String>) {
        drop(self.0.send(wire::encode(answer)));
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Waits until nobody waits for the answer any more.
    pub async fn closed(&mut self) {
        self.0.closed().await;
    }
}

/// The client's process, as the kernel identifies it (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminPeer {
    /// The effective user at the time of the connection.
    pub uid: u32,
    /// The process; 0 if the agent cannot see its PID namespace.
    pub pid: u32,
}

/// A failure to bind the socket, or to get an answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub enum AdminError {
    /// The server's path is taken.
    #[error("another agent is listening at {}; name another path in [admin] socket", .0.display())]
    InUse(PathBuf),
    /// The server's path is taken by something that is not removed.
    #[error("{} is no socket; remove it, or name another path in [admin] socket", .0.display())]
    NotASocket(PathBuf),
    /// No agent listens.
    #[error(
        "no agent is listening at {}; is it running, and is this the [admin] socket of its \
         configuration?",
        .0.display()
    )]
    NoAgent(PathBuf),
    /// The operator may not use the socket.
    #[error(
        "permission denied at {}; run this as root or as a member of the socket's group, hostler",
        .0.display()
    )]
    Denied(PathBuf),
    /// The order is longer than the agent accepts.
    #[error("too many nodes for one order; name fewer at a time, or give --all")]
    TooLong,
    /// No answer in time.
    #[error(
        "the agent at {} did not answer in {limit_s} s; `hostler status` shows whether it took the \
         order",
        path.display()
    )]
    Silent { path: PathBuf, limit_s: u64 },
    /// The agent accepted no connection in time: nothing was asked.
    #[error(
        "the agent at {} is busy with others, and accepted no connection in {limit_s} s; nothing \
         was asked of it; try again",
        path.display()
    )]
    Busy { path: PathBuf, limit_s: u64 },
    /// The connection ended before an answer.
    #[error(
        "the agent at {} hung up before it answered; `hostler status` shows whether it took the \
         order",
        .0.display()
    )]
    HungUp(PathBuf),
    /// The agent refuses, in its own words.
    #[error("the agent says: {}", escaped(.0))]
    Refused(String),
    /// The answer is not of this protocol.
    #[error("what answers at {} is not this version's agent: {source}", path.display())]
    Garbled { path: PathBuf, source: WireError },
    /// Any other error of the socket.
    #[error("{}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
}

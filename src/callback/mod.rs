//! The HTTPS server that deploy ramdisks call.
//!
//! Started by the agent, which answers every [`CallbackRequest`] from its driver. This module
//! judges nothing about nodes: it parses requests, limits them and passes them on. Its answers must
//! never tell an unknown node from a wrong key or a wrong phase, and it must never log a body or a
//! key.
//!
//! ```text
//! POST /v1/nodes/{node}/vendor_passthru/lookup            200 LookupReply, 409 LookupAgain
//! POST /v1/nodes/{node}/vendor_passthru/pass_deploy_info  202
//! GET  /v1/nodes/{node}/vendor_passthru/deploy_state      200 DeployStateReply, held back
//!                                                         while it is `imaging`
//! POST /v1/nodes/{node}/vendor_passthru/flushed           200 FlushedRanges, held back while
//!                                                         there are no more of them
//! POST /v1/nodes/{node}/vendor_passthru/completed         202
//! POST /v1/nodes/{node}/vendor_passthru/log               202
//! ```
//!
//! Other answers:
//!
//! - 404: any request that the driver refuses or that is none of the above: unknown path, wrong
//!   method, malformed node name or key. The answer is always the same.
//! - 400: a well-formed key, but a body that is not the call's JSON. Decided before node or key are
//!   looked up, so that it tells nothing about them.
//! - 408, 413, 429: a body too slow or too big, too many requests. Decided before the path is read.
//! - 409: the driver's reason, for a ramdisk with the right key.
//! - 503: the driver does not answer in time.

mod http;
mod identity;
pub mod ironic;
mod server;

use std::{net::IpAddr, time::Duration};

use tokio::sync::oneshot;

pub use self::{
    identity::{TlsIdentity, TlsIdentityError},
    server::Server,
};
use crate::model::{
    callback::{Call, Reply},
    ids::NodeName,
    secret::AttemptKey,
};

/// An unverified call of a deploy ramdisk, or of a client that poses as one.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub struct CallbackRequest {
    pub node: NodeName,
    /// The client's address; never an IPv4-mapped IPv6 address.
    pub peer: IpAddr,
    pub key: AttemptKey,
    pub call: Call,
    /// Dropping it answers 503.
    pub reply: oneshot::Sender<Reply>,
}

/// Limits for unknown clients on the deploy network.
#[derive(Clone, Copy, Debug)]
pub struct CallbackLimits {
    /// Connections at once in all. A further one evicts the oldest that has not shown a good key.
    pub connections_max: usize,
    /// Connections at once from one address, with the same eviction.
    pub connections_per_peer_max: usize,
    /// Requests a second from one address, over time; at least 1. A connection counts as its first
    /// request.
    pub per_second: u32,
    /// Requests of one address in a burst.
    pub burst: u32,
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for a request's head, and again for its body.
    pub read: Duration,
    /// Longest time for which an answer of `imaging`, or one without new ranges, is delayed (long
    /// polling).
    pub poll: Duration,
    /// Time for the driver's answer.
    pub driver: Duration,
}

impl CallbackLimits {
    /// Enough for so many machines that are installed at once, each with two or three connections
    /// and a request every few seconds.
    pub fn for_machines(machines: usize) -> Self {
        let default = Self::default();
        let connections_max = machines.saturating_mul(4).max(default.connections_max);
        Self { connections_max, ..default }
    }
}

impl Default for CallbackLimits {
    /// Enough for 64 machines that are installed at once.
    fn default() -> Self {
        Self {
            connections_max: 256,
            connections_per_peer_max: 8,
            per_second: 10,
            burst: 40,
            handshake: Duration::from_secs(10),
            read: Duration::from_secs(30),
            poll: Duration::from_secs(20),
            driver: Duration::from_secs(5),
        }
    }
}

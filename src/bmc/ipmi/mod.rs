//! IPMI 2.0 over RMCP+ (cipher suites 17 and 3): power, boot device, identity and serial console.
//!
//! Two drivers use it: `ipmi`, which speaks it in process, and `ipmitool`. It must never treat an
//! accepted command as a completed one, continue with a weaker suite than the proposed one, send a
//! BMC two calls at once, leave a session open, or outlast a deadline.
//!
//! From the wire up:
//! - `packet`: frames; `crypto`: hashes, keys and encryption
//! - `exchange`: the results of a command and of a login
//! - `handshake`, `session` and `sol`: the protocol without I/O
//! - `link`: sends, waits and repeats
//! - `transport`: the boundary between a link and a call
//! - `rmcp`: hostler's own sessions as a transport
//! - `refusal`: passing and final refusals
//! - `client`: a BMC's address and what it accepted before
//! - `call`: retries until the deadline
//! - `power`: power states and boot devices; `describe`: facts about the BMC; `console`: the
//!   machine's serial output
//! - `driver`: the driver trait for the agent

mod call;
mod client;
mod commands;
mod config;
mod console;
mod crypto;
mod describe;
mod driver;
mod error;
mod exchange;
#[cfg(fuzzing)]
mod fuzz;
mod handshake;
mod link;
mod packet;
mod power;
mod refusal;
mod rmcp;
mod session;
mod sol;
pub(super) mod transport;

pub use client::IpmiClient;
pub use config::IpmiConfig;
pub use error::{IpmiError, IpmiErrorKind};
#[cfg(fuzzing)]
pub use fuzz::fuzz;

//! IPMI 2.0 over RMCP+ (cipher suites 17 and 3): power, boot device, identity and serial console.
//!
//! Two drivers stand on it: `ipmi`, which speaks it in process, and `ipmitool`. It must never trust
//! that an accepted command was done, go on with a weaker suite than asked for, keep a BMC busy
//! with two calls at once, leave a session open, or outlast a deadline.
//!
//! From the wire up: `packet` frames, `crypto` computes, `handshake`, `session` and `sol` are the
//! protocol without I/O, `link` sends, waits and sends again, `transport` is the seam between a way
//! to the BMC, such as `rmcp`, and the call, `exchange` is how a try may end, `refusal` tells
//! passing refusals from final ones, `client` remembers what a BMC accepted, `call` tries again what
//! may pass, `power` knows what power and boot device mean, `describe` what a BMC is, `console`
//! reads what a machine prints, `driver` answers the agent.

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

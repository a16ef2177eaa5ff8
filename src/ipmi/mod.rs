//! The IPMI subsystem: power and boot device of a machine by its BMC, over IPMI 2.0 RMCP+ (cipher suites 17 and 3), in process or by `ipmitool`.
//!
//! Called by the agent, one [`Bmc`] for each address. It must never trust that an accepted command was carried out, go on with a weaker
//! suite than asked for, keep a BMC busy with two calls at once, leave a session open, or outlast a deadline.
//!
//! From the wire up: `packet` frames, `crypto` computes, `handshake`, `session` and `sol` are the protocol without I/O, `link` sends,
//! waits and sends again, `refusal` tells what may pass from what is final, `call` tries again what may pass, `client` knows what power and boot device mean, `console` what a machine
//! prints. `tool` takes the place of everything beneath `call` where the spec wants the program.

mod call;
mod client;
mod commands;
mod console;
mod crypto;
mod error;
#[cfg(fuzzing)]
mod fuzz;
mod handshake;
mod link;
mod looks;
mod packet;
mod refusal;
mod session;
mod sol;
mod tool;

pub use client::{Bmc, BmcConfig, Timing};
pub use console::Heard;
pub use error::{IpmiError, IpmiErrorKind, is_short_of_sessions};
#[cfg(fuzzing)]
pub use fuzz::fuzz;
pub use looks::{BootChoice, Chassis, Device};

//! The program driver: a program of the administrator's switches the machine (`bmc.driver =
//! "program"`), for PDUs, AMT, smart plugs and hypervisors.
//!
//! The program is run with one word, `on`, `off`, `status`, `boot-network` or `boot-disk`, and
//! learns the rest from its environment (`docs` has the table). It must never be given a secret, be
//! run twice at once for one node, run on after its call was given up, or be run at all if others
//! can write it.

mod client;
mod error;
mod run;

pub use client::ProgramClient;
pub use error::{ProgramError, ProgramErrorKind};
pub use run::ProgramConfig;

#[cfg(test)]
mod tests;

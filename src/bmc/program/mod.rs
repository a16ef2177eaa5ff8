//! The program driver: the administrator's own program switches the machine (`bmc.driver =
//! "program"`), for PDUs, AMT, smart plugs and hypervisors.
//!
//! The driver runs the program with one word, `on`, `off`, `status`, `boot-network` or `boot-disk`,
//! and passes the other values in its environment (table in docs/using/bmc-programs.md). It must
//! never pass a secret, run the program twice at once for one node, let it run on after its call
//! was dropped, or run a file that others can write.

mod client;
mod error;
mod run;

pub use client::ProgramClient;
pub use error::{ProgramError, ProgramErrorKind};
pub use run::ProgramConfig;

#[cfg(test)]
mod tests;

//! hostler's own iSCSI initiator: a target's disk, read and written from user space. No kernel module, no root, no other program.
//!
//! Called by the imaging through [`Lun`]. Everything a target says is untrusted: it is bounded, checked, and ends the session when
//! RFC 7143 does not allow it. This room never writes a byte nobody asked for, and never logs a secret.
//!
//! What is used of RFC 7143, by its sections:
//!
//! | section | what | where |
//! |---|---|---|
//! | 4.2.2 | CmdSN window, StatSN, serial arithmetic | `window` |
//! | 4.2.4, 11.7, 11.8 | immediate, unsolicited and solicited data | `task` |
//! | 4.2.3.3, 11.5 | LOGICAL UNIT RESET, when a target does not finish its commands before a logout | `connection` |
//! | 6, 13 | login, text keys, operational negotiation | `login`, `text`, `negotiate` |
//! | 7.1.4.1 | error recovery level 0: any error ends the session | `session` |
//! | 11.1, 13.1 | padding, CRC32C digests | `wire` |
//! | 11.9, 11.17, 11.18 | asynchronous messages, Reject, NOP both ways | `session` |
//! | 12.1.3 | CHAP with MD5, one-way and mutual | `chap`, `login` |
//!
//! Left out on purpose: discovery (the ramdisk tells the name), more than one connection, recovery levels 1 and 2, markers,
//! redirections, bidirectional commands.

mod chap;
mod connection;
mod disk;
mod error;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod login;
mod negotiate;
mod pdu;
mod scsi;
mod session;
mod task;
mod text;
mod window;
mod wire;
mod zeros;

pub use chap::Chap;
pub use connection::Options;
pub use disk::{Lun, TargetAddress};
pub use error::{DigestOf, ErrorKind, IscsiError, LoginRefusal};
#[cfg(fuzzing)]
pub use fuzz::fuzz;
pub use scsi::{ScsiFailure, Sense};
pub use zeros::Zeroing;

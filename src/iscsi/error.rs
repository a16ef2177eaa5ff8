//! Errors of exchanges with a target, by the caller's possible reaction.
//!
//! This module returns them, and the imaging's caller reads them. They never hold a secret.

use std::{fmt, sync::Arc, time::Duration};

use thiserror::Error;

use super::scsi::ScsiFailure;

/// Most characters of a target's text in an error.
pub(super) const QUOTED_CHARS_MAX: usize = 200;

/// A failed exchange with a target.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("target {target}: {operation}: {kind}")]
pub struct IscsiError {
    /// The target's iSCSI name.
    pub target: Arc<str>,
    /// The operation: `write of 1.0 MiB at 512.0 MiB`.
    pub operation: String,
    /// The cause.
    pub kind: IscsiErrorKind,
}

/// The cause of a failed exchange.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IscsiErrorKind {
    /// The TCP connection failed.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The login failed. A retry with the same credentials helps only if [`LoginRefusal::may_pass`]
    /// says so.
    #[error("refused: {0}")]
    LoginRefused(LoginRefusal),
    /// An open connection ended.
    #[error("connection lost: {0}")]
    TargetGone(String),
    /// An exchange took longer than its limit. The session is over, and the state of its commands
    /// at the target is unknown.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The target answered a SCSI command with something other than GOOD.
    #[error("{0}")]
    Scsi(ScsiFailure),
    /// The logical unit is not a disk that this initiator can write.
    #[error("{0}")]
    NoDisk(String),
    /// A digest did not match: the network changed bytes.
    #[error("{0} digest does not match: bytes were changed on the way")]
    Digest(DigestOf),
    /// The target violated RFC 7143, SPC or SBC. The session accepts no more PDUs from it.
    #[error("the target broke the protocol: {0}")]
    Protocol(String),
    /// The caller's request is invalid, and nothing was sent.
    #[error("{0}")]
    Request(String),
}

/// The part of a PDU that a digest covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestOf {
    /// The 48-byte header.
    Header,
    /// The data segment and its padding.
    Data,
}

impl fmt::Display for DigestOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Data => "data",
        })
    }
}

/// The cause of a refused login.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LoginRefusal {
    /// The target does not accept our CHAP name or secret (status 02/01).
    #[error("the target does not accept the CHAP name or secret (02/01)")]
    WrongSecret,
    /// The target demands CHAP, and the caller gave no credentials.
    #[error("the target demands CHAP, and no credentials were given")]
    CredentialsNeeded,
    /// The caller gave credentials, and the target does not demand CHAP: anybody could write to
    /// this disk, or it is another target.
    #[error("the target does not ask for CHAP, must")]
    ChapNotDemanded,
    /// Mutual CHAP: the target did not prove that it knows its own secret.
    #[error("the target did not prove that it knows the mutual CHAP secret")]
    TargetUnproven,
    /// The target redirects to another address (class 1). The initiator does not follow: the new
    /// address is unchecked.
    #[error("the target has moved to {0}; redirections are not followed")]
    Moved(String),
    /// The target cannot use a digest that the caller demands.
    #[error("the target refuses the {0} digest CRC32C, which was asked for")]
    NoDigest(DigestOf),
    /// Any other login status.
    #[error("{} ({class:02x}/{detail:02x})", status_words(*class, *detail))]
    Status {
        /// Status-Class, RFC 7143 §11.13.5.
        class: u8,
        /// Status-Detail, RFC 7143 §11.13.5.
        detail: u8,
    },
}

impl LoginRefusal {
    /// Whether the same login may succeed later: target errors (class 3) are temporary.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Status { class: 3, .. })
    }
}

/// Describes a login status (RFC 7143 §11.13.5).
fn status_words(class: u8, detail: u8) -> &'static str {
    match (class, detail) {
        (2, 0) => "the target calls it an initiator error",
        (2, 1) => "authentication failed",
        (2, 2) => "this initiator is not allowed to use the target",
        (2, 3) => "no such target at this portal",
        (2, 4) => "the target has been removed",
        (2, 5) => "the target supports no common protocol version",
        (2, 6) => "too many connections",
        (2, 7) => "a login parameter is missing",
        (2, 8) => "the target cannot include this connection in a session",
        (2, 9) => "the target does not support this session type",
        (2, 10) => "no such session",
        (2, 11) => "invalid request during login",
        (3, 0) => "target error",
        (3, 1) => "the target's service is not available",
        (3, 2) => "the target is out of resources",
        _ => "unknown status",
    }
}

//! Refusals of requests for boot files, for every protocol.
//!
//! The catalog and the opening of files return them; each server translates them for its protocol.

/// The reason, for the client's console. It must not mention the server's own files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("this server is read-only")]
    ReadOnly,
    #[error("file not found")]
    NotFound,
    #[error("access to this file is not allowed")]
    NotAllowed,
    #[error("server busy, try again")]
    Busy,
}

//! Why a request for a boot file is refused, whichever protocol it came by.
//!
//! Answered by the catalog and by what opens files; each server says it in its protocol's way.

/// The reason, as the client's console shows it: nothing in it is about the server's own files.
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

//! Errors of a fetch, and whether a retry can help.

use std::{io, path::PathBuf};

use crate::{
    model::{ids::Digest, size::show_bytes},
    progress::Interrupted,
};

/// A failed fetch. URLs in it have neither credentials nor a query.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The source cannot be an image.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The file's kind, and the required one.
        reason: String,
    },
    /// A file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file cannot be written to the cache.
    #[error("cannot be kept: {0}")]
    Keep(io::Error),
    /// The source is no fetchable URL. The message omits the URL, because an unparsable one may
    /// hide a password.
    #[error("a URL: not one that can be fetched: {0}")]
    Url(String),
    /// The web server refuses the request (RFC 9110 section 15).
    #[error("{url}: the server answered {status}")]
    Status {
        /// The URL and its redirects.
        url: String,
        /// The status code.
        code: u16,
        /// The status code and its name.
        status: String,
    },
    /// The web server cannot be reached, or the connection broke too often.
    #[error("{url}: {reason}")]
    Connection {
        /// The URL.
        url: String,
        /// The failure of the connection.
        reason: String,
    },
    /// The web server's certificate is invalid.
    #[error("{url}: {reason}")]
    Certificate {
        /// The URL.
        url: String,
        /// The fault of the certificate.
        reason: String,
        /// Whether the certificate is not valid yet, so that this machine's clock may be wrong.
        is_early: bool,
    },
    /// The web server's answer breaks the protocol.
    #[error("{url}: {reason}")]
    Answer {
        /// The URL.
        url: String,
        /// The wrong answer.
        reason: String,
    },
    /// The file's length differs from the announced one.
    #[error("{url}: {got_bytes} bytes came, {announced_bytes} were announced")]
    Length {
        /// The URL.
        url: String,
        /// Bytes announced.
        announced_bytes: u64,
        /// Bytes received.
        got_bytes: u64,
    },
    /// The file is larger than allowed.
    #[error(
        "{place}: {}{}, at most {} are allowed",
        show_bytes(*bytes), if *is_all { "" } else { " or more" }, show_bytes(*bytes_max)
    )]
    TooLarge {
        /// The path or URL.
        place: String,
        /// Bytes of the file, or bytes received before the limit.
        bytes: u64,
        /// Whether `bytes` is the whole size.
        is_all: bool,
        /// The limit in bytes.
        bytes_max: u64,
    },
    /// The file of checksums has no checksum of the image.
    #[error("{place}: {reason}")]
    NotListed {
        /// The file of checksums.
        place: String,
        /// The list's content instead of the checksum.
        reason: String,
    },
    /// The file's checksum differs from the spec's.
    #[error("{place}: its checksum is {found}, the spec wants {wanted}{came}")]
    Checksum {
        /// The path or URL.
        place: String,
        /// The digest in the spec.
        wanted: Box<Digest>,
        /// The digest of the file.
        found: Box<Digest>,
        /// Text after `; `: the server's description of the file and its first bytes; empty for a
        /// local file.
        came: String,
    },
    /// The fetch was cancelled, or made no progress.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl FetchError {
    /// Whether a retry fails until an administrator changes a setting or a file.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Unusable { .. }
            | Self::Url(_)
            | Self::Certificate { .. }
            | Self::Answer { .. }
            | Self::TooLarge { .. }
            | Self::NotListed { .. }
            | Self::Checksum { .. } => true,
            // "Request timeout" and "too many requests" ask for a retry.
            Self::Status { code, .. } => *code < 500 && !matches!(code, 408 | 429),
            Self::File { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
            }
            Self::Keep(_)
            | Self::Connection { .. }
            | Self::Length { .. }
            | Self::Interrupted(_) => false,
        }
    }
}

//! The failures of a fetch, and whether another try can help.

use std::{io, path::PathBuf};

use crate::{
    model::{ids::Digest, size::show_bytes},
    progress::Interrupted,
};

/// A failed fetch. URLs in it have neither credentials nor a query.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The source is not something that can be an image.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The file's kind, and the right one.
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
    /// It is not a URL that can be fetched. The URL is not shown: what cannot be read may hide a
    /// password.
    #[error("a URL: not one that can be fetched: {0}")]
    Url(String),
    /// The web server answers that there is nothing for us (RFC 9110 section 15).
    #[error("{url}: the server answered {status}")]
    Status {
        /// The URL and its redirects.
        url: String,
        /// Its number.
        code: u16,
        /// Its number and name.
        status: String,
    },
    /// The web server cannot be reached, or the connection broke more often than it is mended.
    #[error("{url}: {reason}")]
    Connection {
        /// The URL.
        url: String,
        /// The failure of the connection.
        reason: String,
    },
    /// The web server does not prove who it is.
    #[error("{url}: {reason}")]
    Certificate {
        /// The URL.
        url: String,
        /// The fault of the certificate.
        reason: String,
        /// Whether it is not valid yet, so that this machine's clock may be wrong.
        is_early: bool,
    },
    /// The web server answers something that is not allowed, or makes no sense.
    #[error("{url}: {reason}")]
    Answer {
        /// The URL.
        url: String,
        /// The wrong answer.
        reason: String,
    },
    /// The file did not have the length that was announced.
    #[error("{url}: {got_bytes} bytes came, {announced_bytes} were announced")]
    Length {
        /// The URL.
        url: String,
        /// Bytes announced.
        announced_bytes: u64,
        /// Bytes received.
        got_bytes: u64,
    },
    /// The file is larger than it may be.
    #[error(
        "{place}: {}{}, at most {} are allowed",
        show_bytes(*bytes), if *is_all { "" } else { " or more" }, show_bytes(*bytes_max)
    )]
    TooLarge {
        /// The path, or what was asked for.
        place: String,
        /// Bytes of the file, or those received before the limit.
        bytes: u64,
        /// Whether that is all it has.
        is_all: bool,
        /// The limit in bytes.
        bytes_max: u64,
    },
    /// The file of checksums does not say what the image's is.
    #[error("{place}: {reason}")]
    NotListed {
        /// The file of checksums.
        place: String,
        /// The list's content instead.
        reason: String,
    },
    /// The file is not the one the spec means.
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
    /// It was cancelled, or stood still.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl FetchError {
    /// Whether somebody has to change something before another try can end better.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Unusable { .. }
            | Self::Url(_)
            | Self::Certificate { .. }
            | Self::Answer { .. }
            | Self::TooLarge { .. }
            | Self::NotListed { .. }
            | Self::Checksum { .. } => true,
            // "Request timeout" and "too many requests" ask for another try.
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

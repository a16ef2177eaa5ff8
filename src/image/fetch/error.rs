//! Why an image is not here, and whether asking again would help.

use std::{io, path::PathBuf};

use crate::{
    model::{ids::Digest, size::show_bytes},
    progress::Interrupted,
};

/// What is not here, and why. URLs in it have neither credentials nor a query.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The source is not something that can be an image.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it is and what would be right.
        reason: String,
    },
    /// A file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What comes cannot be written where it is kept.
    #[error("cannot be kept: {0}")]
    Keep(io::Error),
    /// It is not a URL that can be fetched. The URL is not shown: what cannot be read may hide a password.
    #[error("a URL: not one that can be fetched: {0}")]
    Url(String),
    /// The web server answers that there is nothing for us (RFC 9110 section 15).
    #[error("{url}: the server answered {status}")]
    Status {
        /// What was asked for, and where that led to.
        url: String,
        /// Its number.
        code: u16,
        /// Its number and name.
        status: String,
    },
    /// The web server cannot be reached, or the connection broke more often than it is mended.
    #[error("{url}: {reason}")]
    Connection {
        /// What was asked for.
        url: String,
        /// How it broke.
        reason: String,
    },
    /// The web server does not prove who it is.
    #[error("{url}: {reason}")]
    Certificate {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
        /// Whether it is not valid yet, so that this machine's clock may be wrong.
        is_early: bool,
    },
    /// The web server answers something that is not allowed, or makes no sense.
    #[error("{url}: {reason}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What it was.
        reason: String,
    },
    /// The file did not have the length that was announced.
    #[error("{url}: {got_bytes} bytes came, {announced_bytes} were announced")]
    Length {
        /// What was asked for.
        url: String,
        /// How many there should be.
        announced_bytes: u64,
        /// How many there were.
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
        /// What it has, or what had come when it was given up.
        bytes: u64,
        /// Whether that is all it has.
        is_all: bool,
        /// What it may have.
        bytes_max: u64,
    },
    /// The file of checksums does not say what the image's is.
    #[error("{place}: {reason}")]
    NotListed {
        /// The file of checksums.
        place: String,
        /// What it says instead.
        reason: String,
    },
    /// The file is not the one the spec means.
    #[error("{place}: its checksum is {found}, the spec wants {wanted}{came}")]
    Checksum {
        /// The path or URL.
        place: String,
        /// What the spec says.
        wanted: Digest,
        /// What the file has.
        found: Digest,
        /// How its server called it and what it begins with, after `; `; empty for a file that lies here.
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

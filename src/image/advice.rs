//! Advice about an image that cannot be had.

use super::{DecodeError, FetchError, ImageError};
use crate::model::fault::{Advice, Advise, TOOK_TOO_LONG};

impl Advise for ImageError {
    fn advice(&self) -> Advice {
        match self {
            Self::Fetch(error) | Self::List(error @ FetchError::NotListed { .. }) => error.advice(),
            Self::List(error) => Advice {
                hint: "look at image.checksum, and at the list it names",
                ..error.advice()
            },
            Self::Decode { error: DecodeError::Unusable(_), .. } => {
                Advice::lasting("ImageUnusable", "correct image.source or the file it names")
            }
            Self::Decode { error: DecodeError::TooLarge { .. }, .. } => {
                Advice::lasting("ImageUnusable", "correct image.source, or raise images.raw_max")
            }
            Self::Decode { .. } => {
                Advice::passing("CacheUnusable", "look at the disk the image cache lies on")
            }
            Self::NoSpace { .. } => {
                Advice::passing("CacheFull", "make space there, or lower images.cache_size")
            }
            Self::Cache { .. } => Advice::passing(
                "CacheUnusable",
                "look at the disk the image cache lies on, and at its owner",
            ),
            Self::Stalled { .. } => Advice::passing(
                "ImageStalled",
                "look at the way to image.source, or raise timeouts.imaging_stall",
            ),
            Self::Cancelled => Advice::CANCELLED,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Cancelled => TOOK_TOO_LONG.to_owned(),
            error => error.to_string(),
        }
    }
}

impl Advise for FetchError {
    /// Advice for the administrator, and whether a retry may help: a fault at the image's source
    /// may be repaired at any time, and is retried.
    fn advice(&self) -> Advice {
        match self {
            Self::Unusable { .. } | Self::Url(_) => {
                Advice::lasting("ImageUnusable", "correct image.source or the file it names")
            }
            Self::TooLarge { .. } => Advice::lasting(
                "ImageUnusable",
                "correct image.source, or raise images.published_max",
            ),
            Self::NotListed { .. } => Advice::lasting(
                "ChecksumNotListed",
                "correct image.checksum, or put the image's line into that list",
            ),
            Self::Checksum { .. } => Advice::passing(
                "ChecksumMismatch",
                "copy the image again, or correct image.checksum; nothing was written",
            ),
            Self::File { .. } => Advice::passing(
                "ImageUnreadable",
                "put the file where image.source says, readable for hostler's user",
            ),
            Self::Status { .. } => {
                Advice::passing("ImageNotServed", "look at image.source, and at the server's log")
            }
            Self::Certificate { is_early: true, .. } => Advice::passing(
                "CertificateRefused",
                "set this machine's clock, and look at what sets it (`timedatectl status`); if \
                 the clock is right, the server's certificate is of no use yet",
            ),
            Self::Certificate { .. } => Advice::passing(
                "CertificateRefused",
                "renew the server's certificate, or name its authority in the agent's \
                 SSL_CERT_FILE",
            ),
            Self::Connection { .. } | Self::Answer { .. } | Self::Length { .. } => Advice::passing(
                "ServerTrouble",
                "look at the way to image.source, the proxy, and the server's log",
            ),
            Self::Keep(_) => {
                Advice::passing("CacheFull", "make space in the image cache's file system")
            }
            Self::Interrupted(_) => Advice::passing(
                "ImageStalled",
                "look at the way to image.source, or raise timeouts.imaging_stall",
            ),
        }
    }
}

//! Advice about a disk that cannot be laid out or written.

use super::{DISK_HINT, ImagingError, LayoutError};
use crate::model::fault::{Advice, Advise, OTHER_MACHINE, TOOK_TOO_LONG};

impl Advise for LayoutError {
    fn advice(&self) -> Advice {
        match self {
            Self::File { .. } => {
                Advice::passing("ImageUnreadable", "look at the disk the image cache lies on")
            }
            Self::TooBig { .. } => Advice::lasting(
                "DiskTooSmall",
                "choose a larger disk with [root_device], a smaller image or smaller [partitions]",
            ),
            _ => Advice::lasting(
                "LayoutImpossible",
                "correct the image, [partitions] or [config_drive], or choose another disk",
            ),
        }
    }
}

impl Advise for ImagingError {
    fn advice(&self) -> Advice {
        match self {
            Self::File { .. } => {
                Advice::passing("ImageUnreadable", "look at the disk the image cache lies on")
            }
            Self::TooBig { .. } => Advice::lasting(
                "DiskTooSmall",
                "choose a larger disk with [root_device] or a smaller image",
            ),
            Self::Misplaced { .. } => Advice::lasting(
                "LayoutImpossible",
                "this is a mistake in hostler: report it with the spec",
            ),
            Self::OtherDisk { .. } => Advice::passing("WrongDisk", OTHER_MACHINE),
            Self::Blocks(_) => {
                Advice::lasting("DiskUnusable", "choose another disk with [root_device]")
            }
            Self::Volume { source, .. }
            | Self::Connection(source)
            | Self::Lost { last: source, .. } => Advice::passing(source.code, DISK_HINT),
            Self::Stalled { .. } => Advice::passing(
                "ImagingStalled",
                "look at the network between hostler and the machine, or raise \
                 timeouts.imaging_stall",
            ),
            Self::TooSlow { .. } => Advice::passing(
                "TargetTooSlow",
                "look at the machine's disk and the network to it, or lower \
                 limits.imaging_rate_min",
            ),
            Self::Differs { .. } => Advice::passing(
                "DiskLies",
                "the disk acknowledged writes and does not hold them: replace it, or choose \
                 another with [root_device]",
            ),
            Self::Cancelled => Advice::CANCELLED,
            Self::NotWiped { cause, .. } => cause.advice(),
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Cancelled => TOOK_TOO_LONG.to_owned(),
            error => error.to_string(),
        }
    }
}

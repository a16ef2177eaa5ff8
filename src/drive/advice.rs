//! Advice about a file system that cannot be made or read.

use super::DriveError;
use crate::model::fault::{Advice, Advise};

impl Advise for DriveError {
    fn advice(&self) -> Advice {
        match self {
            Self::Blocks { .. } | Self::TooSmall { .. } => Advice::lasting(
                "LayoutImpossible",
                "correct [partitions] or [config_drive], or choose another disk",
            ),
            Self::NoBootFiles { .. } | Self::BootFiles { .. } => Advice::lasting(
                "NotBootable",
                "use a whole-disk image, or boot.after = \"network\" with image.kernel and \
                 image.ramdisk",
            ),
            Self::NotDisk { .. } => Advice::lasting(
                "ImageUnusable",
                "correct image.source; an image of one file system wants image.kind = \
                 \"partition\"",
            ),
            Self::NotRoot { .. } => Advice::lasting(
                "ImageUnusable",
                "correct image.source, or image.kind if it is a whole disk",
            ),
            Self::NoMke2fs => Advice::missing(
                "NoMke2fs",
                "install e2fsprogs on hostler's machine, or leave out partitions.ephemeral",
            ),
            Self::Make { .. } | Self::Read { .. } => Advice::passing(
                "CacheUnusable",
                "look at the disk the image cache lies on, and whether it is full",
            ),
        }
    }
}

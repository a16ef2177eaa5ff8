//! Makes the layout of a machine's disk: the image and the spec's other partitions.
//!
//! Called in the preparation, to check that a layout is possible, and again once the disk is known.
//! It reads images and makes file systems, so that it must run where blocking is allowed. Nothing
//! here may write to a disk.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::{
    drive::{self, DriveError},
    image::Entry,
    imaging::{
        Content, Geometry, ImageFile, Layout, LayoutError, Parts, needed_bytes, partitioned,
        whole_disk, whole_disk_needs,
    },
    model::{
        boot::Firmware,
        fault::{Fault, Step},
        ids::{Digest, hex},
        secret::Secret,
        spec::{ImageKind, NodeSpec, Partitions},
    },
};

use super::{clock::now, faults};

/// The block size of most disks, for the check before the disk is known.
const USUAL_BLOCK_BYTES: u32 = 512;
const SWAP_LABEL: &str = "swap";
/// Bytes searched for zeros at once.
const SPOOL_BYTES: usize = 64 << 10;

/// An image in the cache.
#[derive(Clone, Debug)]
pub(super) struct CachedImage {
    pub(super) image: ImageFile,
    /// Keeps the image in the cache.
    pub(super) entry: Entry,
}

impl CachedImage {
    /// The directory for large temporary files.
    fn scratch(&self) -> &Path {
        self.entry.path.parent().unwrap_or(Path::new("."))
    }
}

/// The random part of a layout: the same seed gives the same layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seed {
    /// 64 random hex digits, from which identifiers are derived.
    ids: String,
    /// The time of creation in file systems.
    made_at: Timestamp,
}

impl Seed {
    pub(super) fn random() -> Result<Self, Fault> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(faults::no_randomness)?;
        Ok(Self { ids: hex(&random), made_at: now() })
    }

    /// Derives identifiers for tables and file systems.
    fn ids(&self, purpose: &str) -> impl FnMut() -> [u8; 16] {
        let mut numbers = 0_u64..;
        let text = format!("{} {purpose}", self.ids);
        move || {
            let number = numbers.next().unwrap_or_default();
            let digest = Digest::of(format!("{text} {number}").as_bytes());
            digest.bytes().first_chunk().copied().unwrap_or_default()
        }
    }
}

/// A layout with the fingerprint of its content.
pub(super) struct LaidOut {
    pub(super) layout: Layout,
    pub(super) fingerprint: Option<Digest>,
}

/// The requirements of an installation on its disk.
#[derive(Debug)]
pub(super) struct Needs {
    /// The smallest sufficient disk, in bytes.
    pub(super) disk_bytes: u64,
    /// The UUID of the file system in a partition image.
    pub(super) root_uuid: Option<String>,
}

/// Checks that the image can be installed as the spec wants, and returns the requirements.
pub(super) fn needs(spec: &NodeSpec, source: &CachedImage) -> Result<Needs, Fault> {
    let of_drive = |error: DriveError| Fault::of(Step::Image, &error);
    drive(spec, USUAL_BLOCK_BYTES, None).map_err(of_drive)?;
    let ImageKind::Partition(partitions) = &spec.image.kind else {
        drive::check_disk(&source.entry.file).map_err(of_drive)?;
        let disk_bytes = whole_disk_needs(&source.image, spec.config_drive.is_some());
        let disk_bytes = disk_bytes.map_err(|error| Fault::of(Step::Image, &error))?;
        return Ok(Needs { disk_bytes, root_uuid: None });
    };
    let found = drive::probe(&source.entry.file).map_err(of_drive)?;
    let esp = esp(spec, source, USUAL_BLOCK_BYTES)?;
    swap(partitions, [0; 16]).map_err(of_drive)?;
    if partitions.ephemeral_bytes.is_some() && !drive::mke2fs_is_there() {
        return Err(of_drive(DriveError::NoMke2fs));
    }
    let esp_bytes = esp.map(|esp| esp.bytes());
    let with_drive = spec.config_drive.is_some();
    let disk_bytes = needed_bytes(source.image.bytes(), partitions, esp_bytes, with_drive);
    Ok(Needs { disk_bytes, root_uuid: Some(found.uuid) })
}

/// Makes the layout of this disk. Its system is to call `url` once it is up.
pub(super) async fn layout(
    spec: Arc<NodeSpec>,
    source: CachedImage,
    disk: Geometry,
    seed: Seed,
    url: Option<Secret>,
) -> Result<LaidOut, Fault> {
    let ephemeral = match &spec.image.kind {
        ImageKind::Partition(Partitions { ephemeral_bytes: Some(bytes), .. }) => {
            let (uuid, made_at) = (seed.ids("ephemeral")(), seed.made_at);
            let file = drive::ephemeral(*bytes, source.scratch(), uuid, made_at).await;
            Some(
                file.and_then(|file| made(file, source.scratch()))
                    .map_err(|error| Fault::of(Step::Image, &error))?,
            )
        }
        _ => None,
    };
    let laying_out = move || {
        let layout = lay_out(&spec, &source, disk, ephemeral, &seed, url.as_ref())?;
        // The image is known by its digest, and read only once.
        let fingerprint = layout.fingerprint(|file| file.path() == source.image.path());
        let fingerprint = fingerprint.map_err(|error| Fault::of(Step::Imaging, &error))?;
        Ok(LaidOut { layout, fingerprint })
    };
    tokio::task::spawn_blocking(laying_out)
        .await
        .unwrap_or_else(|error| Err(faults::internal(&error)))
}

fn lay_out(
    spec: &NodeSpec,
    source: &CachedImage,
    disk: Geometry,
    ephemeral: Option<ImageFile>,
    seed: &Seed,
    url: Option<&Secret>,
) -> Result<Layout, Fault> {
    let of_drive = |error: DriveError| Fault::of(Step::Image, &error);
    let config_drive = drive(spec, disk.block_bytes, url).map_err(of_drive)?;
    let mut ids = seed.ids("table");
    let layout = match &spec.image.kind {
        ImageKind::Disk => whole_disk(&source.image, disk, config_drive, &mut ids),
        ImageKind::Partition(partitions) => {
            let esp = esp(spec, source, disk.block_bytes)?;
            let swap = swap(partitions, ids()).map_err(of_drive)?;
            let parts = Parts { arch: spec.boot.arch, esp, swap, ephemeral, config_drive };
            partitioned(&source.image, disk, partitions, parts, &mut ids)
        }
    };
    layout.map_err(|error: LayoutError| Fault::of(Step::Imaging, &error))
}

fn drive(
    spec: &NodeSpec,
    block_bytes: u32,
    url: Option<&Secret>,
) -> Result<Option<Bytes>, DriveError> {
    let (instance, url) = (spec.identity().written, url.map(Secret::expose));
    let make = |drive| drive::config_drive_calling(drive, &spec.name, &instance, block_bytes, url);
    spec.config_drive.as_deref().map(make).transpose()
}

fn swap(partitions: &Partitions, uuid: [u8; 16]) -> Result<Option<Bytes>, DriveError> {
    let make = |bytes| drive::swap_header(bytes, uuid, SWAP_LABEL);
    partitions.swap_bytes.map(make).transpose()
}

/// Makes the EFI system partition of a machine with a partition image that boots from its disk. A
/// BIOS is refused, because it needs a boot loader outside of every file system.
fn esp(spec: &NodeSpec, source: &CachedImage, block_bytes: u32) -> Result<Option<Content>, Fault> {
    match (spec.image.netboot.is_some(), spec.boot.firmware) {
        (true, _) => Ok(None),
        (false, Firmware::Bios) => Err(Fault::lasting(
            Step::Image,
            "NotBootable",
            "a machine with BIOS cannot boot from a partition image: the boot loader that a BIOS \
             needs is outside of every file system",
            "use a whole-disk image, or boot.after = \"network\" with image.kernel and \
             image.ramdisk",
        )),
        (false, Firmware::Uefi) => {
            let made = drive::esp(&source.entry.file, spec.boot.arch, block_bytes)
                .and_then(|esp| spool(&esp, source.scratch()));
            made.map(|file| Some(Content::of_file(file)))
                .map_err(|error| Fault::of(Step::Image, &error))
        }
    }
}

/// Moves bytes from memory into an unnamed sparse file.
fn spool(bytes: &[u8], dir: &Path) -> Result<ImageFile, DriveError> {
    let write = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?);
        file.set_len(bytes.len() as u64)?;
        for (piece, at) in bytes.chunks(SPOOL_BYTES).zip((0..).step_by(SPOOL_BYTES)) {
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, at)?;
            }
        }
        Ok(file)
    };
    write()
        .map_err(|source| DriveError::Make { what: "the EFI system partition", source })
        .and_then(|file| made(file, dir))
}

/// Wraps a file that was made here as an image.
fn made(file: File, dir: &Path) -> Result<ImageFile, DriveError> {
    ImageFile::new(Arc::new(file), dir).map_err(|source| DriveError::Read { source })
}

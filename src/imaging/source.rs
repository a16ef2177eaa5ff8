//! Opening an image file, and looking at what it is.
//!
//! Called with the text of `image.source`. It must never open anything outside the directories images may come from, whatever links lie in
//! the way, and never take a compressed or structured file for a disk's bytes.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstatfs, open, openat2};

use super::ImagingError;

/// `/proc` and `/sys` (linux/magic.h): their files have sizes and contents of their own making.
const KERNEL_FILE_SYSTEMS: [i64; 2] = [0x9fa0, 0x6265_6572];

/// What a file begins with when it is not a disk's bytes: where, what, and its name.
const MAGICS: [(usize, &[u8], &str); 10] = [
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vhd"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
];
/// As far as the magics reach.
const LOOK_BYTES: usize = 0x44;

/// Where images may come from.
#[derive(Clone, Debug)]
pub struct Images {
    dir: PathBuf,
    allowed: Vec<PathBuf>,
}

/// An open raw image.
#[derive(Clone, Debug)]
pub struct Image {
    file: Arc<File>,
    path: Arc<Path>,
    bytes: u64,
}

impl Images {
    /// `dir` is where relative sources lie; absolute ones must lie under it or under one of `allowed`.
    pub fn new(dir: impl Into<PathBuf>, allowed: Vec<PathBuf>) -> Self {
        Self { dir: dir.into(), allowed }
    }

    /// Opens a source. Links are followed as long as they stay beneath their directory. Blocks for as long as the file system does.
    pub fn open(&self, source: &str) -> Result<Image, ImagingError> {
        if source.contains("://") {
            let reason = "URLs are not supported yet; copy the image to this machine".to_owned();
            return Err(ImagingError::Unusable { path: source.into(), reason });
        }
        let (dir, inside) = self.locate(Path::new(source))?;
        let path = dir.join(inside);
        let failed = |source: io::Error| ImagingError::File { path: path.clone(), source };
        let unusable = |reason: String| ImagingError::Unusable { path: path.clone(), reason };
        let file = match open_beneath(dir, inside) {
            Ok(file) => file,
            Err(rustix::io::Errno::XDEV) => {
                return Err(unusable(format!("a link in it leads out of {}", dir.display())));
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        let metadata = file.metadata().map_err(failed)?;
        let file_system = fstatfs(&file).map_err(|errno| failed(errno.into()))?.f_type;
        if !metadata.is_file() || KERNEL_FILE_SYSTEMS.contains(&file_system) {
            return Err(unusable("not a regular file; a raw disk image is needed".to_owned()));
        }
        if metadata.len() == 0 {
            return Err(unusable("empty; was the copy interrupted?".to_owned()));
        }
        let image =
            Image { file: Arc::new(file), path: path.as_path().into(), bytes: metadata.len() };
        match image.looks_like()? {
            Some(format) => Err(unusable(format!(
                "looks like {format}: not supported yet; convert it to a raw disk image"
            ))),
            None => Ok(image),
        }
    }

    /// The directory a source belongs to, and its path inside.
    fn locate<'a>(&'a self, source: &'a Path) -> Result<(&'a Path, &'a Path), ImagingError> {
        if source.is_relative() {
            return Ok((&self.dir, source));
        }
        let dirs = || std::iter::once(&self.dir).chain(&self.allowed);
        dirs().find_map(|dir| Some((dir.as_path(), source.strip_prefix(dir).ok()?))).ok_or_else(
            || {
                let list: Vec<_> = dirs().map(|dir| dir.display().to_string()).collect();
                ImagingError::Unusable {
                    path: source.to_owned(),
                    reason: format!("images must lie under {}", list.join(" or ")),
                }
            },
        )
    }
}

impl Image {
    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size when it was opened, at least 1.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads exactly `bytes` bytes, without holding up the runtime.
    pub(super) async fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, ImagingError> {
        let file = Arc::clone(&self.file);
        let reading = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
            file.read_exact_at(&mut buffer, offset)?;
            Ok(buffer)
        });
        let read = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        read.map_err(|source| ImagingError::File { path: self.path.to_path_buf(), source })
    }

    fn looks_like(&self) -> Result<Option<&'static str>, ImagingError> {
        let mut start = [0; LOOK_BYTES];
        // A file shorter than this leaves zeros, which match nothing.
        self.file
            .read_at(&mut start, 0)
            .map_err(|source| ImagingError::File { path: self.path.to_path_buf(), source })?;
        Ok(MAGICS
            .iter()
            .find(|(at, magic, _)| start.get(*at..).is_some_and(|here| here.starts_with(magic)))
            .map(|(_, _, name)| *name))
    }
}

/// The kernel itself keeps the path beneath the directory: no moment between a check and the opening.
fn open_beneath(dir: &Path, inside: &Path) -> rustix::io::Result<File> {
    let dir = open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // NONBLOCK: opening a pipe must not wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    openat2(dir, inside, flags, Mode::empty(), resolve).map(File::from)
}

//! Opening files in the directories images may come from.
//!
//! Called with the path in a spec. It must never open anything outside those directories, whatever links lie in the way.

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstatfs, open, openat2};

use super::FetchError;

/// `/proc` and `/sys` (linux/magic.h): their files have sizes and contents of their own making.
const KERNEL_FILE_SYSTEMS: [i64; 2] = [0x9fa0, 0x6265_6572];

/// Where images may come from.
#[derive(Clone, Debug)]
pub struct Directories {
    dir: PathBuf,
    allowed: Vec<PathBuf>,
}

impl Directories {
    /// `dir` is where relative sources lie; absolute ones must lie under it or under one of `allowed`.
    pub fn new(dir: impl Into<PathBuf>, allowed: Vec<PathBuf>) -> Self {
        Self { dir: dir.into(), allowed }
    }

    /// Opens a regular file that is not empty. Links are followed as long as they stay beneath their directory. Blocks for as long as the
    /// file system does.
    pub(super) fn open(&self, source: &str) -> Result<File, FetchError> {
        let (dir, inside) = self.locate(Path::new(source))?;
        let path = dir.join(inside);
        let failed = |source: io::Error| FetchError::File { path: path.clone(), source };
        let unusable = |reason: String| FetchError::Unusable { path: path.clone(), reason };
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
            return Err(unusable("not a regular file".to_owned()));
        }
        if metadata.len() == 0 {
            return Err(unusable("empty; was the copy interrupted?".to_owned()));
        }
        Ok(file)
    }

    /// The directory a source belongs to, and its path inside.
    fn locate<'a>(&'a self, source: &'a Path) -> Result<(&'a Path, &'a Path), FetchError> {
        if source.is_relative() {
            return Ok((&self.dir, source));
        }
        let dirs = || std::iter::once(&self.dir).chain(&self.allowed);
        dirs().find_map(|dir| Some((dir.as_path(), source.strip_prefix(dir).ok()?))).ok_or_else(
            || {
                let list: Vec<_> = dirs().map(|dir| dir.display().to_string()).collect();
                FetchError::Unusable {
                    path: source.to_owned(),
                    reason: format!("images must lie under {}", list.join(" or ")),
                }
            },
        )
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

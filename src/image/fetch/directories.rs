//! Opens files in the directories that images may come from.
//!
//! The fetch passes the path in a spec. It must never open a file outside of those directories,
//! through any symbolic link.

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::FetchError;
use crate::regular_file::{
    NotRegular,
    beneath::{self, Links},
};

/// The directories of local images.
#[derive(Clone, Debug)]
pub struct Directories {
    dir: PathBuf,
    allowed: Vec<PathBuf>,
}

impl Directories {
    /// `dir` is the directory of relative sources; absolute ones must lie under it or under one of
    /// `allowed`.
    pub fn new(dir: impl Into<PathBuf>, allowed: Vec<PathBuf>) -> Self {
        Self { dir: dir.into(), allowed }
    }

    /// Opens a non-empty regular file. Follows symbolic links within their directory. Blocks as
    /// long as the file system does.
    pub(super) fn open(&self, source: &str) -> Result<File, FetchError> {
        let (dir, inside) = self.locate(Path::new(source))?;
        let path = dir.join(inside);
        let failed = |source: io::Error| FetchError::File { path: path.clone(), source };
        let unusable = |reason: String| FetchError::Unusable { path: path.clone(), reason };
        let opened =
            beneath::open_dir(dir).and_then(|handle| beneath::open(handle, inside, Links::Beneath));
        let file = opened.map_err(|error| {
            if beneath::leads_out(&error) {
                unusable(format!("a link in it leads out of {}", dir.display()))
            } else if NotRegular::is_cause_of(&error) {
                unusable(error.to_string())
            } else {
                failed(error)
            }
        })?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.len() == 0 {
            return Err(unusable("empty; was the copy interrupted?".to_owned()));
        }
        Ok(file)
    }

    /// Splits a source into its directory and the path inside it.
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

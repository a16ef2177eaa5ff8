//! `<name>.status.toml`: what an administrator, a script or `hostler status` reads about one node.
//!
//! Written by the agent's driver, read by the CLI, which needs no agent for it. Small synchronous file work. It must never show a reader
//! half a file, and never put anything here that not everybody may read: the files have mode 0644. Beside them is what `console` keeps.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    atomic_file,
    model::{ids::NodeName, problem::shown, status::Status},
    regular_file,
};

pub mod agent_mark;
mod console;
mod shown;

pub use agent_mark::MarkFile;
pub use console::{CONSOLE_BYTES_MAX, ConsoleLog};
pub use shown::{Rendered, Shown};

const SUFFIX: &str = ".status.toml";
const HEADER: &str = "# written by hostler; do not edit\n";
/// A status has a bounded history; a file this big is not one of ours.
const STATUS_BYTES_MAX: u64 = 1 << 20;
const STATUS_MODE: u32 = 0o644;

/// The status files of one directory.
#[derive(Clone, Debug)]
pub struct StatusFiles {
    dir: PathBuf,
    /// Whether they are still the writer's own.
    ours: Option<Arc<AtomicBool>>,
}

/// Why a status file cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StatusFileError {
    /// The system refused.
    #[error("status file {}: {source}", path.display())]
    Io {
        /// The file, or the directory of all.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The status cannot be put into TOML.
    #[error("status file {}: {source}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What TOML cannot hold.
        source: toml::ser::Error,
    },
    /// It is not a status file of this version.
    #[error("status file {}: {message}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// What is wrong and where, in one line.
        message: String,
    },
}

impl StatusFiles {
    /// The files in `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), ours: None }
    }

    /// The same, written and removed only while `ours` is true.
    pub fn only_while(self, ours: Arc<AtomicBool>) -> Self {
        Self { ours: Some(ours), ..self }
    }

    fn are_anothers(&self) -> bool {
        self.ours.as_ref().is_some_and(|ours| !ours.load(Ordering::SeqCst))
    }

    /// Where a node's status is.
    pub fn path(&self, node: &NodeName) -> PathBuf {
        self.dir.join(format!("{node}{SUFFIX}"))
    }

    /// Replaces a node's status file; the directory must exist.
    pub fn write(&self, status: &Status) -> Result<(), StatusFileError> {
        self.render(status).and_then(|status| self.put(&status)).map(drop)
    }

    /// Removes a node's status file; that there is none is no error.
    pub fn remove(&self, node: &NodeName) -> Result<(), StatusFileError> {
        if self.are_anothers() {
            return Ok(());
        }
        let path = self.path(node);
        atomic_file::remove_if_there(&path).map_err(|source| StatusFileError::Io { path, source })
    }

    /// Reads every status file of the directory, in the order of the nodes' names, each by itself.
    pub fn read_all(&self) -> Result<Vec<Result<Status, StatusFileError>>, StatusFileError> {
        let failed = |source| StatusFileError::Io { path: self.dir.clone(), source };
        let mut nodes = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            nodes.extend(stem.and_then(|stem| stem.parse::<NodeName>().ok()));
        }
        nodes.sort();
        Ok(nodes.iter().map(|node| read(&self.path(node))).collect())
    }
}

/// Reads one status file.
pub fn read(path: &Path) -> Result<Status, StatusFileError> {
    let text =
        read_text(path).map_err(|source| StatusFileError::Io { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|error| StatusFileError::Decode {
        path: path.to_owned(),
        message: shown(&error.message().replace('\n', "; ")),
    })
}

fn read_text(path: &Path) -> io::Result<String> {
    regular_file::read_to_string(path, STATUS_BYTES_MAX)
}

fn render(status: &Status) -> Result<String, toml::ser::Error> {
    toml::to_string(status).map(|body| format!("{HEADER}{body}"))
}

#[cfg(test)]
mod tests;

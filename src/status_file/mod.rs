//! `<name>.status.toml`: one node's status for administrators, scripts and `hostler status`.
//!
//! The agent's publisher writes it; the CLI reads it without an agent, and the agent reads it if a
//! record is lost. A reader must never see half a file or take a damaged one for whole. A status
//! must hold nothing secret: everybody may read the files, which have mode 0644. `console` and
//! `ramdisk_log` keep other files beside them.
//!
//! The last line is a comment with the checksum of everything before it. Writes are not synced:
//! after a power cut a file may be old or damaged, and the checksum tells.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use jiff::Timestamp;
use serde::Deserialize;

use crate::{
    atomic_file,
    model::{
        ids::{Digest, NodeName},
        problem::shown,
        status::{STATUS_VERSION, Status},
    },
    regular_file,
};

pub mod agent_mark;
mod console;
mod format_1;
mod on_disk;
mod ramdisk_log;
mod untrusted;
mod unwritten;

pub use agent_mark::MarkFile;
pub use console::{CONSOLE_BYTES_MAX, ConsoleLog};
pub use on_disk::{RenderedStatus, StatusOnDisk};
pub use ramdisk_log::KeptLog;
pub use unwritten::Unwritten;

const SUFFIX: &str = ".status.toml";
const HEADER: &str = "# written by hostler; do not edit\n";
const CHECKSUM: &str = "# checksum = ";
/// A status has a bounded history; hostler writes no file this big.
const STATUS_BYTES_MAX: u64 = 1 << 20;
const STATUS_MODE: u32 = 0o644;

/// The status files of one directory.
#[derive(Clone, Debug)]
pub struct StatusFiles {
    dir: PathBuf,
    /// False once the files belong to another agent.
    ours: Option<Arc<AtomicBool>>,
    /// Whether a missing directory is made again.
    is_made: bool,
}

/// The reason why a status file cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub enum StatusFileError {
    /// The system refused.
    #[error("status file {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The status cannot be put into TOML.
    #[error("status file {}: {source}", path.display())]
    Encode {
        path: PathBuf,
        /// The value that TOML cannot hold.
        source: toml::ser::Error,
    },
    /// The file is old, because the agent cannot write it.
    #[error(
        "status file {}: what it says is old, because the agent cannot write it: {why}",
        path.display()
    )]
    Unwritten {
        path: PathBuf,
        /// The obstacle, as the agent describes it.
        why: String,
    },
    /// The file is damaged, edited, or of an unknown version.
    #[error("status file {}: {message}", path.display())]
    Damaged {
        path: PathBuf,
        /// The problem and its place, in one line.
        message: String,
        /// The readable part of the content, for display only.
        seems: Option<Box<Status>>,
    },
}

impl StatusFileError {
    /// Takes the readable part of a damaged file, for display only.
    pub fn take_seeming(&mut self) -> Option<Status> {
        let Self::Damaged { seems, .. } = self else { return None };
        seems.take().map(|status| *status)
    }

    /// Whether the file does not exist.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl StatusFiles {
    /// Returns the files in `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), ours: None, is_made: false }
    }

    /// Makes a missing directory again if it is for status files alone. A missing spec directory
    /// must stay missing: an empty one would mean that no machine is wanted.
    #[must_use]
    pub fn in_made_dir(self, is_made: bool) -> Self {
        Self { is_made, ..self }
    }

    /// Writes and removes files only while `ours` is true.
    #[must_use]
    pub fn only_while(self, ours: Arc<AtomicBool>) -> Self {
        Self { ours: Some(ours), ..self }
    }

    fn are_anothers(&self) -> bool {
        self.ours.as_ref().is_some_and(|ours| !ours.load(Ordering::SeqCst))
    }

    /// The path of a node's status file.
    pub fn path(&self, node: &NodeName) -> PathBuf {
        self.dir.join(format!("{node}{SUFFIX}"))
    }

    /// Replaces a node's status file; the directory must exist.
    pub fn write(&self, status: &Status) -> Result<(), StatusFileError> {
        self.render(status).and_then(|status| self.put(&status)).map(drop)
    }

    /// Removes a node's status file. A missing file is no error.
    pub fn remove(&self, node: &NodeName) -> Result<(), StatusFileError> {
        if self.are_anothers() {
            return Ok(());
        }
        let path = self.path(node);
        atomic_file::remove_if_there(&path).map_err(|source| StatusFileError::Io { path, source })
    }

    /// The nodes that have a status file, in order.
    pub fn nodes(&self) -> Result<Vec<NodeName>, StatusFileError> {
        let failed = |source| StatusFileError::Io { path: self.dir.clone(), source };
        let mut nodes = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            nodes.extend(stem.and_then(|stem| stem.parse::<NodeName>().ok()));
        }
        nodes.sort();
        Ok(nodes)
    }

    /// Reads every status file of the directory, in the order of the nodes' names, each by itself.
    pub fn read_all(&self) -> Result<Vec<Result<Status, StatusFileError>>, StatusFileError> {
        Ok(self.nodes()?.iter().map(|node| read(&self.path(node))).collect())
    }

    /// Whether the node's status file is whole and has this time of installation, or none. Much
    /// quicker than [`read`].
    pub fn has_installation_at(&self, node: &NodeName, at: Option<Timestamp>) -> bool {
        let text = read_text(&self.path(node));
        text.is_ok_and(|text| is_sealed(&text) && installed_line(&text) == at.map(at_line))
    }

    /// Keeps a copy of a node's status file, which may be all that is left of the node's state.
    pub fn keep_aside(&self, node: &NodeName) -> String {
        atomic_file::keep_aside(&self.path(node))
    }
}

/// Reads one status file, of the current version or version 1.
pub fn read(path: &Path) -> Result<Status, StatusFileError> {
    let damaged = |(message, seems): (String, Option<Box<Status>>)| StatusFileError::Damaged {
        path: path.to_owned(),
        message: shown(&message.replace('\n', "; ")),
        seems,
    };
    match read_text(path) {
        Ok(text) => parse(&text).map_err(damaged),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(damaged((error.to_string(), None)))
        }
        Err(source) => Err(StatusFileError::Io { path: path.to_owned(), source }),
    }
}

/// Parses a status; the error has the reason and the readable part of the content.
fn parse(text: &str) -> Result<Status, (String, Option<Box<Status>>)> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    if text.is_empty() {
        return Err(("it is empty".to_owned(), None));
    }
    let unreadable = |error: toml::de::Error| (error.message().to_owned(), None);
    match toml::from_str(text).map_err(unreadable)? {
        Head { version: 1 } => format_1::parse(text).map_err(|why| (why, None)),
        Head { version: STATUS_VERSION } => {
            let status = toml::from_str(text).map_err(unreadable)?;
            if is_sealed(text) {
                Ok(status)
            } else {
                Err((MISMATCH.to_owned(), Some(Box::new(status))))
            }
        }
        Head { version } => {
            let message = format!(
                "it has version {version}, of a newer hostler, or is damaged; this one reads \
                 {STATUS_VERSION}"
            );
            Err((message, None))
        }
    }
}

const MISMATCH: &str = "its checksum does not match: it was damaged, cut short or edited";

fn read_text(path: &Path) -> io::Result<String> {
    regular_file::read_to_string(path, STATUS_BYTES_MAX)
}

fn render(status: &Status) -> Result<String, toml::ser::Error> {
    toml::to_string(status).map(|body| {
        let text = format!("{HEADER}{body}");
        let seal = seal(&text);
        text + &seal
    })
}

/// Makes the last line, which has the checksum.
fn seal(text: &str) -> String {
    format!("\n{CHECKSUM}\"{}\"\n", Digest::of(text.as_bytes()))
}

/// Whether the checksum in the last line matches.
fn is_sealed(text: &str) -> bool {
    let at = text.rfind(CHECKSUM).and_then(|at| at.checked_sub(1));
    at.and_then(|at| text.split_at_checked(at)).is_some_and(|(text, last)| last == seal(text))
}

/// Finds the line of `[installed]` with the time.
fn installed_line(text: &str) -> Option<String> {
    let (_, section) = text.split_once("\n[installed]\n")?;
    let mut lines = section.lines().take_while(|line| !line.starts_with('['));
    lines.find(|line| line.starts_with("at = ")).map(str::to_owned)
}

fn at_line(at: Timestamp) -> String {
    format!("at = \"{at}\"")
}

#[cfg(test)]
mod tests;

//! `_agent.status.toml`: the mark by which an agent claims a status directory, with its heartbeat.
//!
//! The agent writes it every ten seconds; other agents and the commands read it. No node can have
//! this name, and readers of specs and statuses skip it. Two agents may write it at the same time:
//! a reader sees one of the two marks whole. The last line is a comment with the checksum of
//! everything before it, as in status files, so that a damaged mark is never taken for another
//! agent's.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{MISMATCH, StatusFileError, is_sealed, seal};
use crate::{
    atomic_file,
    model::{
        agent_mark::{AgentMark, MARK_VERSION},
        problem::shown,
    },
    regular_file,
};

const NAME: &str = "_agent.status.toml";
const HEADER: &str = "# written by hostler: the agent that acts here; do not edit\n";
/// A mark has a dozen short values; no mark is this big.
const MARK_BYTES_MAX: u64 = 64 << 10;
const MARK_MODE: u32 = 0o644;

/// The mark of one status directory.
#[derive(Clone, Debug)]
pub struct MarkFile {
    path: PathBuf,
}

impl MarkFile {
    /// The mark in `dir`, which need not exist yet.
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join(NAME) }
    }

    /// The mark's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether anything has the mark's name.
    pub fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok()
    }

    /// Reads the file's bytes; `None` if there is no file. A link is an error: hostler makes none.
    pub fn bytes(&self) -> io::Result<Option<Vec<u8>>> {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.is_symlink()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a link, not a regular file"));
        }
        match regular_file::read(&self.path, MARK_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => bytes.map(Some),
        }
    }

    /// Reads the mark; `None` if there is none.
    pub fn read(&self) -> Result<Option<AgentMark>, StatusFileError> {
        let path = || self.path.clone();
        let bytes = self.bytes().map_err(|source| StatusFileError::Io { path: path(), source })?;
        let mark = bytes.as_deref().map(decode).transpose();
        mark.map_err(|error| StatusFileError::Damaged {
            path: path(),
            message: error.to_string(),
            seems: None,
        })
    }

    /// Replaces the mark, or whatever has its name; a directory is moved aside. Not durable: after
    /// a power cut an old mark says no more than a missing one.
    pub fn replace(&self, mark: &AgentMark) -> io::Result<()> {
        let temp = self.temporary(mark)?;
        let renamed = fs::rename(&temp, &self.path).or_else(|error| {
            if error.kind() != io::ErrorKind::IsADirectory {
                return Err(error);
            }
            atomic_file::keep_aside(&self.path);
            fs::rename(&temp, &self.path)
        });
        renamed.inspect_err(|_| discard(&temp))
    }

    /// Writes the mark if no file has its name; returns whether it did.
    pub fn create(&self, mark: &AgentMark) -> io::Result<bool> {
        let temp = self.temporary(mark)?;
        let linked = fs::hard_link(&temp, &self.path);
        match linked {
            Ok(()) => {
                discard(&temp);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                discard(&temp);
                Ok(false)
            }
            // The file system has no links. Two agents that start in the same moment notice each
            // other one heartbeat later.
            Err(_) => fs::rename(&temp, &self.path).inspect_err(|_| discard(&temp)).map(|()| true),
        }
    }

    /// Writes the mark under a temporary name of this agent's own: another agent may be writing,
    /// too.
    fn temporary(&self, mark: &AgentMark) -> io::Result<PathBuf> {
        let temp = self.path.with_file_name(format!(".{NAME}.{}", mark.run_id));
        let text = toml::to_string(mark).map_err(io::Error::other)?;
        let text = format!("{HEADER}{text}");
        let sealed = format!("{text}{}", seal(&text));
        atomic_file::replace_unsynced(&temp, MARK_MODE, sealed.as_bytes())?;
        Ok(temp)
    }
}

/// The reason, in one line, why a file's content is no mark that this hostler can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMark {
    /// The file is damaged or edited.
    #[error("{0}")]
    Damaged(String),
    /// The file is whole, and another version of hostler wrote it.
    #[error("{0}")]
    OfAnotherVersion(String),
}

/// Verifies and parses a mark.
pub fn decode(bytes: &[u8]) -> Result<AgentMark, NoMark> {
    if bytes.is_empty() {
        return Err(NoMark::Damaged("it is empty".to_owned()));
    }
    let text = str::from_utf8(bytes).ok().filter(|text| is_sealed(text));
    let text = text.ok_or_else(|| NoMark::Damaged(MISMATCH.to_owned()))?;
    let mark: AgentMark =
        toml::from_str(text).map_err(|error| NoMark::OfAnotherVersion(shown(error.message())))?;
    if mark.version == MARK_VERSION {
        return Ok(mark);
    }
    let version = format!("version {}, this hostler knows version {MARK_VERSION}", mark.version);
    Err(NoMark::OfAnotherVersion(version))
}

/// Removes a temporary file; the next write replaces one that stays.
fn discard(temp: &Path) {
    fs::remove_file(temp).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt as _,
        time::{Duration, Instant},
    };

    use super::*;

    fn mark(run_id: &str) -> AgentMark {
        let at = "2026-11-22T12:00:00Z".parse().unwrap();
        AgentMark {
            version: MARK_VERSION,
            host: "edge".to_owned(),
            pid: 7,
            hostler: "0.1.0".to_owned(),
            started: at,
            heartbeat: at,
            interval_s: 10,
            stopped: None,
            state_id: "s".to_owned(),
            run_id: run_id.to_owned(),
            machine_id: String::new(),
            boot_id: String::new(),
            pid_started_ticks: 9,
        }
    }

    #[test]
    fn of_two_agents_that_begin_in_the_same_moment_one_marks_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = MarkFile::in_dir(dir.path());
        assert_eq!(file.read().unwrap(), None);
        assert!(file.create(&mark("a")).unwrap());
        assert!(!file.create(&mark("b")).unwrap());
        assert_eq!(file.read().unwrap(), Some(mark("a")));
        file.replace(&mark("b")).unwrap();
        assert_eq!(file.read().unwrap(), Some(mark("b")));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left");
        let mode = fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MARK_MODE);
    }

    #[test]
    fn neither_specs_nor_statuses_are_read_from_a_mark() {
        let dir = tempfile::tempdir().unwrap();
        MarkFile::in_dir(dir.path()).create(&mark("a")).unwrap();
        assert!(super::super::StatusFiles::new(dir.path()).read_all().unwrap().is_empty());
        assert!(NAME.ends_with(".status.toml") && NAME.starts_with('_'));
    }

    /// Invariant (agents): A missing or damaged mark releases nobody, and makes nobody a stranger
    /// to itself.
    #[test]
    fn every_flipped_bit_and_every_truncation_of_a_mark_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let file = MarkFile::in_dir(dir.path());
        file.replace(&mark("a")).unwrap();
        let good = file.bytes().unwrap().unwrap();
        assert_eq!(decode(&good).unwrap(), mark("a"));
        for bit in 0..8 * good.len() {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode(&bytes), Err(NoMark::Damaged(_))), "bit {bit}");
        }
        for end in 0..good.len() {
            assert!(matches!(decode(&good[..end]), Err(NoMark::Damaged(_))), "{end} bytes");
        }
        fs::write(file.path(), "").unwrap();
        let error = file.read().unwrap_err().to_string();
        assert!(error.contains("it is empty") && error.contains(NAME), "{error}");
    }

    #[test]
    fn a_whole_mark_of_another_version_is_not_a_damaged_one() {
        let sealed = |text: String| format!("{text}{}", seal(&text));
        let later = toml::to_string(&AgentMark { version: 2, ..mark("a") }).unwrap();
        for (text, why) in [
            (later.clone(), "version 2, this hostler knows version 1"),
            (later + "words = 1\n", "unknown field `words`"),
        ] {
            let NoMark::OfAnotherVersion(said) = decode(sealed(text).as_bytes()).unwrap_err()
            else {
                panic!("taken for a damaged one")
            };
            assert!(said.contains(why), "{said}");
        }
    }

    /// Invariant (agents): A missing or damaged mark releases nobody, and makes nobody a stranger
    /// to itself.
    #[test]
    fn whatever_is_in_its_place_is_no_mark_and_makes_way() {
        use std::os::unix::fs::symlink;
        type Put = fn(&Path);
        let puts: [(&str, Put); 6] = [
            ("dangling", |path| symlink("nowhere", path).unwrap()),
            ("loop", |path| symlink(path, path).unwrap()),
            ("empty directory", |path| fs::create_dir(path).unwrap()),
            ("full directory", |path| fs::create_dir_all(path.join("x")).unwrap()),
            ("socket", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
            ("empty", |path| fs::write(path, "").unwrap()),
        ];
        for (what, put) in puts {
            let dir = tempfile::tempdir().unwrap();
            let file = MarkFile::in_dir(dir.path());
            put(file.path());
            file.read().unwrap_err();
            file.replace(&mark("a")).unwrap();
            assert_eq!(file.read().unwrap(), Some(mark("a")), "{what}");
        }
    }

    #[test]
    fn a_pipe_in_its_place_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let file = MarkFile::in_dir(dir.path());
        let made = std::process::Command::new("mkfifo").arg(file.path()).status().unwrap();
        assert!(made.success());
        let requested = Instant::now();
        let error = file.bytes().unwrap_err().to_string();
        assert!(error.contains("FIFO"), "{error}");
        assert!(requested.elapsed() < Duration::from_secs(5));
    }
}

//! `_agent.status.toml`: the file by which the agent that acts upon a status directory marks it as
//! its own, and says that it lives.
//!
//! Written by the agent each ten seconds, read by other agents and by the commands. No node can
//! have this name, and reading specs and statuses passes it over. Two agents may write it at the
//! same time: a reader sees one of the two marks whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::StatusFileError;
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
/// A mark has a dozen short values; a file this big is not one.
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in the file; `None` if there is none.
    pub fn bytes(&self) -> io::Result<Option<Vec<u8>>> {
        match regular_file::read(&self.path, MARK_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => bytes.map(Some),
        }
    }

    /// The mark; `None` if there is none.
    pub fn read(&self) -> Result<Option<AgentMark>, StatusFileError> {
        let path = || self.path.clone();
        let bytes = self.bytes().map_err(|source| StatusFileError::Io { path: path(), source })?;
        let mark = bytes.as_deref().map(decode).transpose();
        mark.map_err(|message| StatusFileError::Damaged { path: path(), message, seems: None })
    }

    /// Puts the mark in place of whatever is there. It is not made durable: a mark that is lost with
    /// the power says no less than one that is kept.
    pub fn replace(&self, mark: &AgentMark) -> io::Result<()> {
        let temp = self.temporary(mark)?;
        fs::rename(&temp, &self.path).inspect_err(|_| discard(&temp))
    }

    /// Puts the mark in place if no file is there; whether it did.
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
            // A file system without links: two agents that begin in the same moment see each other
            // a heartbeat later.
            Err(_) => fs::rename(&temp, &self.path).inspect_err(|_| discard(&temp)).map(|()| true),
        }
    }

    /// The mark under a name that only this agent uses: the other one may be writing too.
    fn temporary(&self, mark: &AgentMark) -> io::Result<PathBuf> {
        let temp = self.path.with_file_name(format!(".{NAME}.{}", mark.run_id));
        let text = toml::to_string(mark).map_err(io::Error::other)?;
        atomic_file::replace_unsynced(&temp, MARK_MODE, format!("{HEADER}{text}").as_bytes())?;
        Ok(temp)
    }
}

/// The mark in a file's content, or what is wrong with it, in one line.
pub fn decode(bytes: &[u8]) -> Result<AgentMark, String> {
    let text = str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let mark: AgentMark = toml::from_str(text).map_err(|error| shown(error.message()))?;
    if mark.version == MARK_VERSION {
        Ok(mark)
    } else {
        Err(format!("version {}, this hostler knows version {MARK_VERSION}", mark.version))
    }
}

/// The next write replaces it anyway.
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

    #[test]
    fn a_damaged_mark_or_one_of_a_later_version_is_none_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let file = MarkFile::in_dir(dir.path());
        for (text, why) in [
            ("", "missing field `version`"),
            ("version = 1\nhost", "key with no value"),
            ("version = 2\nwords = 1\n", "unknown field `words`"),
        ] {
            fs::write(file.path(), text).unwrap();
            let error = file.read().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(NAME), "{error}");
        }
        let later = toml::to_string(&AgentMark { version: 2, ..mark("a") }).unwrap();
        assert_eq!(
            decode(later.as_bytes()).unwrap_err(),
            "version 2, this hostler knows version 1"
        );
    }

    #[test]
    fn a_pipe_in_its_place_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let file = MarkFile::in_dir(dir.path());
        let made = std::process::Command::new("mkfifo").arg(file.path()).status().unwrap();
        assert!(made.success());
        let asked = Instant::now();
        let error = file.bytes().unwrap_err().to_string();
        assert!(error.contains("FIFO"), "{error}");
        assert!(asked.elapsed() < Duration::from_secs(5));
    }
}

//! `_unwritten.status.toml`: the nodes whose status files the agent cannot write and which are
//! therefore old.
//!
//! The agent's publisher writes it, and removes it once every status file is written; the commands
//! that rely on status files read it. No node can have this name. It must never be missing while
//! the agent knows of an old status file and can write this one.

use std::{collections::BTreeMap, io};

use super::{STATUS_BYTES_MAX, STATUS_MODE, StatusFileError, StatusFiles};
use crate::{
    atomic_file,
    model::{ids::NodeName, problem::shown},
    regular_file,
};

const NAME: &str = "_unwritten.status.toml";
const HEADER: &str =
    "# written by hostler: status files that it cannot write, and why; what they say is old\n";

/// The nodes whose status files cannot be written, and why.
pub type Unwritten = BTreeMap<NodeName, String>;

impl StatusFiles {
    /// Writes the list, or removes the file if the list is empty.
    pub fn tell_unwritten(&self, unwritten: &Unwritten) -> Result<(), StatusFileError> {
        if self.are_anothers() {
            return Ok(());
        }
        let path = self.dir.join(NAME);
        let reported = if unwritten.is_empty() {
            atomic_file::remove_if_there(&path)
        } else {
            toml::to_string(unwritten).map_err(io::Error::other).and_then(|text| {
                let text = format!("{HEADER}{text}");
                atomic_file::replace_unsynced(&path, STATUS_MODE, text.as_bytes())
            })
        };
        reported.map_err(|source| StatusFileError::Io { path, source })
    }

    /// Reads the list. After an error, any status file may be old.
    pub fn unwritten(&self) -> Result<Unwritten, StatusFileError> {
        let path = self.dir.join(NAME);
        match regular_file::read_to_string(&path, STATUS_BYTES_MAX) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                let message = shown(error.message());
                StatusFileError::Damaged { path, message, seems: None }
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Unwritten::new()),
            Err(source) => Err(StatusFileError::Io { path, source }),
        }
    }

    /// Fails if the node's status file is old.
    pub fn check_written(&self, node: &NodeName) -> Result<(), StatusFileError> {
        match self.unwritten()?.remove(node) {
            Some(why) => {
                Err(StatusFileError::Unwritten { path: self.path(node), why: shown(&why) })
            }
            None => Ok(()),
        }
    }
}

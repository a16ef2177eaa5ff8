//! Status files as they stand on disk: what each says, told without parsing it.
//!
//! Called by the agent's publisher, which writes a file only if it would say something else.

use std::{collections::hash_map::DefaultHasher, fs, hash::Hasher as _, io};

use crate::{
    atomic_file,
    file_mark::FileMark,
    model::{ids::NodeName, status::Status},
    regular_file,
};

use super::{STATUS_BYTES_MAX, STATUS_MODE, StatusFileError, StatusFiles, is_sealed, render};

/// Lines that say when a file was written and that it is whole, and nothing of the node.
const OF_THE_FILE: [&str; 2] = ["updated = ", "# checksum = "];

/// A status as its file has it.
#[derive(Debug)]
pub struct Rendered {
    node: NodeName,
    text: String,
}

/// What a file says but for when it was written. Two that say the same compare equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Says(u64);

/// A file that was written or read, and is known to be the same while this compares equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stands(FileMark);

impl Rendered {
    /// What the file will say.
    pub fn says(&self) -> Says {
        Says::of(&self.text)
    }
}

impl Says {
    fn of(text: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        for line in text.lines().filter(|line| !OF_THE_FILE.iter().any(|of| line.starts_with(of))) {
            hasher.write(line.as_bytes());
            hasher.write_u8(b'\n');
        }
        Self(hasher.finish())
    }
}

impl StatusFiles {
    /// A status as its file has it.
    pub fn render(&self, status: &Status) -> Result<Rendered, StatusFileError> {
        let node = status.node.clone();
        match render(status) {
            Ok(text) => Ok(Rendered { node, text }),
            Err(source) => Err(StatusFileError::Encode { path: self.path(&node), source }),
        }
    }

    /// Replaces a node's status file; the directory must exist.
    pub fn put(&self, status: &Rendered) -> Result<Stands, StatusFileError> {
        let path = self.path(&status.node);
        atomic_file::replace_unsynced(&path, STATUS_MODE, status.text.as_bytes())
            .and_then(|()| fs::symlink_metadata(&path))
            .map(|file| Stands(FileMark::of(&file)))
            .map_err(|source| StatusFileError::Io { path, source })
    }

    /// What a node's status file says, if it is whole. A pipe or a device in its place is an error, not a wait.
    pub fn says(&self, node: &NodeName) -> io::Result<Says> {
        let text = regular_file::read_to_string(&self.path(node), STATUS_BYTES_MAX)?;
        if is_sealed(&text) { Ok(Says::of(&text)) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Which file stands in a node's place.
    pub fn stands(&self, node: &NodeName) -> io::Result<Stands> {
        Ok(Stands(FileMark::of(&fs::symlink_metadata(self.path(node))?)))
    }
}

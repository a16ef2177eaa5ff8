//! Status files as they stand on disk: what each says, told without parsing it.
//!
//! Called by the agent's publisher. It must never take a file for what it should be that says
//! something else.

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
    says: u64,
}

/// A file that was written, or found to say what it should.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    says: u64,
    mark: FileMark,
}

impl Shown {
    /// Whether that is what this status says, but for when it was written.
    pub fn is(&self, status: &Rendered) -> bool {
        self.says == status.says
    }
}

impl StatusFiles {
    /// A status as its file has it.
    pub fn render(&self, status: &Status) -> Result<Rendered, StatusFileError> {
        let node = status.node.clone();
        match render(status) {
            Ok(text) => Ok(Rendered { says: says(&text), node, text }),
            Err(source) => Err(StatusFileError::Encode { path: self.path(&node), source }),
        }
    }

    /// Replaces a node's status file. `None`: the files are another agent's.
    pub fn put(&self, status: &Rendered) -> Result<Option<Shown>, StatusFileError> {
        if self.are_anothers() {
            return Ok(None);
        }
        let path = self.path(&status.node);
        let replace = || atomic_file::replace_unsynced(&path, STATUS_MODE, status.text.as_bytes());
        replace()
            .or_else(|error| match error.kind() {
                io::ErrorKind::NotFound if self.is_made => {
                    fs::create_dir_all(&self.dir).and_then(|()| replace())
                }
                _ => Err(error),
            })
            .and_then(|()| fs::symlink_metadata(&path))
            .map(|file| Some(Shown { says: status.says, mark: FileMark::of(&file) }))
            .map_err(|source| StatusFileError::Io { path, source })
    }

    /// The node's file, if it says just that already and is whole.
    pub fn find(&self, status: &Rendered) -> Option<Shown> {
        let mark = self.mark(&status.node).ok()?;
        let found = Shown { says: self.says(&status.node).ok()?, mark };
        found.is(status).then_some(found)
    }

    /// Whether the node's file still says what it said: nobody has removed or changed it since. One
    /// that cannot be looked at now, for another reason than what is in its place, is taken to.
    pub fn still_says(&self, node: &NodeName, shown: &mut Shown) -> bool {
        use io::ErrorKind::{InvalidData, IsADirectory, NotFound};
        let is_gone =
            |error: &io::Error| matches!(error.kind(), InvalidData | IsADirectory | NotFound);
        let looked = self.mark(node).and_then(|mark| {
            let same = mark == shown.mark || self.says(node)? == shown.says;
            Ok((same, mark))
        });
        match looked {
            Ok((true, mark)) => {
                shown.mark = mark;
                true
            }
            Ok((false, _)) => false,
            Err(error) => !is_gone(&error),
        }
    }

    fn mark(&self, node: &NodeName) -> io::Result<FileMark> {
        Ok(FileMark::of(&fs::symlink_metadata(self.path(node))?))
    }

    /// The content of a node's status file, if it is whole. A pipe or a device in its place is an
    /// error, not a wait.
    fn says(&self, node: &NodeName) -> io::Result<u64> {
        let text = regular_file::read_to_string(&self.path(node), STATUS_BYTES_MAX)?;
        if is_sealed(&text) { Ok(says(&text)) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// A number that two texts share if they say the same but for when they were written.
fn says(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for line in text.lines().filter(|line| !OF_THE_FILE.iter().any(|of| line.starts_with(of))) {
        hasher.write(line.as_bytes());
        hasher.write_u8(b'\n');
    }
    hasher.finish()
}

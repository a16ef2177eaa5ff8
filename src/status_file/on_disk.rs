//! Compares status files on disk with the statuses that they should have, without parsing them.
//!
//! Called by the agent's publisher. A file with other content must never count as up to date.

use std::{collections::hash_map::DefaultHasher, fs, hash::Hasher as _, io, time::SystemTime};

use crate::{
    atomic_file,
    file_mark::FileMark,
    model::{ids::NodeName, status::Status},
    regular_file,
};

use super::{STATUS_BYTES_MAX, STATUS_MODE, StatusFileError, StatusFiles, is_sealed, render};

/// The lines that are about the file and not about the node.
const OF_THE_FILE: [&str; 2] = ["updated = ", "# checksum = "];

/// A status as the text of its file.
#[derive(Debug)]
pub struct RenderedStatus {
    node: NodeName,
    text: String,
    content_hash: u64,
}

/// A status file with the right content, as last written or read.
#[derive(Clone, Copy, Debug)]
pub struct StatusOnDisk {
    content_hash: u64,
    /// The mark of the file whose content was read. `None` right after a write: a mark taken then
    /// might belong to a file that somebody changed in the meantime.
    mark: Option<FileMark>,
}

impl StatusOnDisk {
    /// Whether the file has this status, whenever it was written.
    pub fn has(&self, status: &RenderedStatus) -> bool {
        self.content_hash == status.content_hash
    }
}

impl StatusFiles {
    /// Renders a status as the text of its file.
    pub fn render(&self, status: &Status) -> Result<RenderedStatus, StatusFileError> {
        let node = status.node.clone();
        match render(status) {
            Ok(text) => Ok(RenderedStatus { content_hash: content_hash(&text), node, text }),
            Err(source) => Err(StatusFileError::Encode { path: self.path(&node), source }),
        }
    }

    /// Replaces a node's status file. `None`: the files are another agent's.
    pub fn put(&self, status: &RenderedStatus) -> Result<Option<StatusOnDisk>, StatusFileError> {
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
            .map(|()| Some(StatusOnDisk { content_hash: status.content_hash, mark: None }))
            .map_err(|source| StatusFileError::Io { path, source })
    }

    /// Returns the node's file, if it is whole and has this status already.
    pub fn find(&self, status: &RenderedStatus) -> Option<StatusOnDisk> {
        let mark = self.mark(&status.node).ok()?;
        let content_hash = self.content_hash(&status.node).ok()?;
        let found = StatusOnDisk { content_hash, mark: settled(mark) };
        found.has(status).then_some(found)
    }

    /// Whether nobody has removed or changed the node's file since. A file that is there and cannot
    /// be read at the moment counts as unchanged.
    pub fn is_unchanged(&self, node: &NodeName, known: &mut StatusOnDisk) -> bool {
        use io::ErrorKind::{InvalidData, IsADirectory, NotFound};
        let is_gone =
            |error: &io::Error| matches!(error.kind(), InvalidData | IsADirectory | NotFound);
        let found = self.mark(node).and_then(|mark| {
            let same = Some(mark) == known.mark || self.content_hash(node)? == known.content_hash;
            Ok((same, mark))
        });
        match found {
            Ok((true, mark)) => {
                known.mark = settled(mark);
                true
            }
            Ok((false, _)) => false,
            Err(error) => !is_gone(&error),
        }
    }

    fn mark(&self, node: &NodeName) -> io::Result<FileMark> {
        Ok(FileMark::of(&fs::symlink_metadata(self.path(node))?))
    }

    /// Hashes a node's status file, if it is whole. A FIFO or a device is an error at once.
    fn content_hash(&self, node: &NodeName) -> io::Result<u64> {
        let text = regular_file::read_to_string(&self.path(node), STATUS_BYTES_MAX)?;
        if is_sealed(&text) {
            Ok(content_hash(&text))
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

/// The mark of a file that is read next, if any later change would change the mark.
fn settled(mark: FileMark) -> Option<FileMark> {
    mark.is_settled(SystemTime::now()).then_some(mark)
}

/// Hashes a file's text without the lines of [`OF_THE_FILE`].
fn content_hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for line in text.lines().filter(|line| !OF_THE_FILE.iter().any(|of| line.starts_with(of))) {
        hasher.write(line.as_bytes());
        hasher.write_u8(b'\n');
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant (status): A status file that somebody changes is written again.
    #[test]
    fn a_mark_counts_only_if_any_later_change_would_change_it() {
        let dir = tempfile::tempdir().unwrap();
        let files = StatusFiles::new(dir.path());
        let text = "version = 2\nnode = \"a\"\nphase = \"pending\"\nready = false\nmessage = \"\"\n\
            spec_valid = true\nsince = \"2026-11-30T12:00:00Z\"\nattempt = 0\n\
            updated = \"2026-11-30T12:00:00Z\"\n";
        let status: Status = toml::from_str(text).unwrap();
        let rendered = files.render(&status).unwrap();
        let mut known = files.put(&rendered).unwrap().unwrap();
        assert!(known.mark.is_none(), "somebody may change the file before anything is read");
        assert!(files.is_unchanged(&status.node, &mut known));
        assert!(known.mark.is_none(), "the next change may come in the same tick of the clock");
        assert!(files.find(&rendered).unwrap().mark.is_none());
    }
}

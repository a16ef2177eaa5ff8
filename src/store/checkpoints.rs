//! Checkpoints of disk writes, from which the next agent resumes a killed one's write.
//!
//! Called by the operation that writes a disk. A checkpoint only saves time: nothing waits for one,
//! and a missing, damaged or foreign one costs a write from the start. Checkpoints are not durable:
//! after a power cut, an older one has less than the disk, and its checksum shows a torn one. A
//! checkpoint must never cause a wipe or a hold.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    FILE_MODE, Store, StoreError,
    format::{self, SealCheck},
};
use crate::{atomic_file, model::ids::NodeName, regular_file};

const SUFFIX: &str = ".checkpoint";
/// Most bytes of a checkpoint, which has a few short fields.
const BYTES_MAX: u64 = 64 << 10;

/// The checkpoints of a state directory. Clones share it.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
}

impl Store {
    /// The checkpoints of the state directory.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints { dir: self.dir.clone() }
    }
}

impl Checkpoints {
    /// Replaces the node's checkpoint.
    pub fn save<T: Serialize>(&self, node: &NodeName, checkpoint: &T) -> Result<(), StoreError> {
        let path = path(&self.dir, node);
        format::seal("checkpoint", node.as_str(), checkpoint)
            .and_then(|bytes| atomic_file::replace_unsynced(&path, FILE_MODE, &bytes))
            .map_err(|source| StoreError::Write { path, source })
    }

    /// Loads the node's checkpoint, if there is a whole one.
    pub fn load<T: Serialize + DeserializeOwned>(
        &self,
        node: &NodeName,
    ) -> Result<Option<T>, StoreError> {
        let path = path(&self.dir, node);
        let bytes = match regular_file::read(&path, BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Read { path, source }),
            Ok(bytes) => bytes,
        };
        let content = match format::unseal("checkpoint", node.as_str(), &bytes) {
            SealCheck::Content(json) => format::parse(json),
            SealCheck::Format1 => Err("it has no checksum".to_owned()),
            SealCheck::Damaged(why) => Err(why),
        };
        content.map(Some).map_err(|why| StoreError::Read {
            path,
            source: io::Error::new(io::ErrorKind::InvalidData, why),
        })
    }

    /// Removes the node's checkpoint; a missing one is no error.
    pub fn remove(&self, node: &NodeName) -> Result<(), StoreError> {
        remove(&self.dir, node)
    }
}

pub(super) fn remove(dir: &Path, node: &NodeName) -> Result<(), StoreError> {
    let path = path(dir, node);
    atomic_file::remove_if_there(&path).map_err(|source| StoreError::Write { path, source })
}

fn path(dir: &Path, node: &NodeName) -> PathBuf {
    dir.join(format!("{node}{SUFFIX}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Invariant (disk): A damaged, torn or foreign checkpoint is never used.
    #[test]
    fn a_checkpoint_comes_back_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let checkpoints = store.checkpoints();
        let [node, other] = ["edge-07", "edge-08"].map(|name| name.parse::<NodeName>().unwrap());
        assert_eq!(checkpoints.load::<u64>(&node).unwrap(), None);
        checkpoints.save(&node, &1_234_567_u64).unwrap();
        assert_eq!(checkpoints.load(&node).unwrap(), Some(1_234_567_u64));
        // No reader takes a checkpoint for a record.
        assert!(store.load_all::<u64>(|_| Err(String::new())).unwrap().records.is_empty());

        let path = path(dir.path(), &node);
        let whole = fs::read(&path).unwrap();
        for end in 0..whole.len() {
            fs::write(&path, whole.get(..end).unwrap()).unwrap();
            assert!(checkpoints.load::<u64>(&node).is_err(), "{end} bytes of it are used");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            *flipped.get_mut(bit / 8).unwrap() ^= 1 << (bit % 8);
            fs::write(&path, &flipped).unwrap();
            assert!(checkpoints.load::<u64>(&node).is_err(), "bit {bit} may be flipped");
        }
        fs::write(super::path(dir.path(), &other), &whole).unwrap();
        assert!(checkpoints.load::<u64>(&other).is_err(), "it is another node's");

        checkpoints.save(&node, &"x".repeat(100 << 10)).unwrap();
        assert!(checkpoints.load::<String>(&node).is_err(), "it is larger than any of hostler's");
        store.remove(&node).unwrap();
        assert_eq!(checkpoints.load::<u64>(&node).unwrap(), None);
    }
}

//! A state directory's random id, and its note that another agent has acted since.
//!
//! Called by the agent at start. It must never return an id that it could not save, nor forget that
//! another agent acted before the records are put aside.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{Age, FILE_MODE, RECORD_BYTES_MAX, Store, StoreError, is_damage, is_record, names};
use crate::{atomic_file, model::ids::hex, regular_file};

pub(super) const STATE_ID: &str = "state-id";
/// The note that another agent acted. It exists until this agent has put its records in order.
const NOTE: &str = "another-agent";
/// Holds the records that another agent has overtaken; newer ones replace older ones.
const ASIDE_DIR: &str = "overtaken";

/// A note in the state directory that another agent has acted. It survives a kill, so that old
/// records are never taken for current ones.
#[derive(Clone, Debug)]
pub struct AnotherAgent {
    path: PathBuf,
}

impl AnotherAgent {
    /// The note of this state directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join(NOTE) }
    }

    /// Whether another agent acted, and this one has not put its records in order since.
    pub fn has_acted(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok()
    }

    /// Writes the note durably.
    pub fn note(&self) -> io::Result<()> {
        if self.has_acted() {
            return Ok(());
        }
        atomic_file::replace(&self.path, FILE_MODE, b"another agent has acted\n")
    }

    /// Removes the note. The records must be in order, durably.
    pub fn forget(&self) -> Result<(), StoreError> {
        atomic_file::remove_if_there(&self.path)
            .map_err(|source| StoreError::Write { path: self.path.clone(), source })
    }
}

impl Store {
    /// Returns the directory's id, 32 hex digits made at the first start, and any loss in words.
    /// The lock file has a second copy, which repairs a damaged or missing file.
    ///
    /// If both copies are lost, the directory gets a new id, and its agent does not recognize its
    /// own mark.
    pub fn state_id(&mut self) -> Result<(String, Option<String>), StoreError> {
        let path = self.dir.join(STATE_ID);
        let read = regular_file::read(&path, RECORD_BYTES_MAX);
        let loss = match read.and_then(|bytes| decode_file(&bytes)) {
            Ok(id) => {
                if self.id.as_ref() != Some(&id) {
                    self.id = Some(id.clone());
                    self.write_lock()?;
                }
                return Ok((id, None));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_lost = self.age == Age::Current || self.id.is_some();
                is_lost.then(|| StoreError::Missing { path: path.clone() }.to_string())
            }
            Err(source) if is_damage(&source) => {
                let fate = atomic_file::keep_aside(&path);
                Some(StoreError::Damaged { path: path.clone(), source, fate }.to_string())
            }
            Err(source) => return Err(StoreError::Read { path, source }),
        };
        self.check_still_ours()?;
        let (id, then) = match &self.id {
            Some(id) => (id.clone(), "the lock file has the id, too, and it is written again"),
            None => (
                new_id().map_err(|source| StoreError::Write { path: path.clone(), source })?,
                "the lock file has no id, so that the directory gets another one, and its agent is \
                 a stranger to its own mark",
            ),
        };
        atomic_file::replace(&path, FILE_MODE, encode(&id).as_bytes())
            .map_err(|source| StoreError::Write { path, source })?;
        self.id = Some(id.clone());
        self.write_lock()?;
        Ok((id, loss.map(|loss| format!("{loss}; {then}"))))
    }

    /// The note that another agent has acted since the records were written.
    pub fn another_agent(&self) -> AnotherAgent {
        AnotherAgent::in_dir(&self.dir)
    }

    /// Puts every record aside, because another agent has acted since, and returns their number.
    pub fn set_records_aside(&self) -> Result<usize, StoreError> {
        self.check_still_ours()?;
        let failed = |path: PathBuf| move |source| StoreError::Write { path, source };
        let aside = self.dir.join(ASIDE_DIR);
        let records = names(&self.dir).map_err(failed(self.dir.clone()))?;
        let records: Vec<String> = records.into_iter().filter(|name| is_record(name)).collect();
        if records.is_empty() {
            return Ok(0);
        }
        fs::create_dir_all(&aside).map_err(failed(aside.clone()))?;
        for name in &records {
            let path = self.dir.join(name);
            fs::rename(&path, aside.join(name)).map_err(failed(path))?;
        }
        atomic_file::sync_dir(&self.dir).map_err(failed(aside))?;
        Ok(records.len())
    }
}

fn new_id() -> io::Result<String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(hex(&random))
}

/// Encodes an id and its checksum as a line.
pub(super) fn encode(id: &str) -> String {
    format!("{id} sha256:{}\n", hex(&Sha256::digest(id)))
}

/// Decodes an id's line, with or without its line feed.
pub(super) fn decode(line: &str) -> io::Result<String> {
    let line = line.trim_end_matches('\n');
    let id = line.split(' ').next().unwrap_or_default();
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "it does not match its checksum");
    let is_good = id.len() == 32 && encode(id).trim_end() == line;
    is_good.then(|| id.to_owned()).ok_or_else(bad)
}

fn decode_file(bytes: &[u8]) -> io::Result<String> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "it does not match its checksum");
    let text = str::from_utf8(bytes).map_err(|_| bad())?;
    let id = decode(text)?;
    (encode(&id) == text).then_some(id).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_id_and_no_two_have_the_same() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = |dir: &tempfile::TempDir| Store::open(dir.path()).unwrap().state_id().unwrap();
        let (first, damaged) = id(&one);
        assert!(damaged.is_none());
        assert_eq!(id(&one).0, first);
        assert_ne!(id(&two).0, first);
    }

    #[test]
    fn any_damage_to_the_id_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let good = encode(&Store::open(dir.path()).unwrap().state_id().unwrap().0);
        let flipped = (0..good.len()).map(|at| {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= 1;
            bytes
        });
        let cut = (0..good.len()).map(|end| good.as_bytes()[..end].to_vec());
        for bytes in flipped.chain(cut) {
            decode_file(&bytes).unwrap_err();
        }
    }

    /// Invariant (state): No damage makes a state directory look new or old, or its agent another
    /// one.
    #[test]
    fn an_id_that_is_damaged_or_gone_is_told_and_made_up_for_by_the_lock_file() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let mut store = Store::open(dir.path()).unwrap();
            let id = store.state_id().unwrap();
            store.complete_upgrade().unwrap();
            id
        };
        let (first, loss) = open();
        assert_eq!(loss, None);
        let path = dir.path().join(STATE_ID);
        fs::write(&path, &encode(&first)[..10]).unwrap();
        let (second, loss) = open();
        let loss = loss.unwrap();
        assert!(loss.contains("state-id") && loss.contains("kept as"), "{loss}");
        assert!(loss.ends_with("the lock file has the id, too, and it is written again"), "{loss}");
        fs::remove_file(&path).unwrap();
        let (third, loss) = open();
        assert!(loss.is_some_and(|loss| loss.contains("state-id is missing")));
        assert_eq!([&second, &third], [&first; 2]);
        assert_eq!(open(), (first.clone(), None));

        // With both copies gone, the directory gets a new id.
        fs::remove_file(&path).unwrap();
        fs::write(dir.path().join(super::super::LOCK), "7\nformat 2\n").unwrap();
        let (fourth, loss) = open();
        assert_ne!(fourth, first);
        let loss = loss.unwrap();
        assert!(loss.contains("is missing") && loss.contains("gets another one"), "{loss}");
    }

    #[test]
    fn that_another_agent_acted_is_noted_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(!store.another_agent().has_acted());
        store.another_agent().note().unwrap();
        store.another_agent().note().unwrap();
        drop(store);
        let another = Store::open(dir.path()).unwrap().another_agent();
        assert!(another.has_acted());
        another.forget().unwrap();
        assert!(!another.has_acted());
    }

    #[test]
    fn records_are_put_aside_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.set_records_aside().unwrap(), 0);
        let node = "edge-07".parse().unwrap();
        store.save(&node, &1_u32).unwrap();
        store.save_site(&2_u32).unwrap();
        assert_eq!(store.set_records_aside().unwrap(), 1);
        assert!(store.load_all::<u32>(|_| Ok(0)).unwrap().records.is_empty());
        assert!(dir.path().join("_site.json").exists());
        assert!(dir.path().join(ASIDE_DIR).join("edge-07.json").exists());
    }
}

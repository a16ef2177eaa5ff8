//! What tells one state directory from any other: a random id, and the records of an agent that
//! was not the last to act.
//!
//! Called by the agent at start. It must never hand out an id that it could not write down.

use std::{fs, io, path::PathBuf};

use sha2::{Digest as _, Sha256};

use super::{FILE_MODE, RECORD_BYTES_MAX, Store, StoreError, is_damage, names};
use crate::{
    atomic_file,
    model::ids::{NodeName, hex},
    regular_file,
};

const STATE_ID: &str = "state-id";
/// Where records go that another agent has overtaken; those that were there before are replaced.
const ASIDE_DIR: &str = "overtaken";

impl Store {
    /// The directory's id, made at the first start: 32 hex digits, and their checksum.
    ///
    /// One that is damaged is kept aside and told; the directory then gets another id, with which
    /// its agent is a stranger to its own mark.
    pub fn state_id(&self) -> Result<(String, Option<StoreError>), StoreError> {
        let path = self.dir.join(STATE_ID);
        let damaged =
            match regular_file::read(&path, RECORD_BYTES_MAX).and_then(|bytes| decode(&bytes)) {
                Ok(id) => return Ok((id, None)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(source) if is_damage(&source) => {
                    let fate = atomic_file::keep_aside(&path);
                    Some(StoreError::Damaged { path: path.clone(), source, fate })
                }
                Err(source) => return Err(StoreError::Read { path, source }),
            };
        self.check_still_ours()?;
        let mut random = [0; 16];
        let id = getrandom::fill(&mut random)
            .map(|()| hex(&random))
            .map_err(|error| io::Error::other(error.to_string()));
        let written = id.and_then(|id| {
            atomic_file::replace(&path, FILE_MODE, encode(&id).as_bytes()).map(|()| id)
        });
        let id = written.map_err(|source| StoreError::Write { path, source })?;
        Ok((id, damaged))
    }

    /// Puts every record aside, because another agent has acted since they were written; says how
    /// many there were.
    pub fn set_records_aside(&self) -> Result<usize, StoreError> {
        self.check_still_ours()?;
        let failed = |path: PathBuf| move |source| StoreError::Write { path, source };
        let aside = self.dir.join(ASIDE_DIR);
        let is_record = |name: &String| {
            name.strip_suffix(".json").is_some_and(|stem| stem.parse::<NodeName>().is_ok())
        };
        let records = names(&self.dir).map_err(failed(self.dir.clone()))?;
        let records: Vec<String> = records.into_iter().filter(is_record).collect();
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

fn encode(id: &str) -> String {
    format!("{id} sha256:{}\n", hex(&Sha256::digest(id)))
}

fn decode(bytes: &[u8]) -> io::Result<String> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "it does not match its checksum");
    let text = str::from_utf8(bytes).map_err(|_| bad())?;
    let id = text.split(' ').next().unwrap_or_default();
    (id.len() == 32 && encode(id) == text).then(|| id.to_owned()).ok_or_else(bad)
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
    fn any_damage_to_the_id_is_told_and_ends_in_another_id() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (first, _) = store.state_id().unwrap();
        let good = encode(&first);
        let flipped = (0..good.len()).map(|at| {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= 1;
            bytes
        });
        let cut = (0..good.len()).map(|end| good.as_bytes()[..end].to_vec());
        for bytes in flipped.chain(cut) {
            decode(&bytes).unwrap_err();
        }
        fs::write(dir.path().join(STATE_ID), &good[..10]).unwrap();
        let (second, damaged) = store.state_id().unwrap();
        assert_ne!(first, second);
        let told = damaged.unwrap().to_string();
        assert!(told.contains("state-id") && told.contains("kept as"), "{told}");
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

//! The agent's durable record of each node: one JSON file per node in the state directory.
//!
//! Called by the agent's driver, which saves a node *before* the side effect its new state announces. It must never delete a record it
//! cannot read, and never let two agents share a directory. A record holds the attempt's key, so everything here is for its owner only.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    atomic_file,
    model::{ids::NodeName, problem::shown},
};

const DIR_MODE: u32 = 0o700;
const RECORD_MODE: u32 = 0o600;
/// A record has a bounded history and some dozen fields; a file this big is not one of ours.
const RECORD_BYTES_MAX: u64 = 4 << 20;
/// Bad records kept of one node. So many damaged in a row point to the disk; more of them would only fill it.
const BAD_RECORDS_MAX: u32 = 100;

/// An open state directory. It stays locked until this is dropped.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// Held for its lock alone.
    _lock: File,
}

/// Everything a state directory holds.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The records that could be read.
    pub records: BTreeMap<NodeName, T>,
    /// One [`StoreError::Damaged`] for each that could not.
    pub damaged: Vec<StoreError>,
}

/// Why a record or the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made, opened, locked or listed.
    #[error("state directory {}: {source}", dir.display())]
    Dir {
        /// The state directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another agent has it.
    #[error("state directory {} is in use by process {holder}; only one agent may run on it", dir.display())]
    InUse {
        /// The state directory.
        dir: PathBuf,
        /// The other agent's process id, as it wrote it down.
        holder: String,
    },
    /// A record cannot be written or removed.
    #[error("record {}: {source}", path.display())]
    Write {
        /// The record.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A record cannot be read. It has been moved aside, so that the next save does not overwrite it.
    #[error("record {}: {source}; {fate}", path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
        /// Where it is now, in words.
        fate: String,
    },
}

impl Store {
    /// Opens the state directory, making it if need be, and locks it for this process. What a killed agent was writing is removed:
    /// a torn record was never announced.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let dir = dir.into();
        let failed = |source| StoreError::Dir { dir: dir.clone(), source };
        DirBuilder::new().recursive(true).mode(DIR_MODE).create(&dir).map_err(failed)?;
        fs::set_permissions(&dir, Permissions::from_mode(DIR_MODE)).map_err(failed)?;
        let lock = lock(&dir)?;
        for name in names(&dir).map_err(failed)?.iter().filter(|name| atomic_file::is_torn(name)) {
            atomic_file::remove_if_there(&dir.join(name)).map_err(failed)?;
        }
        Ok(Self { dir, _lock: lock })
    }

    /// Writes a node's record; when this returns, it is on disk.
    pub fn save<T: Serialize>(&self, node: &NodeName, record: &T) -> Result<(), StoreError> {
        let path = self.path(node);
        serde_json::to_vec_pretty(record)
            .map_err(io::Error::from)
            .and_then(|json| atomic_file::replace(&path, RECORD_MODE, &json))
            .map_err(|source| StoreError::Write { path, source })
    }

    /// Reads a node's record; `None` when there is none.
    pub fn load<T: DeserializeOwned>(&self, node: &NodeName) -> Result<Option<T>, StoreError> {
        let path = self.path(node);
        match read(&path) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Damaged { fate: set_aside(&path), path, source }),
        }
    }

    /// Reads every record. A damaged one costs only itself.
    pub fn load_all<T: DeserializeOwned>(&self) -> Result<Loaded<T>, StoreError> {
        let mut loaded = Loaded { records: BTreeMap::new(), damaged: Vec::new() };
        let names =
            names(&self.dir).map_err(|source| StoreError::Dir { dir: self.dir.clone(), source })?;
        let nodes = names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok());
        for node in nodes {
            match self.load(&node) {
                Ok(Some(record)) => drop(loaded.records.insert(node, record)),
                Ok(None) => {}
                Err(damaged) => loaded.damaged.push(damaged),
            }
        }
        Ok(loaded)
    }

    /// Removes a node's record; that there is none is no error.
    pub fn remove(&self, node: &NodeName) -> Result<(), StoreError> {
        let path = self.path(node);
        atomic_file::remove_if_there(&path)
            .and_then(|()| atomic_file::sync_dir(&self.dir))
            .map_err(|source| StoreError::Write { path, source })
    }

    fn path(&self, node: &NodeName) -> PathBuf {
        self.dir.join(format!("{node}.json"))
    }
}

/// Takes the directory's lock and writes down who has it. The kernel lets go of it when the process ends, however it ends.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let failed = |source| StoreError::Dir { dir: dir.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(RECORD_MODE)
        .open(dir.join("lock"))
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            file.take(20).read_to_string(&mut holder).map_err(failed)?;
            return Err(StoreError::InUse {
                dir: dir.to_owned(),
                holder: holder.trim().to_owned(),
            });
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(file)
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let mut json = Vec::new();
    // One byte more than allowed, so that a file of exactly the limit is told from a longer one.
    File::open(path)?.take(RECORD_BYTES_MAX + 1).read_to_end(&mut json)?;
    if json.len() as u64 > RECORD_BYTES_MAX {
        return Err(io::Error::other(format!("more than {RECORD_BYTES_MAX} bytes")));
    }
    // The error may quote the file.
    serde_json::from_slice(&json).map_err(|error| io::Error::other(shown(&error.to_string())))
}

/// Renames a bad record to the first free `<name>.json.bad-<n>` and says what became of it.
fn set_aside(path: &Path) -> String {
    let free = (1..=BAD_RECORDS_MAX)
        .map(|n| PathBuf::from(format!("{}.bad-{n}", path.display())))
        .find(|aside| fs::symlink_metadata(aside).is_err());
    let Some(aside) = free else {
        return format!("it stays: there are {BAD_RECORDS_MAX} bad ones beside it already");
    };
    match fs::rename(path, &aside) {
        Ok(()) => format!("moved to {}", aside.display()),
        Err(error) => format!("it cannot be moved aside: {error}"),
    }
}

#[cfg(test)]
mod tests;

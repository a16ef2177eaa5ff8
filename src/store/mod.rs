//! The agent's durable record of each node: one JSON file per node in the state directory.
//!
//! Called by the agent's driver, which saves a node *before* the side effect its new state announces. It must never delete a record it
//! cannot read, and never let two agents share a directory. A record holds the attempt's key, so everything here is for its owner only.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::{
    atomic_file,
    model::{ids::NodeName, problem::shown},
    regular_file,
};

mod identity;

const DIR_MODE: u32 = 0o700;
const RECORD_MODE: u32 = 0o600;
const LOCK: &str = "lock";
/// No node can have this name.
const LEFT: &str = "_left.json";
/// A record has a bounded history and some dozen fields; a file this big is not one of ours.
const RECORD_BYTES_MAX: u64 = 4 << 20;
/// Nearly every record has less.
const RECORD_BYTES_USUAL: usize = 64 << 10;
/// Bad records kept of one node. So many damaged in a row point to the disk; more of them would only fill it.
const BAD_RECORDS_MAX: u32 = 100;

/// An open state directory. It stays locked until this is dropped.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    lock: File,
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
    #[error("state directory {}, which must be a directory that hostler's user owns and can write: {source}", dir.display())]
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
    /// It is not the directory that was opened, or its lock file is not: another agent may have it by now.
    #[error("state directory {} was removed or replaced while hostler runs: put it back, or restart hostler", dir.display())]
    Replaced {
        /// The state directory.
        dir: PathBuf,
    },
    /// A record cannot be read, and that says nothing about the record.
    #[error("record {}, which hostler's user must be able to read: {source}", path.display())]
    Read {
        /// The record.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A record cannot be written or removed.
    #[error("record {}: {source}", path.display())]
    Write {
        /// The record.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is in a record is not one. It stays where it is until the next save, and is kept under another name beyond that.
    #[error("record {}: {source}; {fate}", path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
        /// Where it is kept, in words.
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
        Ok(Self { dir, lock })
    }

    /// Writes a node's record; when this returns, it is on disk.
    pub fn save<T: Serialize>(&self, node: &NodeName, record: &T) -> Result<(), StoreError> {
        self.check_still_ours()?;
        write(self.path(node), record)
    }

    /// Reads a node's record; `None` when there is none.
    pub fn load<T: DeserializeOwned>(&self, node: &NodeName) -> Result<Option<T>, StoreError> {
        load(self.path(node))
    }

    /// Reads every record. A damaged one costs only itself; one that cannot be read at all fails the whole.
    pub fn load_all<T: DeserializeOwned>(&self) -> Result<Loaded<T>, StoreError> {
        let mut loaded = Loaded { records: BTreeMap::new(), damaged: Vec::new() };
        let names =
            names(&self.dir).map_err(|source| StoreError::Dir { dir: self.dir.clone(), source })?;
        let nodes = names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok());
        for node in nodes {
            match self.load(&node) {
                Ok(Some(record)) => drop(loaded.records.insert(node, record)),
                Ok(None) => {}
                Err(damaged @ StoreError::Damaged { .. }) => loaded.damaged.push(damaged),
                Err(error) => return Err(error),
            }
        }
        Ok(loaded)
    }

    /// Removes a node's record; that there is none is no error.
    pub fn remove(&self, node: &NodeName) -> Result<(), StoreError> {
        self.check_still_ours()?;
        let path = self.path(node);
        atomic_file::remove_if_there(&path)
            .and_then(|()| atomic_file::sync_dir(&self.dir))
            .map_err(|source| StoreError::Write { path, source })
    }

    /// Writes what is known of machines that no node has any more; when this returns, it is on disk.
    pub fn save_left<T: Serialize>(&self, left: &T) -> Result<(), StoreError> {
        self.check_still_ours()?;
        write(self.dir.join(LEFT), left)
    }

    /// Reads it; `None` when there is none.
    pub fn load_left<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        load(self.dir.join(LEFT))
    }

    fn path(&self, node: &NodeName) -> PathBuf {
        self.dir.join(format!("{node}.json"))
    }

    /// The lock guards the file that was locked, wherever it is by now; what counts is the one in the directory.
    fn check_still_ours(&self) -> Result<(), StoreError> {
        let path = self.dir.join(LOCK);
        let ours = self.lock.metadata().and_then(|lock| Ok(is_same(&lock, &fs::metadata(path)?)));
        match ours {
            Ok(true) => Ok(()),
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Dir { dir: self.dir.clone(), source })
            }
            Ok(false) | Err(_) => Err(StoreError::Replaced { dir: self.dir.clone() }),
        }
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
        .open(dir.join(LOCK))
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

fn write<T: Serialize>(path: PathBuf, content: &T) -> Result<(), StoreError> {
    // The key and the CHAP secret of an attempt are in it.
    let mut json = Zeroizing::new(Vec::with_capacity(RECORD_BYTES_USUAL));
    serde_json::to_writer_pretty(&mut *json, content)
        .map_err(io::Error::from)
        .and_then(|()| atomic_file::replace(&path, RECORD_MODE, &json))
        .map_err(|source| StoreError::Write { path, source })
}

fn load<T: DeserializeOwned>(path: PathBuf) -> Result<Option<T>, StoreError> {
    match read(&path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) if is_damage(&source) => {
            Err(StoreError::Damaged { fate: keep_aside(&path), path, source })
        }
        Err(source) => Err(StoreError::Read { path, source }),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let json = Zeroizing::new(regular_file::read(path, RECORD_BYTES_MAX)?);
    // The error may quote the file.
    let bad = |error: serde_json::Error| shown(&error.to_string());
    serde_json::from_slice(&json)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, bad(error)))
}

/// Whether the record itself is bad. A system that is out of file descriptors, say, makes no good record a bad one.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, UnexpectedEof};
    matches!(error.kind(), InvalidData | UnexpectedEof | IsADirectory)
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Gives a bad record the first free name `<name>.json.bad-<n>` too, and says what became of it. It is linked, not moved: were the
/// agent killed now, the next one must not take its node for one never seen.
fn keep_aside(path: &Path) -> String {
    for n in 1..=BAD_RECORDS_MAX {
        let aside = PathBuf::from(format!("{}.bad-{n}", path.display()));
        let there = fs::symlink_metadata(&aside).and_then(|there| Ok((there, fs::metadata(path)?)));
        let kept = match there {
            Ok((there, record)) if is_same(&there, &record) => Ok(()),
            Ok(_) => continue,
            // A directory can only be moved.
            Err(_) => fs::hard_link(path, &aside).or_else(|_| fs::rename(path, &aside)),
        };
        return match kept {
            Ok(()) => format!("kept as {}", aside.display()),
            Err(error) => format!("it cannot be kept: {error}"),
        };
    }
    format!("it is not kept: there are {BAD_RECORDS_MAX} bad ones beside it already")
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
mod tests;

//! The agent's durable state: a record for each node, and a site file for everything else.
//!
//! Called by the agent, which saves a node *before* the effects that the new state announces. It
//! must never delete a file it cannot read, take a damaged or missing file for an empty one, or let
//! two agents share a directory. Records hold attempts' keys, so that only their owner may read the
//! directory.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io::{self, Read, Seek as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    atomic_file,
    model::{ids::NodeName, problem::shown},
    regular_file,
};

use self::format::SealCheck;

mod checkpoints;
mod format;
mod identity;

pub use self::{checkpoints::Checkpoints, identity::AnotherAgent};

const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const LOCK: &str = "lock";
/// The largest lock file, in bytes: the agent's process, the directory's age and its id.
const LOCK_BYTES_MAX: u64 = 1024;
/// The site file. No node can have this name.
const SITE: &str = "_site.json";
/// The site file of format 1, which existed only if it had content.
const SITE_1: &str = "_left.json";
/// A record has a bounded history and some dozen fields; hostler writes no file this big.
const RECORD_BYTES_MAX: u64 = 4 << 20;
/// The bytes at the start of a record that tell its format.
const START_BYTES: u64 = 64;
/// Room for ten thousand unclaimed machines and as many nodes.
const SITE_BYTES_MAX: u64 = 64 << 20;

/// An open state directory, which stays locked until this is dropped.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    lock: File,
    age: Age,
    /// The directory's id, as the lock file has it.
    id: Option<String>,
}

/// The age of a state directory. The lock file records it from the first start on, so that neither
/// a kill nor the loss of another file makes the directory look younger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    /// No agent has completed a start on the directory.
    New,
    /// Files of format 1, which had no checksums, are accepted until the upgrade is complete.
    Format1,
    /// A directory of the current format: it has the file [`SITE`], and a missing record is lost.
    Current,
}

impl Age {
    const ALL: [Self; 3] = [Self::New, Self::Format1, Self::Current];

    /// The age's line in the lock file.
    const fn line(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Format1 => "format 1",
            Self::Current => "format 2",
        }
    }
}

/// Converts a file's JSON of format 1, strictly.
pub type Upgrade<T> = fn(Value) -> Result<T, String>;

/// Every record of a state directory.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The whole records.
    pub records: BTreeMap<NodeName, T>,
    /// The nodes whose record is damaged, each with a [`StoreError::Damaged`].
    pub damaged: BTreeMap<NodeName, StoreError>,
    /// The nodes whose record is of format 1 and must be saved again.
    pub old: Vec<NodeName>,
}

/// The reason why the state directory or one of its files cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub enum StoreError {
    /// The directory cannot be made, opened, locked or listed.
    #[error("state directory {}, which must be a directory that hostler's user owns and can write: \
        {source}", dir.display())]
    Dir { dir: PathBuf, source: io::Error },
    /// Another agent has the directory.
    #[error(
        "state directory {} is in use by process {holder}; only one agent may run on it",
        dir.display()
    )]
    InUse {
        dir: PathBuf,
        /// The other agent's process id, as it wrote it down.
        holder: String,
    },
    /// Somebody replaced the directory or its lock file: another agent may use it by now.
    #[error("state directory {} was removed or replaced while hostler runs: put it back, or \
        restart hostler", dir.display())]
    Replaced { dir: PathBuf },
    /// A file cannot be read; its content may be whole.
    #[error("record {}, which hostler's user must be able to read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A file cannot be written or removed.
    #[error("record {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// The content of a file is not what hostler wrote. The file stays until the next save, and is
    /// kept under another name beyond that.
    #[error("record {}: {source}; {fate}", path.display())]
    Damaged {
        path: PathBuf,
        source: io::Error,
        /// Where it is kept, in words.
        fate: String,
    },
    /// A file that always exists is missing.
    #[error("{} is missing", path.display())]
    Missing { path: PathBuf },
}

impl Drop for Store {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that another thread starts at this moment has a
        // copy of the descriptor until it runs its program.
        flock(&self.lock, FlockOperation::Unlock).unwrap_or_default();
    }
}

impl Store {
    /// Opens the state directory, makes it if need be, and locks it for this process. Removes the
    /// temporary files of a killed agent, which nothing relied on yet.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let dir = dir.into();
        let failed = |source| StoreError::Dir { dir: dir.clone(), source };
        DirBuilder::new().recursive(true).mode(DIR_MODE).create(&dir).map_err(failed)?;
        fs::set_permissions(&dir, Permissions::from_mode(DIR_MODE)).map_err(failed)?;
        let (lock, text) = lock(&dir)?;
        let (torn, names): (Vec<_>, Vec<_>) =
            names(&dir).map_err(failed)?.into_iter().partition(|name| atomic_file::is_torn(name));
        for name in torn {
            let path = dir.join(name);
            let removed = atomic_file::remove_torn(&path);
            removed.map_err(|source| StoreError::Write { path, source })?;
        }
        let age = age(&dir, &names, &text);
        let id = text.lines().find_map(|line| identity::decode(line).ok());
        let mut store = Self { dir, lock, age, id };
        store.write_lock()?;
        Ok(store)
    }

    /// Whether no agent has completed a start on the directory, so that it knows nothing of the
    /// site.
    pub fn is_new(&self) -> bool {
        self.age == Age::New
    }

    /// Writes a node's record durably.
    pub fn save<T: Serialize>(&self, node: &NodeName, record: &T) -> Result<(), StoreError> {
        self.check_still_ours()?;
        write(self.path(node), "record", node.as_str(), record)
    }

    /// Reads every record. Damaged records are listed; an unreadable one fails the whole.
    pub fn load_all<T: Serialize + DeserializeOwned>(
        &self,
        upgrade: Upgrade<T>,
    ) -> Result<Loaded<T>, StoreError> {
        let (records, damaged) = (BTreeMap::new(), BTreeMap::new());
        let mut loaded = Loaded { records, damaged, old: Vec::new() };
        let names =
            names(&self.dir).map_err(|source| StoreError::Dir { dir: self.dir.clone(), source })?;
        let nodes = names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok());
        for node in nodes {
            match self.load(&node, upgrade) {
                Ok(Some((record, is_old))) => {
                    loaded.old.extend(is_old.then(|| node.clone()));
                    loaded.records.insert(node, record);
                }
                Ok(None) => {}
                Err(damaged @ StoreError::Damaged { .. }) => {
                    loaded.damaged.insert(node, damaged);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(loaded)
    }

    fn load<T: Serialize + DeserializeOwned>(
        &self,
        node: &NodeName,
        upgrade: Upgrade<T>,
    ) -> Result<Option<(T, bool)>, StoreError> {
        let upgrade = (self.age == Age::Format1).then_some(upgrade);
        load(self.path(node), RECORD_BYTES_MAX, ("record", node.as_str()), upgrade)
    }

    /// Keeps a copy of a whole record that contradicts itself, and returns the place in words.
    pub fn keep_record_aside(&self, node: &NodeName) -> String {
        atomic_file::keep_aside(&self.path(node))
    }

    /// Removes a node's record durably, and its checkpoint. A missing file is no error.
    pub fn remove(&self, node: &NodeName) -> Result<(), StoreError> {
        self.check_still_ours()?;
        checkpoints::remove(&self.dir, node)?;
        let path = self.path(node);
        atomic_file::remove_if_there(&path)
            .and_then(|()| atomic_file::sync_dir(&self.dir))
            .map_err(|source| StoreError::Write { path, source })
    }

    /// Writes the site file durably.
    pub fn save_site<T: Serialize>(&self, site: &T) -> Result<(), StoreError> {
        self.check_still_ours()?;
        write(self.dir.join(SITE), "site", "", site)
    }

    /// Reads the site file; `None` if none was ever written. A missing or damaged one is an error.
    pub fn load_site<T: Serialize + DeserializeOwned>(
        &self,
        upgrade: Upgrade<T>,
    ) -> Result<Option<T>, StoreError> {
        let load = |name, upgrade| load(self.dir.join(name), SITE_BYTES_MAX, ("site", ""), upgrade);
        let found = match self.age {
            Age::New => None,
            Age::Format1 => load(SITE_1, Some(upgrade))?,
            Age::Current => {
                let missing = || StoreError::Missing { path: self.dir.join(SITE) };
                Some(load(SITE, None)?.ok_or_else(missing)?)
            }
        };
        Ok(found.map(|(site, _)| site))
    }

    /// Notes that everything is saved in the current format: from now on a missing file is lost.
    pub fn complete_upgrade(&mut self) -> Result<(), StoreError> {
        if self.age != Age::Current {
            self.age = Age::Current;
            self.write_lock()?;
        }
        atomic_file::remove_if_there(&self.dir.join(SITE_1))
            .map_err(|source| StoreError::Dir { dir: self.dir.clone(), source })
    }

    /// Writes the lock file's lines: process, age and id. One write over the old content, so that
    /// the file is never empty.
    fn write_lock(&mut self) -> Result<(), StoreError> {
        let id = self.id.as_deref().map(identity::encode).unwrap_or_default();
        let text = format!("{}\n{}\n{id}", std::process::id(), self.age.line());
        let written = self.lock.rewind().and_then(|()| self.lock.write_all(text.as_bytes()));
        written
            .and_then(|()| self.lock.set_len(text.len() as u64))
            .and_then(|()| self.lock.sync_all())
            .map_err(|source| StoreError::Dir { dir: self.dir.clone(), source })
    }

    fn path(&self, node: &NodeName) -> PathBuf {
        self.dir.join(format!("{node}.json"))
    }

    /// Checks that the locked file is still the directory's lock file: `flock` follows a file that
    /// was moved.
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

/// Locks the directory and returns the lock file's text. The kernel releases the lock when the
/// process ends, however it ends.
fn lock(dir: &Path) -> Result<(File, String), StoreError> {
    let failed = |source| StoreError::Dir { dir: dir.to_owned(), source };
    let path = dir.join(LOCK);
    // Opening a FIFO would wait for ever, and a device may act on being opened.
    match regular_file::open(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(atomic_file::at(&path, &error)));
        }
        Ok(_) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(&path)
        .map_err(|error| failed(atomic_file::at(&path, &error)))?;
    let is_ours = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => true,
        Err(rustix::io::Errno::WOULDBLOCK) => false,
        Err(errno) => return Err(failed(errno.into())),
    };
    let mut text = Vec::new();
    Read::by_ref(&mut file).take(LOCK_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    if is_ours {
        return Ok((file, text));
    }
    let holder = shown(text.lines().next().unwrap_or_default());
    Err(StoreError::InUse { dir: dir.to_owned(), holder })
}

/// The age of a directory with these files, by the lock file, or else by the other files.
fn age(dir: &Path, names: &[String], lock: &str) -> Age {
    let reported = Age::ALL.into_iter().find(|age| lock.lines().any(|line| line == age.line()));
    if names.iter().any(|name| name == SITE) {
        return Age::Current;
    }
    let has_records = names.iter().any(|name| is_record(name));
    reported.filter(|age| *age != Age::New || !has_records).unwrap_or_else(|| {
        if names.iter().all(|name| name == LOCK) {
            Age::New
        } else if names.iter().any(|name| is_of_this_format(dir, name)) {
            Age::Current
        } else {
            Age::Format1
        }
    })
}

/// Whether the file is one that format 1 did not have.
fn is_of_this_format(dir: &Path, name: &str) -> bool {
    let start = || regular_file::read_start(regular_file::open(&dir.join(name))?, START_BYTES);
    let is_sealed = || start().is_ok_and(|start| format::is_sealed(&start));
    name == identity::STATE_ID || is_record(name) && is_sealed()
}

fn is_record(name: &str) -> bool {
    name.strip_suffix(".json").is_some_and(|stem| stem.parse::<NodeName>().is_ok())
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn write<T: Serialize>(path: PathBuf, kind: &str, of: &str, content: &T) -> Result<(), StoreError> {
    format::seal(kind, of, content)
        .and_then(|bytes| atomic_file::replace(&path, FILE_MODE, &bytes))
        .map_err(|source| StoreError::Write { path, source })
}

/// Reads a file's content, and whether it is of format 1, which needs an `upgrade`.
fn load<T: Serialize + DeserializeOwned>(
    path: PathBuf,
    bytes_max: u64,
    (kind, of): (&str, &str),
    upgrade: Option<Upgrade<T>>,
) -> Result<Option<(T, bool)>, StoreError> {
    let read = regular_file::read(&path, bytes_max).map(Zeroizing::new).and_then(|bytes| {
        let content = match (format::unseal(kind, of, &bytes), upgrade) {
            (SealCheck::Content(json), _) => format::parse(json).map(|content| (content, false)),
            (SealCheck::Format1, Some(upgrade)) => serde_json::from_slice(&bytes)
                .map_err(|error| shown(&error.to_string()))
                .and_then(upgrade)
                .map(|content| (content, true)),
            (SealCheck::Format1, None) => Err("it is not of hostler's format".to_owned()),
            (SealCheck::Damaged(why), _) => Err(why),
        };
        content.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
    });
    match read {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) if is_damage(&source) => {
            Err(StoreError::Damaged { fate: atomic_file::keep_aside(&path), path, source })
        }
        Err(source) => Err(StoreError::Read { path, source }),
    }
}

/// Whether an error says that the file is bad. Running out of file descriptors, say, does not.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, UnexpectedEof};
    matches!(error.kind(), InvalidData | UnexpectedEof | IsADirectory)
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
mod tests;

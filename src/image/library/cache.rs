//! The cache's directory: names, locks and descriptions of its files.
//!
//! The library calls it on threads that may block. An entry consists of `<name>.raw`, the image's
//! bytes, `<name>.sums`, their checksums, and `<name>.toml`, the description of both. Before that
//! there are `<name>.part`, the published file, and `<name>.tmp`, the unpacked one. Users of an
//! entry hold `<name>.lock` shared; a process that makes or removes the entry holds it exclusively.
//! The lock file's time is that of the last use. The cache must never return an incomplete entry,
//! and a foreign file under one of these names must not block the fetch of an image.

use std::{
    fmt,
    fs::{self, DirBuilder, File, Metadata, Permissions},
    io,
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, lchown,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use jiff::Timestamp;
use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
    process::geteuid,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::content::{self, Content};
use crate::{
    atomic_file,
    checked_file::CheckedFile,
    model::{
        ids::{Digest, DigestAlgorithm},
        spec::ImageFormat,
    },
    regular_file,
};

const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const SESSION: &str = "session";
/// The version of descriptions. Version 1 had no checksums and no seal: its images are read once,
/// and described anew.
const VERSION: u32 = 2;
const VERSION_UNSEALED: u32 = 1;
/// Suffix of the names of files that are kept as published.
const PLAIN: &str = "-file";
/// Prefix of a description's last line, which holds the digest of the other lines.
const SEAL: &str = "# ";
/// Largest description, in bytes. The longest source has a few kB.
const ABOUT_BYTES_MAX: u64 = 64 << 10;

/// The cache's directory.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    pub(super) dir: PathBuf,
}

/// The name of an image in the cache: the digest of the published file, and the format in the spec,
/// because the same file may be read as one or the other. `sha256-0123…` or `sha256-0123…-raw`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(String);

impl Name {
    /// The name of a file kept as published: `sha256-0123…-file`.
    pub(super) fn of_plain(digest: &Digest) -> Self {
        Self(format!("{}{PLAIN}", digest.to_string().replace(':', "-")))
    }

    /// Whether the file is kept as published.
    pub(super) fn is_plain(&self) -> bool {
        self.0.ends_with(PLAIN)
    }

    pub(super) fn new(digest: &Digest, format: ImageFormat) -> Self {
        let digest = digest.to_string().replace(':', "-");
        Self(match format {
            ImageFormat::Auto => digest,
            ImageFormat::Raw => format!("{digest}-raw"),
            ImageFormat::Qcow2 => format!("{digest}-qcow2"),
        })
    }

    pub(super) fn digest(&self) -> Option<Digest> {
        let (algorithm, rest) = self.0.split_once('-')?;
        let hash = rest.split('-').next()?;
        format!("{algorithm}:{hash}").parse().ok()
    }

    /// Parses a file name of the cache as an image's name and the kind of file.
    pub(super) fn of_file(file_name: &str) -> Option<(Self, CacheFileKind)> {
        let (stem, suffix) = file_name.rsplit_once('.')?;
        let kind = CacheFileKind::ALL.into_iter().find(|kind| kind.suffix() == suffix)?;
        let name = Self(stem.to_owned());
        name.digest().is_some().then_some((name, kind))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The files of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheFileKind {
    /// The description of an entry, in TOML.
    About,
    /// The raw bytes.
    Raw,
    /// The checksums of its blocks.
    Sums,
    /// The published file, perhaps incomplete.
    Partial,
    /// The raw file during unpacking.
    Temporary,
    /// The unpacked inner file, whose name exists only for a moment.
    Scratch,
    /// The lock of its users.
    Lock,
}

impl CacheFileKind {
    /// In the order of removal: the description first, so that the entry is gone at once, and the
    /// lock last.
    pub(super) const ALL: [Self; 7] = [
        Self::About,
        Self::Raw,
        Self::Sums,
        Self::Partial,
        Self::Temporary,
        Self::Scratch,
        Self::Lock,
    ];

    const fn suffix(self) -> &'static str {
        match self {
            Self::About => "toml",
            Self::Raw => "raw",
            Self::Sums => "sums",
            Self::Partial => "part",
            Self::Temporary => "tmp",
            Self::Scratch => "scratch",
            Self::Lock => "lock",
        }
    }
}

/// The stored description of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    pub(super) version: u32,
    /// Digest of the file as published.
    pub(super) digest: Digest,
    /// Source of the file, without credentials.
    pub(super) source: String,
    /// Time when the entry was made.
    pub(super) made: Timestamp,
    /// Number of raw bytes.
    pub(super) bytes: u64,
    /// Digest of the raw bytes, as the module `content` computes it.
    pub(super) content: Digest,
    /// Time of the file's last write; nothing writes to it afterwards.
    pub(super) modified: Timestamp,
    /// The session that has checked the entry.
    pub(super) session: String,
}

/// A held lock of an image in the cache.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    /// Unlocks the file, not only its own descriptor: a process that another thread starts at this
    /// moment has a copy of all descriptors until it runs its program.
    fn drop(&mut self) {
        // Without this, closing the file unlocks it.
        flock(&self.0, FlockOperation::Unlock).unwrap_or_default();
    }
}

impl Lock {
    /// Records a use, for the choice of images to remove.
    fn touch(&self) {
        // Only that choice depends on the time.
        drop(self.0.set_modified(SystemTime::now()));
    }

    /// Whether the lock file still exists: another process may remove it between opening and
    /// locking, and a lock on a removed file protects nothing.
    fn is_there(&self) -> io::Result<bool> {
        Ok(self.0.metadata()?.nlink() > 0)
    }

    fn try_take(&self, operation: FlockOperation) -> io::Result<bool> {
        match flock(&self.0, operation) {
            Ok(()) => self.is_there(),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The result of a request for an image.
#[derive(Debug)]
pub(super) enum Taken {
    /// The image is complete; its lock is held shared.
    Whole(Lock, CheckedFile),
    /// The image is missing or not trusted; its lock is held exclusively.
    Missing(Lock),
    /// Another process works on the image.
    Busy,
}

impl Cache {
    /// Makes the directory if it does not exist.
    pub(super) fn prepare(&self) -> io::Result<()> {
        if !self.dir.is_dir() {
            DirBuilder::new().recursive(true).mode(DIR_MODE).create(&self.dir)?;
            give_to_owner(self.dir.parent().unwrap_or(&self.dir), &self.dir)?;
        }
        if fs::metadata(&self.dir)?.permissions().mode() & 0o777 != DIR_MODE {
            fs::set_permissions(&self.dir, Permissions::from_mode(DIR_MODE))?;
        }
        Ok(())
    }

    /// The file that all sessions share.
    pub(super) fn session_file(&self) -> io::Result<File> {
        self.open(&self.dir.join(SESSION))
    }

    pub(super) fn path(&self, name: &Name, kind: CacheFileKind) -> PathBuf {
        self.dir.join(format!("{name}.{}", kind.suffix()))
    }

    /// Opens a file of an image for writing; its content stays.
    pub(super) fn create(&self, name: &Name, kind: CacheFileKind) -> io::Result<File> {
        self.open(&self.path(name, kind))
    }

    /// Makes an empty file without a name, which disappears when it is closed.
    pub(super) fn scratch(&self, name: &Name) -> io::Result<File> {
        let file = self.create(name, CacheFileKind::Scratch)?;
        self.remove(name, CacheFileKind::Scratch)?;
        file.set_len(0)?;
        Ok(file)
    }

    /// Requests an image that was complete in this session. Does not wait.
    pub(super) fn take(&self, name: &Name, session: &str) -> io::Result<Taken> {
        let lock = Lock(self.create(name, CacheFileKind::Lock)?);
        if !lock.try_take(FlockOperation::NonBlockingLockShared)? {
            return Ok(Taken::Busy);
        }
        if let Some(raw) = self.trusted(name, session)? {
            lock.touch();
            return Ok(Taken::Whole(lock, raw));
        }
        // The shared lock ends before the exclusive one begins. If another process makes the image
        // in between, the caller's next request finds it.
        let alone = lock.try_take(FlockOperation::NonBlockingLockExclusive)?;
        if !alone || self.trusted(name, session)?.is_some() {
            return Ok(Taken::Busy);
        }
        for kind in [CacheFileKind::About, CacheFileKind::Raw, CacheFileKind::Sums] {
            clear_irregular(&self.path(name, kind))?;
        }
        lock.touch();
        Ok(Taken::Missing(lock))
    }

    /// Locks an image that no other process uses.
    pub(super) fn take_alone(&self, name: &Name) -> io::Result<Option<Lock>> {
        let lock = Lock(self.create(name, CacheFileKind::Lock)?);
        Ok(lock.try_take(FlockOperation::NonBlockingLockExclusive)?.then_some(lock))
    }

    /// Locks an unused image for a pass over all images: an error with one image does not stop the
    /// pass.
    pub(super) fn take_idle(&self, name: &Name) -> Option<Lock> {
        self.take_alone(name).unwrap_or_else(|error| {
            warn!(image = %name, %error, "a cached image cannot be locked and is skipped");
            None
        })
    }

    /// Reads an entry's description; `None` if it is unreadable or its seal is wrong.
    pub(super) fn about(&self, name: &Name) -> Option<About> {
        let path = self.path(name, CacheFileKind::About);
        let text = regular_file::read_to_string(&path, ABOUT_BYTES_MAX).ok()?;
        let about: About = toml::from_str(&text).ok()?;
        let is_whole = match about.version {
            VERSION => is_sealed(&text),
            // Its image is not trusted before a full read.
            VERSION_UNSEALED => true,
            _ => false,
        };
        (is_whole && name.digest().as_ref() == Some(&about.digest)).then_some(about)
    }

    /// Writes the description of the raw file, which is durable, as are its checksums.
    pub(super) fn write_about(
        &self,
        name: &Name,
        raw: &File,
        source: &str,
        content: Digest,
        session: &str,
    ) -> io::Result<()> {
        let metadata = raw.metadata()?;
        let about = About {
            version: VERSION,
            digest: name.digest().ok_or(io::ErrorKind::InvalidInput)?,
            source: source.to_owned(),
            made: Timestamp::now(),
            bytes: metadata.len(),
            content,
            modified: modified(&metadata)?,
            session: session.to_owned(),
        };
        let text = sealed(toml::to_string(&about).map_err(io::Error::other)?);
        let path = self.path(name, CacheFileKind::About);
        atomic_file::replace(&path, FILE_MODE, text.as_bytes())?;
        give_to_owner(&self.dir, &path)
    }

    /// Makes `from`, which holds the raw bytes, an entry. The entry is durable when this returns.
    pub(super) fn seal(
        &self,
        name: &Name,
        from: CacheFileKind,
        source: &str,
        content: Digest,
        session: &str,
    ) -> io::Result<()> {
        let path = self.path(name, from);
        let raw = regular_file::open(&path)?;
        raw.sync_all()?;
        regular_file::open(&self.path(name, CacheFileKind::Sums))?.sync_all()?;
        self.write_about(name, &raw, source, content, session)?;
        fs::rename(&path, self.path(name, CacheFileKind::Raw))?;
        atomic_file::sync_dir(&self.dir)?;
        for left in [CacheFileKind::Partial, CacheFileKind::Temporary] {
            self.remove(name, left)?;
        }
        Ok(())
    }

    pub(super) fn remove(&self, name: &Name, kind: CacheFileKind) -> io::Result<()> {
        let path = self.path(name, kind);
        clear_irregular(&path)?;
        atomic_file::remove_if_there(&path).map_err(|error| atomic_file::at(&path, &error))
    }

    /// Removes an entry whose bytes have changed, unless another entry has replaced it. A process
    /// that still reads it keeps the file, and its lock on the removed lock file does not block
    /// another fetch.
    pub(super) fn discard(&self, name: &Name, raw: &File) -> io::Result<()> {
        let place = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let there = match fs::symlink_metadata(self.path(name, CacheFileKind::Raw)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            there => there?,
        };
        if place(there) != place(raw.metadata()?) {
            return Ok(());
        }
        for kind in
            [CacheFileKind::About, CacheFileKind::Raw, CacheFileKind::Sums, CacheFileKind::Lock]
        {
            self.remove(name, kind)?;
        }
        Ok(())
    }

    /// Opens the raw file with its checksums after any end of its session, for a caller that reads
    /// the whole file first.
    pub(super) fn unchecked(&self, name: &Name) -> io::Result<Option<CheckedFile>> {
        match self.about(name) {
            Some(About { session, .. }) => self.trusted(name, &session),
            None => Ok(None),
        }
    }

    /// Opens the raw file with its checksums, if its description and session are valid. Each read
    /// compares the content.
    fn trusted(&self, name: &Name, session: &str) -> io::Result<Option<CheckedFile>> {
        let Some(about) = self.about(name) else { return Ok(None) };
        if about.version != VERSION || about.session != session {
            return Ok(None);
        }
        let open = |kind| match regular_file::open(&self.path(name, kind)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // The next making of the image removes it.
            Err(error) if regular_file::NotRegular::is_cause_of(&error) => Ok(None),
            file => file.map(Some),
        };
        let (Some(raw), Some(sums)) = (open(CacheFileKind::Raw)?, open(CacheFileKind::Sums)?)
        else {
            return Ok(None);
        };
        let metadata = raw.metadata()?;
        if about.bytes != metadata.len() || about.modified != modified(&metadata)? {
            return Ok(None);
        }
        // Missing or wrong checksums prove nothing about the image: it is read, and they are made
        // anew.
        if content::digest(&sums, about.bytes).ok() != Some(about.content) {
            return Ok(None);
        }
        CheckedFile::new(Arc::new(raw), sums).map(Some)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        // The directory's owner must not redirect root by a symbolic link, nor block it by a FIFO.
        options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
        clear_irregular(path)?;
        let file = options.open(path).map_err(|error| atomic_file::at(path, &error))?;
        give_to_owner(&self.dir, path)?;
        Ok(file)
    }
}

/// Removes an irregular file under a name of the cache: the directory is hostler's own, and such a
/// file would block the fetch of the image.
fn clear_irregular(path: &Path) -> io::Result<()> {
    if let Some(was) = atomic_file::clear_irregular(path)? {
        warn!(path = %path.display(), was, "a foreign file was in a cache file's place");
    }
    Ok(())
}

/// Gives a file that root made (`hostler cache fetch`) to the directory's owner, the agent.
fn give_to_owner(dir: &Path, path: &Path) -> io::Result<()> {
    let owner = fs::metadata(dir)?;
    if geteuid().is_root() && owner.uid() != 0 {
        lchown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// Appends the digest of the text as the last line, a comment in TOML.
fn sealed(text: String) -> String {
    let seal = seal(&text);
    text + &seal
}

fn is_sealed(text: &str) -> bool {
    let body = text.strip_suffix('\n').and_then(|text| Some(text.rfind('\n')? + 1));
    let body = body.and_then(|end| text.get(..end));
    body.is_some_and(|body| text == format!("{body}{}", seal(body)))
}

fn seal(text: &str) -> String {
    let digest = Digest::from_bytes(DigestAlgorithm::Sha256, &Sha256::digest(text));
    let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
    format!("{SEAL}{digest}\n")
}

impl About {
    /// Whether the description matches a file with this content.
    pub(super) fn describes(&self, content: &Content) -> bool {
        let found = if self.version == VERSION { &content.digest } else { &content.digest_v1 };
        self.content == *found
    }
}

fn modified(metadata: &Metadata) -> io::Result<Timestamp> {
    Timestamp::try_from(metadata.modified()?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The copy of a descriptor that a process has which is started while the lock is held.
    #[test]
    fn an_image_is_free_once_its_lock_is_dropped_although_another_process_starts() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache { dir: dir.path().to_owned() };
        let digest = Digest::from_bytes(DigestAlgorithm::Sha256, &Sha256::digest("a")).unwrap();
        let name = Name::new(&digest, ImageFormat::Raw);
        let lock = cache.take_alone(&name).unwrap().unwrap();
        let copy = lock.0.try_clone().unwrap();
        assert!(cache.take_idle(&name).is_none(), "it is in use");
        drop(lock);
        assert!(cache.take_idle(&name).is_some());
        drop(copy);
    }
}

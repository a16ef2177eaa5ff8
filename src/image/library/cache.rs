//! The cache's directory: what its files are called, who may touch them when, and what is written
//! down about an image.
//!
//! Called by the library, on threads that may block. For each image there are `<name>.raw`, its
//! bytes, `<name>.sums`, their checksums, and `<name>.toml`, what is known of both; all together
//! are an entry. On the way there: `<name>.part`, as published, and `<name>.tmp`, being unpacked.
//! `<name>.lock` is held shared by those who use the entry, alone by the one who makes or removes
//! it, and its time is that of the last use. It must never show an entry that is not whole, nor let
//! whatever else somebody put under one of these names keep images from being fetched.

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
/// The version of what is written down. The first one had no checksums and no seal: its images are
/// read once, and written down anew.
const VERSION: u32 = 2;
const VERSION_UNSEALED: u32 = 1;
/// At the end of the name of what is kept as it was published.
const PLAIN: &str = "-file";
/// Before the digest of all that is written down, at its end.
const SEAL: &str = "# ";
/// The longest source is a few kB.
const ABOUT_BYTES_MAX: u64 = 64 << 10;

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    pub(super) dir: PathBuf,
}

/// Name of an image in the cache: the digest of the published file, and the format in the spec,
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

    /// The image that a file of the cache belongs to, if any.
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
    /// The result of an inner layer; it has a name for a moment only.
    Scratch,
    /// The lock of its users.
    Lock,
}

impl CacheFileKind {
    /// In the order in which they are removed: an entry stops to be one at once, and its lock goes
    /// last.
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
    /// Time of its making.
    pub(super) made: Timestamp,
    /// Number of raw bytes.
    pub(super) bytes: u64,
    /// Digest of the raw bytes; see `content`.
    pub(super) content: Digest,
    /// Time of the file's last write; nothing writes to it afterwards.
    pub(super) modified: Timestamp,
    /// The session that has checked it.
    pub(super) session: String,
}

/// A held lock of an image in the cache.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Records the use, for the choice of images to remove.
    fn touch(&self) {
        // Nothing but that choice depends on it.
        drop(self.0.set_modified(SystemTime::now()));
    }

    /// Somebody may remove the file between its opening and its locking; who holds a lock on no
    /// file holds nothing.
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

/// The state of an image that was asked for.
#[derive(Debug)]
pub(super) enum Taken {
    /// It is whole, and held.
    Whole(Lock, CheckedFile),
    /// It is not there, or not to be trusted; the asker holds it alone.
    Missing(Lock),
    /// Somebody else works on it.
    Busy,
}

impl Cache {
    /// Makes the directory if need be.
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

    /// A file of an image, to write to; what is in it stays.
    pub(super) fn create(&self, name: &Name, kind: CacheFileKind) -> io::Result<File> {
        self.open(&self.path(name, kind))
    }

    /// An empty file without a name, gone when it is closed.
    pub(super) fn scratch(&self, name: &Name) -> io::Result<File> {
        let file = self.create(name, CacheFileKind::Scratch)?;
        self.remove(name, CacheFileKind::Scratch)?;
        file.set_len(0)?;
        Ok(file)
    }

    /// Asks for an image that was whole in this session. Does not wait for anybody.
    pub(super) fn take(&self, name: &Name, session: &str) -> io::Result<Taken> {
        let lock = Lock(self.create(name, CacheFileKind::Lock)?);
        if !lock.try_take(FlockOperation::NonBlockingLockShared)? {
            return Ok(Taken::Busy);
        }
        if let Some(raw) = self.trusted(name, session)? {
            lock.touch();
            return Ok(Taken::Whole(lock, raw));
        }
        // The shared hold ends before the other begins. If somebody makes the image in between, it
        // is asked for once more.
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

    /// An image nobody else uses or works on.
    pub(super) fn take_alone(&self, name: &Name) -> io::Result<Option<Lock>> {
        let lock = Lock(self.create(name, CacheFileKind::Lock)?);
        Ok(lock.try_take(FlockOperation::NonBlockingLockExclusive)?.then_some(lock))
    }

    /// The same, for what goes over all images: one whose lock cannot be had costs no other.
    pub(super) fn take_idle(&self, name: &Name) -> Option<Lock> {
        self.take_alone(name).unwrap_or_else(|error| {
            warn!(image = %name, %error, "a cached image cannot be locked and is left alone");
            None
        })
    }

    /// The description of an entry, if it can be read and its seal is right.
    pub(super) fn about(&self, name: &Name) -> Option<About> {
        let path = self.path(name, CacheFileKind::About);
        let text = regular_file::read_to_string(&path, ABOUT_BYTES_MAX).ok()?;
        let about: About = toml::from_str(&text).ok()?;
        let is_whole = match about.version {
            VERSION => is_sealed(&text),
            // Its image is not trusted before it has been read.
            VERSION_UNSEALED => true,
            _ => false,
        };
        (is_whole && name.digest().as_ref() == Some(&about.digest)).then_some(about)
    }

    /// Writes down what is known of the raw file, which is durable, as its checksums are.
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

    /// Makes `from`, which holds the raw bytes, an entry. When this returns, it is on disk.
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

    /// Throws away an entry whose bytes are no longer what they were, unless another one is in its
    /// place by now. Whoever still reads it keeps its file, and holds a lock on nothing: it keeps
    /// nobody from fetching the image again.
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

    /// The raw file with its checksums, whether or not its session came to a clean end: for who
    /// reads all of it first.
    pub(super) fn unchecked(&self, name: &Name) -> io::Result<Option<CheckedFile>> {
        match self.about(name) {
            Some(About { session, .. }) => self.trusted(name, &session),
            None => Ok(None),
        }
    }

    /// The raw file with its checksums, if nothing speaks against it. What it holds is compared
    /// when it is read.
    fn trusted(&self, name: &Name, session: &str) -> io::Result<Option<CheckedFile>> {
        let Some(about) = self.about(name) else { return Ok(None) };
        if about.version != VERSION || about.session != session {
            return Ok(None);
        }
        let open = |kind| match regular_file::open(&self.path(name, kind)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // It is cleared away by the one who makes the image anew.
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
        // Checksums that cannot be read, or are others, say nothing of the image: it is read, and
        // they are made anew.
        if content::digest(&sums, about.bytes).ok() != Some(about.content) {
            return Ok(None);
        }
        CheckedFile::new(Arc::new(raw), sums).map(Some)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        // Root must not be led elsewhere by whoever owns the directory, nor wait at a FIFO.
        options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
        clear_irregular(path)?;
        let file = options.open(path).map_err(|error| atomic_file::at(path, &error))?;
        give_to_owner(&self.dir, path)?;
        Ok(file)
    }
}

/// The directory is hostler's own, and what lies under its files' names and is none would keep
/// images from being fetched.
fn clear_irregular(path: &Path) -> io::Result<()> {
    if let Some(was) = atomic_file::clear_irregular(path)? {
        warn!(path = %path.display(), was, "something else lay where the cache has a file");
    }
    Ok(())
}

/// Gives a file that root makes (`hostler cache fetch`) to the owner of the directory, the agent.
fn give_to_owner(dir: &Path, path: &Path) -> io::Result<()> {
    let owner = fs::metadata(dir)?;
    if geteuid().is_root() && owner.uid() != 0 {
        lchown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// With the digest of it all as the last line: a comment to who reads only what is before it.
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
    /// Whether a file with this content is what was written down.
    pub(super) fn describes(&self, content: &Content) -> bool {
        let found = if self.version == VERSION { &content.digest } else { &content.digest_v1 };
        self.content == *found
    }
}

fn modified(metadata: &Metadata) -> io::Result<Timestamp> {
    Timestamp::try_from(metadata.modified()?).map_err(io::Error::other)
}

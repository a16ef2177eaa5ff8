//! Scans the spec directory through one handle, so that a directory that is swapped meanwhile gives
//! either the old files or the new ones.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io, mem,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, statat},
    io::Errno,
    path::Arg,
};

use crate::{
    file_mark::FileMark,
    model::{
        ids::NodeName,
        problem::Problem,
        spec::NodeSpec,
        toml_reader::{Document, FILE_BYTES_MAX, Setting},
    },
    regular_file,
};

use super::{Defaults, ReadAttachment, attachments::Attachments, node_name, parse, parse_settings};

mod known;
pub(super) mod passed_over;
#[cfg(test)]
mod tests;

use known::{DefaultsFile, KnownSpecs};
use passed_over::UnreadEntries;

/// The file with the defaults of every spec in its directory.
pub const DEFAULTS_FILE: &str = "_defaults.toml";
/// Most specs in one directory: ten times the agent's design limit, so that a wrong directory does
/// not exhaust the memory.
pub const SPECS_MAX: usize = 100_000;

/// The result of one scan of the spec directory.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The names of the scanned files: the specs, and `_defaults.toml` if there is one.
    pub files: BTreeSet<OsString>,
    /// The nodes, each with its spec or the problems of its file. Specs may still clash: see
    /// [`clashes`].
    pub nodes: BTreeMap<NodeName, Result<Arc<NodeSpec>, Vec<Problem>>>,
    /// The problems of `_defaults.toml`, of the agent's `[defaults]`, and of files that name no
    /// node.
    pub problems: Vec<Problem>,
    /// Files that look like specs and are not read, with the reason.
    pub passed_over: Vec<Problem>,
}

/// The reason why the directory cannot be read. This must never mean that there are no nodes.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub enum ReadError {
    /// The directory does not exist.
    #[error("{0}: no such directory")]
    Missing(PathBuf),
    /// The directory has too many spec files.
    #[error("{0}: more than {SPECS_MAX} spec files")]
    TooMany(PathBuf),
    /// The system refused.
    #[error("reading {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Reads every spec in `dir`. `shown_as` is the directory's name in messages; `agent_defaults` is
/// the agent's `[defaults]`.
///
/// Specs are the `*.toml`, except status files, hidden files and editors' backups. Symbolic links
/// are followed, because git-sync and Kubernetes volumes consist of them.
pub fn read_dir(
    dir: &Path,
    shown_as: &str,
    agent_defaults: Option<&Document>,
) -> Result<Snapshot, ReadError> {
    Reader::default().read(dir, shown_as, agent_defaults)
}

/// Scans one directory repeatedly and parses only files that may have changed. The arguments must
/// be the same every time.
#[derive(Debug, Default)]
pub struct Reader(KnownSpecs);

impl Reader {
    /// Makes a reader that shares these specs: if it reads an equal one, it returns the existing
    /// one.
    pub fn with_specs(specs: impl IntoIterator<Item = Arc<NodeSpec>>) -> Self {
        Self(KnownSpecs::in_memory(specs))
    }

    /// Scans the directory, as [`read_dir`] does.
    pub fn read(
        &mut self,
        dir: &Path,
        shown_as: &str,
        agent_defaults: Option<&Document>,
    ) -> Result<Snapshot, ReadError> {
        read_known(&mut self.0, dir, shown_as, agent_defaults)
    }
}

fn read_known(
    known: &mut KnownSpecs,
    dir: &Path,
    shown_as: &str,
    agent_defaults: Option<&Document>,
) -> Result<Snapshot, ReadError> {
    let failed = |errno: Errno| match errno {
        Errno::NOENT => ReadError::Missing(dir.to_owned()),
        _ => ReadError::Io { path: dir.to_owned(), source: errno.into() },
    };
    let handle = open_dir(dir).map_err(failed)?;
    let mut snapshot = Snapshot::default();
    let (unread, mut entries_read) = (UnreadEntries { dir: &handle, shown_as }, 0);
    let mut files = BTreeSet::new();
    for entry in Dir::read_from(&handle).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        snapshot
            .passed_over
            .extend(unread.problem(entry.file_name().to_bytes(), &mut entries_read));
        if is_spec(entry.file_name().to_bytes()) {
            files.insert(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
            if files.len() > SPECS_MAX {
                return Err(ReadError::TooMany(dir.to_owned()));
            }
        }
    }
    let (defaults, defaults_file) = read_defaults(&handle, shown_as, agent_defaults);
    snapshot.problems.extend_from_slice(defaults.problems());
    let attachments = Attachments::beside(&handle);
    let mut reading = mem::take(known).begin(&handle, defaults_file);
    for file in &files {
        if let Some(spec) = reading.known(file, &attachments) {
            snapshot.nodes.insert(spec.name.clone(), Ok(spec));
            continue;
        }
        let shown = named(shown_as, file);
        let attached = RefCell::new(Vec::new());
        let attach = |path: &str| {
            let content = attachments.read(path)?;
            attached.borrow_mut().push((path.to_owned(), content.clone()));
            Ok(content)
        };
        let spec = read_at(&handle, file)
            .map_err(|error| vec![Problem::of_file(&shown, unreadable(&error))])
            .and_then(|(bytes, mark)| {
                let read = (bytes.as_slice(), mark);
                if let Some(spec) = reading.known_by_content(file, read, &attachments) {
                    return Ok(spec);
                }
                let spec = parse(&shown, &bytes, &defaults, &attach)?;
                Ok(reading.note(file, read, spec, attached.take()))
            });
        match node_name(&shown) {
            Ok(name) => drop(snapshot.nodes.insert(name, spec)),
            Err(_) => snapshot.problems.extend(spec.err().unwrap_or_default()),
        }
    }
    *known = reading.end();
    snapshot.problems.sort();
    snapshot.problems.dedup();
    snapshot.passed_over.sort();
    // Defaults with problems exist, too.
    if defaults.file.is_some() || !defaults.problems.is_empty() {
        files.insert(DEFAULTS_FILE.into());
    }
    snapshot.files = files;
    Ok(snapshot)
}

/// Reads one spec with the `_defaults.toml` beside it, for commands about one file. Finds no
/// clashes.
pub fn read_file(path: &Path, agent_defaults: Option<&Document>) -> Result<NodeSpec, Vec<Problem>> {
    with_defaults(path, agent_defaults, parse)
}

/// Returns the effective values of one spec with their origins, in the order of the schema.
pub fn read_file_settings(
    path: &Path,
    agent_defaults: Option<&Document>,
) -> Result<Vec<Setting>, Vec<Problem>> {
    with_defaults(path, agent_defaults, parse_settings)
}

fn with_defaults<T>(
    path: &Path,
    agent_defaults: Option<&Document>,
    parse: impl FnOnce(&str, &[u8], &Defaults, &ReadAttachment<'_>) -> Result<T, Vec<Problem>>,
) -> Result<T, Vec<Problem>> {
    let shown = path.to_string_lossy();
    let failed = |error: &io::Error| {
        let message = match error.kind() {
            io::ErrorKind::NotFound => "no such file".to_owned(),
            _ => unreadable(error),
        };
        vec![Problem::of_file(&*shown, message)]
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let dir = parent.unwrap_or(Path::new("."));
    let handle = open_dir(dir).map_err(|errno| failed(&errno.into()))?;
    let name = path.file_name().unwrap_or_default();
    let (bytes, _) = read_at(&handle, name).map_err(|error| failed(&error))?;
    let shown_dir = parent.unwrap_or(Path::new("")).to_string_lossy();
    let (defaults, _) = read_defaults(&handle, &shown_dir, agent_defaults);
    let attachments = Attachments::beside(&handle);
    parse(&shown, &bytes, &defaults, &|path| attachments.read(path))
}

/// Finds, by their names, the files of a spec directory that look like specs and name no node.
pub fn not_nodes(dir: &Path) -> Vec<Problem> {
    let shown_as = dir.to_string_lossy();
    let shown_as = shown_as.trim_end_matches('/');
    let Ok(handle) = open_dir(dir) else { return Vec::new() };
    let Ok(entries) = Dir::read_from(&handle) else { return Vec::new() };
    let (unread, mut entries_read) = (UnreadEntries { dir: &handle, shown_as }, 0);
    let mut found = Vec::new();
    for entry in entries.map_while(Result::ok) {
        let name = entry.file_name().to_bytes();
        if is_spec(name) {
            found.extend(node_name(&named(shown_as, OsStr::from_bytes(name))).err());
        } else {
            found.extend(unread.problem(name, &mut entries_read));
        }
    }
    found.sort();
    found
}

/// A file's name in messages: escaped, because it may hold anything, even a line break that forges
/// a log line.
pub(super) fn named(dir_shown_as: &str, file: &OsStr) -> String {
    let file = file.to_string_lossy();
    let slash = if dir_shown_as.is_empty() { "" } else { "/" };
    format!("{dir_shown_as}{slash}{}", file.escape_debug())
}

fn is_spec(name: &[u8]) -> bool {
    name.ends_with(b".toml")
        && !name.ends_with(b".status.toml")
        && !name.starts_with(b".")
        && !name.starts_with(b"#")
        && name != DEFAULTS_FILE.as_bytes()
}

/// Reads the defaults of a directory.
pub(super) fn defaults_of(dir: &OwnedFd, shown_as: &str, agent: Option<&Document>) -> Defaults {
    read_defaults(dir, shown_as, agent).0
}

/// Reads the defaults and returns the content of their file, too.
fn read_defaults(
    dir: &OwnedFd,
    shown_as: &str,
    agent: Option<&Document>,
) -> (Defaults, DefaultsFile) {
    let shown = named(shown_as, OsStr::new(DEFAULTS_FILE));
    match read_at(dir, OsStr::new(DEFAULTS_FILE)) {
        Ok((bytes, _)) => {
            (Defaults::new(Some((&shown, &bytes)), agent), DefaultsFile::Holds(bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_listed(dir, DEFAULTS_FILE) => {
            (Defaults::new(None, agent), DefaultsFile::Absent)
        }
        Err(error) => (
            Defaults::broken(Problem::of_file(shown, unreadable(&error))),
            DefaultsFile::Unreadable,
        ),
    }
}

/// Whether the directory has this name, even as a dangling link.
fn is_listed(dir: &OwnedFd, name: &str) -> bool {
    !matches!(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT))
}

pub(super) fn open_dir(dir: &Path) -> rustix::io::Result<OwnedFd> {
    open_dir_at(CWD, dir)
}

fn open_dir_at(beside: impl AsFd, name: impl Arg) -> rustix::io::Result<OwnedFd> {
    openat(beside, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Reads a file, and its mark before the read. Never blocks on a FIFO, and never reads much more
/// than the parser's limit.
pub(super) fn read_at(dir: &OwnedFd, name: &OsStr) -> io::Result<(Vec<u8>, FileMark)> {
    let file = regular_file::open_at(dir, name)?;
    let mark = FileMark::of(&file.metadata()?);
    Ok((regular_file::read_start(file, FILE_BYTES_MAX as u64 + 1)?, mark))
}

fn unreadable(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        // The directory listed it a moment ago.
        "not there: a link to nothing, or removed while the directory was read".to_owned()
    } else {
        format!("cannot be read: {error}")
    }
}

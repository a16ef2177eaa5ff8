//! Finds the directories to watch, so that every replacement of the spec directory is noticed, and
//! decides which of their events matter.
//!
//! Called by the watching thread. The path of the spec directory may have symbolic links anywhere,
//! and git-sync deploys by swapping one. Watched are therefore the spec directory, its parent and
//! the directory of each link on the path; the targets of links in the spec directory, because a
//! spec may be a link; and the subdirectories, which hold attached files, except hidden ones such
//! as git's.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

/// Most links followed on a path (Linux `MAXSYMLINKS`).
const LINKS_MAX: usize = 40;
/// Most directories watched beneath the spec directory: a wrong `specs.dir` must not exhaust the
/// user's watches, of which older kernels allow 8192.
pub(super) const BENEATH_MAX: usize = 1000;

/// Most directories watched for links in the spec directory.
const LINKED_MAX: usize = 1000;

/// Device and inode, which tell a directory from another one of the same name.
type DirId = (u64, u64);

/// The directories to watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Targets {
    directories: BTreeMap<PathBuf, Option<DirId>>,
    /// The subdirectories of the spec directory, at any depth.
    beneath: BTreeMap<PathBuf, Option<DirId>>,
    /// The links on the path and the spec directory itself: a change of one of these replaces the
    /// spec directory.
    steps: BTreeSet<PathBuf>,
    /// The spec directory without links, if it exists.
    specs: Option<PathBuf>,
}

/// The meaning of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Matter {
    /// The event is irrelevant.
    Nothing,
    /// A spec or an attached file may have changed.
    File,
    /// A watched directory may have been replaced.
    Directory,
}

impl Targets {
    /// Resolves `dir`, an absolute path, as far as it exists.
    pub(super) fn resolve(dir: &Path) -> Self {
        let mut targets = Self {
            directories: BTreeMap::new(),
            beneath: BTreeMap::new(),
            steps: BTreeSet::new(),
            specs: None,
        };
        let Some(at) = targets.walk(PathBuf::from("/"), dir) else { return targets };
        targets.directories.insert(at.clone(), dir_id(&at));
        let (beneath, links) = beneath(&at);
        targets.beneath = beneath;
        targets.follow_links(&at, &links);
        targets.specs = Some(at);
        targets
    }

    /// Follows a path from `at`, notes each link and the end, and returns the directory at the end;
    /// `None` if that is missing or no directory.
    fn walk(&mut self, at: PathBuf, path: &Path) -> Option<PathBuf> {
        let mut at = if path.is_absolute() { PathBuf::from("/") } else { at };
        let mut names = names(path);
        let mut links = 0;
        while let Some(name) = names.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            let step = at.join(&name);
            match fs::symlink_metadata(&step) {
                Ok(metadata) if metadata.is_symlink() && links < LINKS_MAX => {
                    links += 1;
                    let target = fs::read_link(&step).unwrap_or_default();
                    self.note(&at, step);
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    names.extend(self::names(&target));
                }
                Ok(metadata) if metadata.is_dir() => {
                    if names.is_empty() {
                        self.note(&at, step.clone());
                    }
                    at = step;
                }
                _ => {
                    self.note(&at, step);
                    return None;
                }
            }
        }
        Some(at)
    }

    /// Watches the targets of links in the spec directory.
    fn follow_links(&mut self, specs: &Path, links: &[PathBuf]) {
        for link in links.iter().filter(|path| may_be_read(path)) {
            if self.directories.len() >= LINKED_MAX {
                return;
            }
            let Ok(target) = fs::read_link(link) else { continue };
            self.walk(specs.to_owned(), &target);
        }
    }

    /// The directories to watch, non-recursively, the most important ones first.
    pub(super) fn directories(&self) -> impl Iterator<Item = &Path> {
        self.directories.keys().chain(self.beneath.keys()).map(PathBuf::as_path)
    }

    /// The meaning of an event at `path`.
    pub(super) fn matter(&self, path: &Path) -> Matter {
        let is_watched = |dir| self.directories.contains_key(dir) || self.beneath.contains_key(dir);
        if self.steps.contains(path) || is_watched(path) {
            Matter::Directory
        } else if path.parent().is_some_and(|dir| self.holds_files(dir)) && may_be_read(path) {
            Matter::File
        } else {
            Matter::Nothing
        }
    }

    fn holds_files(&self, dir: &Path) -> bool {
        self.specs.as_deref() == Some(dir) || self.beneath.contains_key(dir)
    }

    fn note(&mut self, parent: &Path, step: PathBuf) {
        self.directories.insert(parent.to_owned(), dir_id(parent));
        self.steps.insert(step);
    }
}

/// Finds the subdirectories of the spec directory, breadth first up to [`BENEATH_MAX`], and the
/// links in the spec directory itself. Does not follow links: attached files lie beneath the spec
/// directory. Reads each directory once, because the spec directory may be large.
fn beneath(specs: &Path) -> (BTreeMap<PathBuf, Option<DirId>>, Vec<PathBuf>) {
    let (mut found, mut links) = (BTreeMap::new(), Vec::new());
    let mut waiting = VecDeque::from([specs.to_owned()]);
    while let Some(dir) = waiting.pop_front() {
        // A directory that cannot be read cannot be watched either.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        let is_top = dir == specs;
        if !is_top {
            let identity = dir_id(&dir);
            found.insert(dir, identity);
        }
        for entry in entries.map_while(Result::ok) {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && !is_hidden(&entry.file_name()) {
                if found.len() + waiting.len() < BENEATH_MAX {
                    waiting.push_back(entry.path());
                }
            } else if kind.is_symlink() && is_top {
                links.push(entry.path());
            }
        }
    }
    (found, links)
}

/// Whether the agent may read this file: a spec, the defaults, an attached file, or a Kubernetes
/// volume's `..data`, which all its files are links into. False, above all, for the files that the
/// agent writes: status files, console logs, ramdisk logs and their temporary files.
fn may_be_read(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_bytes().starts_with(b"..")
        || !(is_hidden(name)
            || [&b".status.toml"[..], b".console.log", b".ramdisk.log"]
                .iter()
                .any(|own| name.as_bytes().ends_with(own)))
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

/// Splits a path into its names, the first one last.
fn names(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().filter_map(name).rev().collect()
}

fn dir_id(dir: &Path) -> Option<DirId> {
    fs::metadata(dir).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

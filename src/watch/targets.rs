//! Which directories to watch so that no replacement of the spec directory goes unseen, and which
//! of their events matter.
//!
//! The specs may be reached through symbolic links anywhere in the path, and git-sync deploys by
//! swapping one. So watched are the spec directory, its parent, and the directory that holds each
//! link on the way; where the links in the spec directory lead, because a spec may be one; and what
//! lies beneath, where the files are that specs attach, but nothing that is hidden, such as git's
//! own files.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

/// Links followed before a path is given up (Linux `MAXSYMLINKS`).
const LINKS_MAX: usize = 40;
/// Directories watched beneath the spec directory: a wrong one must not use up the watches a user
/// may have, which once were 8192.
const BENEATH_MAX: usize = 1000;

/// Directories watched for the sake of links in the spec directory.
const LINKED_MAX: usize = 1000;

/// Device and inode: what tells a directory from another one under the same name.
type Identity = (u64, u64);

/// The directories to watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Targets {
    directories: BTreeMap<PathBuf, Option<Identity>>,
    /// Those in the spec directory and further down.
    beneath: BTreeMap<PathBuf, Option<Identity>>,
    /// The links, and the spec directory itself: a change of one of these is a change of directory.
    steps: BTreeSet<PathBuf>,
    /// The spec directory without links, if it exists.
    specs: Option<PathBuf>,
}

/// The meaning of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Matter {
    /// Nothing to us.
    Nothing,
    /// A spec, or what one attaches, may have changed.
    File,
    /// A directory that is watched may be another one.
    Directory,
}

impl Targets {
    /// Follows `dir`, an absolute path, as far as it exists.
    pub(super) fn resolve(dir: &Path) -> Self {
        let mut targets = Self {
            directories: BTreeMap::new(),
            beneath: BTreeMap::new(),
            steps: BTreeSet::new(),
            specs: None,
        };
        let Some(at) = targets.walk(PathBuf::from("/"), dir) else { return targets };
        targets.directories.insert(at.clone(), identity(&at));
        let (beneath, links) = beneath(&at);
        targets.beneath = beneath;
        targets.follow_links(&at, &links);
        targets.specs = Some(at);
        targets
    }

    /// Goes along a path from `at`, notes each link and the end, and returns the directory it leads
    /// to; `None` if that is no directory, or not there.
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

    /// Watches the files that links in the spec directory lead to, wherever they are.
    fn follow_links(&mut self, specs: &Path, links: &[PathBuf]) {
        for link in links.iter().filter(|path| may_be_read(path)) {
            if self.directories.len() >= LINKED_MAX {
                return;
            }
            let Ok(target) = fs::read_link(link) else { continue };
            self.walk(specs.to_owned(), &target);
        }
    }

    /// The directories to watch, each by itself, the most important ones first.
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
        self.directories.insert(parent.to_owned(), identity(parent));
        self.steps.insert(step);
    }
}

/// The directories in the spec directory and further down, the nearest first if there are too many,
/// and the links in the spec directory itself. Links are not followed: attached files lie beneath
/// itself. Each directory is read once, because the spec directory may be large.
fn beneath(specs: &Path) -> (BTreeMap<PathBuf, Option<Identity>>, Vec<PathBuf>) {
    let (mut found, mut links) = (BTreeMap::new(), Vec::new());
    let mut waiting = VecDeque::from([specs.to_owned()]);
    while let Some(dir) = waiting.pop_front() {
        // A directory that cannot be read cannot be watched either.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        let is_top = dir == specs;
        if !is_top {
            let identity = identity(&dir);
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

/// A spec, the defaults, anything that is attached, or a Kubernetes volume's `..data`, which all
/// files are links into. Above all not a status file, a console's log or a ramdisk's, nor what
/// becomes one.
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

/// The names on a path, the first one last.
fn names(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().filter_map(name).rev().collect()
}

fn identity(dir: &Path) -> Option<Identity> {
    fs::metadata(dir).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

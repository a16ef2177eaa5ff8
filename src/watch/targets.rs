//! Which directories to watch so that no replacement of the spec directory goes unseen, and which of their events matter.
//!
//! The specs may be reached through symbolic links anywhere in the path, and git-sync deploys by swapping one. So watched are the
//! spec directory, its parent, and the directory that holds each link on the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

/// Links followed before a path is given up (Linux `MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// Device and inode: what tells a directory from another one under the same name.
type Identity = (u64, u64);

/// The directories to watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Targets {
    directories: BTreeMap<PathBuf, Option<Identity>>,
    /// The links, and the spec directory itself: a change of one of these is a change of directory.
    steps: BTreeSet<PathBuf>,
    /// The spec directory without links, if it exists.
    specs: Option<PathBuf>,
}

/// What an event means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Matter {
    /// Nothing to us.
    Nothing,
    /// A spec may have changed.
    Spec,
    /// The spec directory may be another one.
    Directory,
}

impl Targets {
    /// Follows `dir`, an absolute path, as far as it exists.
    pub(super) fn resolve(dir: &Path) -> Self {
        let mut targets =
            Self { directories: BTreeMap::new(), steps: BTreeSet::new(), specs: None };
        let mut at = PathBuf::from("/");
        let mut names = names(dir);
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
                    targets.note(&at, step);
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    names.extend(self::names(&target));
                }
                Ok(metadata) if metadata.is_dir() => {
                    if names.is_empty() {
                        targets.note(&at, step.clone());
                    }
                    at = step;
                }
                _ => {
                    targets.note(&at, step);
                    return targets;
                }
            }
        }
        targets.directories.insert(at.clone(), identity(&at));
        targets.specs = Some(at);
        targets
    }

    /// The directories to watch, without what is below them.
    pub(super) fn directories(&self) -> impl Iterator<Item = &Path> {
        self.directories.keys().map(PathBuf::as_path)
    }

    /// What an event at `path` means.
    pub(super) fn matter(&self, path: &Path) -> Matter {
        if self.steps.contains(path) || self.directories.contains_key(path) {
            Matter::Directory
        } else if self.specs.as_deref() == path.parent() && may_be_spec(path) {
            Matter::Spec
        } else {
            Matter::Nothing
        }
    }

    fn note(&mut self, parent: &Path, step: PathBuf) {
        self.directories.insert(parent.to_owned(), identity(parent));
        self.steps.insert(step);
    }
}

/// A spec or the defaults, or a Kubernetes volume's `..data`, which all files are links into. Above all not a status file.
fn may_be_spec(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_bytes();
    name.starts_with(b"..")
        || (name.ends_with(b".toml") && !name.ends_with(b".status.toml") && !name.starts_with(b"."))
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

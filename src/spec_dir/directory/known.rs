//! The findings of the last reading of the directory, so that an unchanged file is neither opened
//! nor parsed again.
//!
//! Used by the directory reader only. A change must never be missed: a file is opened unless it has
//! the same mark on a file system that is known to set one with each change, and that mark was old
//! enough when it was read. A file that was opened is parsed unless it has the same bytes. In both
//! cases the defaults and all that it attaches must be the same. Every hour all is read and parsed
//! all the same.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    mem,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustix::fs::{AtFlags, fstat, fstatfs, statat};
use sha2::{Digest as _, Sha256};

use crate::{
    file_mark::FileMark,
    model::{attached::AttachedContent, ids::NodeName, spec::NodeSpec},
};

use super::Attachments;

/// How long what was read is believed.
const KEEP: Duration = Duration::from_secs(3600);

/// File systems of this machine's own kernel (`statfs(2)`): btrfs, ext2 to ext4, f2fs, tmpfs, xfs.
/// On any other one, such as NFS, a mark may be out of date.
const LOCAL: [i128; 5] = [0x9123_683e, 0xef53, 0xf2f5_2010, 0x0102_1994, 0x5846_5342];

/// The specs of the last reading.
#[derive(Debug, Default)]
pub(super) struct KnownSpecs {
    specs: BTreeMap<OsString, KnownSpec>,
    defaults: DefaultsFile,
    began: Option<Instant>,
    /// Specs that somebody has in memory, and that are not known to be those of the files.
    in_memory: BTreeMap<NodeName, Arc<NodeSpec>>,
}

/// `_defaults.toml` as a reading found it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum DefaultsFile {
    /// Nothing is known of it: two such are not the same.
    #[default]
    Unreadable,
    Absent,
    Holds(Vec<u8>),
}

#[derive(Debug)]
struct KnownSpec {
    /// The file's mark, if it is sure to change with the file.
    mark: Option<FileMark>,
    content: Content,
    spec: Arc<NodeSpec>,
    /// Its attachments: path and content.
    attached: Vec<(String, AttachedContent)>,
}

/// The SHA-256 of a file's bytes.
type Content = [u8; 32];

/// One reading: what is known from before, and what will be known after it.
#[derive(Debug)]
pub(super) struct Reading<'d> {
    dir: &'d OwnedFd,
    /// The directory's device, if marks can be believed there.
    device: Option<u64>,
    now: SystemTime,
    before: KnownSpecs,
    after: KnownSpecs,
    in_memory: BTreeMap<NodeName, Arc<NodeSpec>>,
}

impl KnownSpecs {
    /// Nothing is known of the files, but these specs are in memory.
    pub(super) fn in_memory(specs: impl IntoIterator<Item = Arc<NodeSpec>>) -> Self {
        let in_memory = specs.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        Self { in_memory, ..Self::default() }
    }

    /// A reading begins, with these defaults.
    pub(super) fn begin(self, dir: &OwnedFd, defaults: DefaultsFile) -> Reading<'_> {
        let is_local = fstatfs(dir).is_ok_and(|system| LOCAL.contains(&i128::from(system.f_type)));
        let device = fstat(dir).ok().map(|dir| dir.st_dev).filter(|_| is_local);
        let is_fresh = self.began.is_some_and(|began| began.elapsed() < KEEP);
        let is_same = defaults != DefaultsFile::Unreadable && self.defaults == defaults;
        let mut before = if is_fresh && is_same {
            self
        } else {
            let specs = self.specs.into_values().map(|known| known.spec);
            Self::in_memory(self.in_memory.into_values().chain(specs))
        };
        let in_memory = mem::take(&mut before.in_memory);
        let began = before.began.or_else(|| Some(Instant::now()));
        let after = Self { defaults, began, ..Self::default() };
        Reading { dir, device, now: SystemTime::now(), before, after, in_memory }
    }
}

impl KnownSpec {
    fn attaches_same(&self, attachments: &Attachments<'_>) -> bool {
        self.attached.iter().all(|(path, content)| attachments.read(path).as_ref() == Ok(content))
    }
}

fn content(bytes: &[u8]) -> Content {
    Sha256::digest(bytes).into()
}

impl Reading<'_> {
    /// The spec in this file, if that is sure to be the one from before, which is told without
    /// opening it.
    pub(super) fn known(
        &mut self,
        file: &OsStr,
        attachments: &Attachments<'_>,
    ) -> Option<Arc<NodeSpec>> {
        let known = self.before.specs.get(file)?;
        let mark = FileMark::of_stat(&statat(self.dir, file, AtFlags::empty()).ok()?);
        (known.mark == Some(mark) && known.attaches_same(attachments)).then(|| self.keep(file))?
    }

    /// The spec in these bytes of a file with this mark, if they are the same as before.
    pub(super) fn known_by_content(
        &mut self,
        file: &OsStr,
        (bytes, mark): (&[u8], FileMark),
        attachments: &Attachments<'_>,
    ) -> Option<Arc<NodeSpec>> {
        let mark = self.settled(mark);
        let known = self.before.specs.get_mut(file)?;
        if known.content != content(bytes) || !known.attaches_same(attachments) {
            return None;
        }
        known.mark = mark;
        self.keep(file)
    }

    fn keep(&mut self, file: &OsStr) -> Option<Arc<NodeSpec>> {
        let (file, known) = self.before.specs.remove_entry(file)?;
        let spec = Arc::clone(&known.spec);
        self.after.specs.insert(file, known);
        Some(spec)
    }

    /// A spec was parsed from these bytes of a file with this mark. If it is in memory already, it
    /// is the one that is there: ten thousand of them twice is what a restart would need otherwise.
    pub(super) fn note(
        &mut self,
        file: &OsStr,
        (bytes, mark): (&[u8], FileMark),
        spec: NodeSpec,
        attached: Vec<(String, AttachedContent)>,
    ) -> Arc<NodeSpec> {
        let (mark, content) = (self.settled(mark), content(bytes));
        let same = self.in_memory.remove(&spec.name).filter(|same| **same == spec);
        let spec = same.unwrap_or_else(|| Arc::new(spec));
        let known = KnownSpec { mark, content, spec: Arc::clone(&spec), attached };
        self.after.specs.insert(file.to_owned(), known);
        spec
    }

    fn settled(&self, mark: FileMark) -> Option<FileMark> {
        let is_settled = self.device == Some(mark.device()) && mark.is_settled(self.now);
        is_settled.then_some(mark)
    }

    /// The knowledge handed on to the next reading.
    pub(super) fn end(self) -> KnownSpecs {
        self.after
    }
}

#[cfg(test)]
mod tests;

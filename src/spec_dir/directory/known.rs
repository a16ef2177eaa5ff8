//! The specs of the last scan, so that the next one neither opens nor parses an unchanged file.
//!
//! Used by the directory reader only. It must never miss a change. A file is not opened if its mark
//! is the same, was settled at the last scan, and lies on a file system that updates marks
//! reliably. An opened file is not parsed if its bytes are the same. In both cases the defaults and
//! the attached files must be the same. Every hour, a scan reads and parses everything.

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

/// How long a scan's results are kept.
const KEEP: Duration = Duration::from_secs(3600);

/// Local file systems (`statfs(2)`): btrfs, ext2 to ext4, f2fs, tmpfs, xfs. On any other one, such
/// as NFS, a mark may be out of date.
const LOCAL: [i128; 5] = [0x9123_683e, 0xef53, 0xf2f5_2010, 0x0102_1994, 0x5846_5342];

/// The specs of the last scan.
#[derive(Debug, Default)]
pub(super) struct KnownSpecs {
    specs: BTreeMap<OsString, KnownSpec>,
    defaults: DefaultsFile,
    began: Option<Instant>,
    /// Specs in memory that may differ from the files.
    in_memory: BTreeMap<NodeName, Arc<NodeSpec>>,
}

/// The content of `_defaults.toml` in a scan.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum DefaultsFile {
    /// Unknown content, which never counts as equal.
    #[default]
    Unreadable,
    Absent,
    Holds(Vec<u8>),
}

#[derive(Debug)]
struct KnownSpec {
    /// The file's mark, if every change changes it.
    mark: Option<FileMark>,
    content: Content,
    spec: Arc<NodeSpec>,
    /// The attached files: path and content.
    attached: Vec<(String, AttachedContent)>,
}

/// The SHA-256 of a file's bytes.
type Content = [u8; 32];

/// A scan in progress, with the previous and the new results.
#[derive(Debug)]
pub(super) struct Reading<'d> {
    dir: &'d OwnedFd,
    /// The directory's device, if its file system updates marks reliably.
    device: Option<u64>,
    now: SystemTime,
    before: KnownSpecs,
    after: KnownSpecs,
    in_memory: BTreeMap<NodeName, Arc<NodeSpec>>,
}

impl KnownSpecs {
    /// Starts with specs in memory and without knowledge of the files.
    pub(super) fn in_memory(specs: impl IntoIterator<Item = Arc<NodeSpec>>) -> Self {
        let in_memory = specs.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        Self { in_memory, ..Self::default() }
    }

    /// Begins a scan with these defaults.
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
    /// Returns the spec of an unchanged file, by its mark alone.
    pub(super) fn known(
        &mut self,
        file: &OsStr,
        attachments: &Attachments<'_>,
    ) -> Option<Arc<NodeSpec>> {
        let known = self.before.specs.get(file)?;
        let mark = FileMark::of_stat(&statat(self.dir, file, AtFlags::empty()).ok()?);
        (known.mark == Some(mark) && known.attaches_same(attachments)).then(|| self.keep(file))?
    }

    /// Returns the spec of an opened file with unchanged bytes.
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

    /// Adds a parsed spec, or the equal one in memory: otherwise a restart would need memory for
    /// ten thousand specs twice.
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

    /// Ends the scan with the results for the next one.
    pub(super) fn end(self) -> KnownSpecs {
        self.after
    }
}

#[cfg(test)]
mod tests;

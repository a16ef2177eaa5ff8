//! Tells from a file's metadata, without reading it, whether it changed since it was read or
//! written.
//!
//! Called by the adapters that scan many files repeatedly. A mark must never match a file that may
//! have changed: a mark that is too fresh to be sure of is not [settled](FileMark::is_settled), and
//! its file is read again.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::fs::Stat;

/// The coarsest timestamps of a change. The kernel's clock ticks a few hundred times a second, and
/// some file systems keep whole seconds: two changes within this time may have the same timestamp.
const TICK_MAX: Duration = Duration::from_secs(2);

/// A file's identity, size and times of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileMark {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

impl FileMark {
    pub(crate) fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.size(),
            changed: (file.ctime(), file.ctime_nsec()),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }

    /// The mark of a file from its `stat`.
    pub(crate) fn of_stat(file: &Stat) -> Self {
        let nanos = |nanos| i64::try_from(nanos).unwrap_or(i64::MAX);
        Self {
            device: file.st_dev,
            inode: file.st_ino,
            bytes: u64::try_from(file.st_size).unwrap_or(0),
            changed: (file.st_ctime, nanos(file.st_ctime_nsec)),
            modified: (file.st_mtime, nanos(file.st_mtime_nsec)),
        }
    }

    /// The device of the file's file system.
    pub(crate) fn device(&self) -> u64 {
        self.device
    }

    /// Whether any change after `now` changes the mark.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let since = |(seconds, nanos): (i64, i64)| {
            let at = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
            now.duration_since(UNIX_EPOCH.checked_add(at)?).ok()
        };
        since(self.changed).is_some_and(|since| since > TICK_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_way_to_change_a_file_changes_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mark = || {
            let mark = FileMark::of(&fs::metadata(&path).unwrap());
            assert_eq!(FileMark::of_stat(&rustix::fs::stat(&path).unwrap()), mark);
            mark
        };
        fs::write(&path, "one").unwrap();
        let first = mark();
        assert_eq!(mark(), first);
        // The size and the modification time are as before; only the kernel sets the time of
        // change.
        let old = fs::metadata(&path).unwrap().modified().unwrap();
        while mark().changed == first.changed {
            fs::write(&path, "two").unwrap();
        }
        fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert_ne!(mark(), first);
        let second = mark();
        fs::write(dir.path().join("b"), "two").unwrap();
        fs::rename(dir.path().join("b"), &path).unwrap();
        assert_ne!(mark(), second);
    }

    #[test]
    fn the_mark_of_a_file_that_was_changed_just_now_or_in_the_future_is_not_settled() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mark = FileMark::of(&file.as_file().metadata().unwrap());
        let now = SystemTime::now();
        assert!(!mark.is_settled(now));
        assert!(!mark.is_settled(now - Duration::from_secs(3600)));
        assert!(mark.is_settled(now + Duration::from_secs(3)));
    }
}

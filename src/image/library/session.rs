//! Detects whether the last user of the cache ended cleanly.
//!
//! Each process that uses the cache holds a session. As long as the last of them always ends
//! cleanly, all have the same mark, and trust images that an earlier session found complete; an
//! unclean end brings a new mark. It must never treat a crash as a clean end.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use tracing::info;

/// Prefix of the mark after a clean end.
const ENDED: &str = "ended ";
/// Prefix of the mark while sessions run.
const BEGUN: &str = "begun ";
/// Largest session file, in bytes.
const FILE_BYTES_MAX: u64 = 200;

/// A process's use of the cache. Dropping it is a clean end.
#[derive(Debug)]
pub(super) struct Session {
    /// The session file, locked shared by all users of the cache.
    file: File,
    /// The mark of images that are known to be complete.
    pub(super) mark: String,
}

impl Session {
    /// Starts a session with the shared session file, open for reading and writing. Waits while
    /// another session starts, which is short.
    pub(super) fn begin(file: File) -> io::Result<Self> {
        loop {
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                begin_alone(&file)?;
            }
            flock(&file, FlockOperation::LockShared)?;
            // Another session may have started or ended in between.
            if let Some(mark) = read(&file)?.strip_prefix(BEGUN).filter(|mark| !mark.is_empty()) {
                let mark = mark.to_owned();
                return Ok(Self { file, mark });
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // While other sessions run, the clean end is theirs. If this fails, images are only checked
        // once more.
        if flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            drop(write(&self.file, ENDED, &self.mark));
        }
        // A process that another thread starts at this moment has a copy of the descriptor.
        flock(&self.file, FlockOperation::Unlock).unwrap_or_default();
    }
}

/// Starts the only session: the file's content shows how the last one ended.
fn begin_alone(file: &File) -> io::Result<()> {
    let left = read(file)?;
    let mark = left.strip_prefix(ENDED).filter(|mark| !mark.is_empty()).map(str::to_owned);
    if mark.is_none() && !left.is_empty() {
        info!("the image cache had no clean end: each image is checked before its next use");
    }
    write(file, BEGUN, &mark.unwrap_or_else(|| Timestamp::now().to_string()))
}

fn read(file: &File) -> io::Result<String> {
    let mut said = String::new();
    let mut file = file;
    io::Seek::rewind(&mut file)?;
    match file.take(FILE_BYTES_MAX).read_to_string(&mut said) {
        // Equivalent to a mark of no session.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok("garbled".to_owned()),
        result => result.map(|_| said),
    }
}

/// Writes a mark. Both prefixes have the same length, so that a torn write is one of them or no
/// mark.
fn write(file: &File, word: &str, mark: &str) -> io::Result<()> {
    let text = format!("{word}{mark}");
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn begin(path: &Path) -> Session {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        Session::begin(file.unwrap()).unwrap()
    }

    #[test]
    fn the_mark_stays_from_clean_end_to_clean_end_and_is_new_after_an_unclean_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("session");
        let first = begin(&path).mark.clone();
        let second = begin(&path);
        assert_eq!(second.mark, first);
        let third = begin(&path);
        assert_eq!(third.mark, first, "two at once have one mark");
        drop(second);
        assert!(fs::read_to_string(&path).unwrap().starts_with(BEGUN), "the other one goes on");
        let killed = fs::read(&path).unwrap();
        // A process that starts meanwhile has a copy of the descriptor.
        let copy = third.file.try_clone().unwrap();
        drop(third);
        let other = File::open(&path).unwrap();
        flock(&other, FlockOperation::NonBlockingLockShared).unwrap();
        drop((other, copy));
        assert_eq!(begin(&path).mark, first);

        for left in [killed.as_slice(), b"ende", b"\xff\xff", b"x"] {
            fs::write(&path, left).unwrap();
            assert_ne!(begin(&path).mark, first, "{left:?}");
        }
    }

    #[test]
    fn a_lost_file_is_no_clean_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("session");
        let first = begin(&path).mark.clone();
        fs::remove_file(&path).unwrap();
        assert_ne!(begin(&path).mark, first);
    }
}

//! Opens files in directories that others may write to.
//!
//! Called by every adapter and command that reads a file it did not make. It must never wait for a
//! FIFO's writer, open a device (some act on being opened), or read more than its caller allows:
//! anything but a regular file is an error at once.
//!
//! `open` first gets a handle with `O_PATH`, which neither waits nor reads, and checks that it is a
//! regular file. It then opens that very file by the handle, through `/proc/self/fd`, so that
//! nobody can exchange the file between the check and the opening.

pub(crate) mod beneath;

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, openat},
    path::Arg,
};

/// Largest file, in bytes, that is read into one buffer.
const SMALL_BYTES: u64 = 1 << 20;

/// The cause of an `io::Error` of this module: the file is of another type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotRegular(FileType);

impl std::error::Error for NotRegular {}

impl fmt::Display for NotRegular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.0 {
            FileType::Directory => "a directory",
            FileType::Fifo => "a FIFO",
            FileType::Socket => "a socket",
            FileType::CharacterDevice | FileType::BlockDevice => "a device",
            _ => "something of the kernel's",
        };
        write!(f, "{kind}, not a regular file")
    }
}

impl NotRegular {
    /// Whether this is the cause of the error.
    pub(crate) fn is_cause_of(error: &io::Error) -> bool {
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Self>)
    }
}

/// Opens a regular file for reading. Links are followed wherever they lead.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    open_at(CWD, path)
}

/// Opens a regular file by its name in an open directory.
pub(crate) fn open_at(dir: impl AsFd, name: impl Arg) -> io::Result<File> {
    open_held(&openat(dir, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Reads a whole regular file; an error of kind `InvalidData` if it has more than `bytes_max`.
pub(crate) fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let bytes = read_start(open(path)?, bytes_max.saturating_add(1))?;
    if bytes.len() as u64 > bytes_max {
        let message = format!("more than {bytes_max} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(bytes)
}

/// Reads a regular file as UTF-8.
pub(crate) fn read_to_string(path: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(read(path, bytes_max)?).map_err(|error| {
        let message = format!("not UTF-8 from byte {} on", error.utf8_error().valid_up_to());
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

/// Reads the first bytes of an open file, at most `bytes_max`. A small file's bytes are in one
/// buffer only, so that a caller can wipe a secret.
pub(crate) fn read_start(file: File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let expected = file.metadata()?.len().min(bytes_max).min(SMALL_BYTES);
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens the file of an `O_PATH` handle, if it is a regular one.
fn open_held(held: &OwnedFd) -> io::Result<File> {
    let file_type = FileType::from_raw_mode(fstat(held)?.st_mode);
    if !file_type.is_file() {
        let kind = match file_type {
            FileType::Directory => io::ErrorKind::IsADirectory,
            _ => io::ErrorKind::InvalidData,
        };
        return Err(io::Error::new(kind, NotRegular(file_type)));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(openat(CWD, format!("/proc/self/fd/{}", held.as_raw_fd()), flags, Mode::empty())?.into())
}

#[cfg(test)]
pub(crate) mod tests;

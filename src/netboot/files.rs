//! Opens boot files: those beneath the loader directory, those at fixed paths, kernels and ramdisks
//! that specs name, and texts held in memory.
//!
//! The catalog calls it for each request. It never follows a link out of the loader directory,
//! never blocks on a device or a FIFO, and never shows a client the server's paths.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Seek as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
};

use super::{menu::IPXE_PROGRAM, refusal::Refusal};
use crate::regular_file::{
    self, NotRegular,
    beneath::{self, Links},
};

/// A regular file, open for reading.
#[derive(Debug)]
pub(super) struct Opened {
    file: File,
    /// The size in bytes at opening.
    pub(super) bytes: u64,
}

impl Opened {
    /// A path of the checked file for the worker, which opens its file itself; independent of the
    /// file's name, and valid as long as this value lives.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// The file itself, at its beginning.
    pub(super) fn into_file(self) -> File {
        self.file
    }
}

/// Opens the loader directory, following links to it. Each request opens it anew, so that the whole
/// directory may be replaced.
pub(super) fn open_root(root: &Path) -> io::Result<OwnedFd> {
    beneath::open_dir(root)
}

/// Opens a file with a clean name beneath the loader directory; refuses any link on the way.
pub(super) fn open_beneath(root: &Path, name: &OsStr) -> Result<Opened, Refusal> {
    let root_fd = open_root(root).map_err(|error| {
        tracing::warn!(root = %root.display(), %error, "the loader directory cannot be opened");
        if exhausted(&error) { Refusal::Busy } else { Refusal::NotFound }
    })?;
    let opened = beneath::open(root_fd, Path::new(name), Links::Refused).and_then(regular);
    opened.map_err(|error| {
        if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NOTDIR)) {
            return Refusal::NotFound;
        }
        tracing::warn!(root = %root.display(), ?name, %error, "a boot file cannot be opened");
        if exhausted(&error) { Refusal::Busy } else { Refusal::NotAllowed }
    })
}

/// Whether the loader directory has the iPXE to which other boot loaders hand over. Each request
/// looks for it again.
pub fn has_ipxe(root: &Path) -> bool {
    open_beneath(root, IPXE_PROGRAM.as_ref()).is_ok()
}

/// Opens a file of the configuration; links in its path are the administrator's own.
pub(super) fn open_fixed(path: &Path) -> Result<Opened, Refusal> {
    regular_file::open(path).and_then(regular).map_err(|error| {
        tracing::warn!(path = %path.display(), %error, "a boot file cannot be opened");
        match error.kind() {
            io::ErrorKind::NotFound => Refusal::NotFound,
            _ if exhausted(&error) => Refusal::Busy,
            _ => Refusal::NotAllowed,
        }
    })
}

/// Opens a kernel or ramdisk of a spec: a relative path beneath the first of these directories, an
/// absolute one beneath any. Links must stay there.
pub(super) fn open_own(dirs: &[PathBuf], path: &str) -> io::Result<Opened> {
    let refused = |reason: String| io::Error::new(io::ErrorKind::PermissionDenied, reason);
    let path = Path::new(path);
    let inside = |dir: &PathBuf| {
        let inside = if path.is_relative() { path } else { path.strip_prefix(dir).ok()? };
        Some((dir.clone(), inside.to_owned()))
    };
    let (dir, inside) = dirs.iter().find_map(inside).ok_or_else(|| {
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        refused(format!("must lie under {}", dirs.join(" or ")))
    })?;
    let file = beneath::open(open_root(&dir)?, &inside, Links::Beneath).map_err(|error| {
        if beneath::leads_out(&error) {
            refused(format!("a link in it leads out of {}", dir.display()))
        } else if NotRegular::is_cause_of(&error) {
            refused(error.to_string())
        } else {
            error
        }
    })?;
    let opened = regular(file)?;
    if opened.bytes == 0 {
        return Err(refused("empty; was the copy interrupted?".to_owned()));
    }
    Ok(opened)
}

/// Makes a file of a text, in memory, which exists as long as it is open.
pub(super) fn in_memory(text: &str) -> Result<Opened, Refusal> {
    let make = || -> io::Result<Opened> {
        let mut file = File::from(memfd_create("hostler-menu", MemfdFlags::CLOEXEC)?);
        file.write_all(text.as_bytes())?;
        file.rewind()?;
        Ok(Opened { file, bytes: text.len() as u64 })
    };
    make().map_err(|error| {
        tracing::warn!(%error, "no memory file for a boot menu");
        Refusal::Busy
    })
}

/// Whether the error is a lack of descriptors or memory, and not the file's fault.
pub(super) fn exhausted(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

/// Wraps a known regular file.
pub(super) fn regular(file: File) -> io::Result<Opened> {
    let bytes = file.metadata()?.len();
    Ok(Opened { file, bytes })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::regular_file::tests::make_fifo;

    fn check(root: &Path, name: &str) -> Result<String, Refusal> {
        open_beneath(root, name.as_ref()).map(|opened| {
            let text = fs::read_to_string(opened.path()).unwrap();
            assert_eq!(opened.bytes, text.len() as u64);
            text
        })
    }

    #[test]
    fn only_regular_files_beneath_the_root_are_opened() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), "content").unwrap();
        symlink("sub/file", root.join("inside")).unwrap();
        symlink(outside.path().join("secret"), root.join("outside")).unwrap();
        symlink(outside.path(), root.join("dir")).unwrap();
        make_fifo(&root.join("fifo"));

        assert_eq!(check(root, "sub/file").as_deref(), Ok("content"));
        for missing in ["none", "sub/none", "sub/file/below"] {
            assert_eq!(check(root, missing), Err(Refusal::NotFound), "{missing}");
        }
        for refused in ["inside", "outside", "dir/secret", "fifo", "sub", "../x", "/etc/passwd"] {
            assert_eq!(check(root, refused), Err(Refusal::NotAllowed), "{refused}");
        }
    }

    #[test]
    fn a_nodes_own_file_lies_beneath_a_directory_that_is_allowed() {
        let (images, allowed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outside = tempfile::tempdir().unwrap();
        for dir in [&images, &allowed, &outside] {
            fs::write(dir.path().join("vmlinuz"), "kernel").unwrap();
        }
        fs::write(images.path().join("empty"), "").unwrap();
        symlink("vmlinuz", images.path().join("latest")).unwrap();
        symlink(outside.path().join("vmlinuz"), images.path().join("out")).unwrap();
        let dirs = [images.path().to_owned(), allowed.path().to_owned(), "/sys".into()];
        let absolute = |dir: &tempfile::TempDir| dir.path().join("vmlinuz").display().to_string();
        for good in ["vmlinuz", "latest", &absolute(&images), &absolute(&allowed)] {
            assert_eq!(open_own(&dirs, good).unwrap().bytes, 6, "{good}");
        }
        for (bad, reason) in [
            ("none", "No such file"),
            ("out", "leads out of"),
            ("../vmlinuz", "leads out of"),
            ("empty", "empty; was the copy interrupted?"),
            (".", "not a regular file"),
            (&absolute(&outside), "must lie under"),
            ("/sys/devices/system/cpu/online", "not a regular file"),
        ] {
            let error = open_own(&dirs, bad).unwrap_err().to_string();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }

    #[test]
    fn an_opened_file_is_the_one_checked_even_when_its_name_changes_hands() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "old").unwrap();
        let opened = open_beneath(dir.path(), "a".as_ref()).unwrap();
        fs::write(dir.path().join("b"), "new").unwrap();
        fs::rename(dir.path().join("b"), dir.path().join("a")).unwrap();
        assert_eq!(fs::read_to_string(opened.path()).unwrap(), "old");
    }

    #[test]
    fn a_text_is_served_from_memory() {
        let opened = in_memory("menu").unwrap();
        assert_eq!(opened.bytes, 4);
        assert_eq!(fs::read_to_string(opened.path()).unwrap(), "menu");
    }
}

//! Opens files beneath a directory, whatever links the path has.
//!
//! Called for images, boot files and attached files. It must never open anything outside of the
//! directory, even while somebody renames entries.
//!
//! Two ways give the same results. With `openat2`, the kernel keeps the path beneath the directory.
//! If a service manager's seccomp filter denies it, as systemd's `RestrictSUIDSGID=` does, this
//! module opens each component with `O_NOFOLLOW` from a handle on the one before. `..` returns to
//! the previous handle instead of the present parent, so that a directory that is moved out of the
//! tree meanwhile leads nobody out.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::Path,
    sync::OnceLock,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat, openat2, readlinkat},
    io::Errno,
};

/// `/proc` and `/sys` (linux/magic.h), whose files the kernel generates.
const KERNEL_FILE_SYSTEMS: [i64; 2] = [0x9fa0, 0x6265_6572];
/// Most links followed on a path, as in the kernel (`MAXSYMLINKS`).
const LINKS_MAX: u32 = 40;
/// Most directories on a path. The kernel has no such limit, because it needs no descriptor for
/// each.
const DEPTH_MAX: usize = 64;

/// The treatment of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// Links are followed as long as they stay beneath the directory.
    Beneath,
    /// No link is followed.
    Refused,
}

/// How files beneath a directory are opened on this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// With one `openat2`.
    Kernel,
    /// Component by component, because `openat2` fails with this error.
    Components(Errno),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("by openat2"),
            Self::Components(errno) => write!(
                f,
                "component by component, because openat2 is denied: {}",
                io::Error::from(*errno)
            ),
        }
    }
}

/// The way for this process, determined once.
pub(crate) fn way() -> Way {
    static WAY: OnceLock<Way> = OnceLock::new();
    *WAY.get_or_init(|| match by_kernel(CWD, Path::new("."), Links::Beneath) {
        // An error about this directory itself says nothing about the system call.
        Err(errno @ (Errno::NOSYS | Errno::PERM)) => Way::Components(errno),
        _ => Way::Kernel,
    })
}

/// Opens a regular file for reading. A path that leads out of `dir` is an error for which
/// [`leads_out`] is true; files in `/proc` and `/sys` count as irregular.
pub(crate) fn open(dir: impl AsFd, path: &Path, links: Links) -> io::Result<File> {
    open_by(way(), dir, path, links)
}

/// Opens the directory for [`open`], and follows links to it.
pub(crate) fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether an error says that the path, or a link in it, leads out of the directory.
pub(crate) fn leads_out(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::XDEV)
}

fn open_by(way: Way, dir: impl AsFd, path: &Path, links: Links) -> io::Result<File> {
    let by_kernel = match way {
        Way::Kernel => Some(by_kernel(&dir, path, links)),
        Way::Components(_) => None,
    };
    let held = match by_kernel {
        // `openat2` fails with EAGAIN on a `..` while anything is renamed anywhere.
        None | Some(Err(Errno::AGAIN)) => by_components(dir.as_fd(), path, links),
        Some(result) => result,
    }?;
    let file = super::open_held(&held)?;
    if KERNEL_FILE_SYSTEMS.contains(&fstatfs(&file)?.f_type) {
        let made_up = super::NotRegular(FileType::Unknown);
        return Err(io::Error::new(io::ErrorKind::InvalidData, made_up));
    }
    Ok(file)
}

fn by_kernel(dir: impl AsFd, path: &Path, links: Links) -> rustix::io::Result<OwnedFd> {
    let resolve = match links {
        Links::Beneath => ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        Links::Refused => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    };
    openat2(dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn by_components(dir: BorrowedFd<'_>, path: &Path, links: Links) -> rustix::io::Result<OwnedFd> {
    let path = path.as_os_str().as_bytes();
    if path.is_empty() {
        return Err(Errno::NOENT);
    }
    let mut ahead = VecDeque::new();
    prepend(path, &mut ahead)?;
    // The directories from `dir`, exclusive, to the present one.
    let mut below: Vec<OwnedFd> = Vec::new();
    let mut links_followed = 0;
    while let Some(name) = ahead.pop_front() {
        if name == "." {
            continue;
        }
        if name == ".." {
            below.pop().ok_or(Errno::XDEV)?;
            continue;
        }
        let here = below.last().map_or(dir, AsFd::as_fd);
        let held = hold(here, &name)?;
        match FileType::from_raw_mode(fstat(&held)?.st_mode) {
            FileType::Directory if below.len() == DEPTH_MAX => return Err(Errno::NAMETOOLONG),
            FileType::Directory => below.push(held),
            FileType::Symlink => {
                links_followed += 1;
                if links == Links::Refused || links_followed > LINKS_MAX {
                    return Err(Errno::LOOP);
                }
                prepend(readlinkat(&held, "", Vec::new())?.as_bytes(), &mut ahead)?;
            }
            _ if ahead.is_empty() => return Ok(held),
            _ => return Err(Errno::NOTDIR),
        }
    }
    // The path ends in a directory.
    below.pop().map_or_else(|| hold(dir, &OsString::from(".")), Ok)
}

/// Opens a handle on an entry without following links.
fn hold(dir: BorrowedFd<'_>, name: &OsString) -> rustix::io::Result<OwnedFd> {
    openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Puts the components of a path or of a link's target before the remaining ones. Keeps `.`, which
/// requires a directory.
fn prepend(path: &[u8], ahead: &mut VecDeque<OsString>) -> rustix::io::Result<()> {
    if path.starts_with(b"/") {
        return Err(Errno::XDEV);
    }
    // `name/` means `name/.`, which requires a directory.
    let end: &[u8] = if path.ends_with(b"/") { b"." } else { b"" };
    let components = path.split(|byte| *byte == b'/').chain([end]);
    for component in components.rev().filter(|component| !component.is_empty()) {
        ahead.push_front(OsString::from_vec(component.to_vec()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

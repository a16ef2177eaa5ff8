//! Opens files beneath a directory, wherever the links on the way lead.
//!
//! Called for images, boot files and what specs attach. It must never open anything outside the
//! directory, also while somebody renames what lies in it.
//!
//! Two ways give the same answers. `openat2` has the kernel keep the path beneath the directory. A
//! service manager's seccomp filter may deny it (systemd's `RestrictSUIDSGID=` does), and then each
//! component is opened by itself, `O_NOFOLLOW`, from a handle on the one before. `..` goes back to
//! the handle it came from, not to whatever is now the parent: so a directory that is moved out of
//! the tree meanwhile leads nobody out with it.

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

/// `/proc` and `/sys` (linux/magic.h): their files have sizes and contents of their own making.
const KERNEL_FILE_SYSTEMS: [i64; 2] = [0x9fa0, 0x6265_6572];
/// Links followed on one way, as in the kernel (`MAXSYMLINKS`).
const LINKS_MAX: u32 = 40;
/// Directories held open on one way. The kernel has no such limit, but it needs no descriptor for
/// each.
const DEPTH_MAX: usize = 64;

/// The treatment of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// They are followed as long as they stay beneath the directory.
    Beneath,
    /// None is followed.
    Refused,
}

/// How files beneath a directory are opened on this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By one `openat2`.
    Kernel,
    /// Component by component, because `openat2` answers this.
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

/// The way of this process, tried out once.
pub(crate) fn way() -> Way {
    static WAY: OnceLock<Way> = OnceLock::new();
    *WAY.get_or_init(|| match by_kernel(CWD, Path::new("."), Links::Beneath) {
        // An answer about this directory itself says nothing about the call.
        Err(errno @ (Errno::NOSYS | Errno::PERM)) => Way::Components(errno),
        _ => Way::Kernel,
    })
}

/// Opens a regular file for reading. What leads out of `dir` is an error for which [`leads_out`] is
/// true; what the kernel makes up (`/proc`, `/sys`) is no regular file.
pub(crate) fn open(dir: impl AsFd, path: &Path, links: Links) -> io::Result<File> {
    open_by(way(), dir, path, links)
}

/// Opens a directory that files are to be opened beneath, following links to it.
pub(crate) fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether the path, or a link in it, leads out of the directory.
pub(crate) fn leads_out(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::XDEV)
}

fn open_by(way: Way, dir: impl AsFd, path: &Path, links: Links) -> io::Result<File> {
    let by_kernel = match way {
        Way::Kernel => Some(by_kernel(&dir, path, links)),
        Way::Components(_) => None,
    };
    let held = match by_kernel {
        // The kernel cannot be sure of a `..` while anybody renames anything anywhere.
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
    // The directories from below `dir` to where we are.
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
    // The way ends in a directory.
    below.pop().map_or_else(|| hold(dir, &OsString::from(".")), Ok)
}

/// Takes hold of what has this name, a link as itself.
fn hold(dir: BorrowedFd<'_>, name: &OsString) -> rustix::io::Result<OwnedFd> {
    openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Puts the components of a path, or of a link's target, before those that are still ahead. `.`
/// stays: only a directory has one.
fn prepend(path: &[u8], ahead: &mut VecDeque<OsString>) -> rustix::io::Result<()> {
    if path.starts_with(b"/") {
        return Err(Errno::XDEV);
    }
    // `name/` is `name/.`: what bears the name must be a directory.
    let end: &[u8] = if path.ends_with(b"/") { b"." } else { b"" };
    let components = path.split(|byte| *byte == b'/').chain([end]);
    for component in components.rev().filter(|component| !component.is_empty()) {
        ahead.push_front(OsString::from_vec(component.to_vec()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

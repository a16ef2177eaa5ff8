//! Mounts the kernel's virtual file systems, which the ramdisk reads.
//!
//! The boot sequence calls it first. It mounts no disk.

use std::{fs, io, path::Path};

use rustix::mount::{MountFlags, mount};

/// Mounts /proc, /sys, /dev and /run.
pub(super) fn basic() -> Result<(), MountError> {
    for (kind, target) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")]
    {
        attach(kind, target)?;
    }
    Ok(())
}

/// Mounts configfs, once its module is loaded.
pub(super) fn configfs() -> Result<(), MountError> {
    if Path::new("/sys/kernel/config/target").exists() {
        return Ok(());
    }
    attach("configfs", "/sys/kernel/config")
}

/// A file system did not mount.
#[derive(Debug, thiserror::Error)]
#[error("mounting {kind} on {target}: {source}")]
pub(super) struct MountError {
    kind: &'static str,
    target: &'static str,
    source: io::Error,
}

fn attach(kind: &'static str, target: &'static str) -> Result<(), MountError> {
    let failed = |source| MountError { kind, target, source };
    fs::create_dir_all(target).map_err(failed)?;
    mount(kind, target, kind, MountFlags::NOSUID | MountFlags::NOEXEC, None)
        .map_err(|errno| failed(errno.into()))
}

//! The iSCSI target: the kernel's LIO, driven through configfs (Linux `Documentation/target`).
//!
//! The boot sequence calls `export` once and `stop` once. It exports only the given disk, to
//! initiators with this attempt's CHAP secret, on the machine's own address only.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::model::{ids::hex, secret::Secret};

/// The iSCSI port.
pub(super) const PORT: u16 = 3260;
/// The only logical unit.
pub(super) const LUN: u8 = 0;
const CONFIGFS: &str = "/sys/kernel/config/target";

/// Negotiated limits: one write of 1 MiB with R2Ts of 256 KiB is twice as fast as LIO's default of
/// 8 KiB PDUs. Digests are offered, not demanded.
const PARAMETERS: [(&str, &str); 9] = [
    ("MaxRecvDataSegmentLength", "262144"),
    ("MaxXmitDataSegmentLength", "262144"),
    ("FirstBurstLength", "262144"),
    ("MaxBurstLength", "1048576"),
    ("MaxOutstandingR2T", "8"),
    ("ImmediateData", "Yes"),
    ("InitialR2T", "No"),
    ("HeaderDigest", "None,CRC32C"),
    ("DataDigest", "None,CRC32C"),
];

/// Any initiator name may log in, because the agent's is unknown here, but only with the secret;
/// writes are allowed.
const ATTRIBUTES: [(&str, &str); 6] = [
    ("authentication", "1"),
    ("generate_node_acls", "1"),
    ("cache_dynamic_acls", "1"),
    ("demo_mode_write_protect", "0"),
    ("prod_mode_write_protect", "0"),
    ("default_cmdsn_depth", "128"),
];

/// The target could not be started or stopped.
#[derive(Debug, thiserror::Error)]
#[error("iSCSI target: {action} {}: {source}", path.display())]
pub(super) struct TargetError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// CHAP credentials of this attempt.
#[derive(Debug)]
pub(super) struct Chap {
    pub(super) username: String,
    pub(super) password: Secret,
}

impl Chap {
    /// A random name of 64 bits, and a random secret of 128 bits.
    pub(super) fn random() -> io::Result<Self> {
        let (mut username, mut password) = ([0; 8], [0; 16]);
        getrandom::fill(&mut username).map_err(io::Error::other)?;
        getrandom::fill(&mut password).map_err(io::Error::other)?;
        Ok(Self { username: hex(&username), password: Secret::new(hex(&password)) })
    }
}

/// An exported disk.
#[derive(Debug)]
pub(super) struct LioTarget {
    backstore: PathBuf,
    name: PathBuf,
    portal: String,
}

impl LioTarget {
    /// Exports `/dev/<disk>` as LUN 0 of `iqn`. A failed step undoes the steps before it.
    pub(super) fn export(
        disk: &str,
        iqn: &str,
        address: IpAddr,
        chap: &Chap,
    ) -> Result<Self, TargetError> {
        let target = Self {
            backstore: Path::new(CONFIGFS).join("core/iblock_0/disk"),
            name: Path::new(CONFIGFS).join("iscsi").join(iqn),
            portal: SocketAddr::new(address, PORT).to_string(),
        };
        match target.set_up(disk, chap) {
            Ok(()) => Ok(target),
            Err(error) => {
                // The first error is the one to report.
                target.stop().unwrap_or_default();
                Err(error)
            }
        }
    }

    fn set_up(&self, disk: &str, chap: &Chap) -> Result<(), TargetError> {
        make(&self.backstore)?;
        put(&self.backstore.join("control"), &format!("udev_path=/dev/{disk}"))?;
        put(&self.backstore.join("enable"), "1")?;

        let group = self.group();
        let lun = group.join("lun/lun_0");
        make(&lun)?;
        link(&self.backstore, &lun.join("disk"))?;
        for (name, value) in PARAMETERS {
            put(&group.join("param").join(name), value)?;
        }
        for (name, value) in ATTRIBUTES {
            put(&group.join("attrib").join(name), value)?;
        }
        put(&group.join("auth/userid"), &chap.username)?;
        put(&group.join("auth/password"), chap.password.expose())?;
        make(&group.join("np").join(&self.portal))?;
        put(&group.join("enable"), "1")
    }

    /// Ends every session and removes the target, so that no initiator can write any more and the
    /// disk is closed. Tries every step, and returns the first failure.
    pub(super) fn stop(self) -> Result<(), TargetError> {
        let group = self.group();
        let lun = group.join("lun/lun_0");
        let disabled = if group.exists() { put(&group.join("enable"), "0") } else { Ok(()) };
        let steps = [
            disabled,
            remove(&group.join("np").join(&self.portal)),
            unlink(&lun.join("disk")),
            remove(&lun),
            remove(&group),
            remove(&self.name),
            remove(&self.backstore),
        ];
        steps.into_iter().collect()
    }

    fn group(&self) -> PathBuf {
        self.name.join("tpgt_1")
    }
}

/// Flushes the disk's own cache.
pub(super) fn flush(disk: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(Path::new("/dev").join(disk))?.sync_all()
}

/// Makes a configfs object, and those above it, by making its directory.
fn make(path: &Path) -> Result<(), TargetError> {
    fs::create_dir_all(path).map_err(failed("making", path))
}

/// Writes a value with one system call; the file must exist.
fn put(path: &Path, value: &str) -> Result<(), TargetError> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(failed("writing", path))
}

fn link(to: &Path, at: &Path) -> Result<(), TargetError> {
    symlink(to, at).map_err(failed("linking", at))
}

fn unlink(path: &Path) -> Result<(), TargetError> {
    gone(fs::remove_file(path)).map_err(failed("unlinking", path))
}

fn remove(path: &Path) -> Result<(), TargetError> {
    gone(fs::remove_dir(path)).map_err(failed("removing", path))
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TargetError {
    move |source| TargetError { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_has_credentials_of_its_own_of_the_promised_length() {
        let (one, two) = (Chap::random().unwrap(), Chap::random().unwrap());
        assert_eq!((one.username.len(), one.password.expose().len()), (16, 32));
        assert!(one.username != two.username && one.password != two.password);
    }
}

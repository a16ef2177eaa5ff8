//! Empty ext4 file systems, made by `mke2fs` of e2fsprogs.
//!
//! The agent uses it for ephemeral partitions. The command line is fixed, except for the size. The
//! file has no name, so that nothing is left behind after an error.

use std::{
    env,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use jiff::Timestamp;
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::{process::Command, time::timeout};

use super::{DriveError, hyphenated};

/// Time limit of `mke2fs`: it takes a second for most disks, because the file is sparse.
const MKE2FS_TIME_MAX: Duration = Duration::from_secs(120);
/// Directories of the program, which the `PATH` of an ordinary user often lacks.
const PLACES: [&str; 2] = ["/usr/sbin", "/sbin"];
/// Least bytes of a file system with a journal.
const BYTES_MIN: u64 = 8 << 20;
/// Most characters of the program's output in a message.
const SAID_MAX: usize = 200;
const EXTENDED_OPTIONS: &str = "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0";
/// The environment variable from which mke2fs takes the time.
const FAKE_TIME: &str = "E2FSPROGS_FAKE_TIME";
/// The file system's label, by which the installed system finds it.
pub const EPHEMERAL_LABEL: &str = "ephemeral0";

/// Whether this machine has the program that [`ephemeral`] needs.
pub fn mke2fs_is_there() -> bool {
    mke2fs().is_some()
}

/// Makes an empty ext4 file system of so many bytes, at least 8 MiB, labelled `ephemeral0`, in a
/// sparse file without a name in `dir`. The same UUID and time make the same bytes.
pub async fn ephemeral(
    bytes: u64,
    dir: &Path,
    uuid: [u8; 16],
    made_at: Timestamp,
) -> Result<File, DriveError> {
    let failed = |source| DriveError::Make { what: "the ephemeral file system", source };
    if bytes < BYTES_MIN {
        let what = "an ephemeral file system";
        return Err(DriveError::TooSmall { what, bytes, bytes_min: BYTES_MIN });
    }
    let program = mke2fs().ok_or(DriveError::NoMke2fs)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| failed(io::Error::from(errno)))?;
    let file = File::from(file);
    file.set_len(bytes).map_err(failed)?;
    let uuid = hyphenated(uuid);
    let mut command = Command::new(program);
    command
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", EPHEMERAL_LABEL])
        // These options write no zeros, so that empty ranges stay holes.
        .args(["-U", &uuid, "-E", &format!("{EXTENDED_OPTIONS},hash_seed={uuid}")])
        .arg("/proc/self/fd/0")
        .env_clear()
        .env(FAKE_TIME, made_at.as_second().to_string())
        .stdin(file.try_clone().map_err(failed)?)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command.spawn().map_err(failed)?;
    let output = timeout(MKE2FS_TIME_MAX, child.wait_with_output())
        .await
        .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
        .map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.trim().escape_debug().take(SAID_MAX).collect();
        return Err(failed(io::Error::other(format!("mke2fs: {}: {said}", output.status))));
    }
    Ok(file)
}

/// Finds the program.
fn mke2fs() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = PLACES.iter().map(PathBuf::from);
    env::split_paths(&path).chain(places).map(|dir| dir.join("mke2fs")).find(|path| path.is_file())
}

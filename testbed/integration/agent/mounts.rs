//! Full and read-only file systems, and an agent that runs as root without capabilities.

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A mount over a directory; unmounted on drop.
pub(super) struct Mount(PathBuf);

impl Mount {
    /// Mounts an empty file system of so many KiB.
    pub(super) fn small(dir: &Path, kib: u32) -> Self {
        fs::create_dir_all(dir).unwrap();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
            .arg(dir));
        Self(dir.to_owned())
    }

    /// Remounts the directory read-only. Files open for writing stay so, as after an error of the
    /// file system.
    pub(super) fn read_only(dir: &Path) -> Self {
        run(Command::new("mount").arg("--bind").args([dir, dir]));
        let mount = Self(dir.to_owned());
        run(Command::new("mount").args(["-o", "remount,ro,bind"]).arg(dir));
        mount
    }

    /// Fills the file system.
    pub(super) fn fill(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        while ballast.write_all(&[0; 4096]).is_ok() {}
    }

    /// Frees the space again.
    pub(super) fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

/// Runs the command as a user to whom permissions apply: root without capabilities.
pub(super) fn without_capabilities(command: &Command) -> Command {
    let mut bound = Command::new("setpriv");
    bound.args(["--bounding-set=-all", "--inh-caps=-all"]);
    bound.arg(command.get_program()).args(command.get_args());
    bound.env_remove("HOSTLER_LOG").env_remove("NOTIFY_SOCKET");
    bound
}

/// Gives a directory to another user, who alone may enter it.
pub(super) fn give_away(dir: &Path) {
    const NOBODY: u32 = 65_534;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

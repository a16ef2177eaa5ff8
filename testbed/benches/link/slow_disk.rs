//! A disk that reads no faster than a given rate: a loop device over the target's file, in a
//! control group. Only reads past the page cache are slow.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// The control groups for block devices: version 1 and, where that is missing, version 2.
const GROUPS: [&str; 2] = ["/sys/fs/cgroup/blkio", "/sys/fs/cgroup"];

/// Removed on drop.
pub(crate) struct SlowDisk {
    pub(crate) device: String,
    group: PathBuf,
}

impl SlowDisk {
    pub(crate) fn new(file: &Path, bytes_per_s: u64) -> Self {
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let device = String::from_utf8(attached.unwrap().stdout).unwrap().trim().to_owned();
        let rdev = fs::metadata(&device).unwrap().rdev();
        let number = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
        let [first, second] = GROUPS.map(Path::new);
        let name = format!("hostler-bench-{}", std::process::id());
        let (group, file, limit) = if first.exists() {
            let limit = format!("{number} {bytes_per_s}");
            (first.join(name), "blkio.throttle.read_bps_device", limit)
        } else {
            fs::write(second.join("cgroup.subtree_control"), "+io").unwrap();
            (second.join(name), "io.max", format!("{number} rbps={bytes_per_s}"))
        };
        fs::create_dir(&group).unwrap();
        fs::write(group.join(file), limit).unwrap();
        Self { device, group }
    }

    /// The command, which reads the device slowly.
    pub(crate) fn wrap(&self, command: &str) -> String {
        format!("echo $$ >{}/cgroup.procs; exec {command}", self.group.display())
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        fs::remove_dir(&self.group).unwrap();
        let detached = Command::new("losetup").args(["--detach", &self.device]).status();
        assert!(detached.unwrap().success());
    }
}

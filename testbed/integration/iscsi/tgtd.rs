//! A test's tgtd: its port, its control directory, one target with one disk in a plain file.

use std::{
    net::SocketAddr,
    os::unix::fs::FileExt as _,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use hostler::iscsi::TargetAddress;
use tempfile::TempDir;

use crate::ports;

/// The target's name.
pub(crate) const IQN: &str = "iqn.2026-01.test:disk";

/// Bytes of the disk.
pub(crate) const DISK_BYTES: u64 = 64 << 20;

/// The number of the control socket; the directory it lies in is each daemon's own.
const CONTROL: &str = "1";

/// Time limit of tgtd's start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A running tgtd; killed on drop.
pub(crate) struct Tgtd {
    child: Child,
    pub(crate) portal: SocketAddr,
    pub(crate) disk_bytes: u64,
    dir: TempDir,
}

impl Tgtd {
    /// Starts a target whose LUN 1 is a disk of [`DISK_BYTES`], open to every initiator.
    pub(crate) fn start() -> Self {
        Self::serve(IQN, DISK_BYTES)
    }

    /// Starts a target with a name and a disk size.
    pub(crate) fn serve(iqn: &str, disk_bytes: u64) -> Self {
        Self::serve_at(ports::free(), iqn, disk_bytes)
    }

    /// Starts a target at a given address.
    pub(crate) fn serve_at(portal: SocketAddr, iqn: &str, disk_bytes: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let tgtd = Self { child: spawn(portal, &dir), portal, disk_bytes, dir };
        let file = std::fs::File::create(tgtd.disk_file()).unwrap();
        file.set_len(disk_bytes).unwrap();
        tgtd.set_up(iqn);
        tgtd
    }

    /// Kills the daemon and starts another at the same address with the same disk.
    pub(crate) fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.portal, &self.dir);
        self.set_up(IQN);
    }

    fn set_up(&self, iqn: &str) {
        let started = Instant::now();
        while !self.try_adm(&["--mode", "sys", "--op", "show"]).status.success() {
            assert!(started.elapsed() < START_LIMIT, "tgtd did not start");
            thread::sleep(Duration::from_millis(20));
        }
        self.adm(&["--mode", "target", "--op", "new", "--tid", "1", "--targetname", iqn]);
        self.add_disk(1, 512);
        self.adm(&["--mode", "target", "--op", "bind", "--tid", "1", "--initiator-address", "ALL"]);
    }

    /// Adds another unit with the same file.
    pub(crate) fn add_disk(&self, lun: u16, block_bytes: u32) {
        let (lun, file) = (lun.to_string(), self.disk_file());
        let (file, block) = (file.to_str().unwrap(), block_bytes.to_string());
        let unit = ["--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", &lun];
        self.adm(&[&unit[..], &["--backing-store", file, "--blocksize", &block]].concat());
    }

    /// Adds another unit with the same file, whose blocks can be unmapped and then read as zeros.
    pub(crate) fn add_thin_disk(&self, lun: u16) {
        self.add_disk(lun, 512);
        self.update_disk(lun, "thin_provisioning=1");
    }

    /// Changes a property of a unit, by `tgtadm`'s name.
    pub(crate) fn update_disk(&self, lun: u16, parameter: &str) {
        let lun = lun.to_string();
        let unit = ["--mode", "logicalunit", "--op", "update", "--tid", "1", "--lun", &lun];
        self.adm(&[&unit[..], &["--params", parameter]].concat());
    }

    /// Sets a parameter of the target for later negotiations.
    pub(crate) fn set(&self, name: &str, value: &str) {
        let update = ["--mode", "target", "--op", "update", "--tid", "1"];
        self.adm(&[&update[..], &["--name", name, "--value", value]].concat());
    }

    /// Demands CHAP of initiators.
    pub(crate) fn demand_chap(&self, user: &str, password: &str) {
        self.account(user, password, &[]);
    }

    /// Enables mutual CHAP.
    pub(crate) fn prove_by_chap(&self, user: &str, password: &str) {
        self.account(user, password, &["--outgoing"]);
    }

    fn account(&self, user: &str, password: &str, direction: &[&str]) {
        self.adm(&["--mode", "account", "--op", "new", "--user", user, "--password", password]);
        let bind = ["--mode", "account", "--op", "bind", "--tid", "1", "--user", user];
        self.adm(&[&bind[..], direction].concat());
    }

    /// The output of tgtadm about the sessions and connections; empty without any.
    pub(crate) fn sessions(&self) -> String {
        self.adm(&["--mode", "conn", "--op", "show", "--tid", "1"])
    }

    /// Closes every connection.
    pub(crate) fn delete_connections(&self) {
        let shown = self.sessions();
        let number = |line: &str, key: &str| {
            line.trim().strip_prefix(key).map(|rest| rest.trim().to_owned())
        };
        let session = shown.lines().find_map(|line| number(line, "Session:")).unwrap();
        let connection = shown.lines().find_map(|line| number(line, "Connection:")).unwrap();
        let delete = ["--mode", "conn", "--op", "delete", "--tid", "1"];
        self.adm(&[&delete[..], &["--sid", &session, "--cid", &connection]].concat());
    }

    /// The unit as an initiator names it.
    pub(crate) fn lun(&self, lun: u16) -> TargetAddress {
        TargetAddress { portal: self.portal, iqn: IQN.to_owned(), lun }
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// The current content of the disk's file.
    pub(crate) fn disk(&self) -> Vec<u8> {
        std::fs::read(self.disk_file()).unwrap()
    }

    /// Count of bytes that the daemon has written, to its disk and its sockets.
    pub(crate) fn written_bytes(&self) -> u64 {
        let counts = std::fs::read_to_string(format!("/proc/{}/io", self.child.id())).unwrap();
        let written = counts.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
        written.parse().unwrap()
    }

    /// Fills the disk's file with a byte.
    pub(crate) fn fill_disk(&self, byte: u8) {
        let file = std::fs::OpenOptions::new().write(true).open(self.disk_file()).unwrap();
        let mebibyte = vec![byte; 1 << 20];
        for at in (0..self.disk_bytes).step_by(mebibyte.len()) {
            file.write_all_at(&mebibyte, at).unwrap();
        }
    }

    /// The path of the disk's file.
    pub(crate) fn disk_file(&self) -> std::path::PathBuf {
        self.dir.path().join("disk")
    }

    /// Runs `tgtadm`, which must succeed; returns its output.
    pub(crate) fn adm(&self, args: &[&str]) -> String {
        let output = self.try_adm(args);
        assert!(output.status.success(), "tgtadm {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn try_adm(&self, args: &[&str]) -> Output {
        Command::new("tgtadm")
            .args(["-C", CONTROL, "--lld", "iscsi"])
            .args(args)
            .env("TGT_IPC_SOCKET", self.dir.path().join("ipc"))
            .output()
            .unwrap()
    }
}

fn spawn(portal: SocketAddr, dir: &TempDir) -> Child {
    Command::new("tgtd")
        .args(["-f", "-C", CONTROL, "--iscsi", &format!("portal={portal}")])
        .env("TGT_IPC_SOCKET", dir.path().join("ipc"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Drop for Tgtd {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

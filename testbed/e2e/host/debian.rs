//! A Debian container in a rack's network: booted by `testbed/host/boot`, switched off when
//! dropped.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::rack::{Rack, repository};

/// The time that a container takes to boot or to stop, on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct Debian {
    root: PathBuf,
    boot: Child,
}

impl Debian {
    /// Boots a fresh copy of the system of `testbed/host/debian` in the rack's network.
    pub(super) fn boot(rack: &Rack, root: PathBuf) -> Self {
        let made = repository().join("target/testbed/host/debian");
        assert!(made.exists(), "run testbed/host/debian");
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        let copied =
            Command::new("cp").args(["-a", "--reflink=auto"]).args([&made, &root]).status();
        assert!(copied.unwrap().success());
        let log = File::create(root.with_extension("log")).unwrap();
        let boot = rack
            .inside(&[repository().join("testbed/host/boot").to_str().unwrap()])
            .arg(&root)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let debian = Self { root, boot };
        debian.wait_until_it_runs();
        debian
    }

    /// The path of a file of the system, from outside.
    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A command that runs a program in the system.
    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(repository().join("testbed/host/enter"));
        command.arg(&self.root).args(words);
        command
    }

    /// Runs a script in a root shell there, which must succeed; returns its output.
    pub(super) fn shell(&self, script: &str) -> String {
        let output = self.command(&["bash", "-euo", "pipefail", "-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Reboots the system, as its administrator does.
    pub(super) fn reboot(&self) {
        let before = self.started_at();
        self.shell("systemctl reboot");
        let deadline = Instant::now() + BOOT_LIMIT;
        while self.started_at().is_none_or(|at| Some(at) == before) {
            assert!(Instant::now() < deadline, "the host does not come back");
            thread::sleep(POLL_INTERVAL);
        }
        self.wait_until_it_runs();
    }

    /// The start time of its PID 1: the kernel, and so the boot ID, is this machine's.
    fn started_at(&self) -> Option<String> {
        let output =
            self.command(&["cut", "-d", " ", "-f", "22", "/proc/1/stat"]).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn wait_until_it_runs(&self) {
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            let state =
                self.command(&["systemctl", "is-system-running", "--wait"]).output().unwrap();
            if state.stdout == b"running\n" {
                return;
            }
            let failed = self.command(&["systemctl", "--failed", "--no-pager"]).output().unwrap();
            let late = Instant::now() > deadline;
            assert!(!late, "the host does not run: {} {}", said(&state), said(&failed));
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Debian {
    #[expect(clippy::print_stderr, reason = "the test has failed, and this is why")]
    fn drop(&mut self) {
        if thread::panicking() {
            let journal = self.command(&["journalctl", "--no-pager", "--lines=60"]).output();
            eprintln!("{}", journal.map(|journal| said(&journal)).unwrap_or_default());
        }
        // Killing systemd-nspawn ends its system; the rack's end ends the rest.
        let boot = self.boot.id().to_string();
        drop(Command::new("pkill").args(["--signal=KILL", "--parent", &boot]).status());
        drop(self.boot.kill());
        drop(self.boot.wait());
        if !thread::panicking() {
            drop(fs::remove_dir_all(&self.root));
        }
    }
}

/// Both outputs of a program, for a message.
pub(super) fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    format!("{}: {}", output.status, String::from_utf8_lossy(&text))
}

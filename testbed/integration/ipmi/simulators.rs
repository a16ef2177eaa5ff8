//! Starts the BMC simulators: pyghmi's server (`testbed/bmc/bmc.py`) and `ipmi_sim` of Debian's
//! openipmi.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::ports;

/// The user and password of both simulators (`ipmi_sim` takes at most 16 bytes without spaces).
pub(crate) const USER: &str = "admin";
pub(crate) const PASSWORD: &str = "correct-horse";

/// A running simulator; killed on drop.
pub(crate) struct Simulator {
    process: Child,
    pub(crate) port: u16,
    dir: TempDir,
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Starts pyghmi with more arguments for `bmc.py`.
pub(crate) fn pyghmi(arguments: &[&str]) -> Simulator {
    pyghmi_at(ports::free().port(), arguments)
}

/// Starts pyghmi on a given port.
pub(super) fn pyghmi_at(port: u16, arguments: &[&str]) -> Simulator {
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    fs::write(&password, PASSWORD).unwrap();
    let python = repository().join("target/testbed/venv/bin/python");
    let mut process = Command::new(&python)
        .arg(repository().join("testbed/bmc/bmc.py"))
        .args(["--port", &port.to_string(), "--user", USER, "--password-file"])
        .arg(&password)
        .arg("--log")
        .arg(dir.path().join("log"))
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| {
            panic!("{}: {e}; make it with testbed/bmc/requirements.txt", python.display())
        });
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "bmc.py did not start; is pyghmi in {}?", python.display());
    Simulator { process, port, dir }
}

/// Starts `ipmi_sim` for a machine in files: `power` holds 0 or 1, `boot` the device's name,
/// `calls` the simulator's acts. It speaks suite 3 only, and keeps only the device of the boot
/// flags.
pub(super) fn ipmi_sim() -> Simulator {
    ipmi_sim_with("")
}

/// Starts `ipmi_sim` with more configuration.
pub(super) fn ipmi_sim_with(more: &str) -> Simulator {
    let dir = tempfile::tempdir().unwrap();
    let (port, path) = (ports::free().port(), dir.path().display());
    let script = format!(
        r#"#!/bin/sh
cd {path} || exit 1
operation=$2
shift 2
while [ -n "$1" ]; do
    case $operation in
    get) echo "$1:$(cat "$1")"; shift ;;
    set) echo "$1 $2" >> calls; [ -e stuck ] || echo "$2" > "$1"; shift 2 ;;
    *) shift ;;
    esac
done
"#
    );
    let config = format!(
        r#"name "sim"
set_working_mc 0x20
chassis_control "{path}/chassis 0x20"
startlan 1
addr 127.0.0.1 {port}
priv_limit admin
allowed_auths_callback none md2 md5 straight
allowed_auths_user none md2 md5 straight
allowed_auths_operator none md2 md5 straight
allowed_auths_admin none md2 md5 straight
guid a123456789abcdefa123456789abcdef
endlan
user 2 true "{USER}" "{PASSWORD}" admin 60 none md2 md5 straight
{more}"#
    );
    let commands =
        "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n";
    for (name, text) in [
        ("chassis", script.as_str()),
        ("config", &config),
        ("commands", commands),
        ("power", "0"),
        ("boot", "default"),
        ("calls", ""),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    fs::set_permissions(dir.path().join("chassis"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(dir.path().join("state")).unwrap();
    let process = Command::new("ipmi_sim")
        .arg("-n")
        .arg("-c")
        .arg(dir.path().join("config"))
        .arg("-f")
        .arg(dir.path().join("commands"))
        .arg("-s")
        .arg(dir.path().join("state"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("ipmi_sim: {e}; it is in Debian's openipmi"));
    let simulator = Simulator { process, port, dir };
    simulator.wait_for_its_port();
    simulator
}

impl Simulator {
    /// A file of the simulated machine.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sends the simulator a signal.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.process.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// The events of pyghmi's log that have this name.
    pub(super) fn events(&self, name: &str) -> Vec<serde_json::Value> {
        fs::read_to_string(self.file("log"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|event| event["event"] == name)
            .collect()
    }

    /// The data of every chassis command `number` that pyghmi received, in hex.
    pub(super) fn chassis_commands(&self, number: u8) -> Vec<String> {
        self.events("command")
            .iter()
            .filter(|event| event["netfn"] == 0 && event["command"] == number)
            .map(|event| event["data"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The number of application commands `number` that pyghmi received.
    pub(super) fn application_commands(&self, number: u8) -> usize {
        let sent = self.events("command");
        sent.iter().filter(|event| event["netfn"] == 6 && event["command"] == number).count()
    }

    /// The number of bytes of console output that clients have acknowledged.
    pub(crate) fn printed_bytes(&self) -> u64 {
        self.events("printed").iter().map(|event| event["bytes"].as_u64().unwrap()).sum()
    }

    /// Waits until pyghmi has no session open.
    pub(super) async fn closes_all_sessions(&self) {
        let limit = Instant::now() + Duration::from_secs(5);
        while !self.open_sessions().is_empty() {
            assert!(Instant::now() < limit, "a session stayed open");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The client ports of pyghmi's open sessions.
    pub(crate) fn open_sessions(&self) -> Vec<u64> {
        let mut open = Vec::new();
        for event in self.events("session") {
            let peer = event.get("peer").unwrap().as_u64().unwrap();
            open.retain(|other| *other != peer);
            if event.get("open").unwrap() == true {
                open.push(peer);
            }
        }
        open
    }

    /// The number of pyghmi's sessions so far.
    pub(crate) fn sessions(&self) -> usize {
        self.events("session").iter().filter(|event| event["open"] == true).count()
    }

    /// Waits until the port is bound: before that, the kernel reports "refused".
    fn wait_for_its_port(&self) {
        let ping = UdpSocket::bind("127.0.0.1:0").unwrap();
        ping.connect(("127.0.0.1", self.port)).unwrap();
        ping.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let limit = Instant::now() + Duration::from_secs(10);
        // An RMCP presence ping (ASF 2.0 §3.2.4.2), which a bound port answers or swallows.
        while Instant::now() < limit {
            let sent = ping.send(&[6, 0, 0xff, 6, 0, 0, 0x11, 0xbe, 0x80, 0, 0, 0]);
            match sent.and_then(|_| ping.recv(&mut [0; 64])) {
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(_) | Ok(_) => return,
            }
        }
        panic!("ipmi_sim did not bind its port in 10 s");
    }
}

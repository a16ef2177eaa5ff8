//! A rack for one test: brought up by `testbed/rack`, down when dropped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde::Deserialize;

/// The agent's address.
pub(crate) const HOST: &str = "192.0.2.1";

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One machine, as `rack list --json` has it.
#[derive(Debug, Deserialize)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) mac: String,
    pub(crate) address: String,
    pub(crate) firmware: String,
    pub(crate) console_log: PathBuf,
    pub(crate) events_log: PathBuf,
    pub(crate) bmc: Bmc,
    /// The disk to install, and a second one whose content must never change.
    pub(crate) disks: [RackDisk; 2],
    #[serde(rename = "machine_running")]
    pub(crate) is_on: bool,
}

#[derive(Deserialize)]
struct List {
    nodes: Vec<Machine>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Bmc {
    pub(crate) address: String,
    pub(crate) username: String,
    pub(crate) password_file: PathBuf,
}

/// One event or command of a BMC.
#[derive(Debug, PartialEq, Deserialize)]
pub(crate) struct BmcEvent {
    /// `power` and `boot` for a change, `command` for a received command, and more.
    pub(crate) event: String,
    /// The new power state.
    #[serde(default)]
    pub(crate) on: bool,
    /// Whether a session was opened or closed.
    pub(crate) open: Option<bool>,
    /// The command it received: network function and command.
    pub(crate) netfn: Option<u8>,
    pub(crate) command: Option<u8>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RackDisk {
    pub(crate) serial: String,
    pub(crate) path: PathBuf,
}

pub(crate) struct Rack {
    dir: PathBuf,
}

impl Drop for Rack {
    fn drop(&mut self) {
        // Every process in the namespace ends with the rack, in every case.
        let down = self.rack(&["down"]);
        if !std::thread::panicking() {
            assert!(down.status.success(), "{down:?}");
        }
    }
}

impl Rack {
    /// Brings up one machine for each firmware, `node-1` and so on, switched off. `more` are other
    /// arguments of `testbed/rack up`.
    pub(crate) fn up(dir: PathBuf, firmware: &[&str], disk_size: &str, more: &[&str]) -> Self {
        let rack = Self { dir };
        let (count, firmware) = (firmware.len().to_string(), firmware.join(","));
        let words = ["up", &count, "--firmware", &firmware, "--disk-size", disk_size];
        rack.tell(&[&words, more].concat());
        rack
    }

    /// Runs `testbed/rack` with these arguments, which must succeed.
    pub(crate) fn tell(&self, words: &[&str]) -> String {
        let output = self.rack(words);
        assert!(output.status.success(), "rack {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command that runs in the rack's network.
    pub(crate) fn inside(&self, words: &[&str]) -> Command {
        let mut command = self.command(&["exec"]);
        command.args(words);
        command
    }

    pub(crate) fn machines(&self) -> Vec<Machine> {
        serde_json::from_str::<List>(&self.tell(&["list", "--json"])).unwrap().nodes
    }

    pub(crate) fn machine(&self, name: &str) -> Machine {
        self.machines().into_iter().find(|machine| machine.name == name).unwrap()
    }

    /// Fetches the node's boot menus as pxelinux and GRUB do.
    pub(crate) fn menus(&self, machine: &Machine) -> [String; 2] {
        let mac = machine.mac.replace(':', "-");
        [format!("pxelinux.cfg/01-{mac}"), format!("grub/grub.cfg-01-{}", machine.mac)].map(
            |path| {
                let url = format!("tftp://{HOST}/{path}");
                let output =
                    self.inside(&["curl", "-sS", "--max-time", "20", &url]).output().unwrap();
                assert!(output.status.success(), "{url}: {output:?}");
                String::from_utf8(output.stdout).unwrap()
            },
        )
    }

    /// Presses a button of the machine's BMC, as an administrator would with ipmitool.
    pub(crate) fn ipmitool(&self, machine: &Machine, words: &[&str]) -> String {
        let bmc = &machine.bmc;
        let password_file = bmc.password_file.to_str().unwrap();
        let login = ["-I", "lanplus", "-H", &bmc.address, "-U", &bmc.username, "-f", password_file];
        let output = self.inside(&["ipmitool"]).args(login).args(words).output().unwrap();
        assert!(output.status.success(), "ipmitool {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn rack(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(repository().join("testbed/rack"));
        command.env("HOSTLER_RACK", &self.dir).args(words);
        command
    }
}

impl Machine {
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console_log).unwrap()).into_owned()
    }

    pub(crate) fn events(&self) -> Vec<BmcEvent> {
        let text = fs::read_to_string(&self.events_log).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Puts the network first in the firmware's own order.
    pub(crate) fn boots_network_first(&self) {
        fs::write(self.console_log.with_file_name("network-first"), "").unwrap();
    }

    /// The number of times that the machine was switched on.
    pub(crate) fn times_switched_on(&self) -> usize {
        self.events().iter().filter(|event| event.event == "power" && event.on).count()
    }
}

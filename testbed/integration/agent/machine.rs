//! A simulated machine: pyghmi for its BMC, tgtd for its disk, and curl for the deploy ramdisk's
//! calls.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Mutex,
};

use hostler::model::{
    boot::RamdiskArgs,
    callback::{DiskRange, FlushedRanges},
    ids::{Digest, NodeName},
    range_digest::RangeHasher,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::site::{Site, Spec, hex, wait};
use crate::{
    ipmi::simulators::{PASSWORD, Simulator, USER, pyghmi},
    iscsi::tgtd::Tgtd,
};

/// Enough for every test's image.
pub(super) const DISK_BYTES: u64 = 160 << 20;
const CHAP_USER: &str = "hostler";
const CHAP_SECRET: &str = "fresh for this attempt";
/// The serial number the ramdisk reports for its disk.
pub(super) const SERIAL: &str = "root-1";

pub(super) struct Machine {
    pub(super) node: String,
    pub(super) mac: String,
    pub(super) bmc: Simulator,
    pub(super) disk: Tgtd,
}

impl Machine {
    /// Makes a machine that is off, with its BMC's password at the site.
    pub(super) fn new(site: &Site, node: &str) -> Self {
        Self::with_bmc(site, node, &[])
    }

    /// Makes a machine with more arguments for `bmc.py`.
    pub(super) fn with_bmc(site: &Site, node: &str, arguments: &[&str]) -> Self {
        let disk = Tgtd::serve(&iqn(node), DISK_BYTES);
        Self::with_disk(site, node, arguments, disk).demanding_chap()
    }

    /// Makes a machine with the test's own disk.
    pub(super) fn with_disk(site: &Site, node: &str, arguments: &[&str], disk: Tgtd) -> Self {
        fs::write(site.path(&format!("secrets/{node}.bmc")), format!("{PASSWORD}\n")).unwrap();
        let last = node.bytes().fold(0_u8, u8::wrapping_add);
        let mac = format!("52:54:00:00:00:{last:02x}");
        Self { node: node.to_owned(), mac, bmc: pyghmi(arguments), disk }
    }

    pub(super) fn demanding_chap(self) -> Self {
        self.disk.demand_chap(CHAP_USER, CHAP_SECRET);
        self
    }

    /// The machine's spec: one attempt, with short waits, so that a hanging test ends.
    pub(super) fn spec(&self, site: &Site) -> Spec {
        Spec::new([
            ("boot.mac", format!("{:?}", self.mac)),
            ("bmc.address", format!("\"127.0.0.1:{}\"", self.bmc.port)),
            ("bmc.username", format!("{USER:?}")),
            ("bmc.password_file", format!("\"{}.bmc\"", self.node)),
            ("image.source", "\"disk.raw\"".to_owned()),
            ("image.checksum", format!("{:?}", site.checksum())),
            ("timeouts.power", "\"20s\"".to_owned()),
            ("timeouts.ramdisk", "\"40s\"".to_owned()),
            ("timeouts.completed", "\"40s\"".to_owned()),
            ("retry.attempts", "1".to_owned()),
            ("retry.backoff", "\"1s\"".to_owned()),
        ])
    }

    /// The boot menu for the machine's NIC.
    pub(super) fn menu(&self, site: &Site) -> Option<String> {
        let nic = self.mac.replace(':', "-");
        site.fetch(&format!("pxelinux.cfg/01-{nic}")).map(|menu| String::from_utf8(menu).unwrap())
    }

    pub(super) fn boots_its_disk(&self, site: &Site) -> bool {
        self.menu(site).is_some_and(|menu| menu.contains("LOCALBOOT") && !menu.contains("KERNEL"))
    }

    /// The BMC's acts, in order: `network once`, `disk always`, `on from network`, `on from hd`,
    /// `off`, `shut down`.
    pub(super) fn story(&self) -> Vec<String> {
        let log = fs::read_to_string(self.bmc.file("log")).unwrap_or_default();
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter_map(|event| received(&event)).collect()
    }

    pub(super) fn is_on(&self) -> bool {
        let story = self.story();
        story
            .iter()
            .rev()
            .find(|line| !line.contains("once") && !line.contains("always"))
            .is_some_and(|line| line != "off" && line != "shut down")
    }

    /// Switches the machine off without hostler.
    pub(super) fn switch_off(&self) {
        let port = self.bmc.port.to_string();
        let mut ipmitool = Command::new("ipmitool");
        ipmitool.args(["-I", "lanplus", "-C", "3", "-H", "127.0.0.1", "-p", &port]);
        ipmitool.args(["-U", USER, "-P", PASSWORD, "chassis", "power", "off"]);
        let output = ipmitool.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!self.is_on());
    }

    /// Whether the disk begins with the image.
    pub(super) fn has_image(&self, site: &Site) -> bool {
        self.disk.disk().starts_with(&site.image)
    }

    /// Waits until the machine was switched on `times` times from the network, and boots the
    /// ramdisk as its boot loader does.
    pub(super) fn boot(&self, site: &Site, times: usize) -> Ramdisk {
        site.await_that("on from the network", || {
            self.story().iter().filter(|line| *line == "on from network").count() >= times
        });
        Ramdisk::boot(site, self)
    }

    /// Plays the machine's part in a deploy, from power on to the completed notice.
    pub(super) fn deploy(&self, site: &Site) {
        let ramdisk = self.boot(site, 1);
        ramdisk.export();
        ramdisk.finish();
    }
}

/// The target's name that the agent must request.
pub(super) fn iqn(node: &str) -> String {
    format!("iqn.2026-11.hostler:{node}")
}

/// Converts an event of the BMC's log to a line of its story.
fn received(event: &Value) -> Option<String> {
    match event["event"].as_str()? {
        "power" if event["on"] == false => Some("off".to_owned()),
        "shutdown" if event["on"] == false => Some("shut down".to_owned()),
        "power" => Some(format!("on from {}", event["boot"].as_str().unwrap_or("its own order"))),
        "boot" => {
            let flags = event["flags"].as_str()?;
            let byte = |at| u8::from_str_radix(flags.get(at..at + 2)?, 16).ok();
            let device = match byte(2)? >> 2 & 0xf {
                1 => "network",
                2 => "disk",
                _ => "something",
            };
            Some(format!("{device} {}", if byte(0)? & 0x40 == 0 { "once" } else { "always" }))
        }
        _ => None,
    }
}

/// The deploy ramdisk of one attempt.
pub(super) struct Ramdisk {
    args: RamdiskArgs,
    certificate: NamedTempFile,
    mac: String,
    disk_bytes: u64,
    disk_file: PathBuf,
    /// The ranges to compare, from the answer that released the disk.
    ranges: Mutex<Vec<DiskRange>>,
    /// The UUID that the machine's firmware reports.
    pub(super) uuid: Option<&'static str>,
    /// The correct target, in which tests make mistakes.
    pub(super) target: Value,
}

impl Ramdisk {
    /// Follows the boot menu: kernel, ramdisk, command line. Accepts only the agent with the
    /// certificate of the command line's pin.
    fn boot(site: &Site, machine: &Machine) -> Self {
        let menu = machine.menu(site).unwrap();
        let word = |key: &str| {
            let line = menu.lines().find_map(|line| line.trim().strip_prefix(key));
            line.unwrap_or_else(|| panic!("no {key} in {menu}")).trim().to_owned()
        };
        for (key, file) in [("KERNEL ::", "vmlinuz"), ("INITRD ::", "initramfs")] {
            assert!(site.fetch(&word(key)).unwrap() == fs::read(site.path(file)).unwrap(), "{key}");
        }
        let args = RamdiskArgs::from_command_line(&word("APPEND")).unwrap();
        let node: NodeName = machine.node.parse().unwrap();
        assert_eq!((&args.node, args.api), (&node, site.callback));

        let shown = Command::new("curl")
            .args(["--silent", "--insecure", "--write-out", "%{certs}", "--output", "/dev/null"])
            .arg(format!("https://{}/", args.api))
            .output()
            .unwrap();
        let der = CertificateDer::from_pem_slice(&shown.stdout).unwrap();
        assert_eq!(hex(&Sha256::digest(&der)), args.pin);
        let mut certificate = NamedTempFile::new().unwrap();
        certificate.write_all(&shown.stdout).unwrap();
        let target = json!({
            "address": "127.0.0.1", "port": machine.disk.portal.port(), "lun": 1,
            "iqn": iqn(&machine.node), "chap_username": CHAP_USER, "chap_password": CHAP_SECRET,
            "error": "",
        });
        Self {
            args,
            certificate,
            mac: machine.mac.clone(),
            disk_bytes: machine.disk.disk_bytes,
            disk_file: machine.disk.disk_file(),
            ranges: Mutex::default(),
            uuid: None,
            target,
        }
    }

    /// Makes a call; returns status and answer, or status 0 without an answer.
    pub(super) fn call(&self, method: &str, call: &str, body: &Value) -> (u16, Value) {
        let output = self.curl(&["--write-out", "\n%{http_code}"], method, call, body);
        let (answer, code) = output.rsplit_once('\n').unwrap();
        (code.parse().unwrap(), serde_json::from_str(answer).unwrap_or_default())
    }

    /// Makes a call `times` times over one connection; returns the HTTP statuses.
    pub(super) fn post_often(&self, call: &str, body: &Value, times: usize) -> Vec<u16> {
        let statuses = ["--output", "/dev/null", "--write-out", "%{http_code}\n"];
        let output = self.curl(&statuses, "POST", &format!("{call}?[1-{times}]"), body);
        output.lines().map(|status| status.parse().unwrap()).collect()
    }

    fn curl(&self, options: &[&str], method: &str, call: &str, body: &Value) -> String {
        let (port, node) = (self.args.api.port(), &self.args.node);
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--max-time", "60", "--request", method, "--noproxy", "*"])
            .args(["--resolve", &format!("hostler:{port}:127.0.0.1"), "--cacert"])
            .arg(self.certificate.path())
            .args(["-H", &format!("Authorization: Bearer {}", self.args.key.expose())])
            .args(["-H", "Content-Type: application/json"])
            .args(options)
            .args(["--data-binary", "@-"])
            .arg(format!("https://hostler:{port}/v1/nodes/{node}/vendor_passthru/{call}"));
        let mut curl = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        curl.stdin.take().unwrap().write_all(body.to_string().as_bytes()).unwrap();
        String::from_utf8(curl.wait_with_output().unwrap().stdout).unwrap()
    }

    pub(super) fn post(&self, call: &str, body: &Value) -> (u16, Value) {
        self.call("POST", call, body)
    }

    /// Calls `lookup`, with one disk of so many bytes.
    pub(super) fn look_up(&self, bytes: u64) -> (u16, Value) {
        let disk =
            json!({"name": "vda", "size": bytes, "serial": SERIAL, "logical_block_size": 512});
        let machine = json!({
            "macs": [self.mac], "system_uuid": self.uuid, "disks": [disk], "memory": 1, "cpus": 1,
        });
        self.post("lookup", &machine)
    }

    /// Reports the disk and the target.
    pub(super) fn export(&self) {
        let (status, reply) = self.look_up(self.disk_bytes);
        assert_eq!((status, reply.get("disk")), (200, Some(&json!("vda"))));
        assert_eq!(reply.get("iqn"), Some(&json!(iqn(self.args.node.as_str()))));
        assert_eq!(self.post("pass_deploy_info", &self.target).0, 202);
    }

    /// Polls until the deploy state has this value, as patient with a restarting agent as the real
    /// ramdisk.
    pub(super) fn wait_for(&self, wanted: &str) {
        let state = wait(|| {
            let (_, reply) = self.call("GET", "deploy_state", &Value::Null);
            let ranges = reply.get("verify").cloned().unwrap_or_else(|| json!([]));
            *self.ranges.lock().unwrap() = serde_json::from_value(ranges).unwrap();
            reply.get("state").filter(|state| **state != "imaging").cloned()
        });
        assert_eq!(state, Some(json!(wanted)));
    }

    /// Whether the disk has what the agent's digests say, if there are any.
    fn compares_equal(&self) -> bool {
        let disk = File::open(&self.disk_file).unwrap();
        let ranges = self.ranges.lock().unwrap();
        !ranges.is_empty() && ranges.iter().all(|range| holds(&disk, range))
    }

    /// The ranges that the agent names during the write.
    pub(super) fn flushed(&self) -> Vec<DiskRange> {
        let (status, answer) = self.post("flushed", &json!({"known": 0}));
        assert_eq!(status, 200, "{answer}");
        serde_json::from_value::<FlushedRanges>(answer).unwrap().ranges
    }

    /// Whether the disk holds these ranges, and the answer that released it names them.
    pub(super) fn still_holds(&self, compared: &[DiskRange]) -> bool {
        let (disk, ranges) = (File::open(&self.disk_file).unwrap(), self.ranges.lock().unwrap());
        compared.iter().all(|range| ranges.contains(range) && holds(&disk, range))
    }

    /// Reports that the target is stopped, and the disk flushed and compared.
    pub(super) fn complete(&self) {
        let notice = json!({"error": "", "verified": self.compares_equal()});
        let answered = wait(|| {
            let (status, _) = self.post("completed", &notice);
            (status == 202).then_some(())
        });
        assert!(answered.is_some(), "completed is refused");
    }

    /// Exports the target, waits for the release, and reports completed.
    pub(super) fn finish(&self) {
        self.wait_for("release");
        self.complete();
    }

    pub(super) fn args(&self) -> &RamdiskArgs {
        &self.args
    }

    pub(super) fn key(&self) -> &str {
        self.args.key.expose()
    }
}

/// Whether the disk has the range's bytes.
pub(super) fn holds(disk: &File, range: &DiskRange) -> bool {
    let mut bytes = vec![0; usize::try_from(range.bytes).unwrap()];
    disk.read_exact_at(&mut bytes, range.from).unwrap();
    let found = match range.salt {
        None => Digest::of(&bytes),
        Some(salt) => {
            let mut hasher = RangeHasher::new(salt);
            hasher.data(&bytes);
            hasher.finish().unwrap()
        }
    };
    found == range.digest
}

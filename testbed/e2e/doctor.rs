//! `hostler doctor` in a real site: DHCP server, BMCs, boot files and directories of the rack.

use std::{
    fs,
    process::Command,
    time::{Duration, SystemTime},
};

use crate::{
    rack::{HOST, Machine},
    site::Site,
};

/// The thing that is taken away, the only check that fails then, and a part of what it says.
type Loss = (&'static str, &'static str, fn(&Case), &'static str);

struct Case {
    site: Site,
    machine: Machine,
}

impl Case {
    fn path(&self, path: &str) -> std::path::PathBuf {
        self.site.file(path)
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).unwrap();
    }

    fn replace(&self, path: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(path)).unwrap();
        assert!(text.contains(from), "{path}: {text}");
        fs::write(self.path(path), text.replace(from, to)).unwrap();
    }

    fn own(&self, path: &str, owner: &str) {
        let owned = Command::new("chown").arg(owner).arg(self.path(path)).status().unwrap();
        assert!(owned.success());
    }

    fn spec_path(&self) -> String {
        format!("nodes/{}.toml", self.machine.name)
    }

    /// The checks that are not ok, as level, check and message.
    fn complaints(&self) -> Vec<[String; 3]> {
        let (hostler, config) = (self.path("hostler"), self.path("hostler.toml"));
        let output = self
            .site
            .rack
            .inside(&[hostler.to_str().unwrap(), "doctor", "-o", "json", "--config"])
            .arg(config)
            .output()
            .unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let text =
            |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap().to_owned();
        let complaints: Vec<[String; 3]> = said["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|finding| ["level", "check", "message"].map(|key| text(finding, key)))
            .filter(|[level, ..]| level != "ok")
            .collect();
        let fails = complaints.iter().any(|[level, ..]| level == "failure");
        assert_eq!(output.status.code(), Some(i32::from(fails)), "{complaints:?}");
        complaints
    }
}

/// Removes all first files of a BIOS but pxelinux, and the one that it needs.
fn take_loaders(case: &Case) {
    for file in ["ldlinux.c32", "grub.pxe", "undionly.kpxe"] {
        case.remove(&format!("tftp/{file}"));
    }
}

const LOSSES: [Loss; 13] = [
    ("config", "config", |case| fs::write(case.path("hostler.toml"), "x").unwrap(), "hostler.toml"),
    (
        "address",
        "address",
        |case| case.replace("hostler.toml", HOST, "203.0.113.9"),
        "203.0.113.9 (network.advertise)",
    ),
    ("status files", "directory", |case| case.own("nodes", "root:root"), "may not write it"),
    ("secrets", "directory", |case| case.own("secrets", "root:root"), "may not read it"),
    ("loader", "loader", take_loaders, "pxelinux.0 needs ldlinux.c32"),
    ("ramdisk", "ramdisk", |case| case.remove("ramdisk/initramfs"), "initramfs"),
    ("password", "password", |case| case.remove("secrets/node-1.bmc"), "No such file"),
    (
        "wrong password",
        "bmc",
        |case| case.site.write_password(&case.machine, "wrong"),
        "wrong user name or password",
    ),
    (
        "BMC",
        "bmc",
        |case| case.replace(&case.spec_path(), &case.machine.bmc.address, "192.0.2.180"),
        "192.0.2.180",
    ),
    ("image", "image", |case| case.remove("images/disk.raw"), "disk.raw"),
    ("spec", "specs", |case| case.replace(&case.spec_path(), "\"bios\"", "\"bois\""), "bois"),
    (
        "clock",
        "clock",
        |case| {
            let file = fs::File::create(case.path("state/later")).unwrap();
            file.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
        },
        "minutes behind",
    ),
    ("boot file", "dhcp", |case| case.remove("tftp/pxelinux.0"), "pxelinux.0, which is not in"),
];

/// Invariant (status): `hostler doctor` finds nothing wrong with a whole site, also beside the
/// running agent, and names exactly what is taken away from it.
#[test]
fn a_doctor_names_exactly_what_is_taken_away() {
    let mut case = whole();
    assert_no_failure(&case, "beside the agent");
    assert!(case.site.stop_agent().success());
    assert_no_failure(&case, "without an agent");
    let port = {
        let program = format!(
            "import socket,time\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n\
             s.bind((\"{HOST}\",69))\nprint(flush=True)\ntime.sleep(600)"
        );
        let mut other = case.site.rack.inside(&["python3", "-c", &program]);
        let mut other = other.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let output = other.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        let complaints = case.complaints();
        other.kill().unwrap();
        other.wait().unwrap();
        complaints
    };
    assert_only("port", &port, "port", "192.0.2.1:69: Address already in use");
    for (what, check, take, message) in LOSSES {
        let kept = case.site.file("kept");
        let copy = |from: &std::path::Path, to: &std::path::Path| {
            let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
            assert!(copied.success());
        };
        fs::create_dir(&kept).unwrap();
        let parts = ["hostler.toml", "nodes", "secrets", "tftp", "ramdisk", "images", "state"];
        parts.iter().for_each(|part| copy(&case.path(part), &kept));
        take(&case);
        let complaints = case.complaints();
        for part in parts {
            let removed = Command::new("rm").arg("-rf").arg(case.path(part)).status().unwrap();
            assert!(removed.success());
            copy(&kept.join(part), &case.path(part));
        }
        fs::remove_dir_all(&kept).unwrap();
        assert_only(what, &complaints, check, message);
    }
    assert_no_failure(&case, "with everything again");

    // Only the service has its credentials.
    case.replace(
        &case.spec_path(),
        "password_file = \"node-1.bmc\"",
        "password_credential = \"x\"",
    );
    assert_no_failure(&case, "with a credential");
    let is_named = |[level, check, message]: &[String; 3]| {
        level == "warning" && check == "password" && message.contains("only the service")
    };
    assert!(case.complaints().iter().any(is_named));
}

/// A site with one machine with a BIOS, and its spec, which is to stay off.
fn whole() -> Case {
    let mut site = Site::new("doctor", &["bios"], "64M");
    let image = site.image("disk.raw", 0);
    let machine = site.rack.machine("node-1");
    let spec = format!("[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n", image.sha256);
    site.write_spec(&machine, &spec);
    let path = site.file("nodes/node-1.toml");
    let text = fs::read_to_string(&path).unwrap();
    // The agent is to leave the machine alone.
    fs::write(&path, format!("paused = true\n{text}")).unwrap();
    site.wait("node-1", "its status", Duration::from_secs(20), |_| true);
    site.assert_agent_runs();
    Case { site, machine }
}

fn assert_no_failure(case: &Case, when: &str) {
    let complaints = case.complaints();
    let failures: Vec<_> = complaints.iter().filter(|[level, ..]| level == "failure").collect();
    assert!(failures.is_empty(), "{when}: {failures:#?}");
}

fn assert_only(what: &str, complaints: &[[String; 3]], check: &str, message: &str) {
    let failures: Vec<_> = complaints.iter().filter(|[level, ..]| level == "failure").collect();
    match failures.as_slice() {
        [[_, found, said]] if found == check && said.contains(message) => {}
        other => panic!("{what}: {other:#?}"),
    }
}

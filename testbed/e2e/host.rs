//! hostler on a Debian with systemd: the documents' own commands install, upgrade and remove it, as
//! a package.
//!
//! `testbed/check host` runs it, with every command of README.md and docs/ that a suite can run;
//! `documents::LINES` names the others.

mod debian;

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use hostler::model::{
    power::PowerState,
    status::{Phase, Status},
};
use serde_json::Value;

use self::debian::{Debian, said};
use crate::{
    disks,
    documents::{self, HOST},
    rack::{Machine, Rack, repository},
    site::{BOOT_LIMIT, Image, SOON, booted_line},
};

const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The README's node, for the rack's machine.
const NODE: &str = "edge-07";
const MACHINE: &str = "node-1";
/// The administrator's working directory for commands outside of the installation.
const CONFIGURATION: &str = "/etc/hostler";
/// The packages of `testbed/package`: the documents' one, and one to upgrade to.
const PACKAGE: &str = "target/package/hostler_0.1.0-1_amd64.deb";
const UPGRADE: &str = "target/package/hostler_0.1.0-2_amd64.deb";
/// The spec of a node without a machine, and without an image.
const HOPELESS: &str = r#"
boot.mac = "52:54:00:00:00:77"
bmc.driver = "none"
image = { source = "no-such-image.raw", checksum = "sha512:SUM" }
retry.attempts = 1
"#;

struct Host {
    debian: Debian,
    machine: Machine,
    image: Image,
    /// The documents' commands that were not run yet.
    left: BTreeSet<&'static str>,
    rack: Rack,
}

/// Invariant (code): The documents' commands install hostler, and its unit installs machines across
/// restarts.
#[test]
fn the_documents_commands_install_hostler_and_what_it_installed_outlives_restarts_and_reboots() {
    let mut host = Host::new();
    host.is_installed_as_the_documents_say();
    host.runs_as_the_unit_says();
    host.installs_a_machine_once_a_member_of_the_group_approves();
    host.answers_every_question_of_the_documents();
    host.orders_the_bmc();
    host.outlives_a_restart_and_a_reboot();
    host.takes_a_password_from_the_service_manager();
    host.tells_the_journal_what_to_alert_on();
    host.is_upgraded_without_a_change_of_its_state();
    host.is_removed_with_its_state_kept_until_it_is_purged();
    assert!(host.left.is_empty(), "{:?} of the documents were not run", host.left);
}

impl Host {
    /// Boots a bare Debian, and a machine that is on with a foreign system.
    fn new() -> Self {
        for (package, revision) in [(PACKAGE, ""), (UPGRADE, " 2")] {
            assert!(repository().join(package).exists(), "run testbed/package{revision}");
        }
        let kept = repository().join("target/testbed/e2e/host");
        fs::create_dir_all(&kept).unwrap();
        let rack = Rack::up(kept.join("rack"), &["uefi"], "1G", &[]);
        let machine = rack.machine(MACHINE);
        rack.ipmitool(&machine, &["chassis", "power", "on"]);
        let debian = Debian::boot(&rack, kept.join("root"));
        debian.shell("useradd --create-home alice; useradd --create-home bob");
        let image = Image::at(repository().join("target/testbed/image/disk.raw"));
        let left = documents::LINES.iter().filter(|(_, by)| *by == HOST).map(|(line, _)| *line);
        Self { debian, machine, image, left: left.collect(), rack }
    }

    fn is_installed_as_the_documents_say(&self) {
        let published = self.debian.file("/root/debian-13.qcow2");
        let converted = Command::new("qemu-img")
            .args(["convert", "-c", "-O", "qcow2"])
            .args([&self.image.path, &published])
            .status();
        assert!(converted.unwrap().success());
        // The administrator types this into an editor.
        fs::write(self.debian.file("/root/typed.toml"), self.spec(&Image::at(published))).unwrap();
        self.write_program(
            "/root/editor",
            "case $1 in\n*/hostler.toml) echo '# edited' >>\"$1\" ;;\n\
             *) cp /root/typed.toml \"$1\" ;;\nesac",
        );
        for step in documents::install_steps() {
            let script = format!("cd /hostler\n{}", step.text);
            let output = self
                .debian
                .command(&["EDITOR=/root/editor", "bash", "-euo", "pipefail", "-c", &script])
                .stdin(fs::File::open(&self.machine.bmc.password_file).unwrap())
                .output()
                .unwrap();
            assert!(output.status.success(), "{}\n{}", step.text, said(&output));
        }
    }

    /// The README's spec for the rack's machine.
    fn spec(&self, image: &Image) -> String {
        let mut spec = documents::first_block("README.md", "A first spec", "toml");
        for (shown, real) in [
            ("192.0.2.20", &*self.machine.bmc.address),
            ("4f2d…", &image.sha256),
            ("S6PUNX0T", &self.machine.disks[0].serial),
        ] {
            assert!(spec.contains(shown), "README.md's spec has no {shown}");
            spec = spec.replace(shown, real);
        }
        assert!(spec.contains(&self.machine.mac));
        spec
    }

    /// Installs a package of the same programs, with a higher version.
    fn is_upgraded_without_a_change_of_its_state(&self) {
        let switched = self.machine.times_switched_on();
        let before = self.status(NODE).unwrap();
        assert_eq!(before.phase, Phase::Deployed);
        let pid = self.main_pid();
        self.install(UPGRADE);
        self.is_active();
        assert_ne!(self.main_pid(), pid, "the upgrade did not restart the agent");
        let after = self.until(NODE, "deployed", SOON, |status| status.ready);
        assert_eq!((after.phase, after.installed_digest), (before.phase, before.installed_digest));
        let config = fs::read_to_string(self.debian.file("/etc/hostler/hostler.toml")).unwrap();
        assert!(config.ends_with("# edited\n"), "{config}");

        self.debian.shell("systemctl stop hostler");
        self.install(UPGRADE);
        let active = self.debian.command(&["systemctl", "is-active", "hostler"]).output().unwrap();
        assert_eq!(active.stdout, b"inactive\n", "an upgrade started an agent that did not run");
        self.debian.shell("systemctl start hostler");
        self.is_active();
        self.until(NODE, "deployed", SOON, |status| status.ready);
        assert_eq!(self.machine.times_switched_on(), switched, "the machine was touched");
    }

    fn is_removed_with_its_state_kept_until_it_is_purged(&mut self) {
        let pid = self.main_pid();
        self.removed_by("apt-get remove hostler");
        assert!(!self.debian.file("/usr/bin/hostler").exists());
        let running = self.debian.command(&["test", "-e", &format!("/proc/{pid}")]).output();
        assert!(!running.unwrap().status.success(), "the removal left the agent running");
        for kept in ["/etc/hostler/hostler.toml", "/etc/hostler/nodes/edge-07.toml"] {
            assert!(self.debian.file(kept).exists(), "{kept} is gone");
        }
        assert!(self.debian.file("/var/lib/hostler/edge-07.json").exists(), "the record is gone");
        self.install(UPGRADE);
        self.debian.shell("systemctl enable --now hostler");
        self.until(NODE, "deployed", SOON, |status| status.ready);

        // A bind mount is of the same file system, so that `rm` would empty what it shows.
        self.debian.shell(
            "mkdir /root/mounted; echo x >/root/mounted/a\n\
             mount --bind /root/mounted /usr/share/hostler/loaders",
        );
        self.removed_by("apt-get purge hostler");
        let kept = self.debian.shell(
            "umount /usr/share/hostler/loaders; cat /root/mounted/a\n\
             rm -r /root/mounted /usr/share/hostler",
        );
        assert_eq!(kept, "x\n", "the purge removed the files of a mount");
        let left = self.debian.shell(
            "find / -xdev \\( -path /proc -o -path /hostler -o -path /srv/packages \\) -prune \
             -o \\( -name '*hostler*' -o -user hostler \\) -print; dpkg-query --show hostler 2>/dev/null || :",
        );
        assert_eq!(left, "", "the purge left these");
        assert!(self.debian.shell("systemctl --failed --no-legend").is_empty());
        assert!(
            self.machine.console().contains(&booted_line()) && self.rack.machine(MACHINE).is_on
        );
    }

    fn main_pid(&self) -> String {
        let pid = self.debian.shell("systemctl show --property=MainPID --value hostler");
        pid.trim().to_owned()
    }

    /// Installs a package of this checkout. No input means that apt and dpkg may ask nothing.
    fn install(&self, package: &str) {
        let install = format!("apt-get install --reinstall ./{package} </dev/null");
        self.debian.shell(&format!("cd /hostler; {install}"));
    }

    /// Runs a removal of the documents. apt itself asks once, and nothing else may.
    fn removed_by(&mut self, line: &str) {
        assert!(self.left.remove(line), "{line:?} is not in documents::LINES");
        let output = self.typed(&format!("echo y | {line}"));
        assert!(output.status.success(), "{}", said(&output));
    }

    fn runs_as_the_unit_says(&self) {
        let pid = self.main_pid();
        let status = self.debian.shell(&format!("cat /proc/{pid}/status"));
        let has = |line: &str| status.lines().any(|is| is.split_whitespace().eq(line.split(' ')));
        assert!(has("Seccomp: 2") && has("NoNewPrivs: 1"), "{status}");
        assert!(has("CapEff: 0000000000000400") && has("CapBnd: 0000000000000400"), "{status}");
        let uid = self.debian.shell("id --user hostler");
        assert!(has(&format!("Uid: {0} {0} {0} {0}", uid.trim())), "{status}");
        let limits = self.debian.shell(&format!("cat /proc/{pid}/limits"));
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert!(core.split_whitespace().eq("Max core file size 0 0 bytes".split(' ')), "{core}");
        let journal = self.debian.shell("journalctl --unit=hostler --no-pager");
        assert!(journal.contains("files beneath a directory are opened by openat2"), "{journal}");
    }

    fn installs_a_machine_once_a_member_of_the_group_approves(&mut self) {
        self.until(NODE, "held", SOON, |status| status.phase == Phase::Held);
        assert!(self.rack.machine(MACHINE).is_on);
        self.shown("hostler check nodes", 0);
        assert!(self.shown("hostler help boot.after", 0).contains("boot.after: key of a spec"));
        for line in ["hostler schema spec", "hostler schema config"] {
            let schema: Value = serde_json::from_str(&self.shown(line, 0)).unwrap();
            assert_eq!(schema["type"], "object");
        }
        self.shown("hostler plan", 0);
        assert!(!self.shown("hostler doctor", 0).contains("FAIL"));
        let fetched = self.shown("hostler cache fetch edge-07", 0);
        assert!(self.shown("hostler cache list", 0).contains("debian-13.qcow2"), "{fetched}");

        let approve = "hostler approve edge-07";
        let refused = self.typed_by("bob", approve);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        assert!(said(&refused).contains("ermission denied"), "{}", said(&refused));
        let approved = self.typed_by("alice", approve);
        assert!(approved.status.success(), "{}", said(&approved));
        self.left.remove(approve);

        let watch = self.typed(&format!("timeout 15 {}", "hostler watch"));
        assert!(said(&watch).contains("edge-07"), "{}", said(&watch));
        self.left.remove("hostler watch");
        self.shown("hostler wait edge-07 --timeout 2h", 0);
        let status = self.status(NODE).unwrap();
        assert!(status.ready && status.phase == Phase::Deployed, "{status:#?}");
        disks::assert_holds(&self.machine, &self.image);
        self.until_booted(1);
    }

    fn answers_every_question_of_the_documents(&mut self) {
        let digest = self.shown("hostler digest nodes/edge-07.toml", 0);
        let status = self.status(NODE).unwrap();
        assert_eq!(digest.trim(), status.spec_digest.unwrap().to_string());
        let phases = self.shown("grep '^phase' nodes/*.status.toml", 0);
        // One line for each node; the agent's own file, without a phase, makes grep print file
        // names.
        assert_eq!(phases, "nodes/edge-07.status.toml:phase = \"deployed\"\n");
        assert!(self.shown("hostler status", 0).contains("deployed"));
        let statuses = self.shown("hostler status -o json", 0);
        assert!(serde_json::from_str::<Value>(&statuses).is_ok(), "{statuses}");
        assert!(self.shown("hostler show edge-07", 0).contains("edge-07.toml:"));
        assert!(self.shown("hostler explain edge-07", 0).contains("deployed"));
        self.shown("hostler cache prune --to 5GiB", 0);
        let menu = self.shown("hostler show-boot 52:54:00:00:00:01", 0);
        assert!(menu.contains("local disk"), "{menu}");
        // Nothing is wiped, and a plan shows in advance what a merge would wipe.
        self.shown("hostler approve --all", 0);
        self.debian.shell(&format!(
            "cd {CONFIGURATION}; mkdir --parents pull-request/nodes\n\
             (echo 'redeploy = \"b\"'; cat nodes/edge-07.toml) >pull-request/nodes/edge-07.toml"
        ));
        let plan = self.shown("hostler plan pull-request/nodes --status-dir nodes -o json", 2);
        assert!(plan.contains("vda"), "{plan}");
    }

    fn orders_the_bmc(&mut self) {
        assert!(self.shown("hostler bmc edge-07 status", 0).contains("on"));
        self.shown("hostler bmc edge-07 info", 0);
        self.shown("hostler bmc edge-07 cycle", 0);
        self.until_booted(2);
        self.debian.shell("hostler bmc edge-07 off");
        self.until(NODE, "the power off", SOON, |status| {
            status.power.is_some_and(|power| power.observed == PowerState::Off)
        });
        self.shown("hostler retry edge-07", 0);
        self.until_booted(3);
    }

    fn outlives_a_restart_and_a_reboot(&self) {
        let switched = self.machine.times_switched_on();
        let before = self.status(NODE).unwrap();
        self.debian.shell("systemctl restart hostler");
        self.is_active();
        self.debian.reboot();
        self.is_active();
        let again = |status: &Status| status.last_seen != before.last_seen || status.ready;
        let after = self.until(NODE, "deployed", SOON, again);
        assert_eq!((after.phase, after.installed_digest), (before.phase, before.installed_digest));
        assert_eq!(self.machine.times_switched_on(), switched, "the machine was touched");
        let result = self.debian.shell("journalctl --unit=hostler --no-pager");
        assert!(!result.contains("Failed with result"), "{result}");
    }

    fn is_active(&self) {
        let output = self.debian.shell("systemctl status --no-pager --full hostler");
        assert!(output.contains("Active: active (running)"), "{output}");
        assert!(output.contains("enabled"), "{output}");
    }

    /// hostler may not read the file itself.
    fn takes_a_password_from_the_service_manager(&self) {
        self.debian.shell(
            "mv /etc/hostler/secrets/edge-07.bmc /root\n\
             chown root:root /root/edge-07.bmc\n\
             mkdir /etc/systemd/system/hostler.service.d\n\
             printf '[Service]\\nLoadCredential=edge-07:/root/edge-07.bmc\\n' \
               >/etc/systemd/system/hostler.service.d/password.conf\n\
             sed -i 's/^password_file.*/password_credential = \"edge-07\"/' \
               /etc/hostler/nodes/edge-07.toml\n\
             systemctl daemon-reload\n\
             systemctl restart hostler",
        );
        let status = self.debian.shell("hostler bmc edge-07 status");
        assert!(status.contains("on"), "{status}");
    }

    /// Checks the journal's priorities: `journalctl -p warning` shows all lines that need an
    /// operator, and no others.
    fn tells_the_journal_what_to_alert_on(&self) {
        let hopeless = HOPELESS.replace("SUM", &"0".repeat(128));
        fs::write(self.debian.file("/etc/hostler/nodes/edge-08.toml"), hopeless).unwrap();
        self.until("edge-08", "failed", SOON, |status| status.phase == Phase::Failed);
        let messages = |options: &str| -> Vec<String> {
            let journal = self.debian.shell(&format!(
                "journalctl _SYSTEMD_UNIT=hostler.service --output=json --no-pager {options}"
            ));
            let entries = journal.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            entries
                .map(|entry| entry["MESSAGE"].as_str().unwrap().trim_start().to_owned())
                .collect()
        };
        let warnings = messages("--priority=warning");
        let is_warning = |text: &String| text.starts_with("WARN ") || text.starts_with("ERROR ");
        assert!(warnings.iter().all(is_warning), "{warnings:#?}");
        let gave_up = |text: &&String| text.contains("edge-08") && text.contains("\"failed\"");
        assert_eq!(warnings.iter().filter(gave_up).count(), 1, "{warnings:#?}");
        let others = messages("--priority=info..info");
        let deployed = |text: &String| text.contains(NODE) && text.contains("\"deployed\"");
        assert!(others.iter().any(deployed), "{others:#?}");
        assert!(others.iter().all(|text| text.starts_with("INFO ")), "{others:#?}");
    }

    /// Runs a command of the documents, which must exit with that code. Returns its output.
    fn shown(&mut self, line: &str, code: i32) -> String {
        assert!(self.left.remove(line), "{line:?} is not in documents::LINES, or was run before");
        let output = self.typed(line);
        assert_eq!(output.status.code(), Some(code), "{line}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn typed(&self, line: &str) -> Output {
        self.typed_by("root", line)
    }

    fn typed_by(&self, user: &str, line: &str) -> Output {
        let script = format!("cd {CONFIGURATION}; {line}");
        let mut command =
            self.debian.command(&["runuser", "-u", user, "--", "bash", "-c", &script]);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn write_program(&self, path: &str, script: &str) {
        let path = self.debian.file(path);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    fn status_path(&self, node: &str) -> PathBuf {
        self.debian.file(&format!("{CONFIGURATION}/nodes/{node}.status.toml"))
    }

    fn status(&self, node: &str) -> Option<Status> {
        let text = fs::read_to_string(self.status_path(node)).ok()?;
        Some(toml::from_str(&text).unwrap_or_else(|error| panic!("{node}: {error}\n{text}")))
    }

    fn until(
        &self,
        node: &str,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Status {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.status(node);
            if let Some(status) = status.as_ref().filter(|status| wanted(status)) {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "{node} waited for {what}, but: {status:#?}");
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until the machine has reported for the nth time that it runs its image.
    fn until_booted(&self, times: usize) {
        let deadline = Instant::now() + BOOT_LIMIT;
        while self.machine.console().matches(&booted_line()).count() < times {
            assert!(Instant::now() < deadline, "{MACHINE} does not boot for the {times}. time");
            thread::sleep(POLL_INTERVAL);
        }
    }
}

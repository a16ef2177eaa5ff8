//! An administrator's site: a directory of specs, images and secrets, and an agent in a rack's
//! network.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use hostler::{
    lifecycle::Record,
    model::{
        boot::BootStage,
        ids::NodeName,
        status::{ImagingStage, LastError, Phase, Status},
    },
};
use tempfile::TempDir;

use crate::rack::{HOST, Machine, Rack, repository};

/// Time limit from power on to the ramdisk's first call, and from there to the end; a machine
/// without virtualisation takes a minute, and more beside others.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(400);
/// Time limit of steps without a boot.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// The time that the agent may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const AGENT_LOG: &str = "agent.log";
const MIB: usize = 1024 * 1024;

pub(crate) struct Site {
    /// Outside of the checkout, which the agent's user may not be able to enter.
    dir: TempDir,
    /// The directory of the test's kept output.
    kept: PathBuf,
    pub(crate) rack: Rack,
    agent: Option<Child>,
}

/// An image in the site's images directory.
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl Image {
    pub(crate) fn at(path: PathBuf) -> Self {
        let sums = Command::new("sha256sum").arg(&path).output().unwrap();
        let sha256 = String::from_utf8(sums.stdout).unwrap()[..64].to_owned();
        Self { bytes: fs::metadata(&path).unwrap().len(), path, sha256 }
    }
}

impl Site {
    /// Makes a rack with one machine for each firmware, and starts an agent without specs.
    pub(crate) fn new(test: &str, firmware: &[&str], disk_size: &str) -> Self {
        Self::with(test, firmware, disk_size, &[])
    }

    /// Makes a site whose rack gets more arguments.
    pub(crate) fn with(test: &str, firmware: &[&str], disk_size: &str, more: &[&str]) -> Self {
        let kept = repository().join("target/testbed/e2e").join(test);
        fs::create_dir_all(&kept).unwrap();
        drop(fs::remove_file(kept.join(AGENT_LOG)));
        let rack = Rack::up(kept.join("rack"), firmware, disk_size, more);
        let mut site = Self { dir: make_site(&kept), kept, rack, agent: None };
        site.start_agent();
        site
    }

    /// Starts the agent as a user whose only privilege is to bind the TFTP port.
    pub(crate) fn start_agent(&mut self) {
        let log = File::options().append(true).create(true).open(self.kept.join(AGENT_LOG));
        let (hostler, config) = (self.file("hostler"), self.file("hostler.toml"));
        let agent = self
            .rack
            .inside(&["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"])
            .args(["--no-new-privs", "--bounding-set=-all,+net_bind_service"])
            .args(["--inh-caps=-all,+net_bind_service", "--ambient-caps=-all,+net_bind_service"])
            .arg(hostler)
            .args(["run", "--config"])
            .arg(config)
            .env("HOSTLER_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        self.agent = Some(agent);
    }

    /// The agent's process id: every program before the agent's replaces itself by the next with
    /// exec.
    pub(crate) fn agent_pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    pub(crate) fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Stops the agent as systemd does.
    pub(crate) fn stop_agent(&mut self) -> ExitStatus {
        let mut agent = self.agent.take().unwrap();
        let sent = Command::new("kill").arg(agent.id().to_string()).status().unwrap();
        assert!(sent.success());
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            if let Some(status) = agent.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                agent.kill().unwrap();
                panic!("the agent did not stop within {STOP_LIMIT:?} of SIGTERM");
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    pub(crate) fn assert_agent_runs(&mut self) {
        let ended = self.agent.as_mut().and_then(|agent| agent.try_wait().unwrap());
        assert_eq!(ended, None, "the agent has ended");
    }

    pub(crate) fn agent_log(&self) -> String {
        fs::read_to_string(self.kept.join(AGENT_LOG)).unwrap()
    }

    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Adds the test image, with so many MiB of incompressible noise after its partitions.
    pub(crate) fn image(&self, name: &str, noise_mib: usize) -> Image {
        let path = self.copy_image("disk.raw", name).path;
        let mut file = File::options().append(true).open(&path).unwrap();
        let mut noise = File::open("/dev/urandom").unwrap().take((noise_mib * MIB) as u64);
        io::copy(&mut noise, &mut file).unwrap();
        Image::at(path)
    }

    /// Copies a built image, or a file that belongs to one.
    pub(crate) fn copy_image(&self, built: &str, name: &str) -> Image {
        let path = self.file(&format!("images/{name}"));
        fs::copy(repository().join("target/testbed/image").join(built), &path).unwrap();
        Image::at(path)
    }

    /// Writes a spec with the machine's NICs and BMC and other tables: at least `[image]`.
    pub(crate) fn write_spec(&self, machine: &Machine, rest: &str) {
        self.write_spec_after(machine, "disk", rest);
    }

    /// Writes a spec that says whether the machine is on once it is deployed.
    pub(crate) fn write_spec_with_power(&self, machine: &Machine, power: &str, rest: &str) {
        let rest = spec(machine, "disk", "\"quiet\"", rest);
        let spec = format!("power = \"{power}\"\n{rest}");
        fs::write(self.file(&format!("nodes/{}.toml", machine.name)), spec).unwrap();
    }

    /// Writes a spec for a machine with another `boot.after`.
    pub(crate) fn write_spec_after(&self, machine: &Machine, after: &str, rest: &str) {
        let spec = spec(machine, after, "\"quiet\"", rest);
        fs::write(self.file(&format!("nodes/{}.toml", machine.name)), spec).unwrap();
    }

    /// Writes a spec for a machine whose deploy kernel prints all messages, its command line too.
    pub(crate) fn write_spec_loudly(&self, machine: &Machine, rest: &str) {
        let spec = spec(machine, "disk", "\"loglevel=6\"", rest);
        fs::write(self.file(&format!("nodes/{}.toml", machine.name)), spec).unwrap();
    }

    /// Writes a spec without the machine's BMC. `power` is the wanted state after the deploy.
    pub(crate) fn write_spec_without_bmc(&self, machine: &Machine, power: &str, rest: &str) {
        let Machine { name, mac, firmware, .. } = machine;
        let spec = format!(
            r#"
            power = "{power}"
            [boot]
            mac = "{mac}"
            firmware = "{firmware}"
            kernel_args = ["console=ttyS0,115200n8", "quiet"]
            [bmc]
            driver = "none"
            {rest}"#
        );
        fs::write(self.file(&format!("nodes/{name}.toml")), spec).unwrap();
    }

    /// Replaces the password of the machine's BMC.
    pub(crate) fn write_password(&self, machine: &Machine, password: &str) {
        let file = self.file(&format!("secrets/{}.bmc", machine.name));
        fs::write(file, format!("{password}\n")).unwrap();
    }

    pub(crate) fn status_path(&self, node: &str) -> PathBuf {
        self.file(&format!("nodes/{node}.status.toml"))
    }

    /// The log of the node's deploy ramdisk.
    pub(crate) fn ramdisk_log(&self, node: &str) -> String {
        fs::read_to_string(self.file(&format!("nodes/{node}.ramdisk.log"))).unwrap()
    }

    /// Reads the node's status; `None` without a file, which is never half-written.
    pub(crate) fn status(&self, node: &str) -> Option<Status> {
        let text = fs::read_to_string(self.status_path(node)).ok()?;
        Some(toml::from_str(&text).unwrap_or_else(|error| panic!("{node}: {error}\n{text}")))
    }

    /// Reads the agent's record of the node, with its secrets.
    pub(crate) fn record(&self, node: &str) -> Option<Record> {
        let text = fs::read_to_string(self.file(&format!("state/{node}.json"))).ok()?;
        let file: serde_json::Value = serde_json::from_str(&text).unwrap();
        Some(serde_json::from_value(file["content"].clone()).unwrap())
    }

    /// Waits until the node's status satisfies a condition.
    pub(crate) fn wait(
        &mut self,
        node: &str,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Status {
        let node: NodeName = node.parse().unwrap();
        let deadline = Instant::now() + limit;
        loop {
            let status = self.status(node.as_str());
            if let Some(status) = status.as_ref().filter(|status| wanted(status)) {
                return status.clone();
            }
            self.assert_agent_runs();
            let given_up = status.as_ref().is_some_and(|status| status.phase == Phase::Failed);
            let late = Instant::now() > deadline;
            assert!(!given_up && !late, "{node} waited for {what}, but: {status:#?}");
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until the node's machine has fetched this file, and no later one. The record has it at
    /// once, the status file within a second.
    pub(crate) fn wait_for_fetch(&mut self, node: &str, stage: BootStage, limit: Duration) {
        let deadline = Instant::now() + limit;
        let fetched = |record: Record| record.last_seen.fetched;
        while self.record(node).and_then(fetched) != Some(stage) {
            self.assert_agent_runs();
            let late = Instant::now() > deadline;
            assert!(!late, "{node} never fetched its {stage:?}: {:#?}", self.status(node));
            thread::sleep(POLL_INTERVAL);
        }
    }

    pub(crate) fn wait_for_phase(&mut self, node: &str, phase: Phase, limit: Duration) -> Status {
        self.wait(node, phase.as_str(), limit, |status| status.phase == phase)
    }

    /// Waits until a node that has failed is deployed after all.
    pub(crate) fn wait_until_deployed_again(&mut self, node: &str, limit: Duration) -> Status {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.status(node).filter(|it| it.phase == Phase::Deployed) {
                return status;
            }
            self.assert_agent_runs();
            assert!(Instant::now() < deadline, "{node}: {:#?}", self.status(node));
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until the body of the image is being written: the tables are wiped, and not yet
    /// rewritten.
    pub(crate) fn wait_for_the_middle_of_the_write(&mut self, node: &str) {
        self.wait(node, "the middle of the write", BOOT_LIMIT, is_in_the_middle_of_its_write);
    }

    /// Waits until the body of one of the nodes' images is being written; returns the node's index.
    pub(crate) fn wait_for_the_middle_of_a_write(&mut self, nodes: &[&str]) -> usize {
        let deadline = Instant::now() + BOOT_LIMIT;
        let is_there =
            |node: &&str| self.status(node).as_ref().is_some_and(is_in_the_middle_of_its_write);
        loop {
            if let Some(which) = nodes.iter().position(is_there) {
                return which;
            }
            assert!(Instant::now() < deadline, "none of {nodes:?} is being written");
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until the node has failed for good, and checks the invariants of every failure: a
    /// status with cause and hint, boot files for the local disk, and no key.
    pub(crate) fn wait_for_failure(&mut self, node: &str, limit: Duration) -> LastError {
        let status = self.wait_for_phase(node, Phase::Failed, limit);
        let error = status.last_error.clone().unwrap();
        assert!(!status.ready && status.installed_digest.is_none(), "{status:#?}");
        assert!(!error.fault.hint.is_empty(), "{error:#?}");
        assert!(status.message.contains(&error.fault.message), "{status:#?}");
        assert!(status.deadline.is_none() && status.next_attempt_at.is_none(), "{status:#?}");
        assert!(
            self.record(node).unwrap().state.attempt().is_none(),
            "{node}: its record has a key"
        );
        self.assert_boots_local_disk(&self.rack.machine(node));
        error
    }

    pub(crate) fn assert_boots_local_disk(&self, machine: &Machine) {
        for menu in self.rack.menus(machine) {
            assert!(menu.contains("booting the local disk"), "{menu}");
            assert!(!menu.contains("deploy") && !menu.contains("key"), "{menu}");
        }
    }

    /// Asserts that the console and the machine's web server report the image.
    pub(crate) fn assert_runs_image(&self, machine: &Machine) {
        let line = booted_line();
        let url = format!("http://{}/", machine.address);
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            let page = self.rack.inside(&["curl", "-s", "--max-time", "5", &url]).output().unwrap();
            if String::from_utf8_lossy(&page.stdout).trim() == line {
                break;
            }
            assert!(Instant::now() < deadline, "{} does not answer: {page:?}", machine.name);
            thread::sleep(POLL_INTERVAL);
        }
        assert!(machine.console().contains(&line));
    }

    /// No iSCSI session is left.
    pub(crate) fn assert_no_target_in_use(&self) {
        let sessions = ["ss", "-Htn", "state", "established", "dport = :3260"];
        let sessions = self.rack.inside(&sessions).output().unwrap();
        assert!(sessions.status.success() && sessions.stdout.is_empty(), "{sessions:?}");
    }
}

/// Waits for another boot of the image.
pub(crate) fn assert_boots_once_more(machine: &Machine) {
    let deadline = Instant::now() + BOOT_LIMIT;
    while machine.console().matches(&booted_line()).count() < 2 {
        assert!(Instant::now() < deadline, "{} does not boot again", machine.name);
        thread::sleep(POLL_INTERVAL);
    }
}

/// The line that the test images print on the console.
pub(crate) fn booted_line() -> String {
    format!("HOSTLER-IMAGE-BOOTED id={} disk=vda", image_id())
}

/// The id of the test images.
pub(crate) fn image_id() -> String {
    let id = fs::read_to_string(repository().join("target/testbed/image/disk.id")).unwrap();
    id.trim().to_owned()
}

fn spec(machine: &Machine, after: &str, kernel_args: &str, rest: &str) -> String {
    let Machine { name, mac, firmware, bmc, .. } = machine;
    format!(
        r#"
        [boot]
        mac = "{mac}"
        firmware = "{firmware}"
        after = "{after}"
        kernel_args = ["console=ttyS0,115200n8", {kernel_args}]
        [bmc]
        address = "{}"
        username = "{}"
        password_file = "{name}.bmc"
        {rest}"#,
        bmc.address, bmc.username
    )
}

/// Makes a directory with every file that an agent needs, owned by its unprivileged user. The agent
/// makes the state directory.
fn make_site(kept: &Path) -> TempDir {
    let dir = tempfile::Builder::new().prefix("hostler-e2e.").tempdir().unwrap();
    let at = dir.path();
    let built = repository().join("target");
    for made in ["nodes", "images", "secrets"] {
        fs::create_dir(at.join(made)).unwrap();
    }
    let hostler = built.join("x86_64-unknown-linux-gnu/release/hostler");
    fs::copy(&hostler, at.join("hostler"))
        .unwrap_or_else(|error| panic!("{}: {error}; run testbed/build", hostler.display()));
    for secret in fs::read_dir(kept.join("rack/secrets")).unwrap() {
        let secret = secret.unwrap();
        fs::copy(secret.path(), at.join("secrets").join(secret.file_name())).unwrap();
    }
    for (from, to) in [("testbed/loaders", "tftp"), ("testbed/ramdisk", "ramdisk")] {
        fs::create_dir(at.join(to)).unwrap();
        for file in fs::read_dir(built.join(from)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), at.join(to).join(file.file_name())).unwrap();
        }
    }
    let config = format!(
        r#"
        [specs]
        dir = "{site}/nodes"
        [state]
        dir = "{site}/state"
        [images]
        dir = "{site}/images"
        [secrets]
        dir = "{site}/secrets"
        [network]
        advertise = "{HOST}"
        [tftp]
        loaders = "{site}/tftp"
        [admin]
        socket = "{site}/admin.sock"
        [ramdisk]
        kernel = "{site}/ramdisk/vmlinuz"
        initramfs = "{site}/ramdisk/initramfs"
        "#,
        site = at.display()
    );
    fs::write(at.join("hostler.toml"), config).unwrap();
    fs::set_permissions(at, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(at.join("secrets"), Permissions::from_mode(0o700)).unwrap();
    let owned = Command::new("chown").args(["-R", "nobody:nogroup"]).arg(at).status().unwrap();
    assert!(owned.success());
    dir
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            drop(agent.kill());
            drop(agent.wait());
        }
        for file in fs::read_dir(self.file("nodes")).into_iter().flatten().flatten() {
            drop(fs::copy(file.path(), self.kept.join(file.file_name())));
        }
        let machines = self.rack.machines();
        if thread::panicking() {
            return self.show_ends(&machines);
        }
        for disk in machines.iter().flat_map(|machine| &machine.disks) {
            drop(fs::remove_file(&disk.path));
        }
    }
}

impl Site {
    /// Prints the ends of all logs.
    #[expect(clippy::print_stderr, reason = "the test has failed, and this is why")]
    fn show_ends(&self, machines: &[Machine]) {
        let agent = self.kept.join(AGENT_LOG);
        let statuses = machines.iter().map(|machine| self.status_path(&machine.name));
        let consoles = machines.iter().map(|machine| machine.console_log.clone());
        let ends = Command::new("tail")
            .args(["--verbose", "--lines=40"])
            .arg(agent)
            .args(statuses.chain(consoles))
            .output();
        eprintln!("{}", String::from_utf8_lossy(&ends.map(|ends| ends.stdout).unwrap_or_default()));
        eprintln!("everything is in {}", self.kept.display());
    }
}

fn is_in_the_middle_of_its_write(status: &Status) -> bool {
    let progress = status.progress.filter(|progress| progress.done_bytes > 0);
    status.phase == Phase::Imaging
        && progress.is_some_and(|progress| progress.stage == ImagingStage::Write)
}

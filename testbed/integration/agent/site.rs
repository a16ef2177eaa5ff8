//! A test's site: directories, configuration, image, and the agent as a process.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use hostler::model::status::{Phase, Status};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::ports;

/// Time limit of each wait, on a machine that runs many tests at once.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of an ordinary image; no whole number of blocks.
const SMALL_IMAGE_BYTES: usize = 3_000_100;

/// The directories and configuration of an agent, which the test starts and stops.
pub(super) struct Site {
    dir: TempDir,
    pub(super) tftp: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) callback: SocketAddr,
    pub(super) image: Vec<u8>,
}

/// A running agent; killed on drop.
pub(super) struct Agent(Child);

/// A spec as dotted keys, so that a test sets only the keys that matter.
#[derive(Clone)]
pub(super) struct Spec(BTreeMap<String, String>);

/// Makes an image bootable: with a boot loader, which jumps to itself, and the boot signature.
pub(super) fn signed(mut image: Vec<u8>) -> Vec<u8> {
    image.get_mut(..2).unwrap().copy_from_slice(&[0xeb, 0xfe]);
    image.get_mut(510..512).unwrap().copy_from_slice(&[0x55, 0xaa]);
    image
}

impl Site {
    pub(super) fn new() -> Self {
        Self::with_image(SMALL_IMAGE_BYTES)
    }

    /// Makes a site with an image of so many bytes, which only has a boot signature.
    pub(super) fn with_image(bytes: usize) -> Self {
        Self::of_image(signed(noise(bytes)))
    }

    /// Makes a site with this image.
    pub(super) fn of_image(image: Vec<u8>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for part in ["nodes", "images", "secrets", "loaders", "status"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        // An agent without any boot loader warns.
        fs::write(dir.path().join("loaders/grub.pxe"), "").unwrap();
        fs::write(dir.path().join("images/disk.raw"), &image).unwrap();
        fs::write(dir.path().join("vmlinuz"), noise(70_000)).unwrap();
        fs::write(dir.path().join("initramfs"), noise(90_000)).unwrap();
        let site =
            Self { dir, tftp: ports::free(), http: ports::free(), callback: ports::free(), image };
        site.configure("");
        site
    }

    /// Writes the configuration; `specs` are more lines for its `[specs]`.
    pub(super) fn configure(&self, specs: &str) {
        let (dir, tftp, http) = (self.dir.path().display(), self.tftp, self.http);
        let callback = self.callback;
        let text = format!(
            r#"[specs]
dir = "{dir}/nodes"
{specs}
[state]
dir = "{dir}/state"
[images]
dir = "{dir}/images"
cache_dir = "{dir}/cache"
[secrets]
dir = "{dir}/secrets"
[network]
advertise = "127.0.0.1"
[tftp]
listen = "{tftp}"
loaders = "{dir}/loaders"
[http]
listen = "{http}"
[callback]
listen = "{callback}"
[admin]
socket = "{dir}/run/admin.sock"
[ramdisk]
kernel = "{dir}/vmlinuz"
initramfs = "{dir}/initramfs"
"#
        );
        fs::write(self.path("hostler.toml"), text).unwrap();
    }

    /// Adds tables to the configuration.
    pub(super) fn configure_more(&self, tables: &str) {
        let path = self.path("hostler.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, format!("{text}{tables}\n")).unwrap();
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn start(&self) -> Agent {
        self.start_as(&mut self.hostler(&["run"]))
    }

    /// Starts the agent by this command; its log is appended to the site's.
    pub(super) fn start_as(&self, command: &mut Command) -> Agent {
        let log = File::options().create(true).append(true).open(self.path("agent.log")).unwrap();
        Agent(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// `hostler` with these arguments and this site's configuration.
    pub(super) fn hostler(&self, arguments: &[&str]) -> Command {
        let mut command = hostler(arguments);
        command.arg("--config").arg(self.path("hostler.toml"));
        command
    }

    /// The image's checksum, as a spec has it.
    pub(super) fn checksum(&self) -> String {
        format!("sha256:{}", hex(&Sha256::digest(&self.image)))
    }

    /// Puts a spec in place as careful writers do: beside it, then renamed.
    pub(super) fn write(&self, node: &str, spec: &Spec) {
        let temporary = self.path(&format!("nodes/.{node}.toml.new"));
        fs::write(&temporary, spec.to_toml()).unwrap();
        fs::rename(temporary, self.path(&format!("nodes/{node}.toml"))).unwrap();
    }

    /// The node's status file, beside the specs or in the status directory.
    pub(super) fn status(&self, node: &str) -> Option<Status> {
        ["nodes", "status"].iter().find_map(|dir| {
            let text = fs::read_to_string(self.path(&format!("{dir}/{node}.status.toml"))).ok()?;
            Some(toml::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}")))
        })
    }

    /// Waits until the node's status satisfies a condition.
    pub(super) fn until(&self, node: &str, what: &str, is: impl Fn(&Status) -> bool) -> Status {
        let mut seen = None;
        let found = wait(|| {
            seen = self.status(node).or(seen.take());
            seen.clone().filter(|status| is(status))
        });
        found.unwrap_or_else(|| {
            let status = seen.map(|status| toml::to_string(&status).unwrap()).unwrap_or_default();
            panic!("{node}: not {what}:\n{status}\n{}", self.log())
        })
    }

    pub(super) fn until_phase(&self, node: &str, phase: Phase) -> Status {
        self.until(node, phase.as_str(), |status| status.phase == phase)
    }

    /// Waits until the path is a regular file.
    pub(super) fn until_regular(&self, path: &Path) {
        self.await_that("a regular file", || {
            fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
        });
    }

    /// Waits until a condition holds.
    pub(super) fn await_that(&self, what: &str, is: impl Fn() -> bool) {
        assert!(wait(|| is().then_some(())).is_some(), "not {what}:\n{}", self.log());
    }

    /// The agent's log so far.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// The log levels of nodes' entries into this phase.
    pub(super) fn levels(&self, phase: Phase) -> Vec<String> {
        let phase = format!("phase=\"{}\"", phase.as_str());
        let log = self.log();
        let lines = log.lines().filter(|line| line.contains(&phase));
        lines.map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect()
    }

    /// The lines of a node's record but those that change when a menu is fetched, which tests do
    /// at any time.
    pub(super) fn record_but_netboots(&self, node: &str) -> Vec<String> {
        let changes = ["netboot", "switched_on_at", "sha256\":"];
        let stays = |line: &&str| !changes.iter().any(|word| line.contains(word));
        let record = self.record(node);
        record.lines().filter(stays).map(|line| line.trim_end_matches(',').to_owned()).collect()
    }

    /// The durable record of a node.
    pub(super) fn record(&self, node: &str) -> String {
        fs::read_to_string(self.path(&format!("state/{node}.json"))).unwrap_or_default()
    }

    /// The URL of a boot file.
    pub(super) fn http_url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.http)
    }

    /// Fetches a boot file by TFTP, as a boot loader does; `None` if the agent has none.
    pub(super) fn fetch(&self, name: &str) -> Option<Vec<u8>> {
        const NOT_FOUND: i32 = 68;
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--max-time", "20", "--tftp-blksize", "1428"])
            .arg(format!("tftp://{}/{name}", self.tftp));
        let output = run(&mut curl);
        match output.status.code() {
            Some(0) => Some(output.stdout),
            Some(NOT_FOUND) => None,
            _ => panic!("{name}: {:?}\n{}", output.status, self.log()),
        }
    }
}

impl Agent {
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Kills the agent, as a crash or a power cut does.
    pub(super) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Stops the agent as a service manager does; returns its exit status, and the time.
    pub(super) fn terminate(mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        assert!(Command::new("kill").arg(self.id().to_string()).status().unwrap().success());
        let status = wait(|| self.0.try_wait().unwrap()).expect("the agent does not stop");
        (status, begun.elapsed())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The agent may have ended before.
        drop(self.0.kill());
        self.0.wait().unwrap();
    }
}

impl Spec {
    /// Makes a spec of keys and their values in TOML.
    pub(super) fn new<const N: usize>(keys: [(&str, String); N]) -> Self {
        Self(keys.map(|(key, value)| (key.to_owned(), value)).into())
    }

    /// Sets a key to a string.
    pub(super) fn with(mut self, key: &str, value: &str) -> Self {
        self.0.insert(key.to_owned(), format!("{value:?}"));
        self
    }

    /// Removes the keys that begin with `start`.
    pub(super) fn without(mut self, start: &str) -> Self {
        self.0.retain(|key, _| !key.starts_with(start));
        self
    }

    /// Sets a key to a number.
    pub(super) fn with_number(mut self, key: &str, value: u32) -> Self {
        self.0.insert(key.to_owned(), value.to_string());
        self
    }

    /// Sets a key to a flag.
    pub(super) fn with_flag(mut self, key: &str, value: bool) -> Self {
        self.0.insert(key.to_owned(), value.to_string());
        self
    }

    pub(super) fn to_toml(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, (key, value)| {
            writeln!(text, "{key} = {value}").unwrap();
            text
        })
    }
}

/// The program under test.
pub(super) fn hostler(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostler"));
    command.args(arguments).env_remove("HOSTLER_LOG").env_remove("NOTIFY_SOCKET");
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// The result of a program: exit code, standard output, standard error.
pub(super) fn answer(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = run(command);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Polls until there is an answer; `None` after the limit.
pub(super) fn wait<T>(ask: impl FnMut() -> Option<T>) -> Option<T> {
    wait_at_most(LIMIT, ask)
}

pub(super) fn wait_at_most<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        match ask() {
            None if started.elapsed() < limit => thread::sleep(Duration::from_millis(10)),
            answer => return answer,
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The bytes on disk of a file that may have holes.
pub(super) fn allocated_bytes(file: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::metadata(file).unwrap()) * 512
}

/// Bytes without near repetitions, so that a block in a wrong place shows.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ bytes as u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

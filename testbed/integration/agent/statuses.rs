//! Status files: unchanged ones, obstacles and hanging directories, and the agent's readiness.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _},
        net::UnixDatagram,
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use hostler::model::status::Phase;

use super::{
    NODE,
    machine::Machine,
    site::{Site, Spec, answer},
};

/// A spec of an unmanaged node without any observation.
fn observed(site: &Site, number: u8) -> Spec {
    Spec::new([
        ("state", "\"unmanaged\"".to_owned()),
        ("boot.mac", format!("\"52:54:03:00:00:{number:02x}\"")),
        ("bmc.driver", "\"none\"".to_owned()),
        ("image.source", "\"disk.raw\"".to_owned()),
        ("image.checksum", format!("{:?}", site.checksum())),
    ])
}

/// Invariant (status): A status file that is up to date is not written again.
#[test]
fn a_restart_leaves_a_status_file_alone_that_says_what_it_should() {
    let site = Site::new();
    let agent = site.start();
    for (node, number) in [("a", 1), ("b", 2)] {
        site.write(node, &observed(&site, number));
        site.until_phase(node, Phase::Unmanaged);
    }
    agent.terminate();
    let file = |node: &str| site.path(&format!("nodes/{node}.status.toml"));
    let inode = |node: &str| fs::metadata(file(node)).unwrap().ino();
    let before = inode("a");
    // This file was changed while no agent ran.
    fs::write(file("b"), "phase = \"deployed\"\n").unwrap();
    let _agent = site.start();
    // Written after the others.
    site.write("c", &observed(&site, 3));
    site.until_phase("c", Phase::Unmanaged);
    site.await_that("b mended", || {
        fs::read_to_string(file("b")).unwrap().contains("phase = \"unmanaged\"")
    });
    assert_eq!(inode("a"), before, "it was written again");
}

/// Invariant (spec): A status directory that is gone is made again; a spec directory never is.
#[test]
fn a_status_directory_that_is_removed_is_made_again_and_a_spec_directory_is_not() {
    let site = Site::new();
    let status = site.path("run/status");
    site.configure(&format!("rescan = \"1s\"\nstatus_dir = \"{}\"\n", status.display()));
    let agent = site.start();
    site.write("a", &observed(&site, 1));
    let file = status.join("a.status.toml");
    site.await_that("a status", || file.exists());
    fs::remove_dir_all(site.path("run/status")).unwrap();
    site.await_that("a status again", || file.exists());
    site.await_that("a mark again", || status.join("_agent.status.toml").exists());
    let (code, said, _) = answer(&mut site.hostler(&["status"]));
    assert_eq!(code, 0, "{said}");
    agent.terminate();

    site.configure("rescan = \"1s\"\n");
    let _agent = site.start();
    site.until_phase("a", Phase::Unmanaged);
    fs::rename(site.path("nodes"), site.path("away")).unwrap();
    site.await_that("missed", || site.log().contains("the spec directory cannot be read"));
    site.await_that("missed for a status", || {
        site.log().contains("a status file cannot be changed")
    });
    assert!(!site.path("nodes").exists());
}

/// Invariant (fair): A status directory that hangs delays no node, no other status and no shutdown.
#[test]
fn a_pipe_in_place_of_a_status_file_is_replaced_and_keeps_nobody() {
    let site = Site::new();
    site.configure("rescan = \"1s\"\n");
    let agent = site.start();
    for (node, number) in [("a", 1), ("b", 2)] {
        site.write(node, &observed(&site, number));
        site.until_phase(node, Phase::Unmanaged);
    }
    let file = site.path("nodes/a.status.toml");
    let pipe = site.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::rename(&pipe, &file).unwrap();
    assert!(fs::metadata(&file).unwrap().file_type().is_fifo());
    site.await_that("replaced", || fs::metadata(&file).is_ok_and(|file| file.is_file()));
    site.until_phase("a", Phase::Unmanaged);
    site.write("c", &observed(&site, 3));
    site.until_phase("c", Phase::Unmanaged);
    assert!(agent.terminate().0.success());
}

/// Invariant (status): No command shows a status that the agent cannot write without calling it
/// old.
///
/// Invariant (status): A status file that cannot be written is no answer, and the obstacle is
/// named.
#[test]
fn a_status_that_cannot_be_written_is_not_believed_and_what_is_in_the_way_is_named() {
    let site = Site::new();
    let _agent = site.start();
    site.write(NODE, &observed(&site, 1));
    site.until_phase(NODE, Phase::Unmanaged);
    let temporary = |number: u32| {
        let number = if number > 0 { format!(".{number}") } else { String::new() };
        site.path(&format!("nodes/.{NODE}.status.toml{number}.tmp"))
    };
    let wait = |phase: &str| {
        answer(&mut site.hostler(&["wait", NODE, "--timeout", "5s", "--phase", phase]))
    };
    let status = || answer(&mut site.hostler(&["status"]));

    // A directory under the first temporary name does no harm.
    fs::create_dir_all(temporary(0).join("inside")).unwrap();
    site.write(NODE, &observed(&site, 1).without("state").with_flag("paused", true));
    site.until_phase(NODE, Phase::Paused);
    assert_eq!(wait("paused").0, 0);

    for number in 1..8 {
        fs::create_dir_all(temporary(number).join("inside")).unwrap();
    }
    // The command ends by itself if the expected output is missing.
    let mut watch = Command::new("timeout");
    let watch = watch.arg("60").arg(site.hostler(&[]).get_program()).arg("watch");
    let mut watch = watch.arg(site.path("nodes")).stdout(Stdio::piped()).spawn().unwrap();
    let mut watched = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    watched.find(|line| line.contains("edge-07 paused: ")).unwrap();
    site.write(NODE, &observed(&site, 1));
    let unwritten = site.path("nodes/_unwritten.status.toml");
    site.await_that("named", || unwritten.exists());
    let named = temporary(0).display().to_string();
    let (code, _, errors) = wait("paused");
    assert!(code == 4 && errors.contains(&named), "{code} {errors}");
    let (code, _, errors) = status();
    assert!(code == 1 && errors.contains(&named), "{code} {errors}");
    assert!(site.log().contains(&named), "{}", site.log());
    let why = watched.find(|line| line.contains("what it says is old")).unwrap();
    assert!(why.contains(&named), "{why}");
    watched.find(|line| line.contains("edge-07 paused (old status): ")).unwrap();

    fs::remove_dir_all(temporary(3)).unwrap();
    site.until_phase(NODE, Phase::Unmanaged);
    site.await_that("it is over", || !unwritten.exists());
    assert_eq!((wait("unmanaged").0, status().0), (0, 0));
    watched.find(|line| line.contains("edge-07 unmanaged: ")).unwrap();
    watch.kill().unwrap();
    watch.wait().unwrap();
}

/// Invariant (status): READY comes when every listener answers.
#[test]
fn ready_is_said_when_every_listener_answers() {
    let site = Site::new();
    let place = site.path("notify");
    let socket = UnixDatagram::bind(&place).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = site.hostler(&["run"]);
    let _agent = site.start_as(command.env("NOTIFY_SOCKET", &place));
    let mut said = [0; 100];
    let bytes = socket.recv(&mut said).unwrap();
    assert!(said[..bytes].starts_with(b"READY=1"), "{:?}", &said[..bytes]);
    // The listeners are served when this is in the log.
    assert!(site.log().contains("running"), "{}", site.log());
    assert!(site.fetch("pxelinux.cfg/default").is_some());
    let curl = |url: String, more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--insecure", "--max-time", "20", "--noproxy", "*"]).args(more);
        let output = curl.args(["--write-out", "%{http_code}"]).arg(url).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let script = curl(format!("http://{}/boot.ipxe", site.http), &[]);
    assert!(script.starts_with("#!ipxe") && script.ends_with("200"), "{script}");
    let url = format!("https://{}/v1/nodes/n/vendor_passthru/deploy_state", site.callback);
    let key = format!("Authorization: Bearer {}", "5a".repeat(32));
    assert!(curl(url, &["--header", &key]).ends_with("404"));
}

/// An ext4 file system on which all writes hang while it is frozen.
struct Freezer<'p>(&'p Path);

impl<'p> Freezer<'p> {
    fn mount(at: &'p Path) -> Self {
        let image = at.with_extension("img");
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        fs::create_dir_all(at).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).args([&image, at]));
        Self(at)
    }

    fn freeze(&self) {
        run(Command::new("fsfreeze").arg("-f").arg(self.0));
    }

    fn thaw(&self) {
        // The file system may not be frozen.
        drop(Command::new("fsfreeze").arg("-u").arg(self.0).output());
    }
}

impl Drop for Freezer<'_> {
    fn drop(&mut self) {
        self.thaw();
        run(Command::new("umount").arg("--lazy").arg(self.0));
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Invariant (fair): A status directory that hangs delays no node, no other status and no shutdown.
#[test]
fn a_status_directory_that_hangs_delays_no_node() {
    let site = Site::new();
    let status_dir = site.path("frozen");
    let machine = Machine::new(&site, NODE);
    site.configure(&format!("status_dir = \"{}\"\n", status_dir.display()));
    // Dropped before the wait for the agent, which cannot even be killed while it hangs.
    let agent;
    let freezer = Freezer::mount(&status_dir);
    agent = site.start();
    site.await_that("running", || site.log().contains("running"));
    freezer.freeze();
    site.write(NODE, &machine.spec(&site));
    machine.deploy(&site);
    site.await_that("deployed", || site.record(NODE).contains("\"phase\": \"deployed\""));
    site.await_that("told", || site.log().contains("a status file has not been written for"));
    assert!(machine.has_image(&site) && machine.boots_its_disk(&site));
    freezer.thaw();
    let status = status_dir.join(format!("{NODE}.status.toml"));
    site.await_that("shown", || {
        fs::read_to_string(&status).is_ok_and(|status| status.contains("phase = \"deployed\""))
    });
    assert!(agent.terminate().0.success());
    drop(freezer);
    fs::remove_dir(&status_dir).unwrap_or_default();
}

//! The host fails: disks fill up or turn read-only, files are removed or damaged, another agent
//! runs, file descriptors run out. Nothing is lost, and the administrator reads the reason of each
//! delay.

use std::{fs, net::UdpSocket, path::Path, process::Command, thread, time::Duration};

use hostler::model::{
    fault::Step,
    status::{Phase, Status},
};

use super::{
    DEPLOYED, NODE,
    disk_faults::LARGE_IMAGE_BYTES,
    ends_deployed, ends_failed,
    machine::{Machine, Ramdisk},
    mounts::{Mount, give_away, without_capabilities},
    site::{Agent, Site, allocated_bytes, answer, wait_at_most},
};

/// A short rescan interval, so that no test waits for a minute.
const RESCAN: &str = "rescan = \"1s\"\n";
/// KiB for a certificate and a few records.
const SMALL_KIB: u32 = 64;
/// Longest delay of a status once it can be written; the next poll, which would change it, comes
/// after a minute.
const STATUS_LIMIT: Duration = Duration::from_secs(15);
/// Longest normal stop; a second of it is the BMC's.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Waits until the node's status says that its record cannot be written, with this reason.
fn is_stuck(site: &Site, why: &str) -> Status {
    let status = site.until(NODE, "stuck", |status| status.message.contains("nothing is started"));
    assert!(!status.ready);
    for named in [site.path("state").to_str().unwrap(), why] {
        assert!(status.message.contains(named), "{}", status.message);
    }
    status
}

/// Asserts that the agent does not start, and names the reason; stops one that does start.
fn refuses(command: &Command, named: &[&str]) {
    let mut limited = Command::new("timeout");
    limited.arg("30").arg(command.get_program()).args(command.get_args());
    let (code, said, errors) =
        answer(limited.env_remove("HOSTLER_LOG").env_remove("NOTIFY_SOCKET"));
    assert_eq!((code, said.as_str()), (1, ""), "{errors}");
    let last = errors.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: "), "{errors}");
    for named in named {
        assert!(last.contains(named), "{named}: {errors}");
    }
}

fn count(site: &Site, said: &str) -> usize {
    site.log().matches(said).count()
}

/// Invariant (state): Record before menu before effects; a full disk loses and repeats nothing.
#[test]
fn a_full_state_directory_stops_every_step_and_the_same_attempt_goes_on_when_there_is_space() {
    let site = Site::with_image(LARGE_IMAGE_BYTES);
    let disk = Mount::small(&site.path("state"), SMALL_KIB);
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.await_that("running", || site.log().contains("running"));

    // Before the attempt: the BMC gets no command.
    disk.fill();
    site.write(NODE, &machine.spec(&site));
    is_stuck(&site, "No space left on device");
    assert_eq!(machine.bmc.sessions(), 0);
    disk.free();
    let ramdisk = machine.boot(&site, 1);

    // Before the write of the disk.
    site.until_phase(NODE, Phase::WaitingRamdisk);
    let before = site.record(NODE);
    disk.fill();
    thread::scope(|scope| {
        scope.spawn(|| ramdisk.export());
        is_stuck(&site, "state/edge-07.json: No space left on device");
        assert!(machine.disk.sessions().is_empty());
        assert_eq!(site.record(NODE), before, "the record is torn");
        disk.free();
    });

    // During the write: the ramdisk is not released, and the boot menu stays.
    let written = machine.disk.disk_file();
    site.await_that("writing", || allocated_bytes(&written) > 8 << 20);
    disk.fill();
    is_stuck(&site, "No space left on device");
    assert!(!machine.boots_its_disk(&site));
    // Retried every second, reported once.
    let reports = count(&site, "a record cannot be written");
    wait_at_most(Duration::from_secs(3), || None::<()>);
    assert_eq!(count(&site, "a record cannot be written"), reports, "{}", site.log());
    disk.free();
    ramdisk.finish();
    let status = ends_deployed(&site, &machine);
    assert_eq!(status.attempt, 1);
    assert_eq!(machine.story(), DEPLOYED);
}

#[test]
fn a_full_status_directory_stops_nothing_and_is_told_once() {
    let site = Site::new();
    site.configure(&format!("status_dir = \"{}\"", site.path("status").display()));
    let disk = Mount::small(&site.path("status"), SMALL_KIB);
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    site.until_phase(NODE, Phase::WaitingRamdisk);
    disk.fill();
    ramdisk.export();
    ramdisk.finish();
    site.await_that("deployed", || site.record(NODE).contains("\"phase\": \"deployed\""));
    site.await_that("reports", || count(&site, "a status file cannot be changed") > 0);
    assert_eq!(site.status(NODE).unwrap().phase, Phase::WaitingRamdisk, "a status is torn");
    // No further event comes; there are several retries.
    wait_at_most(Duration::from_secs(3), || None::<()>);
    assert_eq!(count(&site, "a status file cannot be changed"), 1, "{}", site.log());
    assert!(site.log().contains("status/edge-07.status.toml: No space left on device"));
    disk.free();
    let shown = wait_at_most(STATUS_LIMIT, || site.status(NODE).filter(|status| status.ready));
    assert!(shown.is_some(), "{}", site.log());
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
}

/// Invariant (state): A damaged record stays until it is replaced; no start makes its machine a new
/// one.
#[test]
fn an_agent_that_starts_on_a_full_disk_loses_no_record_and_trusts_no_damaged_one() {
    let site = Site::new();
    let disk = Mount::small(&site.path("state"), SMALL_KIB);
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    site.await_that("running", || site.log().contains("running"));
    agent.kill();
    // The machine is off: without its record, it would be installed.
    let record = site.path("state/edge-07.json");
    fs::write(&record, "{\"spec\":").unwrap();
    disk.fill();
    site.write(NODE, &machine.spec(&site));
    for _ in 0..2 {
        refuses(&site.hostler(&["run"]), &["state/edge-07.json", "No space left on device"]);
        assert!(record.exists());
    }
    disk.free();
    let _again = site.start();
    let status = site.until_phase(NODE, Phase::Held);
    assert_eq!(reason(&status), "RecordLost");
    assert_eq!(fs::read_to_string(site.path("state/edge-07.json.bad-1")).unwrap(), "{\"spec\":");
    assert!(!site.path("state/edge-07.json.bad-2").exists());
    assert!(machine.story().is_empty());
}

/// Invariant (state): Record before menu before effects; a full disk loses and repeats nothing.
#[test]
fn a_state_directory_that_turns_read_only_in_the_middle() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    site.until_phase(NODE, Phase::WaitingRamdisk);
    let broken = Mount::read_only(&site.path("state"));
    thread::scope(|scope| {
        scope.spawn(|| ramdisk.export());
        is_stuck(&site, "Read-only file system");
        assert!(machine.disk.sessions().is_empty());
        drop(broken);
    });
    ramdisk.finish();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
}

#[test]
fn a_state_directory_that_cannot_be_written_is_refused_at_start() {
    let site = Site::new();
    let state = site.path("state");
    let named = format!(
        "state directory {}, which must be a directory that hostler's user owns and can write: ",
        state.display()
    );

    fs::write(&state, "").unwrap();
    refuses(&site.hostler(&["run"]), &[&named, "File exists"]);
    fs::remove_file(&state).unwrap();

    fs::create_dir(&state).unwrap();
    let broken = Mount::read_only(&state);
    refuses(&site.hostler(&["run"]), &[&named, "Read-only file system"]);
    drop(broken);

    give_away(&state);
    let run = site.hostler(&["run"]);
    refuses(&without_capabilities(&run), &[&named, "not permitted"]);

    // Root may use another user's directory.
    let _agent = site.start();
    site.await_that("running", || site.log().contains("running"));
}

#[test]
fn an_image_directory_that_hostler_may_not_read_is_named() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    give_away(&site.path("images"));
    let _agent = site.start_as(&mut without_capabilities(&site.hostler(&["run"])));
    site.write(NODE, &machine.spec(&site));
    let status = ends_failed(&site, &machine, Step::Image, "ImageUnreadable");
    for named in [site.path("images").to_str().unwrap(), "Permission denied"] {
        assert!(status.message.contains(named), "{}", status.message);
    }
    assert!(machine.story().is_empty());
}

#[test]
fn an_image_that_is_cut_after_it_was_verified_is_written_as_it_was() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    let image = fs::File::options().write(true).open(site.path("images/disk.raw")).unwrap();
    image.set_len(site.image.len() as u64 / 2).unwrap();
    ramdisk.export();
    ramdisk.finish();
    ends_deployed(&site, &machine);
}

#[test]
fn a_lock_belongs_to_a_living_agent_even_to_one_that_sleeps_and_to_no_dead_one() {
    let site = Site::new();
    let agent = site.start();
    site.await_that("running", || site.log().contains("running"));
    let signal = |name: &str| {
        let mut kill = Command::new("kill");
        assert!(kill.args([name, &agent.id().to_string()]).status().unwrap().success());
    };
    let other = Site::new();
    let elsewhere = |state: &Path| {
        let text = fs::read_to_string(other.path("hostler.toml")).unwrap();
        let own = other.path("state").display().to_string();
        fs::write(other.path("other.toml"), text.replace(&own, state.to_str().unwrap())).unwrap();
        let mut command = super::site::hostler(&["run", "--config"]);
        command.arg(other.path("other.toml"));
        command
    };
    signal("-STOP");
    let holder = format!("in use by process {};", agent.id());
    refuses(&elsewhere(&site.path("state")), &[&holder]);
    signal("-CONT");

    // A copy has the lock file, but not the lock; the agent overwrites its text about the holder.
    let copy = other.path("copy");
    let copied = Command::new("cp").arg("-a").args([&site.path("state"), &copy]).status();
    assert!(copied.unwrap().success());
    let second = other.start_as(&mut elsewhere(&copy));
    other.await_that("running", || other.log().contains("running"));
    let holder = format!("in use by process {};", second.id());
    refuses(&elsewhere(&copy), &[&holder]);
    let third = Site::new();
    let text = fs::read_to_string(third.path("hostler.toml")).unwrap();
    let own = third.path("state").display().to_string();
    fs::write(third.path("hostler.toml"), text.replace(&own, copy.to_str().unwrap())).unwrap();
    refuses(&third.hostler(&["run"]), &[&holder]);

    second.kill();
    let _third = third.start();
    third.await_that("running", || third.log().contains("running"));
}

#[test]
fn a_state_directory_that_is_removed_or_replaced_is_not_written_until_it_is_back() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    site.until_phase(NODE, Phase::WaitingRamdisk);
    let (state, away) = (site.path("state"), site.path("away"));
    fs::rename(&state, &away).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| ramdisk.export());
        is_stuck(&site, "put it back, or restart hostler");
        // Another state directory in its place is wrong, too: it knows no node.
        fs::create_dir(&state).unwrap();
        fs::write(state.join("lock"), "").unwrap();
        wait_at_most(Duration::from_secs(2), || None::<()>);
        assert!(!state.join("edge-07.json").exists());
        assert!(machine.disk.sessions().is_empty());
        fs::remove_dir_all(&state).unwrap();
        fs::rename(&away, &state).unwrap();
    });
    ramdisk.finish();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
}

/// The reason of a hold.
fn reason(status: &Status) -> &str {
    let held = status.conditions.iter().find(|condition| condition.kind == "Held");
    held.map_or("not held", |held| &held.reason)
}

/// Invariant (state): No flipped bit, truncation or missing file wipes a machine; the log names the
/// file.
#[test]
fn a_record_that_is_lost_or_garbled_holds_its_node_and_no_other() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let other = Machine::new(&site, "edge-08");
    let agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let wrong = format!("sha256:{}", "0".repeat(64));
    site.write("edge-08", &other.spec(&site).with("image.checksum", &wrong));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    let failed = site.until_phase("edge-08", Phase::Failed);
    agent.kill();

    let path = site.path("state/edge-07.json");
    let good = fs::read_to_string(&path).unwrap();
    let future = good.replace("\"phase\": \"deployed\"", "\"phase\": \"levitating\"");
    assert_ne!(future, good);
    let lost = "record of it was lost or damaged";
    let mismatch = "edge-07.json: its checksum does not match";
    for (record, logged) in [
        (None, "record edge-07.json is missing"),
        (Some(""), "edge-07.json: it is empty"),
        (Some("\0\0\0\0"), mismatch),
        (Some(&good[..good.len() / 2]), mismatch),
        (Some(&future), mismatch),
    ] {
        match record {
            Some(record) => fs::write(&path, record).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        fs::remove_file(site.path("nodes/edge-07.status.toml")).unwrap();
        let agent = site.start();
        let status = site.until_phase(NODE, Phase::Held);
        assert_eq!(reason(&status), "RecordLost");
        assert!(status.message.contains(lost), "{}", status.message);
        assert!(site.log().contains(logged), "{}", site.log());
        assert_eq!(site.status("edge-08").unwrap().history, failed.history);
        agent.kill();
    }
    assert_eq!(fs::read_to_string(site.path("state/edge-07.json.bad-4")).unwrap(), future);

    // An operator puts the record back.
    fs::write(&path, &good).unwrap();
    fs::remove_file(site.path("nodes/edge-07.status.toml")).unwrap();
    let agent = site.start();
    ends_deployed(&site, &machine);
    agent.kill();

    // A status file that names an installation vouches for its machine.
    for spoil in [|path: &Path| fs::remove_file(path), |path: &Path| fs::write(path, "")] {
        spoil(&path).unwrap();
        let lost = count(&site, "record edge-07 is lost; its status file says");
        let agent = site.start();
        site.await_that("adopted", || {
            count(&site, "record edge-07 is lost; its status file says") > lost
        });
        site.await_that("on record", || site.record(NODE).contains("\"phase\": \"deployed\""));
        ends_deployed(&site, &machine);
        agent.kill();
    }
    assert_eq!(machine.story(), DEPLOYED);
}

/// Invariant (status): A status file that somebody changes is soon hostler's again.
#[test]
fn a_status_file_that_somebody_removes_garbles_or_replaces_is_written_again() {
    let site = Site::new();
    site.configure(RESCAN);
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    let wrong = format!("sha256:{}", "0".repeat(64));
    site.write(NODE, &machine.spec(&site).with("image.checksum", &wrong));
    site.until_phase(NODE, Phase::Failed);
    let path = site.path("nodes/edge-07.status.toml");
    // A regular file, identical except for its time.
    let text = || fs::read_to_string(&path).unwrap_or_default();
    let lines = |text: String| -> Vec<String> {
        let of_the_file =
            |line: &&str| line.starts_with("updated") || line.starts_with("# checksum");
        text.lines().filter(|line| !of_the_file(line)).map(str::to_owned).collect()
    };
    let written = lines(text());
    let stands = || lines(text()) == written;

    fs::remove_file(&path).unwrap();
    site.await_that("written again", stands);
    fs::write(&path, "phase = \"dep").unwrap();
    site.await_that("written again", stands);

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    site.await_that("reports", || count(&site, "a status file cannot be changed") > 0);
    assert!(site.log().contains("edge-07.status.toml: Is a directory"), "{}", site.log());
    wait_at_most(Duration::from_secs(2), || None::<()>);
    assert_eq!(count(&site, "a status file cannot be changed"), 1, "{}", site.log());
    fs::remove_dir(&path).unwrap();
    site.await_that("written again", stands);
    // The agent's own files wake no scan.
    assert_eq!(count(&site, "operation failed"), 1, "{}", site.log());
}

#[test]
fn an_agent_without_a_boot_loader_says_so_when_it_starts() {
    let site = Site::new();
    fs::remove_file(site.path("loaders/grub.pxe")).unwrap();
    let agent = site.start();
    let dir = site.path("loaders").display().to_string();
    site.await_that("warns", || site.log().contains("no boot loader that hostler knows"));
    assert!(site.log().contains(&dir), "{}", site.log());
    assert_eq!(agent.terminate().0.code(), Some(0));
}

#[test]
fn an_agent_out_of_file_descriptors_lives_and_goes_on_when_there_are_some() {
    let site = Site::new();
    site.configure(RESCAN);
    let machine = Machine::new(&site, NODE);
    let run = site.hostler(&["run"]);
    let mut few = Command::new("prlimit");
    few.arg("--nofile=64").arg(run.get_program()).args(run.get_args());
    let agent = site.start_as(few.env_remove("HOSTLER_LOG").env_remove("NOTIFY_SOCKET"));
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);

    // Each of these transfers has a socket and a file, and waits for an acknowledgement that never
    // comes.
    let clients: Vec<UdpSocket> =
        (0..60).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for client in &clients {
        client.send_to(b"\0\x01deploy/vmlinuz\0octet\0", site.tftp).unwrap();
    }
    let calls: Vec<_> =
        (0..8).map(|_| std::net::TcpStream::connect(site.callback).unwrap()).collect();
    site.await_that("out of descriptors", || site.log().contains("Too many open files"));
    drop((calls, clients));

    site.await_that("recovered", || ramdisk.look_up(machine.disk.disk_bytes).0 == 200);
    ramdisk.export();
    ramdisk.finish();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
    assert_eq!(agent.terminate().0.code(), Some(0));
}

/// Stops the agent as a service manager does and starts it again.
fn restarted(site: &Site, agent: Agent) -> Agent {
    let (status, took) = agent.terminate();
    assert_eq!(status.code(), Some(0), "{}", site.log());
    assert!(took < STOP_LIMIT, "{took:?}");
    let log = site.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "a normal stop alarms:\n{log}");
    let starts = count(site, "running specs");
    let agent = site.start();
    site.await_that("running again", || count(site, "running specs") > starts);
    agent
}

#[test]
fn a_stop_in_any_phase_is_quick_and_quiet_and_the_next_start_goes_on() {
    let site = Site::with_image(LARGE_IMAGE_BYTES);
    let machine = Machine::with_bmc(&site, NODE, &["--slow-power", "1"]);
    machine.bmc.signal("-STOP");
    let mut agent = site.start();
    let phase = |phase| drop(site.until_phase(NODE, phase));
    site.write(NODE, &machine.spec(&site));
    phase(Phase::Pending);
    agent = restarted(&site, agent);
    machine.bmc.signal("-CONT");
    phase(Phase::Preparing);
    agent = restarted(&site, agent);
    phase(Phase::PoweringOn);
    agent = restarted(&site, agent);
    phase(Phase::WaitingRamdisk);
    let ramdisk: Ramdisk = machine.boot(&site, 1);
    agent = restarted(&site, agent);
    ramdisk.export();
    let written = machine.disk.disk_file();
    site.await_that("writing", || allocated_bytes(&written) > 8 << 20);
    agent = restarted(&site, agent);
    phase(Phase::Switching);
    agent = restarted(&site, agent);
    ramdisk.wait_for("release");
    phase(Phase::WaitingCompleted);
    agent = restarted(&site, agent);
    ramdisk.complete();
    phase(Phase::Restarting);
    agent = restarted(&site, agent);
    ends_deployed(&site, &machine);
    agent = restarted(&site, agent);
    let status = ends_deployed(&site, &machine);
    assert_eq!(status.attempt, 1);
    drop(agent);
}

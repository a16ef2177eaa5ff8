//! First boots: a node is deployed only after its installed system answers or calls.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
    os::unix::fs::symlink,
    process::Command,
    thread,
};

use hostler::model::{
    fault::Step,
    status::{Booted, Phase, Status},
};

use super::{
    DEPLOYED, NODE,
    machine::Machine,
    site::{Site, Spec, answer, signed},
};
use crate::ports;

/// A host key as cloud-init sends it, and as the status shows it.
const HOST_KEY: &str = "pub_key_ed25519=ssh-ed25519 \
    AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl root@edge-07";
const FINGERPRINT: &str = "ssh-ed25519 SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU";
/// The BMC's commands of a restart into the installed system.
const RESTARTED: [&str; 3] = ["off", "disk always", "on from hd"];

/// A spec with a boot check of this port at the machine's address.
fn checked(site: &Site, machine: &Machine, port: u16, limit: &str) -> Spec {
    let spec = machine.spec(site).with("boot_check.by", "tcp");
    spec.with_number("boot_check.port", port.into()).with("timeouts.first_boot", limit)
}

/// Starts an installed system's port: it greets each connection and closes it.
fn comes_up(at: SocketAddr) {
    let listener = TcpListener::bind(at).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            // The client may have closed the connection.
            drop(stream.write_all(b"hello\r\n"));
        }
    });
}

fn booted(status: &Status) -> Option<Booted> {
    status.installed.as_ref()?.booted
}

fn until_up(site: &Site) -> Status {
    let status = site.until_phase(NODE, Phase::Deployed);
    assert_eq!((status.ready, booted(&status)), (true, Some(Booted::Up)), "{}", site.log());
    assert_eq!(status.last_error, None);
    let installed = status.installed.clone().unwrap();
    assert!(installed.booted_at.is_some());
    assert_eq!(installed.system.unwrap().address, Some("127.0.0.1".parse().unwrap()));
    status
}

/// Invariant (attempt): A system counts as up only after its own check said so.
#[test]
fn a_machine_is_deployed_once_its_port_answers_also_after_the_agent_was_killed() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let port = ports::free();
    let agent = site.start();
    site.write(NODE, &checked(&site, &machine, port.port(), "5m"));
    machine.deploy(&site);
    let said = |status: &Status| status.message.contains("onnection refused");
    let status = site.until(NODE, "told why it does not answer", said);
    assert_eq!((status.phase, booted(&status)), (Phase::Booting, Some(Booted::Waiting)));
    assert!(machine.boots_its_disk(&site));
    let wait = ["wait", NODE, "--timeout", "1s", "--quiet"];
    assert_eq!(answer(&mut site.hostler(&wait)).0, 4, "a booting machine is waited for");
    let deadline = status.deadline;
    // Operators may use the BMC, and the wait goes on.
    let (code, said_by_bmc, _) = answer(&mut site.hostler(&["bmc", NODE, "cycle"]));
    assert_eq!(code, 0, "{said_by_bmc}");
    let is_polled = |status: &Status| {
        status.phase == Phase::Booting
            && status.power.is_some_and(|it| it.observed.as_str() == "on")
    };
    assert_eq!(site.until(NODE, "polled", is_polled).deadline, deadline);
    agent.kill();
    let _agent = site.start();
    let status = site.until(NODE, "asked again", said);
    assert_eq!(status.deadline, deadline);
    comes_up(port);
    until_up(&site);
    assert_eq!(answer(&mut site.hostler(&wait)).0, 0);
    assert_eq!(machine.story(), [&DEPLOYED[..], &["off", "on from hd"]].concat());
    assert_eq!(site.levels(Phase::Booting), ["INFO"]);
    let (_, explained, _) = answer(&mut site.hostler(&["explain", NODE]));
    assert!(explained.contains("its system came up"), "{explained}");
}

/// Invariant (attempt): A first boot writes nothing, uses up no attempt, and switches the machine
/// no more than once.
#[test]
fn a_machine_that_does_not_come_up_is_restarted_once_and_a_retry_only_waits() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let port = ports::free();
    let _agent = site.start();
    site.write(NODE, &checked(&site, &machine, port.port(), "4s"));
    machine.deploy(&site);
    let status = site.until_phase(NODE, Phase::Failed);
    let error = status.last_error.unwrap();
    assert_eq!((error.fault.step, &*error.fault.code), (Step::FirstBoot, "NotBooted"));
    assert_eq!(machine.story(), [&DEPLOYED[..], &RESTARTED].concat());
    assert!(machine.is_on() && machine.has_image(&site));
    assert!(machine.boots_its_disk(&site));
    // `timeouts.first_boot` begins again, and the system comes up.
    site.write(NODE, &checked(&site, &machine, port.port(), "5m"));
    site.until_phase(NODE, Phase::Booting);
    comes_up(port);
    until_up(&site);
    assert_eq!(machine.story(), [&DEPLOYED[..], &RESTARTED].concat());
}

/// Invariant (attempt): A first boot writes nothing, uses up no attempt, and switches the machine
/// no more than once.
#[test]
fn an_order_to_retry_has_the_first_boot_waited_for_again() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let port = ports::free();
    let _agent = site.start();
    site.write(NODE, &checked(&site, &machine, port.port(), "2s"));
    machine.deploy(&site);
    site.until_phase(NODE, Phase::Failed);
    let (_, explained, _) = answer(&mut site.hostler(&["explain", NODE]));
    assert!(explained.contains("to have its first boot waited for again"), "{explained}");
    comes_up(port);
    let (code, said, _) = answer(&mut site.hostler(&["retry", NODE]));
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("its first boot will be waited for again"), "{said}");
    until_up(&site);
    assert_eq!(machine.story(), [&DEPLOYED[..], &RESTARTED].concat());
}

/// A spec with a boot check by a call.
fn calling(site: &Site, machine: &Machine) -> Spec {
    let spec = machine.spec(site).with("boot_check.by", "call");
    spec.with("config_drive.label", "cidata").with("timeouts.first_boot", "5m")
}

/// The printable text on the machine's disk from each place on where it begins so.
fn texts_on_disk<'d>(disk: &'d [u8], start: &'d [u8]) -> impl Iterator<Item = String> + 'd {
    let places = disk.windows(start.len()).enumerate().filter(move |(_, found)| *found == start);
    places.map(|(at, _)| {
        let text = disk.iter().skip(at).take_while(|byte| byte.is_ascii() && **byte != 0);
        text.map(|byte| char::from(*byte)).collect()
    })
}

/// Reads the URL from the config drive on the machine's disk.
fn url_on_disk(machine: &Machine) -> String {
    let disk = machine.disk.disk();
    let urls = texts_on_disk(&disk, b"http://127.0.0.1:");
    let mut lines = urls.filter_map(|text| text.lines().next().map(ToOwned::to_owned));
    lines.find(|url| url.rsplit('/').next().is_some_and(|token| token.len() == 64)).unwrap()
}

/// Calls as cloud-init's `phone_home` does; returns the HTTP status.
fn call(url: &str, more: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]);
    curl.args(["--max-time", "20", "--data-urlencode", "hostname=edge-07"]);
    curl.args(["--data-urlencode", "instance_id=i-1", "--data-urlencode", "pub_key_rsa=N/A"]);
    curl.args(["--data-urlencode", HOST_KEY]).args(more).arg(url);
    String::from_utf8(curl.output().unwrap().stdout).unwrap()
}

/// Invariant (attempt): A call counts only with the token of this very installation.
#[test]
fn a_machine_is_deployed_once_its_system_calls_with_what_lies_on_its_config_drive() {
    let site = Site::of_image(partitioned());
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    site.write(NODE, &calling(&site, &machine));
    machine.deploy(&site);
    site.until_phase(NODE, Phase::Booting);
    let url = url_on_disk(&machine);
    let (path, token) = url.rsplit_once('/').unwrap();
    assert_eq!(path, site.http_url("v1/nodes/edge-07/booted"));
    let tls = format!("https://{}/v1/nodes/edge-07/booted", site.callback);
    for stranger in [
        format!("{path}/{}", "5a".repeat(32)),
        format!("{}/{token}", path.replace("edge-07", "edge-08")),
        format!("{path}/{token}/"),
        format!("{tls}/{}", "5a".repeat(32)),
    ] {
        assert_eq!(call(&stranger, &["--insecure"]), "404", "{stranger}");
    }
    assert_eq!(call(&url, &["--get"]), "404");
    assert_eq!(call(&url, &["--data", &"x".repeat(20_000)]), "413");
    assert_eq!(site.status(NODE).unwrap().phase, Phase::Booting);
    agent.kill();
    let _agent = site.start();
    site.await_that("it answers", || call(&url, &[]) == "202");
    let status = until_up(&site);
    let system = status.installed.clone().unwrap().system.unwrap();
    assert_eq!(system.hostname.as_deref(), Some("edge-07"));
    assert_eq!(system.instance_id.as_deref(), Some("i-1"));
    assert_eq!(system.ssh_host_keys, [FINGERPRINT]);
    assert_eq!(call(&format!("{tls}/{token}"), &["--insecure"]), "202", "again, over TLS");
    assert_eq!(site.status(NODE).unwrap().installed, status.installed);
    assert_eq!(machine.story(), DEPLOYED);
    let written = std::fs::read_to_string(site.path("nodes/edge-07.status.toml")).unwrap();
    assert!(site.record(NODE).contains(token) && !written.contains(token), "{written}");
    assert!(!site.log().contains(token), "the token is in the log");
    let (_, explained, _) = answer(&mut site.hostler(&["explain", NODE]));
    assert!(explained.contains(FINGERPRINT), "{explained}");
}

#[test]
fn the_script_on_the_config_drive_calls_with_curl_and_with_busybox() {
    let site = Site::of_image(partitioned());
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &calling(&site, &machine));
    machine.deploy(&site);
    site.until_phase(NODE, Phase::Booting);
    let script = script_on_disk(&machine);
    for (tool, program) in [("curl", "/usr/bin/curl"), ("wget", "/bin/busybox")] {
        let bin = site.path(tool);
        std::fs::create_dir(&bin).unwrap();
        for (name, program) in
            [("uname", "/bin/busybox"), ("sleep", "/bin/busybox"), (tool, program)]
        {
            symlink(program, bin.join(name)).unwrap();
        }
        let mut sh = Command::new("/bin/busybox");
        let ended = sh.args(["sh", "-c", &script]).env("PATH", bin).status().unwrap();
        assert!(ended.success(), "{tool}");
        let system = until_up(&site).installed.unwrap().system.unwrap();
        assert!(system.hostname.is_some(), "{tool}");
    }
}

/// An image with a partition table, to which a config drive can be added: a Linux partition of a
/// MiB behind the first.
fn partitioned() -> Vec<u8> {
    let mut image = signed(vec![0; 3 << 20]);
    image.get_mut(450..451).unwrap().fill(0x83);
    image.get_mut(454..462).unwrap().copy_from_slice(&[0, 8, 0, 0, 0, 8, 0, 0]);
    image
}

fn script_on_disk(machine: &Machine) -> String {
    texts_on_disk(&machine.disk.disk(), b"#!/bin/sh\n# Tells hostler").next().unwrap()
}

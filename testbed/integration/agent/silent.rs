//! Silent BMCs: no other node waits for them, and a repaired one is detected soon.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
};

use hostler::model::status::Phase;

use super::{
    NODE, ends_deployed,
    machine::Machine,
    site::{Agent, Site, Spec},
};

/// More silent BMCs than the agent polls at once with so few open files.
const SILENT: u16 = 400;
const OPEN_FILES: u32 = 1300;
/// Concurrent polls with that limit, and a few less.
const MANY_POLLS: usize = 250;

/// Accepts packets to the BMCs of `silent` nodes, and never reads them.
fn silence() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap()
}

/// A spec of a node with a silent BMC, to be installed. Its name sorts before every other test's.
fn silent(site: &Site, number: u16, deaf: &UdpSocket) -> Spec {
    let [high, low] = number.to_be_bytes();
    let port = deaf.local_addr().unwrap().port();
    Spec::new([
        ("boot.mac", format!("\"52:54:02:00:{high:02x}:{low:02x}\"")),
        ("bmc.address", format!("\"127.3.{high}.{low}:{port}\"")),
        ("bmc.username", "\"admin\"".to_owned()),
        ("bmc.password_file", "\"nobody.bmc\"".to_owned()),
        ("image.source", "\"disk.raw\"".to_owned()),
        ("image.checksum", format!("{:?}", site.checksum())),
    ])
}

fn open_files(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.id())).unwrap().count()
}

/// Invariant (fair): A silent BMC keeps no other machine waiting.
#[test]
fn a_machine_beside_hundreds_of_silent_bmcs_is_installed_as_if_they_were_not_there() {
    let site = Site::new();
    let deaf = silence();
    fs::write(site.path("secrets/nobody.bmc"), "x").unwrap();
    for number in 0..SILENT {
        site.write(&format!("a{number:04}"), &silent(&site, number, &deaf));
    }
    let run = format!("ulimit -n {OPEN_FILES}; exec \"$0\" \"$@\"");
    let agent_command = site.hostler(&["run"]);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &run]).arg(agent_command.get_program()).args(agent_command.get_args());
    let agent = site.start_as(&mut command);
    site.await_that("all places taken", || open_files(&agent) >= MANY_POLLS);
    let machine = Machine::new(&site, NODE);
    site.write(NODE, &machine.spec(&site));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    // The status has the reason, and the duration of the polls.
    for node in ["a0000", "a0399"] {
        site.until(node, "asked", |status| status.message.contains("no answer in 15 s"));
        assert_eq!(site.status(node).unwrap().phase, Phase::Pending);
    }
}

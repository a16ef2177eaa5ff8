//! First boots: a node is deployed only after its installed system answers.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
    thread,
};

use hostler::model::{
    fault::Step,
    status::{Booted, Phase, Status},
};

use super::{
    DEPLOYED, NODE,
    machine::Machine,
    site::{Site, Spec, answer},
};
use crate::ports;

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
    agent.kill();
    let _agent = site.start();
    let status = site.until(NODE, "asked again", said);
    assert_eq!(status.deadline, deadline);
    comes_up(port);
    until_up(&site);
    assert_eq!(answer(&mut site.hostler(&wait)).0, 0);
    assert_eq!(machine.story(), DEPLOYED);
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

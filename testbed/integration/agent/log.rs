//! The log in the journal, on a terminal, and during a flood of strangers.

use std::{fs, net::UdpSocket, os::unix::fs::MetadataExt as _, process::Command, time::Duration};

use hostler::model::status::Phase;

use super::{
    NODE,
    machine::Machine,
    site::{Site, answer, hostler},
};

/// More strangers than log lines of one kind in a minute.
const STRANGERS: u16 = 400;
/// Most log lines, about strangers and everything else.
const LINES_MAX: usize = 150;

/// Invariant (log): The journal gets priorities to alert on.
#[test]
fn the_journal_gets_a_priority_for_each_line_and_one_to_alert_on_when_a_node_is_given_up() {
    let site = Site::new();
    let log = fs::File::create(site.path("agent.log")).unwrap().metadata().unwrap();
    let machine = Machine::new(&site, NODE);
    let mut run = site.hostler(&["run"]);
    run.env("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino()));
    let agent = site.start_as(&mut run);
    site.write(NODE, &machine.spec(&site).with("image.source", "none.raw"));
    site.until_phase(NODE, Phase::Failed);
    assert!(agent.terminate().0.success());
    let text = site.log();
    for line in text.lines() {
        let rest = ["<3>ERROR ", "<4> WARN ", "<6> INFO "]
            .iter()
            .find_map(|start| line.strip_prefix(start));
        let said = rest.unwrap_or_else(|| panic!("{line}"));
        assert!(!said.starts_with("20") && !said.contains('\u{1b}'), "{line}");
    }
    let given_up = format!("<4> WARN phase node={NODE} phase=\"failed\"");
    assert_eq!(text.matches(&given_up).count(), 1, "{text}");
}

/// Invariant (log): Every line about why an agent ends has the priority of an error in the journal.
#[test]
fn the_journal_gets_the_priority_of_an_error_for_each_line_about_why_an_agent_ends() {
    let site = Site::new();
    let wrong = site.path("wrong.toml");
    fs::write(&wrong, "network.advertise = \"nowhere\"\n").unwrap();
    let log = fs::File::create(site.path("agent.log")).unwrap();
    let stream = log.metadata().unwrap();
    let mut run = hostler(&["run", "--config", wrong.to_str().unwrap()]);
    run.env("JOURNAL_STREAM", format!("{}:{}", stream.dev(), stream.ino()));
    assert!(!run.stderr(log).status().unwrap().success());
    let text = site.log();
    assert!(text.lines().count() > 1, "{text}");
    assert!(text.lines().all(|line| line.starts_with("<3>")), "{text}");
}

/// Invariant (log): Strangers do not fill the log, and orders and phases are never left out of it.
#[test]
fn a_crowd_of_unknown_machines_does_not_fill_the_log() {
    let site = Site::new();
    let _agent = site.start();
    site.await_that("running", || site.log().contains("running"));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for number in 0..STRANGERS {
        let [high, low] = number.to_be_bytes();
        let name = format!("pxelinux.cfg/01-52-54-77-00-{high:02x}-{low:02x}");
        let request = [b"\0\x01", name.as_bytes(), b"\0octet\0"].concat();
        socket.send_to(&request, site.tftp).unwrap();
        let mut reply = [0; 100];
        socket.recv(&mut reply).unwrap();
        assert_eq!(reply[1], 5, "an error");
    }
    let lines = site.log().lines().count();
    assert!((100..LINES_MAX).contains(&lines), "{lines} lines");
}

#[test]
fn a_terminal_gets_colours_unless_no_color_says_otherwise() {
    let site = Site::new();
    fs::remove_dir_all(site.path("loaders")).unwrap();
    let run = site.hostler(&["run"]);
    let words = [run.get_program()].into_iter().chain(run.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.display())).collect();
    for (no_color, is_coloured) in [("", true), ("1", false)] {
        let mut script = Command::new("script");
        script.args(["-qec", &line.join(" "), "/dev/null"]).env("NO_COLOR", no_color);
        // Without its loader directory, the agent logs a line and does not start.
        let (_, said, _) = answer(script.env_remove("HOSTLER_LOG"));
        assert!(said.contains("files beneath a directory"), "{said}");
        assert_eq!(said.contains('\u{1b}'), is_coloured, "{said}");
    }
}

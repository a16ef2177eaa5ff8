//! The command line: what it prints and its exit codes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use hostler::model::status::Phase;
use serde_json::Value;

use super::{
    NODE,
    machine::Machine,
    site::{Site, answer, hostler},
};

#[test]
fn check_says_what_is_wrong_where_and_fails() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nodes");
    let (code, said, errors) = answer(&mut hostler(&["check", examples]));
    assert_eq!((code, errors.as_str()), (0, ""), "{said}");
    assert_eq!(said, format!("{examples}: 4 good, 0 problems\n"));

    let site = Site::new();
    fs::write(site.path("nodes/bad.toml"), "[boot]\nmac = \"52:54\"\n").unwrap();
    let dir = site.path("nodes").display().to_string();
    let (code, said, errors) = answer(&mut hostler(&["check", &dir]));
    assert_eq!((code, errors.as_str()), (1, ""), "{said}");
    assert!(said.contains(&format!("{dir}/bad.toml:2:7: boot.mac: ")), "{said}");

    let (code, said, errors) = answer(&mut hostler(&["check", "/no/such/place"]));
    assert_eq!((code, said.as_str()), (1, ""));
    assert_eq!(errors, "error: /no/such/place: no such directory\n");
}

#[test]
fn check_knows_the_agents_defaults() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let spec = machine.spec(&site).to_toml();
    let without = spec.lines().filter(|line| !line.starts_with("bmc.username"));
    fs::write(site.path("nodes/edge-07.toml"), without.collect::<Vec<_>>().join("\n")).unwrap();
    let config = fs::read_to_string(site.path("hostler.toml")).unwrap();
    fs::write(site.path("hostler.toml"), config + "[defaults.bmc]\nusername = 7\n").unwrap();
    let dir = site.path("nodes").display().to_string();
    let (code, said, _) = answer(&mut site.hostler(&["check", &dir]));
    assert_eq!(code, 1);
    assert!(said.contains("hostler.toml") && said.contains("bmc.username"), "{said}");
}

#[test]
fn status_and_watch_show_what_the_status_files_say() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    let dir = site.path("nodes").display().to_string();
    let (code, said, _) = answer(&mut hostler(&["status", &dir]));
    assert_eq!((code, said.lines().count()), (0, 1), "{said}");

    let mut watch = hostler(&["watch", &dir]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let wrong = format!("sha256:{}", "0".repeat(64));
    site.write(NODE, &machine.spec(&site).with("image.checksum", &wrong));
    let seen = lines.find(|line| line.contains("edge-07 failed: ")).unwrap();
    assert!(seen.contains("disk.raw"), "{seen}");
    watch.kill().unwrap();
    watch.wait().unwrap();

    site.until_phase(NODE, Phase::Failed);
    // The files speak without the agent.
    agent.kill();
    for command in [&mut hostler(&["status", &dir]), &mut site.hostler(&["status"])] {
        let (code, said, errors) = answer(command);
        assert_eq!((code, errors.as_str()), (0, ""));
        assert!(said.contains("edge-07  failed") && said.contains("disk.raw"), "{said}");
    }
    let (code, said, _) = answer(&mut site.hostler(&["status", "-o", "json"]));
    let shown: Value = serde_json::from_str(&said).unwrap();
    let nodes = &shown["nodes"];
    assert_eq!(code, 0);
    assert_eq!((&nodes[0]["node"], &nodes[0]["phase"]), (&"edge-07".into(), &"failed".into()));
    assert_eq!(nodes[0]["last_error"]["code"], "ChecksumMismatch");
}

#[test]
fn a_status_file_that_cannot_be_read_is_told_and_hides_no_other() {
    let site = Site::new();
    fs::write(site.path("nodes/bad.status.toml"), "phase = 7\n").unwrap();
    let dir = site.path("nodes").display().to_string();
    for output in ["table", "json"] {
        let (code, said, errors) = answer(&mut hostler(&["status", &dir, "-o", output]));
        assert_eq!(code, 1, "{said}");
        assert!(errors.contains("bad.status.toml") && !said.contains("bad"), "{errors}");
    }
}

#[test]
fn the_effective_configuration_reads_back_the_same() {
    let site = Site::new();
    let (code, printed, errors) = answer(&mut site.hostler(&["run", "--print-config"]));
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(printed.contains("rescan"), "{printed}");
    fs::write(site.path("hostler.toml"), &printed).unwrap();
    assert_eq!(answer(&mut site.hostler(&["run", "--print-config"])).1, printed);
}

#[test]
fn a_configuration_that_is_wrong_is_refused_with_every_problem() {
    let site = Site::new();
    fs::write(site.path("hostler.toml"), "[network]\nadvertise = \"0.0.0.0\"\n").unwrap();
    for command in [&mut site.hostler(&["run"]), &mut site.hostler(&["status"])] {
        let (code, said, errors) = answer(command);
        assert_eq!((code, said.as_str()), (1, ""));
        for problem in ["network.advertise", "specs", "ramdisk"] {
            assert!(errors.contains(problem), "{errors}");
        }
    }
    let (code, _, errors) = answer(&mut hostler(&["run", "--config", "/no/such.toml"]));
    assert_eq!(code, 1);
    assert!(errors.starts_with("error: reading /no/such.toml: No such file"), "{errors}");
    assert_eq!(answer(&mut hostler(&["frobnicate"])).0, 1);
}

//! The command line: its output and exit codes.

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
    assert!(said.contains(&format!(" --> {dir}/bad.toml:2:7\n")), "{said}");

    let short = ["check", "--format", "short", "/no/such/place"];
    let (code, said, errors) = answer(&mut hostler(&short));
    assert_eq!((code, errors.as_str()), (1, ""));
    let place = "/no/such/place: ";
    assert_eq!(said, format!("{place}no such file or directory\n{place}0 good, 1 problem\n"));
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
    // Without an argument, the agent's own directory is checked.
    for words in [&["check", &*dir][..], &["check"]] {
        let (code, said, _) = answer(&mut site.hostler(words));
        assert_eq!(code, 1);
        assert!(said.contains("hostler.toml") && said.contains("bmc.username"), "{said}");
    }
}

#[test]
fn status_and_watch_show_what_the_status_files_say() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    let dir = site.path("nodes").display().to_string();
    site.await_that("an agent", || answer(&mut hostler(&["status", &dir])).0 == 0);
    let said = answer(&mut hostler(&["status", &dir])).1;
    assert!(said.ends_with(&format!("no nodes: a spec is a file NODE.toml in {dir}\n")), "{said}");

    let mut watch = hostler(&["watch", &dir]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let wrong = format!("sha256:{}", "0".repeat(64));
    site.write(NODE, &machine.spec(&site).with("image.checksum", &wrong));
    let seen = lines.find(|line| line.contains("edge-07 failed: ")).unwrap();
    assert!(seen.contains("disk.raw"), "{seen}");
    watch.kill().unwrap();
    watch.wait().unwrap();

    site.until_phase(NODE, Phase::Failed);
    // The status files are readable without the agent.
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
fn status_says_where_no_agent_has_written_and_names_the_command_for_one_node() {
    let site = Site::new();
    let dir = site.path("nodes").display().to_string();
    for command in [&mut hostler(&["status", &dir]), &mut site.hostler(&["status"])] {
        let (code, said, _) = answer(command);
        assert_eq!(code, 6, "{said}");
        assert!(said.contains(&format!("no agent has written in {dir}")), "{said}");
    }
    for looking in ["status", "watch"] {
        let (code, _, errors) = answer(&mut site.hostler(&[looking, NODE]));
        assert_eq!(code, 1);
        assert!(errors.contains("`hostler explain edge-07`"), "{errors}");
    }
}

#[test]
fn an_agent_says_at_its_start_what_keeps_every_machine_from_being_installed() {
    let site = Site::new();
    let missing = site.path("deploy-kernel");
    let config = fs::read_to_string(site.path("hostler.toml")).unwrap();
    let mut config: toml::Table = toml::from_str(&config).unwrap();
    config["ramdisk"]["kernel"] = missing.display().to_string().into();
    fs::write(site.path("hostler.toml"), config.to_string()).unwrap();
    let _agent = site.start();
    let warning =
        format!("no machine can be installed with the deploy boot file {}", missing.display());
    site.await_that("warned", || site.log().contains(&warning));
    assert!(site.log().contains("`hostler ramdisk build`"), "{}", site.log());
}

#[test]
fn a_port_that_is_taken_is_told_with_what_helps() {
    let site = Site::new();
    let agent = site.start();
    site.await_that("an agent", || answer(&mut site.hostler(&["status"])).0 == 0);
    let config = fs::read_to_string(site.path("hostler.toml")).unwrap();
    let mut config: toml::Table = toml::from_str(&config).unwrap();
    for (table, key) in [("state", "dir"), ("specs", "dir")] {
        let other = site.path(&format!("other-{table}"));
        fs::create_dir(&other).unwrap();
        config[table][key] = other.display().to_string().into();
    }
    let other = site.path("other.toml");
    fs::write(&other, config.to_string()).unwrap();
    let (code, _, errors) = answer(&mut hostler(&["run", "--config", other.to_str().unwrap()]));
    assert_eq!(code, 1);
    assert!(
        errors.contains("Address already in use") && errors.contains("`ss -lnptu`"),
        "{errors}"
    );
    drop(agent);
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

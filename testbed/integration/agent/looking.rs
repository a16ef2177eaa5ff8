//! The read-only commands against real files, without an agent.

use std::{fs, process::Stdio};

use hostler::{model::status::Phase, spec_dir};
use serde_json::Value;

use super::{
    NODE, ends_deployed,
    machine::Machine,
    site::{Site, answer, hostler},
};

#[test]
fn show_prints_a_spec_that_says_the_same_and_where_each_value_was_said() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let without = machine.spec(&site).to_toml();
    let without: Vec<&str> = without.lines().filter(|line| !line.starts_with("image.")).collect();
    fs::write(site.path("nodes/edge-07.toml"), without.join("\n")).unwrap();
    let image = format!("[image]\nsource = \"disk.raw\"\nchecksum = \"{}\"\n", site.checksum());
    fs::write(site.path("nodes/_defaults.toml"), image).unwrap();
    let config = fs::read_to_string(site.path("hostler.toml")).unwrap();
    let agents = format!("hostler.toml:{} [defaults]", config.lines().count() + 2);
    fs::write(site.path("hostler.toml"), config + "[defaults.timeouts]\nimaging = \"1h\"\n")
        .unwrap();

    let (code, shown, errors) = answer(&mut site.hostler(&["show", NODE]));
    assert_eq!((code, errors.as_str()), (0, ""));
    for (line, origin) in [
        ("mac = ", "edge-07.toml:"),
        ("source = \"disk.raw\"", "_defaults.toml:2"),
        ("imaging = \"1h\"", agents.as_str()),
        ("imaging_stall = \"2m\"", "default"),
    ] {
        let found = shown.lines().find(|shown| shown.starts_with(line)).expect(&shown);
        assert!(found.split_once("  # ").unwrap().1.starts_with(origin), "{found}");
    }

    let file = site.path("nodes/edge-07.toml");
    let config = hostler::config::read(&site.path("hostler.toml")).unwrap();
    let before = spec_dir::read_file(&file, config.defaults.as_ref()).unwrap();
    fs::create_dir(site.path("alone")).unwrap();
    fs::write(site.path("alone/edge-07.toml"), &shown).unwrap();
    assert_eq!(spec_dir::read_file(&site.path("alone/edge-07.toml"), None).unwrap(), before);

    let dir = site.path("alone").display().to_string();
    let (code, again, _) = answer(&mut hostler(&["show", NODE, "--dir", &dir]));
    assert_eq!((code, again.lines().count()), (0, shown.lines().count()));
}

#[test]
fn show_and_digest_of_a_bad_spec_print_every_problem_and_fail() {
    let site = Site::new();
    let file = site.path("nodes/edge-07.toml").display().to_string();
    let (code, said, errors) = answer(&mut site.hostler(&["digest", &file]));
    assert_eq!((code, said.as_str(), errors), (1, "", format!("error: {file}: no such file\n")));
    fs::write(&file, "state = 7\n").unwrap();
    for command in [&mut site.hostler(&["show", NODE]), &mut site.hostler(&["digest", &file])] {
        let (code, said, errors) = answer(command);
        assert_eq!((code, said.as_str()), (1, ""));
        assert!(errors.starts_with(&format!("error: {file}: boot.mac: missing; add")), "{errors}");
        assert!(errors.contains(&format!("\n{file}:1:9: state: an integer")), "{errors}");
    }
    let config = site.path("none.toml").display().to_string();
    let (code, _, errors) = answer(&mut hostler(&["digest", &file, "--config", &config]));
    assert_eq!(code, 1);
    assert!(errors.contains("none.toml"), "{errors}");
}

#[test]
fn a_script_writes_a_spec_and_waits_for_just_that() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    let spec = machine.spec(&site);
    site.write(NODE, &spec);
    let first = digest(&site);
    let wait = wait(&site, &["--digest", &first]).stderr(Stdio::piped()).spawn().unwrap();
    machine.deploy(&site);
    let output = wait.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    for phase in [Phase::Imaging, Phase::Switching, Phase::Deployed] {
        assert!(errors.contains(&format!("edge-07 {}: ", phase.as_str())), "{errors}");
    }
    assert_eq!(site.status(NODE).unwrap().spec_digest.unwrap().to_string(), first);

    // An earlier success does not count; a drifted node waits for an operator.
    let drifted = spec.with("root_device.name", "vdb");
    let second = digest_of(&site, &drifted.to_toml());
    assert_ne!(first, second);
    assert_eq!(answer(&mut wait_quietly(&site, &["--digest", &second, "--timeout", "1s"])).0, 4);
    site.write(NODE, &drifted);
    let (code, _, errors) = answer(&mut wait_quietly(&site, &["--digest", &second]));
    assert_eq!(code, 5, "{errors}");
    assert!(errors.starts_with("error: edge-07 deployed: "), "{errors}");
}

#[test]
fn wait_tells_failed_held_late_and_unreadable_apart() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    // Without a spec the wait would never end.
    let (code, _, errors) = answer(&mut wait_quietly(&site, &[]));
    assert_eq!(code, 1);
    assert!(errors.starts_with("error: edge-07: no such node: "), "{errors}");
    site.write(NODE, &machine.spec(&site));
    let (code, _, errors) = answer(&mut wait_quietly(&site, &["--timeout", "1s"]));
    assert_eq!((code, errors.as_str()), (4, "error: timed out after 1s: edge-07: no status yet\n"));
    fs::remove_file(site.path("nodes/edge-07.toml")).unwrap();

    let agent = site.start();
    let wrong = format!("sha256:{}", "0".repeat(64));
    let spec = machine.spec(&site).with("image.checksum", &wrong);
    site.write(NODE, &spec);
    let (code, _, errors) = answer(&mut wait_quietly(&site, &["--digest", &digest(&site)]));
    assert_eq!(code, 5, "{errors}");
    assert!(errors.starts_with("error: edge-07 held: the machine (BMC "), "{errors}");
    assert_eq!(answer(&mut wait_quietly(&site, &["--phase", "held"])).0, 0);

    site.write(NODE, &spec.with("redeploy", "now"));
    let (code, _, errors) = answer(&mut wait_quietly(&site, &["--digest", &digest(&site)]));
    assert_eq!(code, 3, "{errors}");
    assert!(errors.contains("disk.raw") && errors.contains("\n  hint: "), "{errors}");
    // Only the file counts, not the agent.
    agent.kill();
    assert_eq!(answer(&mut wait_quietly(&site, &[])).0, 3);

    fs::write(site.path("nodes/edge-07.status.toml"), "phase = 7\n").unwrap();
    for arguments in [&[][..], &["--timeout", "soon"], &["--phase", "done"], &["--digest", "a"]] {
        assert_eq!(answer(&mut wait_quietly(&site, arguments)).0, 1, "{arguments:?}");
    }
    let (code, _, errors) = answer(&mut hostler(&["wait", NODE, "--dir", "/no/such/place"]));
    assert_eq!((code, errors.as_str()), (1, "error: /no/such/place: no such directory\n"));
    let (code, help, _) = answer(&mut hostler(&["wait", "--help"]));
    assert_eq!(code, 0);
    assert!(help.contains("Exit codes: 0 "), "{help}");
}

#[test]
fn explain_tells_what_was_done_and_what_is_wrong_by_now() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    let wrong = format!("sha256:{}", "0".repeat(64));
    site.write(NODE, &machine.spec(&site).with("image.checksum", &wrong));
    site.until_phase(NODE, Phase::Failed);
    agent.kill();
    let (code, output, errors) = answer(&mut site.hostler(&["explain", NODE]));
    assert_eq!((code, errors.as_str()), (0, ""));
    for part in [
        "edge-07 is failed for ",
        "  preparing  ",
        "power    off, ",
        "Last error: ChecksumMismatch in attempt 1, ",
        "hint: ",
        "hostler retry edge-07",
    ] {
        assert!(output.contains(part), "{part}:\n{output}");
    }
    fs::write(site.path("nodes/edge-07.toml"), "state = 7\n").unwrap();
    let (_, output, _) = answer(&mut site.hostler(&["explain", NODE]));
    assert!(output.contains("edge-07.toml:1:9: state: "), "{output}");
    let (code, _, errors) = answer(&mut site.hostler(&["explain", "edge-99"]));
    assert_eq!(code, 1);
    assert!(errors.contains("edge-99.status.toml"), "{errors}");
}

#[test]
fn plan_judges_a_change_before_it_is_made() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    let spec = machine.spec(&site).with("redeploy", "a");
    site.write(NODE, &spec);
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    let (code, said, errors) = answer(&mut site.hostler(&["plan"]));
    assert_eq!((code, said.as_str(), errors.as_str()), (0, "edge-07  nothing  installed\n", ""));
    agent.kill();

    fs::create_dir(site.path("change")).unwrap();
    let change = site.path("change").display().to_string();
    let propose = |node: &str, text: &str| {
        fs::write(site.path(&format!("change/{node}.toml")), text).unwrap();
    };
    propose(NODE, &spec.clone().with("redeploy", "b").to_toml());
    let new = spec.clone().with("boot.mac", "52:54:00:00:00:99").with("bmc.address", "192.0.2.99");
    propose("edge-08", &new.to_toml());
    let (code, said, _) = answer(&mut site.hostler(&["plan", &change]));
    assert_eq!(code, 2, "{said}");
    let (bmc, mac) = (machine.bmc.port, &machine.mac);
    assert_eq!(
        said,
        format!(
            "edge-07  reinstall  WIPES vda (160.0 MiB, serial root-1) of BMC 127.0.0.1:{bmc}, MAC \
             {mac}: redeploy changed from \"a\" to \"b\"\n\
             edge-08  install    WIPES its root device of BMC 192.0.2.99:623, MAC \
             52:54:00:00:00:99, unless it is on: never installed by hostler\n"
        )
    );
    let (code, said, _) = answer(&mut site.hostler(&["plan", &change, "-o", "json"]));
    let plan: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &plan["nodes"][0]["action"]), (2, &"reinstall".into()));
    assert_eq!(plan["nodes"][0]["wipes"], "vda (160.0 MiB, serial root-1)");
    assert_eq!(
        (&plan["nodes"][1]["unless_on"], &plan["problems"]),
        (&true.into(), &Value::Array(Vec::new()))
    );

    // Status files alone, on another machine.
    let nodes = site.path("nodes").display().to_string();
    let (code, again, _) = answer(&mut hostler(&["plan", &change, "--status-dir", &nodes]));
    assert_eq!((code, again.lines().count()), (2, 2), "{again}");

    propose(NODE, "state = 7\n");
    propose("edge-09", &new.to_toml());
    let (code, said, _) = answer(&mut site.hostler(&["plan", &change]));
    assert_eq!(code, 1, "{said}");
    for (node, action) in [(NODE, "invalid"), ("edge-08", "clash"), ("edge-09", "clash")] {
        assert!(said.contains(&format!("{node}  {action}  ")), "{said}");
    }
    fs::write(site.path("nodes/edge-07.status.toml"), "phase = 7\n").unwrap();
    for arguments in [&["plan", &change][..], &["plan", "/no/such/place"], &["plan", "--wipe"]] {
        let (code, said, errors) = answer(&mut site.hostler(arguments));
        assert_eq!((code, said.as_str()), (1, ""), "{errors}");
    }
}

/// Runs `hostler digest` on the node's spec.
fn digest(site: &Site) -> String {
    let file = site.path("nodes/edge-07.toml").display().to_string();
    let (code, digest, errors) = answer(&mut site.hostler(&["digest", &file]));
    assert_eq!((code, errors.as_str()), (0, ""));
    digest.trim_end().to_owned()
}

/// Runs `hostler digest` on a spec that is not in the directory.
fn digest_of(site: &Site, text: &str) -> String {
    fs::create_dir(site.path("draft")).unwrap();
    let file = site.path("draft/edge-07.toml").display().to_string();
    fs::write(&file, text).unwrap();
    answer(&mut hostler(&["digest", &file])).1.trim_end().to_owned()
}

fn wait(site: &Site, arguments: &[&str]) -> std::process::Command {
    let mut command = site.hostler(&["wait", NODE, "--timeout", "5m"]);
    command.args(arguments);
    command
}

fn wait_quietly(site: &Site, arguments: &[&str]) -> std::process::Command {
    let mut command = site.hostler(&["wait", NODE, "--quiet"]);
    command.args(arguments);
    command
}

//! Ansible runs the example playbook.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use hostler::model::status::Phase;
use serde_json::json;

use super::{NO_RESCAN, forgotten, is_effective, observed};
use crate::agent::{
    DEPLOYED, NODE, ends_deployed,
    machine::Machine,
    site::{Site, answer, hostler},
};

/// Runs `examples/ansible/site.yml`, which must succeed; returns the number of tasks with changes.
fn play(site: &Site, inventory: &Path, arguments: &[&str]) -> usize {
    let (success, text) = play_to_its_end(site, inventory, arguments);
    assert!(success, "{text}\n{}", site.log());
    let changed = text.split_once("changed=").and_then(|(_, rest)| rest.split_once(' '));
    changed.unwrap().0.parse().unwrap()
}

/// Runs the playbook; returns whether it succeeded, and its output.
fn play_to_its_end(site: &Site, inventory: &Path, arguments: &[&str]) -> (bool, String) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bin = repository.join("target/testbed/ansible/bin");
    let here = json!({
        "ansible_connection": "local",
        "ansible_python_interpreter": bin.join("python"),
        "config": site.path("hostler.toml"),
    });
    let hostler = Path::new(env!("CARGO_BIN_EXE_hostler")).parent().unwrap();
    let path = format!("{}:{}", hostler.display(), env::var("PATH").unwrap());
    let output = Command::new(bin.join("ansible-playbook"))
        .arg("--inventory")
        .arg(inventory)
        .args(["--extra-vars", &here.to_string()])
        .args(arguments)
        .arg(repository.join("examples/ansible/site.yml"))
        .env("ANSIBLE_HOME", site.path("ansible"))
        .env("ANSIBLE_REMOTE_TEMP", site.path("ansible/remote"))
        .env("ANSIBLE_PIPELINING", "1")
        .env("LC_ALL", "C.UTF-8")
        .env("PATH", path)
        .output()
        .expect("testbed/install makes target/testbed/ansible");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    (output.status.success(), format!("{text}\n{errors}"))
}

/// Writes an inventory with this machine, and nodes to be removed.
fn inventory(site: &Site, machine: &Machine, redeploy: &str, forgotten: &[&str]) -> PathBuf {
    let machine = json!({
        "name": machine.node,
        "mac": machine.mac,
        "bmc": format!("127.0.0.1:{}", machine.bmc.port),
        "redeploy": redeploy,
    });
    inventory_of(site, &json!([machine]), forgotten)
}

fn inventory_of(site: &Site, machines: &serde_json::Value, forgotten: &[&str]) -> PathBuf {
    let vars = json!({
        "specs": site.path("nodes"),
        "statuses": site.path("nodes"),
        "patience": 60,
        "defaults": format!(
            "bmc.username = \"admin\"\n[image]\nsource = \"disk.raw\"\nchecksum = \"{}\"\n",
            site.checksum()
        ),
        "machines": machines,
        "forgotten": forgotten,
    });
    // JSON is valid YAML.
    let path = site.path("inventory.yml");
    fs::write(&path, json!({"hostler": {"hosts": {"here": vars}}}).to_string()).unwrap();
    path
}

/// Invariant (spec): The Ansible example acts on no partial batch, and reports the first machine
/// that fails.
#[test]
fn ansible_installs_a_machine_waits_for_it_and_changes_nothing_the_second_time() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let machine = Machine::new(&site, NODE);
    site.write("z", &observed(1, ""));
    let _agent = site.start();
    is_effective(&site, "z", &observed(1, ""));
    let first = inventory(&site, &machine, "first", &[]);
    thread::scope(|scope| {
        let play = scope.spawn(|| play(&site, &first, &[]));
        machine.deploy(&site);
        // The directory, the defaults, the spec, and putting them in place.
        assert_eq!(play.join().unwrap(), 4);
    });
    ends_deployed(&site, &machine);
    assert_eq!(play(&site, &first, &[]), 0);
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);

    // The status file says `ready` at the play's beginning, but for another digest.
    let words = r#"[INC-4711] "disk" a\b (v1+x) $HOME 'y' 🚀"#;
    let second = inventory(&site, &machine, words, &["z"]);
    thread::scope(|scope| {
        let play = scope.spawn(|| play(&site, &second, &[]));
        let ramdisk = machine.boot(&site, 2);
        ramdisk.export();
        ramdisk.finish();
        assert_eq!(play.join().unwrap(), 2);
        let installed = site.status(NODE).unwrap().installed.unwrap();
        assert_eq!(installed.redeploy.as_deref(), Some(words));
    });
    forgotten(&site, "z");
    assert_eq!(play(&site, &second, &[]), 0);
}

/// Invariant (spec): The Ansible example acts on no partial batch, and reports the first machine
/// that fails.
#[test]
fn ansible_tells_the_first_machine_that_fails_with_what_helps_and_waits_for_no_other() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let (good, bad) = (Machine::new(&site, NODE), Machine::new(&site, "edge-08"));
    fs::write(site.path("secrets/edge-08.bmc"), "wrong\n").unwrap();
    let _agent = site.start();
    let machines = [&good, &bad].map(|machine| {
        let bmc = format!("127.0.0.1:{}", machine.bmc.port);
        json!({"name": machine.node, "mac": machine.mac, "bmc": bmc, "redeploy": 20_261_122})
    });
    let (success, said) = play_to_its_end(&site, &inventory_of(&site, &json!(machines), &[]), &[]);
    assert!(!success, "{said}");
    // The other machine waits for its ramdisk for twenty minutes.
    for word in ["edge-08 failed", "wrong user name or password", "hint: correct bmc.username"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let status = site.status(NODE).unwrap();
    assert!(status.phase.is_busy(), "{status:?}");
}

/// Invariant (spec): The Ansible example acts on no partial batch, and reports the first machine
/// that fails.
#[test]
fn ansible_has_no_half_of_its_files_acted_on_and_none_that_is_wrong() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let _agent = site.start();
    let nobody = |name: &str, number: u8| {
        let (mac, bmc) = (format!("52:54:01:00:00:{number:02x}"), format!("127.1.0.{number}"));
        json!({"name": name, "mac": mac, "bmc": bmc, "redeploy": "a"})
    };
    let specs = ["--tags", "specs"];
    let nodes = ["a", "b", "c", "d"];
    let named = |shift: u8| {
        let machines = nodes.iter().zip(0_u8..).map(|(name, n)| nobody(name, (n + shift) % 4));
        inventory_of(&site, &machines.collect(), &[])
    };
    play(&site, &named(0), &specs);
    let macs = |node: &str| site.status(node).map(|status| status.machine.unwrap().macs);
    site.await_that("read", || nodes.iter().all(|node| macs(node).is_some()));
    // Every machine gets the next one's addresses, so that any part of the files is a clash.
    play(&site, &named(1), &specs);
    site.await_that("read again", || {
        let changed = |(node, n): (&&str, u8)| {
            macs(node).unwrap()[0].to_string() == format!("52:54:01:00:00:{:02x}", (n + 1) % 4)
        };
        nodes.iter().zip(0_u8..).all(changed)
    });
    for node in nodes {
        let status = site.status(node).unwrap();
        assert!(status.history.iter().all(|entry| entry.phase != Phase::Invalid), "{status:?}");
    }
    // One wrong spec stops all files.
    let wrong = inventory_of(&site, &json!([nobody("a", 9), nobody("b", 9)]), &[]);
    let (success, said) = play_to_its_end(&site, &wrong, &specs);
    assert!(!success && said.contains("52:54:01:00:00:09"), "{said}");
    assert_eq!(macs("a").unwrap()[0].to_string(), "52:54:01:00:00:01");
}

/// Invariant (spec): The Ansible example says nothing of a machine that its inventory does not
/// name.
#[test]
fn ansible_puts_nothing_back_of_a_machine_that_it_does_not_name_any_more() {
    let site = Site::new();
    let nobody = |name: &str, number: u8| {
        let (mac, bmc) = (format!("52:54:01:00:00:{number:02x}"), format!("127.1.0.{number}"));
        json!({"name": name, "mac": mac, "bmc": bmc, "redeploy": "old"})
    };
    let (a, b, c) = (nobody("a", 1), nobody("b", 2), nobody("c", 3));
    let specs = ["--tags", "specs"];
    play(&site, &inventory_of(&site, &json!([a, b, c]), &[]), &specs);
    // From now on a file outside of the inventory is the spec of `b`, and `c` has none.
    let foreign_spec = site.path("nodes/b.toml");
    let text = fs::read_to_string(&foreign_spec).unwrap().replace("old", "new");
    fs::write(&foreign_spec, &text).unwrap();
    fs::remove_file(site.path("nodes/c.toml")).unwrap();
    play(&site, &inventory_of(&site, &json!([a]), &[]), &specs);
    assert_eq!(fs::read_to_string(&foreign_spec).unwrap(), text);
    assert!(site.path("nodes/a.toml").exists() && !site.path("nodes/c.toml").exists());
}

#[test]
fn the_example_inventory_makes_good_specs() {
    let site = Site::new();
    let inventory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ansible/inventory.yml");
    let nodes = site.path("nodes");
    let specs = format!("specs={}", nodes.display());
    assert_eq!(play(&site, &inventory, &["--extra-vars", &specs, "--tags", "specs"]), 4);
    let (code, said, _) = answer(hostler(&["check"]).arg(&nodes));
    assert_eq!(code, 0, "{said}");
    assert!(nodes.join("edge-07.toml").exists() && nodes.join("edge-08.toml").exists());
}

/// Invariant (spec): Ansible puts no spec in place that `hostler check` refuses.
#[test]
fn ansible_validates_a_spec_before_it_is_in_place() {
    let site = Site::new();
    let spec = site.path("nodes/edge-07.toml");
    fs::write(site.path("nodes/_defaults.toml"), "[bmc]\npassword_file = \"edge-07.bmc\"\n")
        .unwrap();
    let good = observed(1, "").to_toml();
    let lines = good.lines().filter(|line| !line.contains("password_file"));
    let good: String = lines.flat_map(|line| [line, "\n"]).collect();
    let hostler = env!("CARGO_BIN_EXE_hostler");
    let validate = format!("{hostler} check --config {} %s", site.path("hostler.toml").display());
    for (content, is_accepted) in [(good.clone(), true), (format!("{good}[bot]\n"), false)] {
        let arguments = json!({
            "content": content,
            "dest": spec,
            "validate": validate,
        });
        let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/testbed/ansible/bin");
        let output = Command::new(bin.join("ansible"))
            .args(["localhost", "--connection", "local", "--module-name", "ansible.builtin.copy"])
            .args(["--args", &arguments.to_string()])
            .arg(format!("-eansible_python_interpreter={}", bin.join("python").display()))
            .env("ANSIBLE_HOME", site.path("ansible"))
            .env("ANSIBLE_REMOTE_TEMP", site.path("ansible/remote"))
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect("testbed/install makes target/testbed/ansible");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.success(), is_accepted, "{said}");
        assert_eq!(said.contains("did you mean `boot`?"), !is_accepted, "{said}");
        assert_eq!(fs::read_to_string(&spec).unwrap(), good);
    }
}

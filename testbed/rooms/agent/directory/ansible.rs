//! Ansible runs the example playbook.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use serde_json::json;

use super::{NO_RESCAN, forgotten, in_force, observed};
use crate::agent::{
    DEPLOYED, NODE, ends_deployed,
    machine::Machine,
    site::{Site, answer, hostler},
};

/// Runs `examples/ansible/site.yml`; answers with the number of tasks that changed something.
fn play(site: &Site, inventory: &Path, arguments: &[&str]) -> usize {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bin = repository.join("target/testbed/ansible/bin");
    let here =
        json!({"ansible_connection": "local", "ansible_python_interpreter": bin.join("python")});
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
        .output()
        .expect("testbed/install makes target/testbed/ansible");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{told}\n{}", site.log());
    let changed = text.split_once("changed=").and_then(|(_, rest)| rest.split_once(' '));
    changed.unwrap().0.parse().unwrap()
}

/// An inventory with this machine, and a node that is to be forgotten.
fn inventory(site: &Site, machine: &Machine, redeploy: &str, forgotten: &[&str]) -> PathBuf {
    let vars = json!({
        "specs": site.path("nodes"),
        "statuses": site.path("nodes"),
        "patience": 60,
        "defaults": format!(
            "bmc.username = \"admin\"\n[image]\nsource = \"disk.raw\"\nchecksum = \"{}\"\n",
            site.checksum()
        ),
        "machines": [{
            "name": machine.node,
            "mac": machine.mac,
            "bmc": format!("127.0.0.1:{}", machine.bmc.port),
            "redeploy": redeploy,
        }],
        "forgotten": forgotten,
    });
    // JSON is YAML.
    let path = site.path("inventory.yml");
    fs::write(&path, json!({"hostler": {"hosts": {"here": vars}}}).to_string()).unwrap();
    path
}

#[test]
fn ansible_installs_a_machine_waits_for_it_and_changes_nothing_the_second_time() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let machine = Machine::new(&site, NODE);
    site.write("z", &observed(1, ""));
    let _agent = site.start();
    in_force(&site, "z", &observed(1, ""));
    let first = inventory(&site, &machine, "first", &[]);
    thread::scope(|scope| {
        let play = scope.spawn(|| play(&site, &first, &[]));
        machine.deploy(&site);
        assert_eq!(play.join().unwrap(), 2);
    });
    ends_deployed(&site, &machine);
    assert_eq!(play(&site, &first, &[]), 0);
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);

    // The status file says `ready` when the play begins to wait, but not for this.
    let second = inventory(&site, &machine, "second", &["z"]);
    thread::scope(|scope| {
        let play = scope.spawn(|| play(&site, &second, &[]));
        let ramdisk = machine.boot(&site, 2);
        ramdisk.export();
        ramdisk.finish();
        assert_eq!(play.join().unwrap(), 2);
        let installed = site.status(NODE).unwrap().installed.unwrap();
        assert_eq!(installed.redeploy.as_deref(), Some("second"));
    });
    forgotten(&site, "z");
}

#[test]
fn the_example_inventory_makes_good_specs() {
    let site = Site::new();
    let inventory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ansible/inventory.yml");
    let nodes = site.path("nodes");
    let specs = format!("specs={}", nodes.display());
    assert_eq!(play(&site, &inventory, &["--extra-vars", &specs, "--tags", "specs"]), 2);
    let (code, said, _) = answer(hostler(&["check"]).arg(&nodes));
    assert_eq!(code, 0, "{said}");
    assert!(nodes.join("edge-07.toml").exists() && nodes.join("edge-08.toml").exists());
}

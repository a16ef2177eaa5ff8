//! Tests of the state directories and status files of each version, in `testbed/corpus`: this
//! version reads each with the same meaning.
//!
//! `state-2` is this version's upgrade of `state-1`. Until the release, `UPDATE_EXPECT=1 cargo test
//! --lib corpus` renews it after a change of the format; later it stays, and the next version gets
//! a directory of its own.

use std::{collections::BTreeMap, env, fs, path::Path};

use tempfile::TempDir;

use super::*;

/// Copies the files of the last or of this version.
fn copy(version: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for part in ["state", "nodes"] {
        fs::create_dir(dir.path().join(part)).unwrap();
        for entry in fs::read_dir(corpus(version).join(part)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.path().join(part).join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

fn corpus(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testbed/corpus").join(version)
}

/// The effective specs and one more: the machine of `edge-006` comes back under another name.
fn specs(agent: &Agent) -> Vec<NodeSpec> {
    let fleet = agent.executor.fleet();
    let specs = fleet.names().into_iter().filter_map(|name| fleet.node(&name)?.spec().cloned());
    let mut specs: Vec<NodeSpec> = specs.map(|spec| NodeSpec::clone(&spec)).collect();
    let known = specs.iter().find(|spec| spec.name == name("edge-004")).unwrap();
    let mut back = NodeSpec { name: name("edge-106"), ..known.clone() };
    back.bmc.as_mut().unwrap().move_to("bmc-006");
    back.boot.macs = vec!["52:54:00:00:00:06".parse().unwrap()];
    specs.push(back);
    specs
}

/// Each node's phase after the first scan, with its peculiarities.
fn stands(agent: &mut Agent, specs: &[NodeSpec]) -> BTreeMap<String, String> {
    let found = specs.iter().map(|spec| (spec.name.clone(), Ok(Arc::new(spec.clone()))));
    for (name, event) in agent.executor.compare(now(), found.collect(), &BTreeMap::new()) {
        agent.executor.step(now(), &name, event, &mut agent.effects);
    }
    let fleet = agent.executor.fleet();
    let stands = fleet.names().into_iter().map(|name| {
        let node = fleet.node(&name).unwrap();
        let status = node.status(now());
        let drifted =
            status.installed_digest.is_some_and(|digest| Some(digest) != status.spec_digest);
        let hold = node.held_for().map_or(String::new(), |hold| format!(" {hold:?}"));
        let key = node.record().state.attempt().map_or("", |_| " attempt");
        let drift = if drifted { " drifted" } else { "" };
        (name.to_string(), format!("{}{hold}{drift}{key}", node.phase().as_str()))
    });
    stands.collect()
}

const STANDS: [(&str, &str); 14] = [
    ("edge-000", "held TooManyChanges drifted"),
    ("edge-001", "held TooManyChanges drifted"),
    ("edge-002", "held TooManyChanges drifted"),
    ("edge-003", "deployed"),
    ("edge-004", "deployed"),
    ("edge-005", "deployed"),
    ("edge-007", "held RecordLost"),
    ("edge-008", "held PoweredOn"),
    ("edge-009", "failed"),
    ("edge-010", "imaging attempt"),
    ("edge-011", "available"),
    ("edge-012", "failed"),
    ("edge-013", "deployed"),
    ("edge-106", "deployed"),
];

fn wanted() -> BTreeMap<String, String> {
    STANDS.map(|(node, stands)| (node.to_owned(), stands.to_owned())).into()
}

/// Invariant (state): Each version's files open in the next version and mean the same.
#[test]
fn what_each_version_wrote_opens_in_this_one_and_means_the_same() {
    if env::var_os("UPDATE_EXPECT").is_some() {
        update();
    }
    for version in ["state-1", "state-2"] {
        let dir = copy(version);
        let mut agent = Agent::start(dir.path());
        let specs = specs(&agent);
        assert_eq!(stands(&mut agent, &specs), wanted(), "{version}");
        let upgrade = "the state directory was of format 1; it has a checksum in every file now";
        assert_eq!(agent.losses, if version == "state-1" { upgrade } else { "" });
        agent.stop();
        // Only the first start upgrades.
        let mut agent = Agent::start(dir.path());
        assert_eq!(stands(&mut agent, &specs), wanted(), "{version}, again");
        assert_eq!(agent.losses, "");
        assert!(!dir.path().join("state/_left.json").exists());
    }
}

/// Invariant (state): Each version's files open in the next version and mean the same.
#[test]
fn what_the_status_files_of_each_version_say_is_adopted_when_the_state_is_lost() {
    for version in ["state-1", "state-2"] {
        let dir = copy(version);
        let specs = specs(&Agent::start(dir.path()));
        let dir = copy(version);
        fs::remove_dir_all(dir.path().join("state")).unwrap();
        let mut agent = Agent::start(dir.path());
        let stands = stands(&mut agent, &specs);
        for (node, wanted) in [
            ("edge-000", "deployed drifted"),
            ("edge-003", "deployed"),
            ("edge-005", "deployed"),
            ("edge-013", "deployed"),
            ("edge-007", "held RecordLost"),
        ] {
            assert_eq!(stands[node], wanted, "{version} {node}");
        }
    }
}

/// Invariant (state): Each version's files open in the next version and mean the same.
#[test]
fn a_file_of_format_1_with_a_key_too_many_or_too_few_is_damaged() {
    let good = fs::read_to_string(corpus("state-1").join("state/edge-003.json")).unwrap();
    let held = fs::read_to_string(corpus("state-1").join("state/edge-007.json")).unwrap();
    for (node, spoilt) in [
        ("edge-003", good.replace("\"installed\"", "\"inspalled\"")),
        ("edge-003", good.replace("\"image\"", "\"imagf\"")),
        ("edge-003", good.replacen('{', "{\n \"extra\": 1,", 1)),
        ("edge-007", held.replace("\"record_lost\"", "\"record_lnst\"")),
        ("edge-007", held.replace("\"record_lost\": true,", "")),
        ("edge-007", held.replace("\"too_many_changes\": false,", "")),
    ] {
        assert!(spoilt != good && spoilt != held);
        let dir = copy("state-1");
        fs::write(dir.path().join(format!("state/{node}.json")), spoilt).unwrap();
        fs::remove_file(dir.path().join(format!("nodes/{node}.status.toml"))).unwrap_or_default();
        let agent = Agent::start(dir.path());
        assert!(agent.losses.contains(&format!("{node}.json")), "{}", agent.losses);
        assert!(agent.executor.fleet().node(&name(node)).unwrap().record().record_lost);
    }
}

/// Invariant (state): Each version's files open in the next version and mean the same.
#[test]
fn a_file_of_format_1_is_not_accepted_once_the_directory_is_of_this_one() {
    let dir = copy("state-1");
    Agent::start(dir.path()).stop();
    let old = corpus("state-1").join("state/edge-003.json");
    fs::copy(old, dir.path().join("state/edge-003.json")).unwrap();
    let agent = Agent::start(dir.path());
    assert!(
        agent.losses.contains("edge-003.json: it is not of hostler's format"),
        "{}",
        agent.losses
    );
}

/// Checks that this version's corpus is its upgrade of the last one.
fn update() {
    let dir = copy("state-1");
    let mut agent = Agent::start(dir.path());
    let specs: Vec<NodeSpec> =
        specs(&agent).into_iter().filter(|spec| spec.name != name("edge-106")).collect();
    stands(&mut agent, &specs);
    agent.stop();
    for part in ["state", "nodes"] {
        let to = corpus("state-2").join(part);
        fs::remove_dir_all(&to).unwrap_or_default();
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(dir.path().join(part)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
    fs::write(corpus("state-2").join("state/lock"), "1\nformat 2\n").unwrap();
}

//! Common code of the fuzz targets: splitting of inputs, and checks for all lists of problems.
#![expect(clippy::unwrap_used, reason = "a fuzz target says what is wrong by panicking")]

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use hostler::{
    lifecycle::{Action, Event, Node, Outcome, Permit, Policy, PreparedImage, Record},
    model::{problem::Problem, secret::AttemptKey, spec::NodeSpec, status::Status},
    spec_dir::{Defaults, parse},
};
use jiff::Timestamp;
use tempfile::TempDir;

/// A directory in memory for targets that read files. It survives a crash, and is small.
pub static DIR: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir_in("/dev/shm").unwrap());

/// The start time of every run.
pub static NOW: LazyLock<Timestamp> = LazyLock::new(|| "2026-11-22T12:00:00Z".parse().unwrap());

/// A valid spec.
pub static SPEC: LazyLock<Arc<NodeSpec>> = LazyLock::new(|| {
    let defaults = include_bytes!("../../../examples/nodes/_defaults.toml");
    let spec = include_bytes!("../../../examples/nodes/edge-07.toml");
    let defaults = Defaults::new(Some(("_defaults.toml", defaults)), None);
    Arc::new(parse("edge-07.toml", spec, &defaults, &|path| Err(path.to_owned())).unwrap())
});

/// The path of a file in [`DIR`].
pub fn path(name: &str) -> PathBuf {
    DIR.path().join(name)
}

/// Splits the input at its first NUL.
pub fn halves(bytes: &[u8]) -> (Option<&[u8]>, &[u8]) {
    match bytes.iter().position(|byte| *byte == 0) {
        Some(nul) => (Some(&bytes[..nul]), &bytes[nul + 1..]),
        None => (None, bytes),
    }
}

/// Checks that there is at least one problem, each with a message of one line, and an existing
/// place in one of the files.
pub fn check_problems(problems: &[Problem], files: &[(&str, &[u8])]) {
    assert!((1..=300).contains(&problems.len()), "{} problems", problems.len());
    for problem in problems {
        let (_, bytes) = files.iter().find(|(name, _)| *name == problem.file).unwrap();
        assert!(!problem.message.is_empty());
        check_shown(&problem.to_string());
        if let Some((line, column)) = problem.at {
            let line = bytes.split(|byte| *byte == b'\n').nth(line as usize - 1).unwrap();
            // The place directly after the last character is that of a missing element.
            let characters = line.iter().filter(|byte| !matches!(byte, 0x80..=0xbf)).count();
            assert!((1..=characters + 1).contains(&(column as usize)), "{problem}");
        }
    }
}

/// Checks a text for an operator or a log: one line of limited length, without control characters.
pub fn check_shown(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.chars().count() < 5000, "{} characters", text.chars().count());
}

/// The administrator's configuration.
pub const POLICY: Policy =
    Policy { attempts_max: 1, imagings_max: 1, polls_max: 1, breaker: true, enforce_power: true };

/// Brings one event to the node; a permit that the node waits for comes at once.
pub fn step(node: &mut Node, now: Timestamp, event: Event) -> Vec<Action> {
    let mut actions = node.step(now, event);
    for turn in [Permit::Poll, Permit::Attempt, Permit::Imaging] {
        actions.append(&mut node.step(now, Event::Granted(turn)));
    }
    actions
}

/// Checks that a node's record and status read back as they were written.
pub fn check_node(node: &Node, now: Timestamp) {
    let record = serde_json::to_vec(node.record()).unwrap();
    assert_eq!(serde_json::from_slice::<Record>(&record).unwrap(), *node.record());
    let status = node.status(now);
    check_shown(&status.message);
    let file = toml::to_string(&status).unwrap();
    assert_eq!(toml::from_str::<Status>(&file).unwrap(), status);
}

/// The outcome of a prepared image for an attempt with this key.
pub fn prepared(key: AttemptKey) -> Outcome {
    let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let image = PreparedImage {
        digest,
        disk_bytes: 1 << 20,
        root_uuid: None,
        root_partuuid: None,
        netboot: None,
        boot_token: None,
    };
    Outcome::Prepared { image, key, system_guid: None, stages: Vec::new() }
}

/// The outcome of a written disk.
pub fn imaged() -> Outcome {
    Outcome::Imaged {
        verify: Vec::new(),
        disk_bytes: 8 << 30,
        root_partuuid: None,
        stages: Vec::new(),
    }
}

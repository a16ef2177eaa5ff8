//! Tests of the store's promises, on real directories.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    phase: String,
    attempt: u32,
}

fn record(attempt: u32) -> Record {
    Record { phase: "imaging".to_owned(), attempt }
}

/// Converts a record of format 1, which had another name for the attempt.
fn upgrade(mut value: Value) -> Result<Record, String> {
    let fields = value.as_object_mut().ok_or("no object")?;
    let attempt = fields.remove("try").ok_or("missing field `try`")?;
    fields.insert("attempt".to_owned(), attempt);
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn load(store: &Store, name: &str) -> Result<Option<Record>, StoreError> {
    Ok(store.load(&node(name), upgrade)?.map(|(record, _)| record))
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Invariant (status): A status file that cannot be written is no answer, and the obstacle is
/// named.
#[test]
fn a_directory_under_a_temporary_name_keeps_neither_a_record_nor_the_next_start_back() {
    let dir = tempfile::tempdir().unwrap();
    let in_the_way = dir.path().join(".a.json.tmp/inside");
    fs::create_dir_all(&in_the_way).unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.save(&node("a"), &record(1)).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(load(&store, "a").unwrap(), Some(record(1)));
    assert!(in_the_way.exists(), "it is none of ours");
}

/// Invariant (fair): A damaged callback certificate, or a lock that is no file, is named and delays
/// nobody.
#[test]
fn a_lock_that_is_no_file_is_named_at_once() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let put: [fn(&Path); 2] = [
        |path| mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap(),
        |path| fs::create_dir(path).unwrap(),
    ];
    for put in put {
        let dir = tempfile::tempdir().unwrap();
        put(&dir.path().join("lock"));
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("/lock: ") && error.contains("not a regular file"), "{error}");
    }
}

#[test]
fn what_was_saved_is_there_after_a_restart_and_gone_after_a_removal() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.save(&node("a"), &record(1)).unwrap();
    store.save(&node("a"), &record(2)).unwrap();
    store.save(&node("b"), &record(3)).unwrap();
    drop(store);

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(load(&store, "a").unwrap(), Some(record(2)));
    let loaded = store.load_all(upgrade).unwrap();
    assert_eq!(loaded.records, BTreeMap::from([(node("a"), record(2)), (node("b"), record(3))]));
    assert!(loaded.damaged.is_empty());

    store.remove(&node("a")).unwrap();
    store.remove(&node("a")).unwrap();
    assert_eq!(load(&store, "a").unwrap(), None);
}

#[test]
fn only_the_owner_can_read_the_records_even_in_a_directory_made_by_somebody_else() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, Permissions::from_mode(0o755)).unwrap();
    let store = Store::open(&state).unwrap();
    store.save(&node("a"), &record(1)).unwrap();
    assert_eq!((mode(&state), mode(&state.join("a.json"))), (0o700, 0o600));
}

#[test]
fn a_directory_is_free_once_its_store_is_dropped_although_another_process_starts() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    // Such a process has a copy of the descriptor.
    let copy = store.lock.try_clone().unwrap();
    drop(store);
    Store::open(dir.path()).unwrap();
    drop(copy);
}

/// Invariant (state): Only one agent has a state directory.
#[test]
fn a_second_agent_is_refused_and_told_who_has_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("process {};", std::process::id())), "{error}");
    drop(first);
    Store::open(dir.path()).unwrap();
}

#[test]
fn a_torn_temporary_file_is_cleaned_and_the_record_before_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    Store::open(dir.path()).unwrap().save(&node("a"), &record(1)).unwrap();
    let torn = dir.path().join(".a.json.tmp");
    fs::write(&torn, "{\"phase\":").unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(!torn.exists());
    assert_eq!(load(&store, "a").unwrap(), Some(record(1)));
}

#[test]
fn damaged_records_are_reported_and_kept_beyond_the_next_save() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.save(&node("b"), &record(2)).unwrap();
    for (n, junk) in ["{\"phase\":", "", "[1, 2]"].iter().enumerate() {
        fs::write(dir.path().join("a.json"), junk).unwrap();
        let aside = dir.path().join(format!("a.json.bad-{}", n + 1));
        // At every read, because a killed agent must find the file again; but only one copy.
        for _ in 0..2 {
            let loaded = store.load_all(upgrade).unwrap();
            assert_eq!(loaded.records.len(), 1);
            let report = loaded.damaged[&node("a")].to_string();
            assert!(report.ends_with(&format!("kept as {}", aside.display())), "{report}");
        }
        store.save(&node("a"), &record(1)).unwrap();
        assert_eq!(&fs::read_to_string(aside).unwrap(), junk);
        assert_eq!(load(&store, "a").unwrap(), Some(record(1)));
    }
}

#[test]
fn a_directory_in_a_records_place_makes_way_for_the_next_save() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    fs::create_dir(dir.path().join("a.json")).unwrap();
    load(&store, "a").unwrap_err();
    store.save(&node("a"), &record(1)).unwrap();
    assert!(dir.path().join("a.json.bad-1").is_dir());
}

#[test]
fn a_record_that_cannot_be_opened_is_not_taken_for_a_damaged_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    // A loop of links fails for root, too.
    std::os::unix::fs::symlink("a.json", dir.path().join("a.json")).unwrap();
    let error = store.load_all(upgrade).unwrap_err();
    assert!(matches!(error, StoreError::Read { .. }), "{error}");
    assert!(!dir.path().join("a.json.bad-1").exists());
}

#[test]
fn a_file_too_big_to_be_a_record_is_not_read_into_memory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    File::create(dir.path().join("a.json")).unwrap().set_len(1 << 40).unwrap();
    let report = load(&store, "a").unwrap_err().to_string();
    assert!(report.contains("more than 4194304 bytes"), "{report}");
}

#[test]
fn what_a_damaged_record_says_cannot_forge_a_line_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let record = "{\n\"try\": \"\\u001b[31m\\nall is well\", \"phase\": \"x\"}";
    fs::write(dir.path().join("a.json"), record).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let report = load(&store, "a").unwrap_err().to_string();
    assert!(report.contains("all is well") && !report.contains(char::is_control), "{report:?}");
}

/// Invariant (state): No damage makes a state directory look new or old, or its agent another one.
#[test]
fn no_damage_makes_a_directory_of_this_format_look_new_or_old() {
    for (lock, has_id, has_record) in [
        (Some("7\nformat 2\n"), false, false),
        (Some("7\nformat 3\n"), true, false),
        (Some("7\nformat 3\n"), false, true),
        (Some("7\nnew\n"), false, true),
        (Some(""), true, true),
        (None, true, false),
        (None, false, true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        assert!(store.is_new());
        if has_id {
            store.state_id().unwrap();
        }
        if has_record {
            store.save(&node("edge-07"), &record(1)).unwrap();
        }
        drop(store);
        match lock {
            Some(text) => fs::write(dir.path().join("lock"), text).unwrap(),
            None => fs::remove_file(dir.path().join("lock")).unwrap(),
        }
        let store = Store::open(dir.path()).unwrap();
        let missing = store.load_site(upgrade).unwrap_err();
        assert!(matches!(missing, StoreError::Missing { .. }), "{lock:?}: {missing}");
    }
}

#[test]
fn a_first_start_that_was_killed_leaves_a_directory_that_is_new() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut store = Store::open(dir.path()).unwrap();
        assert!(store.is_new());
        store.state_id().unwrap();
        assert!(store.load_site(upgrade).unwrap().is_none());
    }
    let mut store = Store::open(dir.path()).unwrap();
    store.complete_upgrade().unwrap();
    assert!(!store.is_new());
}

#[test]
fn a_directory_that_is_not_the_one_it_opened_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (state, away) = (dir.path().join("state"), dir.path().join("away"));
    let store = Store::open(&state).unwrap();
    fs::rename(&state, &away).unwrap();
    let is_refused = || {
        for error in [store.save(&node("a"), &record(1)), store.remove(&node("a"))] {
            let said = error.unwrap_err().to_string();
            assert!(said.contains("state was removed or replaced"), "{said}");
        }
    };
    is_refused();
    let other = Store::open(&state).unwrap();
    is_refused();
    other.save(&node("a"), &record(2)).unwrap();
    drop(other);
    fs::remove_dir_all(&state).unwrap();
    fs::rename(&away, &state).unwrap();
    store.save(&node("a"), &record(1)).unwrap();
}

proptest! {
    #[test]
    fn never_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        fs::write(dir.path().join("a.json"), &bytes).unwrap();
        let loaded = store.load_all(upgrade).unwrap();
        prop_assert_eq!(loaded.records.len() + loaded.damaged.len(), 1);
    }
}

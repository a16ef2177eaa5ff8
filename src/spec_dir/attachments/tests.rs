//! Tests of attached files: accepted and refused ones, the reported places, and the limits.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
};

use expect_test::expect;
use tempfile::TempDir;

use super::*;
use crate::{
    model::spec::NodeSpec,
    spec_dir::{Snapshot, read_dir, read_file},
};

/// Makes a spec with `user_data_file` in line 10, column 18.
fn spec(number: u8, user_data: &str) -> String {
    format!(
        "[boot]\nmac = \"52:54:00:00:00:{number:02x}\"\n[bmc]\naddress = \"192.0.2.{number}\"\n\
         password_file = \"p\"\n\
         [image]\nsource = \"i\"\nchecksum = \"sha256:{}\"\n[config_drive]\n\
         user_data_file = \"{user_data}\"\n",
        "a".repeat(64)
    )
}

fn place(specs: &[(&str, &str)]) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    for (number, (node, user_data)) in (1..).zip(specs) {
        fs::write(place.path().join(format!("{node}.toml")), spec(number, user_data)).unwrap();
    }
    place
}

fn read(place: &TempDir) -> Snapshot {
    read_dir(place.path(), "nodes", None).unwrap()
}

fn problems(snapshot: &Snapshot) -> String {
    let problems = snapshot.nodes.values().filter_map(|spec| spec.as_ref().err()).flatten();
    problems.fold(String::new(), |text, problem| text + &problem.to_string() + "\n")
}

fn user_data(spec: &NodeSpec) -> &AttachedContent {
    &spec.config_drive.as_ref().unwrap().user_data.as_ref().unwrap().content
}

/// Invariant (image): Nothing outside of the allowed directories is read.
#[test]
fn what_cannot_be_attached_is_told_where_it_is_asked_for() {
    let place = place(&[
        ("a", "gone"),
        ("b", "outside"),
        ("c", "folder"),
        ("d", "socket"),
        ("g", "large"),
        ("h", "folder/up/up"),
        ("i", "proc"),
    ]);
    let at = |name: &str| place.path().join(name);
    symlink("/etc/passwd", at("outside")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    symlink("../..", at("folder/up")).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    fs::write(at("large"), "x".repeat(256 * 1024 + 1)).unwrap();
    symlink("/proc/self/fd/0", at("proc")).unwrap();
    expect![[r#"
        nodes/a.toml:10:18: config_drive.user_data_file: `gone` is not there
        nodes/b.toml:10:18: config_drive.user_data_file: `outside` leads out of the spec directory
        nodes/c.toml:10:18: config_drive.user_data_file: `folder` is a directory, not a regular file
        nodes/d.toml:10:18: config_drive.user_data_file: `socket` is a socket, not a regular file
        nodes/g.toml:10:18: config_drive.user_data_file: `large` has more than 262144 bytes; a config drive has 64 MiB, as Ironic's, but attached files are kept in memory and records: let the machine fetch more (`#include`)
        nodes/h.toml:10:18: config_drive.user_data_file: `folder/up/up` leads out of the spec directory
        nodes/i.toml:10:18: config_drive.user_data_file: `proc` leads out of the spec directory
    "#]].assert_eq(&problems(&read(&place)));
}

#[test]
fn links_that_stay_beneath_are_followed_and_the_largest_file_is_taken() {
    let place = place(&[("a", "user-data"), ("b", "sites/large")]);
    let at = |name: &str| place.path().join(name);
    // Links as in a ConfigMap that Kubernetes mounts.
    fs::create_dir(at("..2026")).unwrap();
    fs::write(at("..2026/user-data"), "#!/bin/sh\n").unwrap();
    symlink("..2026", at("..data")).unwrap();
    symlink("..data/user-data", at("user-data")).unwrap();
    fs::create_dir(at("sites")).unwrap();
    fs::write(at("sites/large"), "x".repeat(256 * 1024)).unwrap();
    let snapshot = read(&place);
    assert_eq!(problems(&snapshot), "");
    let lengths =
        snapshot.nodes.values().map(|spec| user_data(spec.as_ref().unwrap()).as_bytes().len());
    assert_eq!(lengths.collect::<Vec<_>>(), [10, 256 * 1024]);
    assert_eq!(user_data(&read_file(&at("a.toml"), None).unwrap()), &"#!/bin/sh\n".into());
}

/// Invariant (disk): A config drive holds its files byte by byte, and so does every record.
#[test]
fn user_data_of_any_bytes_is_taken_as_it_is() {
    let place = place(&[("a", "gzip"), ("b", "latin1"), ("c", "empty")]);
    let contents: [(&str, &[u8]); 3] =
        [("gzip", b"\x1f\x8b\x08\0\0\n"), ("latin1", b"caf\xe9"), ("empty", b"")];
    for (name, content) in contents {
        fs::write(place.path().join(name), content).unwrap();
    }
    let snapshot = read(&place);
    assert_eq!(problems(&snapshot), "");
    for (node, (_, content)) in ["a", "b", "c"].into_iter().zip(contents) {
        let spec = snapshot.nodes[&node.parse().unwrap()].as_ref().unwrap();
        assert_eq!(user_data(spec).as_bytes(), content);
        let recorded = serde_json::to_string(&**spec).unwrap();
        assert_eq!(&serde_json::from_str::<NodeSpec>(&recorded).unwrap(), &**spec);
        assert_eq!(serde_json::from_str::<NodeSpec>(&recorded).unwrap().digest(), spec.digest());
    }
}

#[test]
fn files_of_the_same_content_take_its_memory_once() {
    let place = place(&[("a", "x"), ("b", "x"), ("c", "y")]);
    for name in ["x", "y"] {
        fs::write(place.path().join(name), "the same").unwrap();
    }
    let snapshot = read(&place);
    let [a, b, c] = ["a", "b", "c"]
        .map(|node| user_data(snapshot.nodes[&node.parse().unwrap()].as_ref().unwrap()).clone());
    let places = [a, b, c].map(|content| content.as_bytes().as_ptr());
    assert!(places.iter().all(|place| *place == places[0]));
}

#[test]
fn all_files_together_are_bounded() {
    let place = tempfile::tempdir().unwrap();
    let content = "x".repeat(256 * 1024 - 3);
    for number in 0..=256 {
        fs::write(place.path().join(number.to_string()), format!("{content}{number:03}")).unwrap();
    }
    let dir = open(place.path());
    let attachments = Attachments::beside(&dir);
    for number in 0..256 {
        attachments.read(&number.to_string()).unwrap();
    }
    expect!["`256` is too much: all files beside the specs may have 67108864 bytes"]
        .assert_eq(&attachments.read("256").unwrap_err());
    attachments.read("255").unwrap();
}

fn open(dir: &Path) -> OwnedFd {
    beneath::open_dir(dir).unwrap()
}

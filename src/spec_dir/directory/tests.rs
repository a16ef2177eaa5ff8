//! Tests of scans of real directories: specs, other files, and broken specs beside good ones.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use expect_test::{Expect, expect};
use tempfile::TempDir;

use super::*;
use crate::spec_dir::{CheckContext, CheckReport, check_dir};

fn spec(number: u8) -> String {
    format!(
        "[boot]\nmac = \"52:54:00:00:00:{number:02x}\"\n[bmc]\naddress = \"192.0.2.{number}\"\n\
         password_file = \"p\"\n\
         [image]\nsource = \"i\"\nchecksum = \"sha256:{}\"\n",
        "a".repeat(64)
    )
}

fn place(files: &[(&str, &str)]) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(place.path().join(name), text).unwrap();
    }
    place
}

/// Checks a whole directory without a configuration or a status.
fn report(dir: &Path) -> CheckReport {
    let context = CheckContext { agent_defaults: None, known_disks: &|_| None };
    check_dir(dir, "nodes", None, &context).unwrap()
}

/// Formats a line for each node, and then the other problems.
fn check(dir: &Path, expected: &Expect) {
    let snapshot = read_dir(dir, "nodes", None).unwrap();
    let mut lines = Vec::new();
    for (name, spec) in &snapshot.nodes {
        lines.push(format!("{name}: {}", if spec.is_ok() { "good" } else { "bad" }));
        for problem in spec.as_ref().err().into_iter().flatten() {
            lines.push(format!("  {problem}"));
        }
    }
    lines.extend(snapshot.problems.iter().map(ToString::to_string));
    expected.assert_eq(&format!("{}\n", lines.join("\n")));
}

#[test]
fn only_specs_are_read_and_every_bad_file_is_reported() {
    let place = place(&[
        ("a.toml", &spec(1)),
        ("b.toml", ""),
        ("c.toml", "x = 1"),
        ("Big.toml", &spec(3)),
        ("d_e.toml", "y = "),
        ("a.status.toml", "phase = \"deployed\""),
        ("a.console.log", "x = 1"),
        ("a.ramdisk.log", "x = 1"),
        (".a.toml.swp", "x"),
        (".hidden.toml", "x"),
        ("a.toml~", "x"),
        ("#a.toml#", "x"),
        ("#a.toml", "x"),
        ("README.md", "x"),
        ("line\nbreak.toml", "x = 1"),
    ]);
    fs::create_dir(place.path().join("dir.toml")).unwrap();
    symlink("nowhere", place.path().join("link.toml")).unwrap();
    rustix::fs::mknodat(
        CWD,
        place.path().join("pipe.toml"),
        rustix::fs::FileType::Fifo,
        Mode::RUSR,
        0,
    )
    .unwrap();
    check(
        place.path(),
        &expect![[r#"
            a: good
            b: bad
              nodes/b.toml: empty
            c: bad
              nodes/c.toml: boot.mac: missing; add to [boot] for example mac = "52:54:00:12:34:56"
              nodes/c.toml: bmc.address: missing; add to [bmc] for example address = "192.0.2.20"
              nodes/c.toml: bmc.password_file: missing; add to [bmc] for example password_file = "edge-07.bmc"
              nodes/c.toml: image.source: missing; add to [image] for example source = "debian-13.qcow2"
              nodes/c.toml: image.checksum: missing; add to [image] for example checksum = "sha256:<64 hex digits>"
              nodes/c.toml:1:1: x: unknown key
            dir: bad
              nodes/dir.toml: cannot be read: a directory, not a regular file
            link: bad
              nodes/link.toml: not there: a link to nothing, or removed while the directory was read
            pipe: bad
              nodes/pipe.toml: cannot be read: a FIFO, not a regular file
            nodes/Big.toml: node name `Big`: must be lower-case letters, digits and inner hyphens (RFC 1123)
            nodes/d_e.toml: node name `d_e`: must be lower-case letters, digits and inner hyphens (RFC 1123)
            nodes/d_e.toml:1:4: no value; write for example "text", 3, true or ["a", "b"]
            nodes/line\nbreak.toml: node name `line\nbreak`: must be lower-case letters, digits and inner hyphens (RFC 1123)
            nodes/line\nbreak.toml: bmc.address: missing; add to [bmc] for example address = "192.0.2.20"
            nodes/line\nbreak.toml: bmc.password_file: missing; add to [bmc] for example password_file = "edge-07.bmc"
            nodes/line\nbreak.toml: boot.mac: missing; add to [boot] for example mac = "52:54:00:12:34:56"
            nodes/line\nbreak.toml: image.checksum: missing; add to [image] for example checksum = "sha256:<64 hex digits>"
            nodes/line\nbreak.toml: image.source: missing; add to [image] for example source = "debian-13.qcow2"
            nodes/line\nbreak.toml:1:1: x: unknown key
        "#]],
    );
}

#[test]
fn linked_specs_are_specs() {
    let elsewhere = place(&[("x", &spec(1))]);
    let place = place(&[]);
    fs::create_dir(place.path().join("..v1")).unwrap();
    fs::write(place.path().join("..v1/b.toml"), spec(2)).unwrap();
    symlink("..v1", place.path().join("..data")).unwrap();
    symlink("..data/b.toml", place.path().join("b.toml")).unwrap();
    symlink(elsewhere.path().join("x"), place.path().join("a.toml")).unwrap();
    check(
        place.path(),
        &expect![[r"
        a: good
        b: good
    "]],
    );
}

#[test]
fn a_missing_directory_is_not_an_empty_one() {
    let place = place(&[]);
    assert!(read_dir(place.path(), "nodes", None).unwrap().nodes.is_empty());
    let missing = place.path().join("x/nodes");
    assert!(matches!(read_dir(&missing, "nodes", None), Err(ReadError::Missing(_))));
    fs::write(place.path().join("file"), "").unwrap();
    let error = read_dir(&place.path().join("file"), "nodes", None).unwrap_err();
    assert!(matches!(&error, ReadError::Io { .. }), "{error}");
}

#[test]
fn nodes_that_clash_are_told_by_check_and_left_as_they_are_by_reading() {
    let place = place(&[("a.toml", &spec(1)), ("b.toml", &spec(1)), ("c.toml", &spec(3))]);
    assert!(read_dir(place.path(), "nodes", None).unwrap().nodes.values().all(Result::is_ok));
    let report = report(place.path());
    assert_eq!(report.good, ["c".parse().unwrap()]);
    let reported: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    assert_eq!(reported.len(), 4, "{reported:?}");
    assert!(reported.iter().all(|line| line.contains("is also in")), "{reported:?}");
}

#[test]
fn the_directorys_defaults_are_under_every_spec_and_broken_ones_hold_every_spec() {
    let no_image = spec(1).split("[image]").next().unwrap().to_owned();
    let image = spec(1).split_off(spec(1).find("[image]").unwrap());
    let place = place(&[("a.toml", &no_image), ("_defaults.toml", &image)]);
    check(
        place.path(),
        &expect![[r"
        a: good
    "]],
    );
    fs::write(place.path().join("_defaults.toml"), image.replace("aa\"", "\"") + "x = 1\n")
        .unwrap();
    check(
        place.path(),
        &expect![[r"
        a: bad
          nodes/_defaults.toml:3:12: image.checksum: 62 hex digits, sha256 needs 64
        nodes/_defaults.toml:3:12: image.checksum: 62 hex digits, sha256 needs 64
        nodes/_defaults.toml:4:1: image.x: unknown key
    "]],
    );
    let report = report(place.path());
    assert_eq!((report.good.len(), report.problems.len()), (0, 2));
    fs::remove_file(place.path().join("_defaults.toml")).unwrap();
    symlink("nowhere", place.path().join("_defaults.toml")).unwrap();
    check(
        place.path(),
        &expect![[r"
            a: bad
              nodes/_defaults.toml: not there: a link to nothing, or removed while the directory was read
            nodes/_defaults.toml: not there: a link to nothing, or removed while the directory was read
        "]],
    );
}

/// Invariant (spec): A scan is of one directory, and a file is gone when two readings missed it.
///
/// Swaps a link all the time, as git-sync does now and then.
#[test]
fn a_snapshot_is_of_one_directory_though_it_is_swapped_meanwhile() {
    let place = place(&[]);
    let path = |name: &str| place.path().join(name);
    for edition in ["one", "two"] {
        fs::create_dir(path(edition)).unwrap();
        for number in 0..50 {
            let spec = format!("redeploy = {edition:?}\n{}", spec(number));
            fs::write(path(edition).join(format!("n{number}.toml")), spec).unwrap();
        }
    }
    symlink("one", path("current")).unwrap();
    let stop = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            for edition in ["two", "one"].into_iter().cycle() {
                symlink(edition, path("new")).unwrap();
                fs::rename(path("new"), path("current")).unwrap();
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let editions = || {
            let snapshot = read_dir(&path("current"), "nodes", None).unwrap();
            let specs = snapshot.nodes.into_values().map(Result::unwrap);
            specs.map(|spec| spec.redeploy.clone()).collect::<BTreeSet<_>>()
        };
        let seen: Vec<_> = (0..20).map(|_| editions()).collect();
        stop.store(true, Ordering::Relaxed);
        seen
    });
    assert!(seen.iter().all(|editions| editions.len() == 1), "{seen:?}");
}

#[test]
fn one_file_is_read_with_the_defaults_beside_it() {
    let place = place(&[("a.toml", &spec(1)), ("_defaults.toml", "[retry]\nattempts = 7\n")]);
    let spec = read_file(&place.path().join("a.toml"), None).unwrap();
    assert_eq!((spec.name.as_str(), spec.retry.attempts), ("a", 7));
    let error = read_file(&place.path().join("b.toml"), None).unwrap_err();
    assert_eq!(error[0].message, "no such file");
}

#[test]
fn the_examples_are_good() {
    let nodes = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nodes"));
    let report = report(nodes);
    assert_eq!(report.problems, [].into());
    let names: Vec<&str> = report.good.iter().map(NodeName::as_str).collect();
    assert_eq!(names, ["edge-01", "edge-02", "edge-03", "edge-07"]);
}

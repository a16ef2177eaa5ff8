//! The systemd unit, judged by systemd.

use std::process::Command;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/hostler.service");

fn systemd_analyze(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(arguments).arg(UNIT).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn the_unit_exposes_little() {
    let (good, said) =
        systemd_analyze(&["security", "--offline=true", "--threshold=20", "--no-pager"]);
    assert!(good, "{said}");
}

#[test]
fn the_unit_has_no_fault_but_that_hostler_is_not_installed_here() {
    let (_, said) = systemd_analyze(&["verify", "--man=no"]);
    let missing = "Command /usr/bin/hostler is not executable";
    let faults: Vec<&str> = said.lines().filter(|line| !line.contains(missing)).collect();
    assert!(faults.is_empty(), "{said}");
}

/// Invariant (code): The documents' commands install hostler, and its unit installs machines across
/// restarts.
///
/// Settings after which systemd's filter answers ENOSYS to `openat2`, by which images and boot
/// files are opened.
#[test]
fn the_unit_sets_nothing_that_takes_openat2_away() {
    let unit = std::fs::read_to_string(UNIT).unwrap();
    let set = unit.lines().find(|line| line.trim_start().starts_with("RestrictSUIDSGID="));
    assert_eq!(set, None);
}

//! Entries of a spec directory that are no specs.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, symlink},
    },
    process::Command,
};

use hostler::model::status::Phase;

use super::{NO_RESCAN, is_effective, observed, shell};
use crate::agent::site::{Agent, Site};

/// Starts the agent as a user who may not read every file: root without capabilities.
fn start_without_powers(site: &Site) -> Agent {
    let run = site.hostler(&["run"]);
    let mut command = Command::new("setpriv");
    command
        .arg("--bounding-set=-dac_override,-dac_read_search")
        .arg("--inh-caps=-dac_override,-dac_read_search")
        .arg(run.get_program())
        .args(run.get_args());
    site.start_as(&mut command)
}

#[test]
fn hostile_entries_are_told_and_keep_nobody_waiting() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let path = |name: &str| site.path("nodes").join(name);
    let good = observed(1, "good").to_toml();
    shell(
        &site,
        "cd nodes; mkfifo pipe.toml; mkdir dir.toml; ln -s loop.toml loop.toml; ln -s / root.toml",
    );
    symlink("/dev/zero", path("device.toml")).unwrap();
    symlink("nowhere", path("dangling.toml")).unwrap();
    fs::write(path("secret.toml"), &good).unwrap();
    fs::set_permissions(path("secret.toml"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::write(path("huge.toml"), format!("{good}{}", "# filler\n".repeat(600_000))).unwrap();
    fs::write(path("zeros.toml"), [good.as_bytes(), &[0; 100]].concat()).unwrap();
    fs::write(path("latin.toml"), [good.as_bytes(), b"# K\xf6ln"].concat()).unwrap();
    fs::write(path("deep.toml"), format!("x = {}", "[".repeat(100_000))).unwrap();
    fs::write(site.path("nodes").join(OsStr::from_bytes(b"K\xf6ln.toml")), &good).unwrap();
    fs::write(path("for\nged.toml"), &good).unwrap();
    fs::write(path("UPPER.toml"), &good).unwrap();
    fs::write(path(&format!("{}.toml", "n".repeat(64))), &good).unwrap();
    fs::write(path("..toml"), &good).unwrap();
    fs::write(path("good.toml"), &good).unwrap();

    let _agent = start_without_powers(&site);
    is_effective(&site, "good", &observed(1, "good"));
    for (node, problem) in [
        ("pipe", "not a regular file"),
        ("dir", "not a regular file"),
        ("root", "not a regular file"),
        ("device", "not a regular file"),
        ("loop", "Too many levels of symbolic links"),
        ("dangling", "a link to nothing"),
        ("secret", "Permission denied"),
        ("huge", "at most 262144 are read"),
        ("zeros", "zeros.toml:8:1:"),
        ("latin", "latin.toml:8:4: not UTF-8"),
        ("deep", "deep.toml:1:"),
    ] {
        let status = site.until_phase(node, Phase::Invalid);
        assert!(!status.spec_valid && status.message.contains(problem), "{}", status.message);
        assert!(status.message.len() < 1000, "{}", status.message);
    }
    // Entries without a node have no status file: the log names them, each in one line.
    let log = site.log();
    for named in ["K\u{fffd}ln.toml", r"for\nged.toml", "UPPER.toml", &"n".repeat(64)] {
        assert!(
            log.lines().any(|line| line.contains("WARN") && line.contains(named)),
            "{named}:\n{log}"
        );
    }
    // The other specs work, and a repaired one is a normal node.
    site.write("good", &observed(1, "better"));
    is_effective(&site, "good", &observed(1, "better"));
    fs::remove_file(path("pipe.toml")).unwrap();
    site.write("pipe", &observed(2, ""));
    is_effective(&site, "pipe", &observed(2, ""));
    fs::set_permissions(path("secret.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path("secret.toml"), observed(3, "told").to_toml()).unwrap();
    is_effective(&site, "secret", &observed(3, "told"));
}

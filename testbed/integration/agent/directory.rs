//! The spec directory under editors, git, git-sync, Ansible, and accidents.
//!
//! Most nodes here are unmanaged and have no BMC, so that a test costs little more than its files.

mod ansible;
mod claims;
mod crowd;
mod edits;
mod git;
mod git_sync;
mod hostile;
mod lost;
mod mounts;

use std::{collections::BTreeSet, fs, process::Command};

use hostler::{
    model::{ids::Digest, status::Status},
    spec_dir::{self, Defaults},
};

use super::site::{Site, Spec};

/// Longer than any test, so that every detected change was reported by inotify.
const NO_RESCAN: &str = "rescan = \"1h\"\n";

/// Makes a spec of an unmanaged node. The label is in the digest, so that the status shows the
/// effective edition.
fn observed(number: u16, label: &str) -> Spec {
    let [high, low] = number.to_be_bytes();
    let checksum = format!("\"sha256:{}\"", "a".repeat(64));
    Spec::new([
        ("state", "\"unmanaged\"".to_owned()),
        ("redeploy", format!("{label:?}")),
        ("boot.mac", format!("\"52:54:01:00:{high:02x}:{low:02x}\"")),
        ("bmc.address", format!("\"127.1.{high}.{low}\"")),
        ("bmc.password_file", "\"nobody.bmc\"".to_owned()),
        ("image.source", "\"disk.raw\"".to_owned()),
        ("image.checksum", checksum),
    ])
}

/// Waits until this edition is the node's effective spec.
fn is_effective(site: &Site, node: &str, spec: &Spec) -> Status {
    is_effective_with(site, node, &spec.to_toml(), &Defaults::default())
}

fn is_effective_with(site: &Site, node: &str, toml: &str, defaults: &Defaults) -> Status {
    let wanted = digest(node, toml, defaults);
    site.until(node, "effective", |status| {
        status.spec_valid && status.spec_digest.as_ref() == Some(&wanted)
    })
}

fn digest(node: &str, toml: &str, defaults: &Defaults) -> Digest {
    let no_file = |path: &str| Err(path.to_owned());
    spec_dir::parse(&format!("{node}.toml"), toml.as_bytes(), defaults, &no_file).unwrap().digest()
}

/// Waits until the node's message says why nothing starts.
fn held(site: &Site, node: &str, why: &str) -> Status {
    site.until(node, "held", |status| {
        status.message.contains("holding still") && status.message.contains(why)
    })
}

/// Configures a separate directory of status files.
fn status_elsewhere(site: &Site) -> String {
    format!("status_dir = \"{}\"\n", site.path("status").display())
}

/// The nodes that have a status file.
fn reported(site: &Site) -> BTreeSet<String> {
    ["nodes", "status"]
        .iter()
        .filter_map(|dir| fs::read_dir(site.path(dir)).ok())
        .flatten()
        .filter_map(|entry| {
            Some(entry.unwrap().file_name().to_str()?.strip_suffix(".status.toml")?.to_owned())
        })
        // The agent's own mark.
        .filter(|name| !name.starts_with('_'))
        .collect()
}

/// Waits until the node is removed, on disk too.
fn forgotten(site: &Site, node: &str) {
    site.await_that("forgotten", || site.status(node).is_none() && site.record(node).is_empty());
}

/// Runs a shell script in the site's directory.
fn shell(site: &Site, script: &str) {
    let output =
        Command::new("sh").args(["-euc", script]).current_dir(site.path("")).output().unwrap();
    assert!(output.status.success(), "{script}:\n{}", String::from_utf8_lossy(&output.stderr));
}

//! Far more specs than a site has.

use std::{
    fs,
    os::unix::fs::symlink,
    process::Command,
    time::{Duration, Instant},
};

use super::{NO_RESCAN, is_effective, observed, reported, shell, status_elsewhere};
use crate::agent::site::Site;

const CROWD: u16 = 2000;
/// Longest wait of a caller, on a machine that runs many tests at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

/// Writes specs of many unmanaged nodes into a separate directory.
fn gather(site: &Site, label: &str) {
    fs::create_dir(site.path("crowd")).unwrap();
    for number in 0..CROWD {
        let spec = observed(number, label).to_toml();
        fs::write(site.path(&format!("crowd/n{number}.toml")), spec).unwrap();
    }
}

/// The duration of a callback that only the driver can refuse.
fn call(site: &Site) -> Duration {
    let begun = Instant::now();
    let answer = Command::new("curl")
        .args(["--silent", "--insecure", "--max-time", "30", "--noproxy", "*"])
        .args(["--header", &format!("Authorization: Bearer {}", "5a".repeat(32))])
        .args(["--output", "/dev/null", "--write-out", "%{http_code}"])
        .arg(format!("https://{}/v1/nodes/n7/vendor_passthru/deploy_state", site.callback))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "404", "{}", site.log());
    begun.elapsed()
}

/// Invariant (fair): A crowd of specs keeps no caller waiting.
#[test]
#[expect(clippy::print_stdout, reason = "a measurement for people")]
fn two_thousand_specs_at_once_keep_no_caller_waiting() {
    let site = Site::new();
    site.configure(&(status_elsewhere(&site) + NO_RESCAN));
    // The agent polls the power of each; no BMC answers.
    fs::write(site.path("secrets/nobody.bmc"), "x").unwrap();
    gather(&site, "");
    let _agent = site.start();
    site.await_that("running", || site.log().contains("running"));
    shell(&site, "rmdir nodes; mv crowd nodes");
    site.await_that("begun", || !reported(&site).is_empty());
    let slowest = (0..15).map(|_| call(&site)).max().unwrap();
    println!("the slowest callback took {slowest:?}");
    assert!(slowest < ANSWER_LIMIT, "{slowest:?}");
}

#[test]
#[expect(clippy::print_stdout, reason = "a measurement for people")]
fn two_thousand_specs_that_come_and_change_at_once_are_all_in_force() {
    let site = Site::new();
    // In memory, because a disk would limit so many writes.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    for part in ["state", "status"] {
        fs::remove_dir(site.path(part)).unwrap_or_default();
        fs::create_dir(memory.path().join(part)).unwrap();
        symlink(memory.path().join(part), site.path(part)).unwrap();
    }
    site.configure(&(status_elsewhere(&site) + NO_RESCAN));
    let _agent = site.start();
    site.await_that("running", || site.log().contains("running"));
    for (label, come) in
        [("one", "rmdir nodes; mv crowd nodes"), ("two", "cp crowd/* nodes; rm -r crowd")]
    {
        gather(&site, label);
        let began = Instant::now();
        shell(&site, come);
        for number in 0..CROWD {
            is_effective(&site, &format!("n{number}"), &observed(number, label));
        }
        println!("{CROWD} specs effective after {:?}", began.elapsed());
    }
}

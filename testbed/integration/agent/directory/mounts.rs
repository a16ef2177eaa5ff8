//! Spec directories that are mounts, read-only or mounted later. Each agent has its own mount
//! namespace.

use std::{fs, process::Command};

use super::{NO_RESCAN, held, is_effective, observed, shell, status_elsewhere};
use crate::agent::site::{Agent, Site};

/// Starts the agent with the mounts of this script in the site's directory.
fn start_with_mounts(site: &Site, script: &str) -> Agent {
    let run = site.hostler(&["run"]);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--", "sh", "-euc", &format!("{script}; exec \"$@\""), "sh"])
        .arg(run.get_program())
        .args(run.get_args())
        .current_dir(site.path(""));
    site.start_as(&mut command)
}

const READ_ONLY: &str = "mount --bind nodes nodes; mount -o remount,bind,ro nodes";

#[test]
fn a_read_only_directory_is_as_good_as_any_if_status_files_go_elsewhere() {
    let site = Site::new();
    // The status directory may be missing.
    fs::remove_dir(site.path("status")).unwrap();
    site.configure(&(status_elsewhere(&site) + NO_RESCAN));
    let _agent = start_with_mounts(&site, READ_ONLY);
    for edition in ["one", "two"] {
        site.write("a", &observed(1, edition));
        is_effective(&site, "a", &observed(1, edition));
    }
    fs::remove_file(site.path("nodes/a.toml")).unwrap();
    held(&site, "a", "empty");
    assert!(site.path("status/a.status.toml").exists());
    assert!(!site.log().contains("ERROR"), "{}", site.log());
}

#[test]
fn a_read_only_directory_without_a_place_for_status_files_is_told_once_with_the_way_out() {
    let site = Site::new();
    site.configure("rescan = \"1s\"\n");
    let agent = start_with_mounts(&site, READ_ONLY);
    site.write("a", &observed(1, "one"));
    let errors = || site.log().lines().filter(|line| line.contains("ERROR")).count();
    site.await_that("told", || errors() > 0);
    let log = site.log();
    assert!(log.contains("specs.status_dir") && log.contains("Read-only file system"), "{log}");
    // The agent continues: it reads specs, and keeps its record.
    site.write("a", &observed(1, "two"));
    site.await_that("effective", || site.record("a").contains("\"two\""));
    let (status, _) = agent.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(errors() <= 10, "{}", site.log());
}

#[test]
fn a_file_system_mounted_over_the_directory_is_noticed_by_the_rescan() {
    let site = Site::new();
    site.configure(&(status_elsewhere(&site) + "rescan = \"1s\"\n"));
    let agent = start_with_mounts(&site, "true");
    site.write("a", &observed(1, "below"));
    is_effective(&site, "a", &observed(1, "below"));
    fs::create_dir(site.path("mounted")).unwrap();
    let enter = |command: &str| {
        shell(&site, &format!("nsenter --target {} --mount --wd=\"$PWD\" {command}", agent.id()));
    };
    enter("mount --bind mounted nodes");
    held(&site, "a", "empty");
    fs::write(site.path("mounted/a.toml"), observed(1, "above").to_toml()).unwrap();
    is_effective(&site, "a", &observed(1, "above"));
    enter("umount nodes");
    is_effective(&site, "a", &observed(1, "below"));
}

//! The spec directory as a git working copy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use hostler::model::status::Phase;

use super::{NO_RESCAN, forgotten, is_effective, observed};
use crate::agent::{
    NODE,
    machine::Machine,
    site::{Site, Spec},
};

/// A git repository with its files.
pub(super) struct Repository(PathBuf);

impl Repository {
    /// Makes an empty repository on branch `main`.
    pub(super) fn init(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let repository = Self(path);
        repository.git("init --quiet --initial-branch=main");
        repository
    }

    pub(super) fn clone_of(origin: &Self, path: PathBuf) -> Self {
        origin.git(&format!("clone --quiet . {}", path.display()));
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn write_spec(&self, node: &str, spec: &Spec) {
        self.write(&format!("{node}.toml"), &spec.to_toml());
    }

    /// Commits all files; returns the commit.
    pub(super) fn commit(&self) -> String {
        self.git("add --all");
        self.git("commit --quiet --allow-empty --message=change");
        self.git("rev-parse HEAD")
    }

    pub(super) fn git(&self, arguments: &str) -> String {
        let (success, output) = self.try_git(arguments);
        assert!(success, "git {arguments}: {output}");
        output
    }

    /// Runs git; returns whether it succeeded, and its output.
    pub(super) fn try_git(&self, arguments: &str) -> (bool, String) {
        let output = Command::new("git")
            .args(["-c", "user.name=x", "-c", "user.email=x@example.com"])
            .args(arguments.split(' '))
            .current_dir(&self.0)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap().trim().to_owned())
    }
}

#[test]
fn a_pull_in_place_changes_adds_and_removes_nodes() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let origin = Repository::init(site.path("origin"));
    origin.write(".gitignore", "*.status.toml*\n");
    origin.write_spec("a", &observed(1, "one"));
    origin.write_spec("b", &observed(2, "one"));
    origin.commit();
    let clone = Repository::clone_of(&origin, site.path("nodes"));
    let _agent = site.start();
    is_effective(&site, "a", &observed(1, "one"));
    is_effective(&site, "b", &observed(2, "one"));

    origin.write_spec("a", &observed(1, "two"));
    origin.write_spec("c", &observed(3, "two"));
    fs::remove_file(origin.path().join("b.toml")).unwrap();
    origin.commit();
    clone.git("pull --quiet --ff-only");
    is_effective(&site, "a", &observed(1, "two"));
    is_effective(&site, "c", &observed(3, "two"));
    forgotten(&site, "b");
    assert_eq!(clone.git("status --porcelain"), "");
}

#[test]
fn another_branch_is_another_set_of_nodes() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let repository = Repository::init(site.path("nodes"));
    repository.write(".gitignore", "*.status.toml*\n");
    repository.write_spec("both", &observed(1, "main"));
    repository.write_spec("main-only", &observed(2, "main"));
    repository.commit();
    repository.git("checkout --quiet -b trial");
    repository.write_spec("both", &observed(1, "trial"));
    fs::remove_file(repository.path().join("main-only.toml")).unwrap();
    repository.write_spec("trial-only", &observed(3, "trial"));
    repository.commit();

    let _agent = site.start();
    is_effective(&site, "trial-only", &observed(3, "trial"));
    for (branch, other) in [("main", "trial"), ("trial", "main"), ("main", "trial")] {
        repository.git(&format!("checkout --quiet {branch}"));
        is_effective(&site, "both", &observed(1, branch));
        let number = if branch == "main" { 2 } else { 3 };
        is_effective(&site, &format!("{branch}-only"), &observed(number, branch));
        forgotten(&site, &format!("{other}-only"));
    }
}

/// Invariant (spec): Half a file or a merge conflict is no consent, and a flip to nothing holds
/// everything.
#[test]
fn a_merge_conflict_consents_to_nothing_until_it_is_resolved() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let spec = |redeploy| machine.spec(&site).with("redeploy", redeploy);
    let repository = Repository::init(site.path("nodes"));
    repository.write(".gitignore", "*.status.toml*\n");
    repository.write_spec(NODE, &spec("once"));
    repository.write_spec("z", &observed(1, "before"));
    repository.commit();
    repository.git("checkout --quiet -b theirs");
    repository.write_spec(NODE, &spec("theirs"));
    repository.write_spec("z", &observed(1, "after"));
    repository.commit();
    repository.git("checkout --quiet main");
    repository.write_spec(NODE, &spec("ours"));
    repository.commit();

    let _agent = site.start();
    let before = site.until_phase(NODE, Phase::Held);
    let (merged, said) = repository.try_git("merge theirs");
    assert!(!merged && said.contains("CONFLICT"), "{said}");
    // A spec without a conflict is effective.
    is_effective(&site, "z", &observed(1, "after"));
    let status = site.until(NODE, "in conflict", |status| !status.spec_valid);
    let text = fs::read_to_string(repository.path().join("edge-07.toml")).unwrap();
    let line = 1 + text.lines().position(|line| line.starts_with("<<<<<<<")).unwrap();
    let place = format!("nodes/edge-07.toml:{line}:1: git conflict marker");
    assert!(status.message.contains(&place), "{}", status.message);
    assert_eq!((status.phase, status.spec_digest), (Phase::Held, before.spec_digest));
    assert!(machine.story().is_empty());

    repository.git("checkout --quiet --theirs edge-07.toml");
    site.await_that("consented", || machine.story().first().is_some_and(|first| first == "off"));
}

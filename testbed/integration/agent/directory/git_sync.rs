//! git-sync: one checkout for each revision, and a link that it swaps.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use super::{
    NO_RESCAN, forgotten, git::Repository, held, is_effective, observed, status_elsewhere,
};
use crate::agent::{
    DEPLOYED, NODE, ends_deployed,
    machine::Machine,
    site::{Site, Spec},
};

/// git-sync's files: the repository, `.worktrees/<revision>`, and `current`, a relative link to one
/// of them.
struct GitSync {
    origin: Repository,
    mirror: Repository,
    at: Option<String>,
}

impl GitSync {
    /// Makes a repository whose specs are in the folder `site`, still empty.
    fn new(site: &Site) -> Self {
        let origin = Repository::init(site.path("origin"));
        origin.commit();
        let mirror = Repository::clone_of(&origin, site.path("sync"));
        Self { origin, mirror, at: None }
    }

    fn write_spec(&self, node: &str, spec: &Spec) {
        self.origin.write(&format!("site/{node}.toml"), &spec.to_toml());
    }

    /// Checks the origin out, swaps the link, and removes the previous checkout.
    fn sync(&mut self) {
        let revision = self.origin.commit();
        self.mirror.git("fetch --quiet origin main");
        let tree = format!(".worktrees/{revision}");
        self.mirror.git(&format!("worktree add --quiet --force --detach {tree} {revision}"));
        self.link(&tree);
        if let Some(old) = self.at.replace(revision) {
            fs::remove_dir_all(self.root().join(".worktrees").join(old)).unwrap();
            self.mirror.git("worktree prune");
        }
    }

    fn link(&self, target: &str) {
        let new = self.root().join("tmp-link");
        symlink(target, &new).unwrap();
        fs::rename(new, self.root().join("current")).unwrap();
    }

    fn root(&self) -> PathBuf {
        self.mirror.path().to_owned()
    }
}

/// Configures the agent to read the link's target.
fn configure(site: &Site) {
    site.configure(&(status_elsewhere(site) + NO_RESCAN));
    let config = site.path("hostler.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(config, text.replacen("/nodes\"", "/sync/current/site\"", 1)).unwrap();
}

#[test]
fn every_flip_of_git_sync_is_followed() {
    let site = Site::new();
    configure(&site);
    let mut git_sync = GitSync::new(&site);
    // The agent may start before the first sync.
    let _agent = site.start();
    for edition in ["one", "two", "three", "four"] {
        git_sync.write_spec("a", &observed(1, edition));
        git_sync.write_spec(edition, &observed(2, edition));
        git_sync.sync();
        is_effective(&site, "a", &observed(1, edition));
        is_effective(&site, edition, &observed(2, edition));
        fs::remove_file(site.path(&format!("origin/site/{edition}.toml"))).unwrap();
    }
    git_sync.sync();
    for edition in ["one", "two", "three", "four"] {
        forgotten(&site, edition);
    }
    assert!(!site.log().contains("ERROR"), "{}", site.log());
}

/// Invariant (spec): Half a file or a merge conflict is no consent, and a flip to nothing holds
/// everything.
#[test]
fn a_flip_to_nothing_holds_everything_and_the_flip_back_goes_on() {
    let site = Site::new();
    configure(&site);
    let mut git_sync = GitSync::new(&site);
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    git_sync.write_spec(NODE, &machine.spec(&site));
    git_sync.write_spec("a", &observed(1, "before"));
    git_sync.sync();
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    let record = site.record_but_netboots(NODE);
    let good = format!(".worktrees/{}", git_sync.at.clone().unwrap());

    fs::create_dir_all(git_sync.root().join(".worktrees/empty/site")).unwrap();
    fs::create_dir_all(git_sync.root().join(".worktrees/other")).unwrap();
    for (target, why) in [
        (".worktrees/empty", "empty"),
        (".worktrees/other", "no such directory"),
        (".worktrees/gone", "no such directory"),
        ("current", "symbolic links"),
    ] {
        git_sync.link(target);
        for node in [NODE, "a"] {
            held(&site, node, why);
        }
    }
    // Consent during the outage is not lost.
    git_sync.write_spec("a", &observed(1, "after"));
    git_sync.link(&good);
    is_effective(&site, "a", &observed(1, "before"));
    git_sync.sync();
    is_effective(&site, "a", &observed(1, "after"));
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
    assert_eq!(site.record_but_netboots(NODE), record);
}

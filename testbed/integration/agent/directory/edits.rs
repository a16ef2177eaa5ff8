//! Edits of spec files by editors, in one write or in parts.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::symlink,
};

use hostler::{model::status::Phase, spec_dir::Defaults};

use super::{NO_RESCAN, digest, forgotten, is_effective, is_effective_with, observed, reported};
use crate::agent::{
    NODE,
    machine::Machine,
    site::{Site, answer, hostler},
};

/// Invariant (spec): An edit behind a link is seen at once, and its neighbours wake nobody.
#[test]
fn every_way_of_saving_a_file_is_noticed_and_no_litter_of_an_editor_is_a_spec() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let _agent = site.start();
    let path = |name: &str| site.path("nodes").join(name);
    let other = observed(2, "litter").to_toml();
    for litter in [".y.toml.swp", "y.toml~", "4913", "#y.toml#", "y.toml.bak", ".y.toml.123"] {
        fs::write(path(litter), &other).unwrap();
    }
    // Emacs locks a file with a dangling link.
    symlink("somebody@host.1:2", path(".#x.toml")).unwrap();

    let edition = |label: &str| observed(1, label);
    site.write("x", &edition("renamed"));
    is_effective(&site, "x", &edition("renamed"));
    fs::write(path("x.toml"), edition("in place").to_toml()).unwrap();
    is_effective(&site, "x", &edition("in place"));
    super::shell(&site, "sed -i 's/in place/by sed/' nodes/x.toml");
    is_effective(&site, "x", &edition("by sed"));
    // Vim first tests whether it can make files, then renames the old file to the backup and writes
    // a new one.
    fs::write(path("4913"), "").unwrap();
    fs::remove_file(path("4913")).unwrap();
    fs::rename(path("x.toml"), path("x.toml~")).unwrap();
    fs::write(path("x.toml"), edition("by vim").to_toml()).unwrap();
    fs::remove_file(path("x.toml~")).unwrap();
    is_effective(&site, "x", &edition("by vim"));
    // A file that is moved into the directory, as `mv` and `git checkout` do.
    fs::write(site.path("elsewhere"), edition("moved in").to_toml()).unwrap();
    fs::rename(site.path("elsewhere"), path("x.toml")).unwrap();
    is_effective(&site, "x", &edition("moved in"));
    // A link to another file.
    fs::write(site.path("linked"), edition("linked").to_toml()).unwrap();
    fs::remove_file(path("x.toml")).unwrap();
    symlink(site.path("linked"), path("x.toml")).unwrap();
    is_effective(&site, "x", &edition("linked"));
    // An edit of the link's target.
    fs::write(site.path("linked"), edition("behind the link").to_toml()).unwrap();
    is_effective(&site, "x", &edition("behind the link"));

    assert_eq!(reported(&site), ["x".to_owned()].into());
    assert!(!site.log().contains("WARN in the spec directory"), "{}", site.log());
}

/// Invariant (spec): A file that only looks like a spec is reported, by its name alone, and once.
#[test]
fn files_that_look_like_specs_and_are_not_read_are_named_by_check_and_status_and_once_in_the_log() {
    let site = Site::new();
    site.configure("rescan = \"1s\"\n");
    site.write("x", &observed(1, ""));
    let path = |name: &str| site.path("nodes").join(name);
    fs::create_dir(path("rack-a")).unwrap();
    let names = [
        "edge-02.TOML",
        "edge-03.toml.txt",
        "rack-a/edge-04.toml",
        "Edge-05.toml",
        "_default.toml",
    ];
    for name in names {
        fs::write(path(name), observed(2, "").to_toml()).unwrap();
    }
    let reports = [
        "edge-02.TOML: not read: the name of a spec ends in .toml",
        "edge-03.toml.txt: not read: the name of a spec ends in .toml",
        "rack-a: 1 file in it is not read (edge-04.toml): specs lie in",
        "Edge-05.toml: ",
        "_default.toml: ",
    ];
    let _agent = site.start();
    is_effective(&site, "x", &observed(1, ""));
    let (_, said, _) = answer(hostler(&["check", "--format", "short"]).arg(path("")));
    let (code, shown, _) = answer(&mut site.hostler(&["status"]));
    assert_eq!(code, 0, "{shown}");
    for words in reports {
        assert!(said.contains(words), "{words}: {said}");
        assert!(shown.contains(words), "{words}: {shown}");
        site.await_that(words, || site.log().contains(words));
    }
    assert!(said.contains("did you mean _defaults.toml?"), "{said}");
    assert!(said.ends_with(": 1 good, 2 problems\n"), "{said}");
    // A rescan does not report them again.
    site.write("y", &observed(3, ""));
    is_effective(&site, "y", &observed(3, ""));
    let lines = |words: &str| site.log().lines().filter(|line| line.contains(words)).count();
    assert_eq!(reports.map(lines), [1; 5], "{}", site.log());
    // One file alone can be checked too.
    assert_eq!(answer(hostler(&["check"]).arg(path("x.toml"))).0, 0);
    assert_eq!(answer(hostler(&["check"]).arg(path("Edge-05.toml"))).0, 1);
}

/// Invariant (spec): An attached file is watched like its spec, and the agent's own files wake
/// nobody.
#[test]
fn an_attached_file_that_comes_changes_or_goes_is_noticed() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let _agent = site.start();
    site.write("x", &observed(1, "").with("config_drive.user_data_file", "cloud-init/edge.yaml"));
    let missing = "`cloud-init/edge.yaml` is not there";
    site.until("x", "invalid", |status| status.message.contains(missing));
    let file = site.path("nodes/cloud-init/edge.yaml");
    fs::create_dir(file.parent().unwrap()).unwrap();
    let mut digests = BTreeSet::new();
    for hostname in ["one", "two", "three"] {
        fs::write(&file, format!("#cloud-config\nhostname: {hostname}\n")).unwrap();
        let status = site.until("x", hostname, |status| {
            status.spec_valid && !digests.contains(&status.spec_digest)
        });
        digests.insert(status.spec_digest);
    }
    fs::remove_file(&file).unwrap();
    site.until("x", "invalid", |status| status.message.contains(missing));
}

/// Invariant (spec): Half a file or a merge conflict is no consent, and a flip to nothing holds
/// everything.
#[test]
fn a_half_written_spec_consents_to_nothing_until_it_is_whole() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let new = Machine::new(&site, "edge-08");
    let _agent = site.start();
    let spec = machine.spec(&site);
    site.write(NODE, &spec);
    site.write("z", &observed(1, "before"));
    let before = site.until_phase(NODE, Phase::Held);

    // The consent is in the first half; the second half follows late.
    let consent = spec.with("redeploy", "now").to_toml();
    let torn = consent.find("retry.backoff").unwrap() + 6;
    let mut file = File::create(site.path("nodes/edge-07.toml")).unwrap();
    file.write_all(&consent.as_bytes()[..torn]).unwrap();
    let fresh = new.spec(&site).to_toml();
    let mut fresh_file = File::create(site.path("nodes/edge-08.toml")).unwrap();
    fresh_file.write_all(&fresh.as_bytes()[..fresh.len() / 2]).unwrap();
    let status = site.until(NODE, "torn", |status| !status.spec_valid);
    assert_eq!((status.phase, status.spec_digest), (Phase::Held, before.spec_digest));
    let line = consent[..torn].lines().count();
    assert!(status.message.contains(&format!("edge-07.toml:{line}:")), "{}", status.message);
    assert!(status.message.contains("last good spec stays effective"), "{}", status.message);
    site.until_phase("edge-08", Phase::Invalid);
    // A later scan has no effect.
    site.write("z", &observed(1, "after"));
    is_effective(&site, "z", &observed(1, "after"));
    assert!(machine.story().is_empty());
    assert_eq!(new.bmc.sessions(), 0);

    file.write_all(&consent.as_bytes()[torn..]).unwrap();
    fresh_file.write_all(&fresh.as_bytes()[fresh.len() / 2..]).unwrap();
    site.await_that("consented", || machine.story().first().is_some_and(|first| first == "off"));
    new.boot(&site, 1);
}

#[test]
fn a_change_of_defaults_reaches_every_node_and_broken_defaults_none() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let whole = observed(1, "own").to_toml();
    let part = observed(2, "").to_toml();
    let part: String = part
        .lines()
        .filter(|line| !line.starts_with("image") && !line.starts_with("redeploy"))
        .flat_map(|line| [line, "\n"])
        .collect();
    fs::write(site.path("nodes/whole.toml"), &whole).unwrap();
    fs::write(site.path("nodes/part.toml"), &part).unwrap();
    let _agent = site.start();
    let defaults = |serial: &str| {
        format!(
            "redeploy = \"default\"\nroot_device.serial = {serial:?}\n\
             [image]\nsource = \"i\"\nchecksum = \"sha256:{}\"\n",
            "b".repeat(64)
        )
    };
    let put = |text: &str| fs::write(site.path("nodes/_defaults.toml"), text).unwrap();
    let both_in_force = |text: &str| {
        let defaults = Defaults::new(Some(("_defaults.toml", text.as_bytes())), None);
        is_effective_with(&site, "whole", &whole, &defaults);
        is_effective_with(&site, "part", &part, &defaults);
    };
    is_effective_with(&site, "whole", &whole, &Defaults::default());
    let status = site.until_phase("part", Phase::Invalid);
    assert!(status.message.contains("image.source: missing"), "{}", status.message);

    put(&defaults("one"));
    both_in_force(&defaults("one"));
    put(&defaults("two"));
    both_in_force(&defaults("two"));

    put(&defaults("three").replace("[image]", "[image"));
    for (node, toml) in [("whole", &whole), ("part", &part)] {
        let good = defaults("two");
        let good = Defaults::new(Some(("_defaults.toml", good.as_bytes())), None);
        let status = site.until(node, "invalid", |status| !status.spec_valid);
        assert_eq!(status.spec_digest, Some(digest(node, toml, &good)));
        assert!(status.message.contains("nodes/_defaults.toml:3:"), "{}", status.message);
        assert_eq!(status.phase, Phase::Unmanaged);
    }
    put(&defaults("four"));
    both_in_force(&defaults("four"));

    fs::remove_file(site.path("nodes/_defaults.toml")).unwrap();
    is_effective_with(&site, "whole", &whole, &Defaults::default());
    let status = site.until("part", "incomplete", |status| !status.spec_valid);
    assert!(status.message.contains("last good spec stays effective"), "{}", status.message);
    fs::remove_file(site.path("nodes/part.toml")).unwrap();
    forgotten(&site, "part");
}

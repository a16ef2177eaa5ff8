//! Directories and events that are lost and come back.

use std::fs;

use hostler::model::status::Phase;

use super::{NO_RESCAN, held, is_effective, observed, shell, status_elsewhere};
use crate::agent::{NODE, machine::Machine, site::Site};

#[test]
fn a_directory_that_goes_away_is_missed_at_once_and_found_when_it_returns() {
    let site = Site::new();
    site.configure(&(status_elsewhere(&site) + NO_RESCAN));
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    site.write("a", &observed(1, "0"));
    is_effective(&site, "a", &observed(1, "0"));
    site.until_phase(NODE, Phase::Held);

    for (round, (away, back)) in [
        ("mv nodes away", "mv away nodes"),
        ("cp -r nodes copy; rm -rf nodes", "mkdir nodes; sleep 0.5; cp copy/* nodes"),
        ("mv nodes away; ln -s nowhere nodes", "mv away nowhere"),
        ("mv nowhere away; rm nodes; touch nodes", "rm nodes; mv away nodes"),
    ]
    .into_iter()
    .enumerate()
    {
        shell(&site, away);
        for node in [NODE, "a"] {
            held(&site, node, "");
        }
        shell(&site, back);
        site.until(NODE, "let go", |status| !status.message.contains("holding still"));
        let edition = observed(1, &format!("{}", round + 1));
        site.write("a", &edition);
        is_effective(&site, "a", &edition);
    }
    assert!(machine.story().is_empty());
    site.until_phase(NODE, Phase::Held);
}

#[test]
fn status_files_come_back_with_the_directory() {
    let site = Site::new();
    site.configure("rescan = \"1s\"\n");
    let _agent = site.start();
    site.write("a", &observed(1, "before"));
    is_effective(&site, "a", &observed(1, "before"));
    // Like a fresh clone, the directory has only files in git.
    shell(&site, "mkdir new; cp nodes/a.toml new; rm -rf nodes; mv new nodes");
    is_effective(&site, "a", &observed(1, "before"));
    shell(&site, "cp -r nodes copy; rm -rf nodes");
    site.await_that("missed", || site.log().contains("no node starts anything"));
    shell(&site, "rm copy/*.status.toml; mv copy nodes");
    is_effective(&site, "a", &observed(1, "before"));
}

#[test]
fn after_a_flood_of_lost_events_the_last_state_counts() {
    let site = Site::new();
    site.configure(&(status_elsewhere(&site) + NO_RESCAN));
    let agent = site.start();
    site.write("a", &observed(1, "before"));
    is_effective(&site, "a", &observed(1, "before"));

    let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let signal = |name: &str| shell(&site, &format!("kill -{name} {}", agent.id()));
    signal("STOP");
    // Each of these writes is a separate event, because no two neighbours are alike.
    for number in 0..=most {
        let [here, there] = [number % 2, (number + 1) % 2].map(|which| format!("nodes/.{which}"));
        if number == 0 {
            fs::write(site.path(&here), "").unwrap();
        }
        fs::rename(site.path(&here), site.path(&there)).unwrap();
    }
    // The queue is full, so that no event reports this.
    shell(&site, "mv nodes old; mkdir nodes");
    site.write("a", &observed(1, "after"));
    site.write("b", &observed(2, "after"));
    signal("CONT");
    is_effective(&site, "a", &observed(1, "after"));
    is_effective(&site, "b", &observed(2, "after"));
    // The new directory is watched.
    site.write("a", &observed(1, "later"));
    is_effective(&site, "a", &observed(1, "later"));
}

#[test]
fn a_replacement_that_inotify_cannot_see_is_noticed_by_the_rescan() {
    let site = Site::new();
    site.configure(&(status_elsewhere(&site) + "rescan = \"1s\"\n"));
    let config = fs::read_to_string(site.path("hostler.toml")).unwrap();
    fs::write(site.path("hostler.toml"), config.replacen("/nodes\"", "/up/there/nodes\"", 1))
        .unwrap();
    shell(&site, "mkdir -p up/there; mv nodes up/there; ln -s up/there/nodes nodes");
    let _agent = site.start();
    site.write("a", &observed(1, "before"));
    is_effective(&site, "a", &observed(1, "before"));
    shell(&site, "mv up down; mkdir -p up/there/nodes");
    held(&site, "a", "empty");
    site.write("a", &observed(1, "after"));
    is_effective(&site, "a", &observed(1, "after"));
}

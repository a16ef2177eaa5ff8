//! Tests of takeovers and of new state directories beside status files: such an agent knows that
//! its knowledge is incomplete.

use super::*;

/// Checks that no machine was touched, that nodes with an installation in their status file are
/// deployed, and that the others are held.
fn assert_held(agent: &Agent, held: &[&str]) {
    assert_eq!(agent.touched, BTreeSet::new(), "{}", agent.losses);
    for node in held {
        assert_eq!(agent.held_for(node), Some(Hold::RecordLost), "{node}: {}", agent.losses);
    }
}

/// The files of an agent with another state directory, without one status file.
fn site_of_another() -> Site {
    let site = Site::new();
    fs::remove_file(site.dir.path().join("nodes/a.status.toml")).unwrap();
    site
}

/// Invariant (agents): After a takeover only what a status file names is installed.
#[test]
fn after_a_takeover_every_node_is_held_of_which_no_status_file_says_what_is_installed() {
    let site = site_of_another();
    for overtaken in [true, false] {
        // The second time, only the agent's own files tell.
        let mut agent = Agent::start_after(site.dir.path(), overtaken);
        assert!(!agent.effects.store.another_agent().has_acted());
        assert!(agent.losses.contains("a spec names for the first time"), "{}", agent.losses);
        assert_eq!(agent.losses.contains("an agent with another state directory"), overtaken);
        assert!(!agent.losses.contains("is missing"), "{}", agent.losses);
        agent.scan(&site.specs);
        assert_held(&agent, &["a", "c", "new"]);
        agent.stop();
        assert!(site.dir.path().join("state/overtaken/a.json").exists());
    }
}

/// Invariant (agents): After a takeover only what a status file names is installed.
#[test]
fn an_operators_word_about_machines_to_come_ends_no_doubt_about_those_that_were_there() {
    // Under its own name and under another one.
    for node in ["a", "z"] {
        let site = site_of_another();
        let mut agent = Agent::start_after(site.dir.path(), true);
        assert_eq!(agent.executor.approve_new_machines(&mut agent.effects), Ok(true));
        agent.scan(&site.specs[1..3]);
        let back = NodeSpec { name: name(node), ..site.specs[0].clone() };
        agent.scan(&[site.specs[1].clone(), site.specs[2].clone(), back]);
        assert_held(&agent, &[node, "c"]);
    }
}

/// Invariant (agents): After a takeover only what a status file names is installed.
#[test]
fn a_takeover_that_was_killed_before_anything_was_written_is_one_at_the_next_start_too() {
    let site = site_of_another();
    let store = Store::open(site.dir.path().join("state")).unwrap();
    let another = store.another_agent();
    another.note().unwrap();
    // Killed after the records were put aside and before anything was written.
    store.set_records_aside().unwrap();
    drop(store);
    let mut agent = Agent::start_after(site.dir.path(), another.has_acted());
    agent.scan(&site.specs);
    assert_held(&agent, &["a", "c", "new"]);
}

/// Invariant (agents): After a takeover only what a status file names is installed.
#[test]
fn a_new_state_directory_that_finds_status_files_takes_no_machine_for_one_never_seen() {
    for overtaken in [false, true] {
        let site = site_of_another();
        fs::remove_dir_all(site.dir.path().join("state")).unwrap();
        for start in 0..2 {
            let mut agent = Agent::start_after(site.dir.path(), overtaken && start == 0);
            let reported =
                agent.losses.contains("the state directory is new, and status files are");
            assert_eq!(reported, start == 0, "{}", agent.losses);
            agent.scan(&site.specs);
            // `f` has the machine of `e`, whose spec is gone.
            assert_held(&agent, &["a", "c", "f", "new"]);
            agent.stop();
        }
    }
}

#[test]
fn a_spec_that_names_another_machine_than_its_status_file_is_held_when_the_state_is_lost() {
    let mut site = Site::new();
    fs::remove_dir_all(site.dir.path().join("state")).unwrap();
    site.specs[0] = spec("a", 77);
    let mut agent = Agent::start(site.dir.path());
    agent.scan(&site.specs);
    assert_held(&agent, &["a"]);
}

/// Invariant (state): Doubt outlives the state directory, whatever its node's phase.
#[test]
fn that_nobody_knows_what_is_installed_stands_in_the_status_file_in_every_phase() {
    type Edit = fn(&mut NodeSpec);
    let edits: [(Phase, Edit); 3] = [
        (Phase::Paused, |spec| spec.paused = true),
        (Phase::Unmanaged, |spec| spec.goal = Goal::Unmanaged),
        (Phase::Available, |spec| spec.goal = Goal::Available),
    ];
    for (phase, edit) in edits {
        for overtaken in [false, true] {
            let site = Site::new();
            let mut edited = site.specs.clone();
            edit(&mut edited[2]);
            let mut agent = Agent::start(site.dir.path());
            agent.scan(&edited);
            let status = agent.executor.fleet().node(&name("c")).unwrap().status(now());
            assert_eq!(status.phase, phase);
            agent.stop();
            if !overtaken {
                fs::remove_dir_all(site.dir.path().join("state")).unwrap();
            }
            let mut agent = Agent::start_after(site.dir.path(), overtaken);
            let says = "record c is lost, and its status file says that nobody knows";
            assert!(agent.losses.contains(says), "{}", agent.losses);
            // The reason is not that every new machine is held.
            assert_eq!(agent.executor.approve_new_machines(&mut agent.effects), Ok(true));
            agent.scan(&edited);
            agent.scan(&site.specs);
            assert_held(&agent, &["c"]);
        }
    }
}

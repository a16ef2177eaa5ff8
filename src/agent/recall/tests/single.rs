//! Tests of rare kinds of damage to single files: an unreadable status file beside a lost state
//! directory, a restored old copy, a record that contradicts itself.

use super::*;

/// Damages the text of a status file.
type Spoil = fn(&Path, String);

#[test]
fn a_status_file_that_cannot_be_read_holds_its_node_when_the_state_is_lost() {
    let spoils: [Spoil; 6] = [
        |path, text| fs::write(path, text.replace("attempt = 0", "attempt = O")).unwrap(),
        |path, text| fs::write(path, text.replace("version = 2", "version = 3")).unwrap(),
        |path, text| fs::write(path, text.replace("[installed]", "[inspalled]")).unwrap(),
        |path, _| fs::write(path, "").unwrap(),
        |path, _| fs::write(path, [0xff; 80]).unwrap(),
        |path, _| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
    ];
    for (n, spoil) in spoils.into_iter().enumerate() {
        for alone in [false, true] {
            let site = Site::new();
            fs::remove_dir_all(site.dir.path().join("state")).unwrap();
            let path = site.dir.path().join("nodes/a.status.toml");
            let text = fs::read_to_string(&path).unwrap();
            if alone {
                fs::remove_dir_all(path.parent().unwrap()).unwrap();
                fs::create_dir(path.parent().unwrap()).unwrap();
                fs::write(&path, &text).unwrap();
            }
            spoil(&path, text);
            let mut agent = Agent::start(site.dir.path());
            assert!(agent.losses.contains("a.status.toml"), "{n}: {}", agent.losses);
            agent.scan(&site.specs[..1]);
            assert_eq!(agent.held_for("a"), Some(Hold::RecordLost), "{n}");
            assert!(agent.touched.is_empty(), "{n}");
        }
    }
}

/// A record that is gone, and one that is damaged.
#[test]
fn only_a_node_that_is_held_for_its_lost_record_is_called_held() {
    for damaged in [false, true] {
        for status_file_is_there in [true, false] {
            let site = Site::new();
            let record = site.dir.path().join("state/a.json");
            if damaged {
                fs::write(&record, "{").unwrap();
            } else {
                fs::remove_file(&record).unwrap();
            }
            if !status_file_is_there {
                fs::remove_file(site.dir.path().join("nodes/a.status.toml")).unwrap();
            }
            let mut agent = Agent::start(site.dir.path());
            let loss = agent.losses.lines().find(|line| line.contains("a.json")).unwrap();
            assert_eq!(loss.contains("is held until somebody"), !status_file_is_there, "{loss}");
            assert_eq!(loss.contains("is still known"), status_file_is_there, "{loss}");
            agent.scan(&site.specs);
            let held = (!status_file_is_there).then_some(Hold::RecordLost);
            assert_eq!(agent.held_for("a"), held, "{damaged}");
            assert!(!agent.touched.contains("a"));
        }
    }
}

#[test]
fn a_hold_for_a_lost_record_outlives_the_loss_of_the_state() {
    let site = Site::new();
    fs::remove_dir_all(site.dir.path().join("state")).unwrap();
    let mut agent = Agent::start(site.dir.path());
    assert!(agent.losses.contains("record c is lost"), "{}", agent.losses);
    agent.scan(&site.specs);
    assert_eq!(agent.held_for("c"), Some(Hold::RecordLost));
    assert!(!agent.touched.contains("c"));
}

#[test]
fn an_old_copy_of_the_state_does_not_know_better_than_a_later_status_file() {
    for installed_then in [false, true] {
        let site = Site::new();
        let mut old = deployed(&site.specs[0]);
        let before = now().checked_sub(SignedDuration::from_hours(1)).unwrap();
        (old.since, old.history[0].at) = (before, before);
        match &mut old.installed {
            // Under another `redeploy`, which would look like consent to WIPE.
            Some(installed) if installed_then => {
                (installed.at, installed.redeploy) = (before, Some("zeroth".into()));
            }
            _ => {
                old = Record { installed: None, phase: Phase::Pending, ..old };
                old.history.clear();
            }
        }
        let store = Store::open(site.dir.path().join("state")).unwrap();
        store.save(&name("a"), &old).unwrap();
        drop(store);
        let mut agent = Agent::start(site.dir.path());
        assert!(
            agent.losses.contains("record a is older than its status file"),
            "{}",
            agent.losses
        );
        agent.scan(&site.specs);
        assert!(!agent.touched.contains("a"));
        let status = agent.executor.fleet().node(&name("a")).unwrap().status(now());
        assert_eq!((status.phase, status.installed.unwrap().at), (Phase::Deployed, now()));
        assert!(site.dir.path().join("state/a.json.bad-1").exists());
    }
}

#[test]
fn a_record_that_says_deployed_and_nothing_installed_is_a_lost_one() {
    let site = Site::new();
    let store = Store::open(site.dir.path().join("state")).unwrap();
    let record = Record { installed: None, ..deployed(&site.specs[0]) };
    store.save(&name("a"), &record).unwrap();
    drop(store);
    fs::remove_file(site.dir.path().join("nodes/a.status.toml")).unwrap();
    let mut agent = Agent::start(site.dir.path());
    assert!(agent.losses.contains("record a says"), "{}", agent.losses);
    agent.scan(&site.specs);
    assert_eq!(agent.held_for("a"), Some(Hold::RecordLost));
}

#[test]
fn a_state_directory_that_is_new_is_not_one_that_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mut agent = Agent::start(dir.path());
        assert_eq!(agent.losses, "");
        agent.scan(&[spec("new", 1)]);
        assert!(agent.touched.contains("new"));
        fs::remove_file(dir.path().join("state/new.json")).unwrap();
        fs::remove_dir_all(dir.path().join("state")).unwrap();
    }
    // From the first start on, the file exists, and its loss is noticed.
    Agent::start(dir.path()).stop();
    fs::remove_file(dir.path().join("state/_site.json")).unwrap();
    let mut agent = Agent::start(dir.path());
    assert!(agent.losses.contains("_site.json is missing"), "{}", agent.losses);
    agent.scan(&[spec("new", 1)]);
    assert_eq!(agent.held_for("new"), Some(Hold::RecordLost));
}

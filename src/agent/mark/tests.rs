//! Tests of several agents, each with its own thread, that mark one directory.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::watch::{Wake, Watcher};

const QUICK: MarkTimings = MarkTimings {
    heartbeat: Duration::from_millis(50),
    poll: Duration::from_millis(10),
    patience: Duration::from_millis(100),
};

fn beside_specs(dir: &Path) -> MarkPlace<'_> {
    MarkPlace { dir, is_made: false }
}

fn start(dir: &TempDir, state_id: &str) -> Standing {
    start_in(dir.path(), dir, state_id)
}

/// Starts the mark of an agent, whose state directory lies beside the status directory.
fn start_in(statuses: &Path, dir: &TempDir, state_id: &str) -> Standing {
    let place = beside_specs(statuses);
    Standing::start(QUICK, place, state_id, false, note(dir, state_id)).unwrap()
}

fn note(dir: &TempDir, state_id: &str) -> AnotherAgent {
    Store::open(dir.path().join(format!("state-{state_id}"))).unwrap().another_agent()
}

fn mark_in(dir: &TempDir) -> AgentMark {
    MarkFile::in_dir(dir.path()).read().unwrap().unwrap()
}

fn path(dir: &TempDir) -> PathBuf {
    MarkFile::in_dir(dir.path()).path().to_owned()
}

/// Waits until the agent acts, and returns whether another one acted before.
async fn acts(standing: &Standing) -> bool {
    let mut now = standing.now.clone();
    let now = now.wait_for(|now| matches!(now, Now::Acting { .. })).await.unwrap();
    matches!(*now, Now::Acting { after_another: true, .. })
}

async fn stands_by(standing: &Standing) -> String {
    let mut now = standing.now.clone();
    let now = now.wait_for(|now| matches!(now, Now::StandingBy(_))).await.unwrap();
    let Now::StandingBy(who) = &*now else { unreachable!() };
    who.clone()
}

/// Waits for so many polls of the mark.
async fn polls(standing: &Standing, polls: usize) {
    let mut now = standing.now.clone();
    now.mark_unchanged();
    for _ in 0..polls {
        now.changed().await.unwrap();
    }
}

/// Waits for at least so many heartbeats.
async fn heartbeats(standing: &Standing, count: usize) {
    // Each poll takes its interval at least.
    polls(standing, count * 5 + 1).await;
}

#[tokio::test]
async fn the_second_agent_stands_by_until_the_first_has_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(&dir, "one");
    assert!(!acts(&first).await);
    let second = start(&dir, "two");
    let who = stands_by(&second).await;
    assert!(who.contains(&format!("process {} on host", std::process::id())), "{who}");
    heartbeats(&first, 5).await;
    assert_eq!(mark_in(&dir).state_id, "one");
    assert!(matches!(*second.now.borrow(), Now::StandingBy(_)));
    assert!(!second.ours().load(Ordering::SeqCst));

    let ours = first.ours();
    first.stop().await;
    assert!(!ours.load(Ordering::SeqCst));
    assert!(acts(&second).await, "it does not know that another one acted before");
    second.stop().await;
    let mark = mark_in(&dir);
    assert_eq!(mark.state_id, "two");
    assert_eq!(mark.dead_since(mark.heartbeat), mark.stopped);
}

#[tokio::test]
async fn an_agent_that_was_stopped_begins_again_at_once_and_trusts_its_records() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let standing = start(&dir, "one");
        assert!(!acts(&standing).await);
        standing.stop().await;
    }
}

#[tokio::test]
async fn a_heartbeat_has_nobody_read_the_specs_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = dir.path().join("nodes");
    fs::create_dir(&nodes).unwrap();
    let standing = start_in(&nodes, &dir, "one");
    acts(&standing).await;
    let (hour, debounce) = (Duration::from_secs(3600), Duration::from_millis(10));
    let (_watcher, mut wakes) = Watcher::start(nodes.clone(), hour, debounce).unwrap();
    assert_eq!(wakes.recv().await, Some(Wake::Start));
    heartbeats(&standing, 3).await;
    assert!(wakes.try_recv().is_err(), "woken by the agent's own mark");
    fs::write(nodes.join("a.toml"), "").unwrap();
    assert_eq!(wakes.recv().await, Some(Wake::Change));
}

#[tokio::test]
async fn a_heartbeat_changes_the_mark_and_the_next_look_restores_it_whatever_took_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let standing = start(&dir, "one");
    acts(&standing).await;
    let first = mark_in(&dir);
    heartbeats(&standing, 3).await;
    let later = mark_in(&dir);
    assert!(later.heartbeat > first.heartbeat);
    assert_eq!(AgentMark { heartbeat: first.heartbeat, ..later }, first);
    let spoils: [fn(&Path); 5] = [
        |_| {},
        |path| fs::write(path, "half").unwrap(),
        |path| symlink("nowhere", path).unwrap(),
        |path| symlink(path, path).unwrap(),
        |path| fs::create_dir_all(path.join("x")).unwrap(),
    ];
    for spoil in spoils {
        fs::remove_file(path(&dir)).unwrap();
        spoil(&path(&dir));
        polls(&standing, 3).await;
        assert_eq!(mark_in(&dir).run_id, first.run_id);
        standing.confirmed().await;
    }
}

/// Invariant (agents): A missing or damaged mark releases nobody, and makes nobody a stranger to
/// itself.
#[tokio::test]
async fn a_mark_that_was_damaged_while_nobody_ran_is_no_other_agents() {
    let spoils: [fn(&Path, Vec<u8>); 5] = [
        |path, _| fs::write(path, "").unwrap(),
        |path, mut bytes| {
            let at = bytes.windows(8).position(|key| key == b"state_id").unwrap() + 12;
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
        },
        |path, _| {
            fs::remove_file(path).unwrap();
            symlink("nowhere", path).unwrap();
        },
        |path, _| {
            fs::remove_file(path).unwrap();
            symlink(path, path).unwrap();
        },
        |path, _| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
    ];
    let dir = tempfile::tempdir().unwrap();
    for spoil in spoils {
        let standing = start(&dir, "one");
        assert!(!acts(&standing).await);
        standing.stop().await;
        spoil(&path(&dir), fs::read(path(&dir)).unwrap());
        let standing = start(&dir, "one");
        assert!(!acts(&standing).await, "a damaged mark was taken for another agent's");
        assert_eq!(mark_in(&dir).state_id, "one");
        standing.stop().await;
    }
    assert!(!note(&dir, "one").has_acted());
}

/// Invariant (agents): After a takeover only what a status file names is installed.
#[tokio::test]
async fn that_another_agent_acts_is_on_disk_before_this_one_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(&dir, "one");
    acts(&first).await;
    let second = start(&dir, "two");
    stands_by(&second).await;
    assert!(note(&dir, "two").has_acted());
    assert!(!note(&dir, "one").has_acted());
    second.stop().await;
    first.stop().await;
    // Without the heartbeat, the other agent's mark stays.
    let other = mark_in(&dir);
    let nowhere = AnotherAgent::in_dir(&dir.path().join("missing"));
    let third = Standing::start(QUICK, beside_specs(dir.path()), "three", false, nowhere).unwrap();
    assert!(stands_by(&third).await.contains("cannot be written"));
    assert_eq!(mark_in(&dir), other);
}

/// An agent that starts while the mark is missing still notices the agent that acts.
#[tokio::test]
async fn an_agent_that_begins_while_the_mark_is_missing_waits_until_it_is_there() {
    for nodes in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let first = start(&dir, "one");
        acts(&first).await;
        if nodes {
            fs::write(dir.path().join("a.status.toml"), "").unwrap();
            fs::remove_file(path(&dir)).unwrap();
        } else {
            fs::write(path(&dir), "").unwrap();
        }
        let second = start(&dir, "two");
        stands_by(&second).await;
        polls(&first, 3).await;
        assert!(matches!(*first.now.borrow(), Now::Acting { .. }));
        assert_eq!(mark_in(&dir).state_id, "one");
    }
}

#[tokio::test]
async fn an_agent_whose_mark_is_anothers_ends_and_writes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let standing = start(&dir, "one");
    acts(&standing).await;
    let other = identity::of_this_process("two", "r".to_owned(), 10, Timestamp::now());
    MarkFile::in_dir(dir.path()).replace(&other).unwrap();
    let who = standing.overtaken().await;
    assert!(who.contains("process"), "{who}");
    assert!(!standing.ours().load(Ordering::SeqCst));
    standing.stop().await;
    assert_eq!(mark_in(&dir), other);
}

#[tokio::test]
async fn a_mark_that_is_removed_again_and_again_releases_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(&dir, "one");
    acts(&first).await;
    let second = start(&dir, "two");
    stands_by(&second).await;
    for _ in 0..20 {
        fs::remove_file(path(&dir)).unwrap();
        polls(&first, 3).await;
        assert_eq!(mark_in(&dir).state_id, "one");
        assert!(matches!(*second.now.borrow(), Now::StandingBy(_)));
        assert!(matches!(*first.now.borrow(), Now::Acting { .. }));
    }
}

#[tokio::test]
async fn a_whole_mark_of_another_version_ends_the_agent_as_any_other_agents_does() {
    let dir = tempfile::tempdir().unwrap();
    let standing = start(&dir, "one");
    acts(&standing).await;
    let other = identity::of_this_process("two", "r".to_owned(), 10, Timestamp::now());
    let later = AgentMark { version: 2, ..other };
    MarkFile::in_dir(dir.path()).replace(&later).unwrap();
    assert!(standing.overtaken().await.contains("version 2"));
}

/// Invariant (spec): A status directory that is gone is made again; a spec directory never is.
#[tokio::test]
async fn a_directory_for_status_files_alone_is_made_again_with_the_mark() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("status");
    let place = MarkPlace { dir: &dir, is_made: true };
    let standing = Standing::start(QUICK, place, "one", false, note(&parent, "one")).unwrap();
    assert!(!acts(&standing).await);
    fs::remove_dir_all(&dir).unwrap();
    let file = MarkFile::in_dir(&dir);
    while file.read().unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    standing.stop().await;
}

#[tokio::test]
async fn where_no_mark_can_be_written_the_agent_runs_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let standing = start_in(&missing, &dir, "one");
    assert!(!acts(&standing).await);
    standing.confirmed().await;
    // The agent marks the directory once it exists.
    fs::create_dir(&missing).unwrap();
    heartbeats(&standing, 3).await;
    assert_eq!(MarkFile::in_dir(&missing).read().unwrap().unwrap().state_id, "one");
}

/// Invariant (agents): One of two agents over a status directory acts; the other touches nothing
/// and names it.
#[tokio::test(start_paused = true)]
async fn nothing_is_started_while_nobody_has_looked_at_the_mark_for_long() {
    let polled = Instant::now();
    let (tell, now) = watch::channel(Now::Acting { after_another: false, polled });
    let (stop, _stopped) = channel();
    let standing = Standing { now, ours: Arc::default(), stop };
    let confirmed = async || timeout(Duration::from_secs(1), standing.confirmed()).await.is_ok();
    assert!(confirmed().await);
    tokio::time::advance(LEASE).await;
    assert!(!confirmed().await);
    tell.send_replace(Now::Acting { after_another: false, polled: Instant::now() });
    assert!(confirmed().await);
    tell.send_replace(Now::Overtaken("another".to_owned()));
    assert!(!confirmed().await);
    drop(tell);
    assert!(!confirmed().await);
}

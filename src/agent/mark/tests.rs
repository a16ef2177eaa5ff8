//! Agents that mark one directory, each with its own thread.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::*;

const QUICK: Pace = Pace { beat: Duration::from_millis(50), standby: Duration::from_millis(10) };

fn beside_specs(dir: &Path) -> MarkPlace<'_> {
    MarkPlace { dir, is_made: false }
}

fn start(dir: &TempDir, state_id: &str) -> Standing {
    Standing::start(QUICK, beside_specs(dir.path()), state_id, false).unwrap()
}

fn mark_in(dir: &TempDir) -> AgentMark {
    MarkFile::in_dir(dir.path()).read().unwrap().unwrap()
}

fn path(dir: &TempDir) -> PathBuf {
    MarkFile::in_dir(dir.path()).path().to_owned()
}

/// Waits until it acts; whether another one acted before.
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

/// Waits for this many heartbeats.
async fn beats(standing: &Standing, beats: usize) {
    let mut now = standing.now.clone();
    now.mark_unchanged();
    for _ in 0..beats {
        now.changed().await.unwrap();
    }
}

#[tokio::test]
async fn the_second_agent_stands_by_until_the_first_has_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(&dir, "one");
    assert!(!acts(&first).await);
    let second = start(&dir, "two");
    let who = stands_by(&second).await;
    assert!(who.contains(&format!("process {} on host", std::process::id())), "{who}");
    beats(&first, 5).await;
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
async fn a_heartbeat_changes_the_mark_and_restores_it_when_it_was_removed_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let standing = start(&dir, "one");
    acts(&standing).await;
    let first = mark_in(&dir);
    beats(&standing, 3).await;
    let later = mark_in(&dir);
    assert!(later.heartbeat > first.heartbeat);
    assert_eq!(AgentMark { heartbeat: first.heartbeat, ..later }, first);
    fs::remove_file(path(&dir)).unwrap();
    beats(&standing, 3).await;
    assert_eq!(mark_in(&dir).run_id, first.run_id);
    fs::write(path(&dir), "half").unwrap();
    beats(&standing, 3).await;
    assert_eq!(mark_in(&dir).run_id, first.run_id);
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
async fn of_two_agents_the_one_whose_mark_was_removed_ends_before_the_other_acts() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(&dir, "one");
    acts(&first).await;
    let second = start(&dir, "two");
    stands_by(&second).await;
    // The first may be quicker to write it again.
    loop {
        fs::remove_file(path(&dir)).unwrap();
        let mut now = second.now.clone();
        if timeout(QUICK.beat, now.wait_for(|now| !matches!(now, Now::StandingBy(_)))).await.is_ok()
            || mark_in(&dir).state_id == "two"
        {
            break;
        }
    }
    tokio::select! {
        biased;
        _ = first.overtaken() => {}
        _ = acts(&second) => panic!("both act"),
    }
    assert!(acts(&second).await);
}

#[tokio::test]
async fn a_directory_for_status_files_alone_is_made_again_with_the_mark() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("status");
    let place = MarkPlace { dir: &dir, is_made: true };
    let standing = Standing::start(QUICK, place, "one", false).unwrap();
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
    let standing = Standing::start(QUICK, beside_specs(&missing), "one", false).unwrap();
    assert!(!acts(&standing).await);
    standing.confirmed().await;
    // And marks the directory once it is there.
    fs::create_dir(&missing).unwrap();
    beats(&standing, 3).await;
    assert_eq!(MarkFile::in_dir(&missing).read().unwrap().unwrap().state_id, "one");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_started_while_nobody_has_looked_at_the_mark_for_long() {
    let looked = Instant::now();
    let (tell, now) = watch::channel(Now::Acting { after_another: false, looked });
    let (stop, _stopped) = channel();
    let standing = Standing { now, ours: Arc::default(), stop };
    let confirmed = async || timeout(Duration::from_secs(1), standing.confirmed()).await.is_ok();
    assert!(confirmed().await);
    tokio::time::advance(LEASE).await;
    assert!(!confirmed().await);
    tell.send_replace(Now::Acting { after_another: false, looked: Instant::now() });
    assert!(confirmed().await);
    tell.send_replace(Now::Overtaken("another".to_owned()));
    assert!(!confirmed().await);
    drop(tell);
    assert!(!confirmed().await);
}

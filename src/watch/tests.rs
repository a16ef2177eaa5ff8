//! Tests with real directories, which change in every way that tools change them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::time::timeout;

use super::{targets::BENEATH_MAX, *};
use crate::atomic_file;

const QUICK: Duration = Duration::from_millis(40);
const NEVER: Duration = Duration::from_secs(3600);
/// Far more than a loaded machine needs; only a failing test takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

struct Watched {
    _guard: Watcher,
    wakes: mpsc::Receiver<Wake>,
}

impl Watched {
    /// Watches `dir` and takes the first wake.
    async fn new(dir: &Path) -> Self {
        let (guard, wakes) = Watcher::start(dir.to_owned(), NEVER, QUICK).unwrap();
        let mut watched = Self { _guard: guard, wakes };
        assert_eq!(watched.next().await, Some(Wake::Start));
        watched
    }

    async fn next(&mut self) -> Option<Wake> {
        timeout(PATIENCE, self.wakes.recv()).await.expect("no wake came")
    }

    /// Takes wakes until `path` has this content, and then the late ones.
    async fn until_seen(&mut self, path: &Path, content: &str) {
        loop {
            assert_eq!(self.next().await, Some(Wake::Change));
            if fs::read_to_string(path).is_ok_and(|found| found == content) {
                break;
            }
        }
        while timeout(5 * QUICK, self.wakes.recv()).await.is_ok() {}
    }

    async fn stays_quiet(&mut self) {
        let wake = timeout(8 * QUICK, self.wakes.recv()).await;
        assert!(wake.is_err(), "woken by {wake:?}");
    }
}

fn place() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn a_spec_written_renamed_edited_or_removed_wakes() {
    let place = place();
    let spec = place.path().join("a.toml");
    let mut watched = Watched::new(place.path()).await;
    fs::write(place.path().join(".a.toml.tmp"), "1").unwrap();
    fs::rename(place.path().join(".a.toml.tmp"), &spec).unwrap();
    watched.until_seen(&spec, "1").await;
    fs::write(&spec, "2").unwrap();
    watched.until_seen(&spec, "2").await;
    let elsewhere = tempfile::NamedTempFile::new_in(place.path().parent().unwrap()).unwrap();
    fs::write(&elsewhere, "3").unwrap();
    elsewhere.persist(&spec).unwrap();
    watched.until_seen(&spec, "3").await;
    fs::remove_file(&spec).unwrap();
    assert_eq!(watched.next().await, Some(Wake::Change));
}

/// Invariant (spec): An attached file is watched like its spec, and the agent's own files wake
/// nobody.
#[tokio::test]
async fn our_own_status_files_our_reading_and_what_is_hidden_do_not_wake() {
    let place = place();
    let path = |name: &str| place.path().join(name);
    fs::write(path("a.toml"), "1").unwrap();
    fs::create_dir_all(path("status")).unwrap();
    fs::create_dir_all(path(".git/refs")).unwrap();
    let mut watched = Watched::new(place.path()).await;
    // `specs.status_dir` may be another directory.
    for status in [
        "a.status.toml",
        "status/a.status.toml",
        "a.console.log",
        "status/a.console.log",
        "a.ramdisk.log",
        "status/a.ramdisk.log",
        // The mark's temporary file has a hidden name.
        "._agent.status.toml.1",
        "_agent.status.toml",
    ] {
        for round in ["1", "2"] {
            atomic_file::replace(&path(status), 0o644, round.as_bytes()).unwrap();
        }
        atomic_file::remove_if_there(&path(status)).unwrap();
    }
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 3);
    assert_eq!(fs::read_dir(path("status")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(path("a.toml")).unwrap(), "1");
    for hidden in [".a.toml.swp", ".#a.toml", "status/.x", ".git/index", ".git/refs/x"] {
        fs::write(path(hidden), "x").unwrap();
    }
    fs::create_dir(path(".git/objects")).unwrap();
    watched.stays_quiet().await;
    fs::write(path("a.toml"), "2").unwrap();
    watched.until_seen(&path("a.toml"), "2").await;
}

/// Invariant (spec): An edit behind a link is seen at once, and its neighbours wake nobody.
#[tokio::test]
async fn what_links_in_the_directory_lead_to_wakes_wherever_it_is() {
    let (place, elsewhere) = (place(), place());
    let spec = place.path().join("a.toml");
    let far = |name: &str| elsewhere.path().join(name);
    fs::create_dir_all(far("repo/site")).unwrap();
    fs::write(far("repo/site/a.toml"), "1").unwrap();
    // By another link, and by a link to a missing target.
    symlink("repo", far("current")).unwrap();
    symlink(far("current/site/a.toml"), &spec).unwrap();
    symlink(far("later/b.toml"), place.path().join("b.toml")).unwrap();
    let mut watched = Watched::new(place.path()).await;
    fs::write(far("repo/site/a.toml"), "2").unwrap();
    watched.until_seen(&spec, "2").await;
    atomic_file::replace(&far("repo/site/a.toml"), 0o644, b"3").unwrap();
    watched.until_seen(&spec, "3").await;
    // Other files beside the target wake nobody.
    fs::write(far("repo/site/other"), "x").unwrap();
    fs::write(far("repo/other"), "x").unwrap();
    watched.stays_quiet().await;
    fs::create_dir_all(far("next/site")).unwrap();
    fs::write(far("next/site/a.toml"), "4").unwrap();
    symlink("next", far("current.new")).unwrap();
    fs::rename(far("current.new"), far("current")).unwrap();
    watched.until_seen(&spec, "4").await;
    fs::write(far("next/site/a.toml"), "5").unwrap();
    watched.until_seen(&spec, "5").await;
    fs::create_dir(far("later")).unwrap();
    fs::write(far("later/b.toml"), "1").unwrap();
    watched.until_seen(&place.path().join("b.toml"), "1").await;
}

/// Invariant (spec): An attached file is watched like its spec, and the agent's own files wake
/// nobody.
#[tokio::test]
async fn what_specs_attach_wakes_wherever_it_lies_beneath_them() {
    let place = place();
    let path = |name: &str| place.path().join(name);
    fs::create_dir(path("cloud")).unwrap();
    let mut watched = Watched::new(place.path()).await;
    // The last of these directories are made with their files.
    for file in ["user-data", "cloud/edge.yaml", "new/edge.yaml", "cloud/a/b/edge.yaml"] {
        fs::create_dir_all(path(file).parent().unwrap()).unwrap();
        for content in ["1", "2"] {
            fs::write(path(file), content).unwrap();
            watched.until_seen(&path(file), content).await;
        }
        fs::write(path("next"), "3").unwrap();
        fs::rename(path("next"), path(file)).unwrap();
        watched.until_seen(&path(file), "3").await;
    }
    fs::remove_file(path("cloud/edge.yaml")).unwrap();
    assert_eq!(watched.next().await, Some(Wake::Change));
    for content in ["4", "5"] {
        fs::remove_dir_all(path("cloud")).unwrap();
        fs::create_dir(path("cloud")).unwrap();
        fs::write(path("cloud/edge.yaml"), content).unwrap();
        watched.until_seen(&path("cloud/edge.yaml"), content).await;
        fs::write(path("cloud/edge.yaml"), "later").unwrap();
        watched.until_seen(&path("cloud/edge.yaml"), "later").await;
    }
}

#[test]
fn nothing_hidden_or_linked_is_watched_and_not_more_than_there_may_be() {
    let place = place();
    let dir = |name: &str| place.path().join(name);
    for name in ["a/.git/refs", "..data/cloud", "a/b"] {
        fs::create_dir_all(dir(name)).unwrap();
    }
    symlink("/", dir("root")).unwrap();
    symlink("..", dir("a/up")).unwrap();
    let watched = |targets: &Targets| {
        let dirs = targets.directories().filter(|path| path.starts_with(place.path()));
        dirs.map(Path::to_owned).collect::<Vec<_>>()
    };
    let targets = Targets::resolve(place.path());
    assert_eq!(watched(&targets), [dir(""), dir("a"), dir("a/b")]);
    for n in 0..BENEATH_MAX {
        fs::create_dir(dir(&format!("a/b/{n}"))).unwrap();
    }
    let targets = Targets::resolve(place.path());
    assert_eq!(watched(&targets).len(), 1 + BENEATH_MAX);
    assert!(watched(&targets).contains(&dir("a/b")));
}

#[tokio::test]
async fn a_directory_that_is_not_there_yet_is_found_when_it_comes() {
    let place = place();
    let dir = place.path().join("x/nodes");
    let mut watched = Watched::new(&dir).await;
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("a.toml"), "1").unwrap();
    watched.until_seen(&dir.join("a.toml"), "1").await;
    fs::write(dir.join("a.toml"), "2").unwrap();
    watched.until_seen(&dir.join("a.toml"), "2").await;
}

#[tokio::test]
async fn a_directory_removed_and_made_again_is_watched_again() {
    let place = place();
    let dir = place.path().join("nodes");
    let spec = dir.join("a.toml");
    fs::create_dir(&dir).unwrap();
    let mut watched = Watched::new(&dir).await;
    for round in ["1", "2"] {
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(watched.next().await, Some(Wake::Change));
        fs::create_dir(&dir).unwrap();
        fs::write(&spec, round).unwrap();
        watched.until_seen(&spec, round).await;
        fs::write(&spec, "later").unwrap();
        watched.until_seen(&spec, "later").await;
    }
}

#[test]
fn a_directory_that_comes_while_the_watches_are_set_is_not_overlooked() {
    let place = place();
    let dir = place.path().join("nodes");
    let (mut watch, _wakes) = WatchThread::new(dir.clone(), Duration::from_secs(5), QUICK).unwrap();
    let missing = Targets::resolve(&dir);
    fs::create_dir(&dir).unwrap();
    watch.watch(missing).unwrap();
    assert_eq!(watch.wait(), Some(Wake::Change));
    assert!(watch.watch_anew());
    let (watched, _) = watch.watching.as_ref().unwrap();
    assert!(watched.directories().any(|watched| watched == dir));
}

/// On many file systems, the new directory even gets the old one's inode.
#[tokio::test]
async fn a_directory_replaced_before_anybody_looked_is_watched_again() {
    let place = place();
    let dir = place.path().join("nodes");
    let spec = dir.join("a.toml");
    fs::create_dir(&dir).unwrap();
    let mut watched = Watched::new(&dir).await;
    for round in ["1", "2", "3"] {
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(&spec, round).unwrap();
        watched.until_seen(&spec, round).await;
        fs::write(&spec, "later").unwrap();
        watched.until_seen(&spec, "later").await;
    }
}

/// No event reports this: the watched directories are the same, only elsewhere.
#[tokio::test]
async fn a_replacement_further_up_is_noticed_at_the_next_rescan() {
    let place = place();
    let (top, dir) = (place.path().join("top"), place.path().join("top/site/nodes"));
    fs::create_dir_all(&dir).unwrap();
    let (_guard, mut wakes) = Watcher::start(dir.clone(), 4 * QUICK, QUICK).unwrap();
    assert_eq!(timeout(PATIENCE, wakes.recv()).await, Ok(Some(Wake::Start)));
    fs::rename(&top, place.path().join("old")).unwrap();
    fs::create_dir_all(&dir).unwrap();
    let change = async {
        // The first wake after the replacement may have been sent before it; the third was not.
        for _ in 0..3 {
            wakes.recv().await.unwrap();
        }
        fs::write(dir.join("a.toml"), "1").unwrap();
        while wakes.recv().await.unwrap() != Wake::Change {}
    };
    timeout(PATIENCE, change).await.expect("the new directory is not watched");
}

#[tokio::test]
async fn a_directory_renamed_away_is_forgotten_and_its_successor_watched() {
    let place = place();
    let (dir, old) = (place.path().join("nodes"), place.path().join("old"));
    fs::create_dir(&dir).unwrap();
    let mut watched = Watched::new(&dir).await;
    fs::rename(&dir, &old).unwrap();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.toml"), "1").unwrap();
    watched.until_seen(&dir.join("a.toml"), "1").await;
    fs::write(old.join("a.toml"), "x").unwrap();
    watched.stays_quiet().await;
    fs::write(dir.join("a.toml"), "2").unwrap();
    watched.until_seen(&dir.join("a.toml"), "2").await;
}

/// Makes git-sync's layout: `current` is a link to one of several checkouts, with the specs in it.
async fn check_link_flip(below: &str) {
    let place = place();
    let root = place.path();
    for version in ["v1", "v2", "v3"] {
        fs::create_dir_all(root.join("trees").join(version).join(below)).unwrap();
        fs::write(root.join("trees").join(version).join(below).join("a.toml"), version).unwrap();
    }
    symlink("trees/v1", root.join("current")).unwrap();
    let dir = root.join("current").join(below);
    let mut watched = Watched::new(&dir).await;
    for version in ["v2", "v3"] {
        symlink(format!("trees/{version}"), root.join("new")).unwrap();
        fs::rename(root.join("new"), root.join("current")).unwrap();
        watched.until_seen(&dir.join("a.toml"), version).await;
        fs::write(dir.join("a.toml"), "edited").unwrap();
        watched.until_seen(&dir.join("a.toml"), "edited").await;
    }
    fs::write(root.join("trees/v1").join(below).join("a.toml"), "x").unwrap();
    watched.stays_quiet().await;
}

#[tokio::test]
async fn a_flipped_link_is_followed() {
    check_link_flip("").await;
}

#[tokio::test]
async fn a_flipped_link_further_up_is_followed() {
    check_link_flip("site/nodes").await;
}

#[tokio::test]
async fn a_kubernetes_volume_swap_wakes() {
    let place = place();
    let root = place.path();
    for version in ["..v1", "..v2"] {
        fs::create_dir(root.join(version)).unwrap();
        fs::write(root.join(version).join("a.toml"), version).unwrap();
    }
    symlink("..v1", root.join("..data")).unwrap();
    symlink("..data/a.toml", root.join("a.toml")).unwrap();
    let mut watched = Watched::new(root).await;
    symlink("..v2", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    watched.until_seen(&root.join("a.toml"), "..v2").await;
}

#[tokio::test]
async fn a_git_checkout_of_another_branch_wakes() {
    let place = place();
    let dir = place.path().join("repository/nodes");
    fs::create_dir_all(&dir).unwrap();
    let git = |arguments: &str| {
        let status = Command::new("git")
            .args(["-c", "user.name=x", "-c", "user.email=x@example.com", "-C"])
            .arg(&dir)
            .args(arguments.split(' '))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .status();
        assert!(status.unwrap().success(), "git {arguments}");
    };
    git("init -q -b one ..");
    fs::write(dir.join("a.toml"), "one").unwrap();
    git("add .");
    git("commit -q -m one");
    git("checkout -q -b two");
    fs::write(dir.join("a.toml"), "two").unwrap();
    git("commit -q -a -m two");
    // On this branch, the directory does not exist.
    git("checkout -q -b none");
    git("rm -q a.toml");
    fs::create_dir_all(&dir).unwrap();
    git("commit -q -m none");
    git("checkout -q two");
    let mut watched = Watched::new(&dir).await;
    git("checkout -q one");
    watched.until_seen(&dir.join("a.toml"), "one").await;
    git("checkout -q two");
    watched.until_seen(&dir.join("a.toml"), "two").await;
}

#[tokio::test]
async fn constant_noise_cannot_put_a_wake_off_for_long() {
    let place = place();
    let spec = place.path().join("a.toml");
    let stop = Arc::new(AtomicBool::new(false));
    let (watcher, mut wakes) =
        Watcher::start(place.path().to_owned(), NEVER, 10 * DELAY_MAX).unwrap();
    assert_eq!(timeout(PATIENCE, wakes.recv()).await, Ok(Some(Wake::Start)));
    let writer = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                fs::write(&spec, "x").unwrap();
                thread::yield_now();
            }
        }
    });
    let began = Instant::now();
    assert_eq!(timeout(PATIENCE, wakes.recv()).await, Ok(Some(Wake::Change)));
    assert!(began.elapsed() < 5 * DELAY_MAX);
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    drop(watcher);
}

#[tokio::test]
async fn many_changes_at_once_are_one_wake() {
    let place = place();
    let mut watched = Watched::new(place.path()).await;
    for number in 0..200 {
        fs::write(place.path().join(format!("n{number}.toml")), "x").unwrap();
    }
    let mut count = 0;
    while timeout(8 * QUICK, watched.wakes.recv()).await.is_ok() {
        count += 1;
    }
    assert!((1..=3).contains(&count), "{count} wakes");
}

#[tokio::test]
async fn a_rescan_comes_without_any_event_and_even_if_the_directory_is_missing() {
    let place = place();
    let dir = place.path().join("missing");
    let (_watcher, mut wakes) = Watcher::start(dir, Duration::from_millis(30), QUICK).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(timeout(PATIENCE, wakes.recv()).await.unwrap().unwrap());
    }
    assert_eq!(seen, [Wake::Start, Wake::Rescan, Wake::Rescan]);
}

#[tokio::test]
async fn a_change_wakes_when_it_has_gone_quiet() {
    let place = place();
    let debounce = DELAY_MAX / 2;
    let (_watcher, mut wakes) = Watcher::start(place.path().to_owned(), NEVER, debounce).unwrap();
    assert_eq!(timeout(PATIENCE, wakes.recv()).await, Ok(Some(Wake::Start)));
    let began = Instant::now();
    fs::write(place.path().join("a.toml"), "half").unwrap();
    assert_eq!(timeout(PATIENCE, wakes.recv()).await, Ok(Some(Wake::Change)));
    assert!(began.elapsed() >= debounce, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_rescan_does_not_look_into_the_middle_of_a_change() {
    let place = place();
    let (_watcher, mut wakes) =
        Watcher::start(place.path().to_owned(), DELAY_MAX / 4, 10 * DELAY_MAX).unwrap();
    assert_eq!(timeout(PATIENCE, wakes.recv()).await, Ok(Some(Wake::Start)));
    let began = Instant::now();
    fs::write(place.path().join("a.toml"), "half").unwrap();
    while timeout(PATIENCE, wakes.recv()).await != Ok(Some(Wake::Change)) {}
    assert!(began.elapsed() >= DELAY_MAX, "{:?}", began.elapsed());
}

#[tokio::test]
async fn dropping_the_watcher_ends_the_wakes() {
    let place = place();
    let (watcher, mut wakes) = Watcher::start(place.path().to_owned(), NEVER, QUICK).unwrap();
    drop(watcher);
    while timeout(PATIENCE, wakes.recv()).await.unwrap().is_some() {}
}

#[test]
fn a_ring_of_links_ends() {
    let place = place();
    symlink("b", place.path().join("a")).unwrap();
    symlink("a", place.path().join("b")).unwrap();
    let targets = Targets::resolve(&place.path().join("a/nodes"));
    assert_eq!(targets.directories().collect::<Vec<_>>(), [place.path()]);
}

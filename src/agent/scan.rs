//! Scans the spec directory at each wake of the watcher, one scan at a time, in a task of its own.
//!
//! Started by the agent. A missing file must never count as deleted after a single scan: `git`,
//! `rsync` and editors remove a file before they put its successor in place, a checkout may be
//! removed during a scan, and a rescan may come at any moment.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    task::{JoinError, spawn_blocking},
    time::sleep,
};
use tracing::{debug, warn};

use crate::{
    config::Config,
    lifecycle::Fleet,
    model::{problem::Problem, toml_reader::Document},
    spec_dir::{ReadError, Reader, Snapshot},
    watch::{DEBOUNCE, Wake},
};

use super::bmc_names::BmcNames;

/// Most scans in search of missing files. Two scans in a row without the same files suffice; more
/// are needed only while files come and go, such as a large directory that is copied into place
/// within about five seconds.
const READINGS_MAX: usize = 20;

/// Starts the task, which sends each scan's result to the driver, and ends with the watcher or the
/// driver.
pub(super) fn start(
    config: &Config,
    fleet: &Fleet,
    names: BmcNames,
    mut wakes: mpsc::Receiver<Wake>,
) -> mpsc::Receiver<Result<Snapshot, ReadError>> {
    let (found, scans) = mpsc::channel(1);
    let dir = config.specs.dir.clone();
    let defaults = config.defaults.clone();
    let reader = Arc::new(Mutex::new(Reader::with_specs(fleet.specs().cloned())));
    let mut known = fleet.names().into_iter().map(|name| format!("{name}.toml").into()).collect();
    tokio::spawn(async move {
        let mut reported: Vec<Problem> = Vec::new();
        while let Some(wake) = wakes.recv().await {
            debug!(?wake, at = %Timestamp::now(), "reading the spec directory");
            let read = || read(Arc::clone(&reader), dir.clone(), defaults.clone());
            let snapshot = settled(&mut known, read).await;
            if let Ok(snapshot) = &snapshot {
                let all = snapshot.problems.iter().chain(&snapshot.passed_over);
                tell(&all.cloned().collect::<Vec<_>>(), &mut reported);
                let good = snapshot.nodes.values().filter_map(|spec| spec.as_deref().ok());
                names.resolve(good).await;
            }
            if found.send(snapshot).await.is_err() {
                break;
            }
        }
    });
    scans
}

async fn read(
    reader: Arc<Mutex<Reader>>,
    dir: PathBuf,
    defaults: Option<Document>,
) -> Result<Snapshot, ReadError> {
    let path = dir.clone();
    let read = move || {
        // A panic in a scan leaves an empty reader.
        let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.read(&dir, &dir.to_string_lossy(), defaults.as_ref())
    };
    let panicked = |panic: JoinError| Err(ReadError::Io { path, source: panic.into() });
    spawn_blocking(read).await.unwrap_or_else(panicked)
}

/// Scans until no known file is missing, or the same files are missing twice in a row.
async fn settled<R>(
    known: &mut BTreeSet<OsString>,
    mut read: impl FnMut() -> R,
) -> Result<Snapshot, ReadError>
where
    R: Future<Output = Result<Snapshot, ReadError>>,
{
    let mut missed = BTreeSet::new();
    for _ in 0..READINGS_MAX {
        let snapshot = read().await?;
        let missing: BTreeSet<OsString> = known.difference(&snapshot.files).cloned().collect();
        if missing.is_empty() || missing == missed {
            // An empty directory stops all nodes, so that the files known before still count.
            if !snapshot.nodes.is_empty() {
                known.clone_from(&snapshot.files);
            }
            return Ok(snapshot);
        }
        missed = missing;
        sleep(DEBOUNCE).await;
    }
    read().await
}

/// Logs each problem that belongs to no node once, because no status file has it.
fn tell(problems: &[Problem], reported: &mut Vec<Problem>) {
    for problem in problems.iter().filter(|problem| !reported.contains(problem)) {
        warn!(%problem, "in the spec directory");
    }
    problems.clone_into(reported);
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, future::ready};

    use super::*;

    /// The result of scans that find these files, one after the other, and the files that stay
    /// known.
    async fn check(known: &str, readings: &[&str], reported: &str, stays: &str) {
        let files = |names: &str| names.split_whitespace().map(OsString::from).collect();
        let mut readings: VecDeque<&str> = readings.iter().copied().collect();
        let mut known: BTreeSet<OsString> = files(known);
        let snapshot = settled(&mut known, || {
            let found = files(readings.pop_front().unwrap());
            let names = found.iter().filter_map(|file: &OsString| file.to_str()?.parse().ok());
            let nodes = names.map(|name| (name, Err(Vec::new()))).collect();
            ready(Ok(Snapshot { files: found, nodes, ..Snapshot::default() }))
        });
        assert_eq!(snapshot.await.unwrap().files, files(reported));
        assert_eq!(known, files(stays));
        assert!(readings.is_empty(), "not looked for again");
    }

    /// Invariant (spec): A scan is of one directory, and a file is gone when two readings missed
    /// it.
    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_gone_for_a_moment_is_not_missed() {
        check("a b", &["a", "a b"], "a b", "a b").await;
        check("a b", &["", "b", "a b c"], "a b c", "a b c").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_stays_away_is_gone() {
        check("a b", &["a", "a"], "a", "a").await;
        check("a b", &["b c", "b d"], "b d", "b d").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_was_emptied_may_be_filled_again_file_by_file() {
        check("a b", &["", ""], "", "a b").await;
        check("a b c", &["a", "a b", "a b c"], "a b c", "a b c").await;
    }

    #[tokio::test(start_paused = true)]
    async fn new_files_are_told_at_once() {
        check("a", &["a b"], "a b", "a b").await;
        check("", &["a"], "a", "a").await;
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_come_and_go_for_ever_hold_nobody_up() {
        let readings: Vec<&str> = (0..=READINGS_MAX).map(|n| ["a", "b"][n % 2]).collect();
        check("a b", &readings, readings[READINGS_MAX], "a b").await;
    }
}

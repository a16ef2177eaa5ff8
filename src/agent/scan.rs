//! Reading the spec directory whenever the watcher says so, one reading at a time, off the driver's task.

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::{
    config::Config,
    model::problem::Problem,
    spec::{self, ReadError, Snapshot},
    watch::Wake,
};

/// Starts reading; each reading's result goes to the driver. It ends when the watcher or the driver does.
pub(super) fn start(
    config: &Config,
    mut wakes: mpsc::Receiver<Wake>,
) -> mpsc::Receiver<Result<Snapshot, ReadError>> {
    let (found, scans) = mpsc::channel(1);
    let dir = config.specs.dir.clone();
    let defaults = config.defaults.clone();
    tokio::spawn(async move {
        let mut told: Vec<Problem> = Vec::new();
        while let Some(wake) = wakes.recv().await {
            debug!(?wake, at = %Timestamp::now(), "reading the spec directory");
            let (dir, defaults) = (dir.clone(), defaults.clone());
            let read = tokio::task::spawn_blocking(move || {
                spec::read_dir(&dir, &dir.to_string_lossy(), defaults.as_ref())
            });
            let Ok(snapshot) = read.await else { continue };
            if let Ok(snapshot) = &snapshot {
                tell(&snapshot.problems, &mut told);
            }
            if found.send(snapshot).await.is_err() {
                break;
            }
        }
    });
    scans
}

/// Problems that belong to no node have no status file to stand in: they are logged, once.
fn tell(problems: &[Problem], told: &mut Vec<Problem>) {
    for problem in problems.iter().filter(|problem| !told.contains(problem)) {
        warn!(%problem, "in the spec directory");
    }
    problems.clone_into(told);
}

//! Wakes the agent when the spec directory may have changed.
//!
//! The agent reads the whole directory at every wake: an event says when to read, never what
//! happened. There is a wake at start; one after each burst of changes of specs or of the files
//! that specs attach; and one in every rescan period, because network file systems report no events
//! and a replaced directory may go unnoticed. This module must never block its caller, never fail
//! because the directory is missing, and never wake for the files that the agent itself writes
//! there: that would be an endless loop.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as signals,
    },
    thread,
    time::{Duration, Instant},
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tracing::warn;

use targets::{Matter, Targets};

mod targets;
#[cfg(test)]
mod tests;

/// The quiet time that ends a burst of changes: `git checkout` removes a file before it writes the
/// new one.
pub const DEBOUNCE: Duration = Duration::from_millis(250);
/// The longest burst: a directory that is never quiet delays a wake this long.
const DELAY_MAX: Duration = Duration::from_secs(1);
/// Bounds of the rescan period: shorter would spin, longer could overflow the clock.
const RESCAN_MIN: Duration = Duration::from_millis(10);
const RESCAN_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The reason for a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The start: nothing has been read yet.
    Start,
    /// A burst of changes has ended.
    Change,
    /// The rescan period is over.
    Rescan,
}

/// Watches until it or the receiver is dropped.
#[derive(Debug)]
pub struct Watcher {
    hints: Arc<Hints>,
}

/// State shared with the watching thread.
#[derive(Debug)]
struct Hints {
    /// A watched directory may have been replaced.
    stale: AtomicBool,
    stop: AtomicBool,
    /// Wakes the thread; holds at most one signal.
    signal: signals::SyncSender<()>,
}

impl Watcher {
    /// Watches `dir`, which need not exist, on a thread of its own. `debounce` is [`DEBOUNCE`],
    /// except in tests. At most one wake waits in the channel. Fails only if no thread can be
    /// started.
    pub fn start(
        dir: PathBuf,
        rescan: Duration,
        debounce: Duration,
    ) -> io::Result<(Self, mpsc::Receiver<Wake>)> {
        let (watch, receiver) = WatchThread::new(dir, rescan, debounce)?;
        let hints = Arc::clone(&watch.hints);
        thread::Builder::new().name("watch".to_owned()).spawn(move || watch.run())?;
        Ok((Self { hints }, receiver))
    }
}

/// Does not join the thread, which may hang in a dead network file system.
impl Drop for Watcher {
    fn drop(&mut self) {
        self.hints.stop.store(true, Ordering::Release);
        self.hints.signal();
    }
}

impl Hints {
    fn signal(&self) {
        // Full: a signal waits already. Disconnected: the thread has ended.
        self.signal.try_send(()).ok();
    }

    /// Runs on notify's thread. Irrelevant events end here, so that a noisy parent directory wakes
    /// nobody.
    fn event(&self, targets: &Targets, event: &notify::Result<notify::Event>) {
        let matter = match event {
            Err(_) => Matter::Directory,
            Ok(event) if event.need_rescan() => Matter::Directory,
            // The agent's own reading.
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => Matter::Nothing,
            Ok(event) => {
                event.paths.iter().map(|path| targets.matter(path)).max().unwrap_or(Matter::Nothing)
            }
        };
        if matter == Matter::Directory {
            self.stale.store(true, Ordering::Release);
        }
        if matter != Matter::Nothing {
            self.signal();
        }
    }
}

/// The state of the watching thread.
struct WatchThread {
    dir: PathBuf,
    rescan: Duration,
    debounce: Duration,
    hints: Arc<Hints>,
    signals: signals::Receiver<()>,
    wakes: mpsc::Sender<Wake>,
    watching: Option<(Arc<Targets>, RecommendedWatcher)>,
    failed: bool,
}

impl WatchThread {
    fn new(
        dir: PathBuf,
        rescan: Duration,
        debounce: Duration,
    ) -> io::Result<(Self, mpsc::Receiver<Wake>)> {
        let (signal, signals) = signals::sync_channel(1);
        let (wakes, receiver) = mpsc::channel(1);
        let hints =
            Arc::new(Hints { stale: AtomicBool::new(true), stop: AtomicBool::new(false), signal });
        let watch = Self {
            dir: std::path::absolute(dir)?,
            rescan: rescan.clamp(RESCAN_MIN, RESCAN_MAX),
            debounce,
            hints,
            signals,
            wakes,
            watching: None,
            failed: false,
        };
        Ok((watch, receiver))
    }

    fn run(mut self) {
        let mut wake = Wake::Start;
        // Watches precede the wake, so that a change during the agent's reading wakes it again.
        while self.watch_anew() && self.send(wake) {
            match self.wait() {
                Some(next) => wake = next,
                None => break,
            }
        }
    }

    /// Waits until the next wake is due; `None` to stop.
    fn wait(&self) -> Option<Wake> {
        let rescan_at = Instant::now() + self.rescan;
        // The first and the last signal of this burst.
        let mut burst: Option<(Instant, Instant)> = None;
        loop {
            let quiet_at = burst.map(|(first, last)| (last + self.debounce).min(first + DELAY_MAX));
            // A rescan in the middle of a burst waits for its end.
            let due = quiet_at.unwrap_or(rescan_at);
            let now = Instant::now();
            if now >= due {
                return Some(if burst.is_some() { Wake::Change } else { Wake::Rescan });
            }
            match self.signals.recv_timeout(due - now) {
                Ok(()) if self.hints.stop.load(Ordering::Acquire) => return None,
                Ok(()) => {
                    let now = Instant::now();
                    burst = Some((burst.map_or(now, |(first, _)| first), now));
                }
                Err(signals::RecvTimeoutError::Timeout) => {}
                Err(signals::RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Sends a wake; returns whether the receiver still exists.
    fn send(&self, wake: Wake) -> bool {
        !matches!(self.wakes.try_send(wake), Err(mpsc::error::TrySendError::Closed(_)))
    }

    /// Renews the watches if the directory was or may have been replaced. Returns whether to go on.
    fn watch_anew(&mut self) -> bool {
        let stale = self.hints.stale.swap(false, Ordering::AcqRel);
        let targets = Targets::resolve(&self.dir);
        if stale || self.watching.as_ref().is_none_or(|(watched, _)| **watched != targets) {
            let watched = self.watch(targets);
            if let (Err(error), false) = (&watched, self.failed) {
                warn!(dir = %self.dir.display(), %error, "cannot watch every directory: the \
                    rest is only read periodically");
            }
            self.failed = watched.is_err();
        }
        !self.hints.stop.load(Ordering::Acquire)
    }

    fn watch(&mut self, targets: Targets) -> notify::Result<()> {
        let targets = Arc::new(targets);
        let (hints, filter) = (Arc::clone(&self.hints), Arc::clone(&targets));
        // A change between the two watchers is not lost: a wake follows.
        self.watching = None;
        let mut watcher = notify::recommended_watcher(move |event| hints.event(&filter, &event))?;
        let mut failed = Ok(());
        for dir in targets.directories() {
            match watcher.watch(dir, RecursiveMode::NonRecursive) {
                // The directory was removed since it was resolved.
                Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {
                    self.hints.stale.store(true, Ordering::Release);
                    self.hints.signal();
                }
                // The other directories are watched anyway, and the next wake retries this one.
                Err(error) => {
                    self.hints.stale.store(true, Ordering::Release);
                    failed = failed.and(Err(error));
                }
                Ok(()) => {}
            }
        }
        // No watch reports a directory that was made or removed meanwhile.
        if Targets::resolve(&self.dir) != *targets {
            self.hints.stale.store(true, Ordering::Release);
            self.hints.signal();
        }
        self.watching = Some((targets, watcher));
        failed
    }
}

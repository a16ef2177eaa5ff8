//! Wakes the agent when the spec directory may have changed.
//!
//! Called by the agent, which reads the whole directory at every wake. An event is a hint and the
//! directory is the truth: this module says when to look, never what happened. It wakes once at
//! start, after a change has gone quiet, of a spec or of any other file beneath, because specs
//! attach files, and at every rescan period, because network file systems report nothing and a
//! replaced directory may go unnoticed. It must never block its caller, never fail because the
//! directory is not there, and never wake for the files that the agent itself writes there, or it
//! would wake itself for ever.

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

/// How long nothing may happen before a change is taken for finished: `git checkout` removes a file
/// before it writes it anew.
pub const DEBOUNCE: Duration = Duration::from_millis(250);
/// How long a directory that never goes quiet can put off a wake.
const DELAY_MAX: Duration = Duration::from_secs(1);
/// Bounds of the rescan period: shorter would spin, longer could overflow the clock.
const RESCAN_MIN: Duration = Duration::from_millis(10);
const RESCAN_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Why the agent should read the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Nothing has been read yet.
    Start,
    /// Something happened.
    Change,
    /// It is time to look anyway.
    Rescan,
}

/// Watches until it is dropped, or until the receiver is.
#[derive(Debug)]
pub struct Watcher {
    hints: Arc<Hints>,
}

/// A message to the watching thread.
#[derive(Debug)]
struct Hints {
    /// The watches may be on the wrong directories.
    stale: AtomicBool,
    stop: AtomicBool,
    /// Holds one signal: more say no more.
    signal: signals::SyncSender<()>,
}

impl Watcher {
    /// Watches `dir`, which need not exist, on a thread of its own. `debounce` is [`DEBOUNCE`] but
    /// for tests. A wake that has not been received yet stands for all that follow. Fails only if
    /// there is no thread to be had.
    pub fn start(
        dir: PathBuf,
        rescan: Duration,
        debounce: Duration,
    ) -> io::Result<(Self, mpsc::Receiver<Wake>)> {
        let (watch, receiver) = Watch::new(dir, rescan, debounce)?;
        let hints = Arc::clone(&watch.hints);
        thread::Builder::new().name("watch".to_owned()).spawn(move || watch.run())?;
        Ok((Self { hints }, receiver))
    }
}

/// Does not wait for the thread: it may hang in a dead network file system.
impl Drop for Watcher {
    fn drop(&mut self) {
        self.hints.stop.store(true, Ordering::Release);
        self.hints.signal();
    }
}

impl Hints {
    fn signal(&self) {
        // Full: the thread has a signal to wake up to. Disconnected: it is gone.
        self.signal.try_send(()).ok();
    }

    /// Runs on notify's thread. Dropping what does not matter here keeps a noisy parent directory
    /// from waking anybody.
    fn event(&self, targets: &Targets, event: &notify::Result<notify::Event>) {
        let matter = match event {
            Err(_) => Matter::Directory,
            Ok(event) if event.need_rescan() => Matter::Directory,
            // Our own reading.
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

/// The thread's own.
struct Watch {
    dir: PathBuf,
    rescan: Duration,
    debounce: Duration,
    hints: Arc<Hints>,
    signals: signals::Receiver<()>,
    wakes: mpsc::Sender<Wake>,
    watching: Option<(Arc<Targets>, RecommendedWatcher)>,
    failed: bool,
}

impl Watch {
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
        // The watches are set before the agent is woken: what changes while it reads wakes it
        // again.
        while self.watch_anew() && self.send(wake) {
            match self.wait() {
                Some(next) => wake = next,
                None => break,
            }
        }
    }

    /// Until the next wake is due; `None` to stop.
    fn wait(&self) -> Option<Wake> {
        let rescan_at = Instant::now() + self.rescan;
        // The first and the last signal of this burst.
        let mut burst: Option<(Instant, Instant)> = None;
        loop {
            let quiet_at = burst.map(|(first, last)| (last + self.debounce).min(first + DELAY_MAX));
            // A rescan does not look into the middle of a burst.
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

    /// Whether somebody still listens.
    fn send(&self, wake: Wake) -> bool {
        !matches!(self.wakes.try_send(wake), Err(mpsc::error::TrySendError::Closed(_)))
    }

    /// Watches again from scratch if the directory is another than before, or may be. Whether to go
    /// on.
    fn watch_anew(&mut self) -> bool {
        let stale = self.hints.stale.swap(false, Ordering::AcqRel);
        let targets = Targets::resolve(&self.dir);
        if stale || self.watching.as_ref().is_none_or(|(watched, _)| **watched != targets) {
            let watched = self.watch(targets);
            if let (Err(error), false) = (&watched, self.failed) {
                warn!(dir = %self.dir.display(), %error, "cannot watch everything: what is not \
                    watched is only read periodically");
            }
            self.failed = watched.is_err();
        }
        !self.hints.stop.load(Ordering::Acquire)
    }

    fn watch(&mut self, targets: Targets) -> notify::Result<()> {
        let targets = Arc::new(targets);
        let (hints, filter) = (Arc::clone(&self.hints), Arc::clone(&targets));
        // A change between the two watchers is seen all the same: a wake follows.
        self.watching = None;
        let mut watcher = notify::recommended_watcher(move |event| hints.event(&filter, &event))?;
        let mut failed = Ok(());
        for dir in targets.directories() {
            match watcher.watch(dir, RecursiveMode::NonRecursive) {
                // It went away since it was resolved.
                Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {
                    self.hints.stale.store(true, Ordering::Release);
                    self.hints.signal();
                }
                // The others are watched all the same, and this one is tried again at the next
                // wake.
                Err(error) => {
                    self.hints.stale.store(true, Ordering::Release);
                    failed = failed.and(Err(error));
                }
                Ok(()) => {}
            }
        }
        // A directory that came or went meanwhile was reported to nobody.
        if Targets::resolve(&self.dir) != *targets {
            self.hints.stale.store(true, Ordering::Release);
            self.hints.signal();
        }
        self.watching = Some((targets, watcher));
        failed
    }
}

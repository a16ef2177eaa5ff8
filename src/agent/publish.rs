//! Status files, and consoles beside them: written by a thread of its own, so that a slow disk never holds up the driver, and at most once a
//! second for a node whose phase has not changed. A file that cannot be written, or that somebody removed or changed, is written again.
//!
//! The driver leaves the latest status of each node in a map and goes on; the thread takes what is there. Neither ever waits for the
//! other: a directory that hangs costs its own files and nothing else. A file that says just what it is to say already is left alone.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::WeakSender;
use tracing::{debug, error, info, warn};

use crate::{
    lifecycle::Event,
    model::{
        ids::NodeName,
        status::{Phase, Status},
    },
    status_file::{self, ConsoleLog, StatusFileError, StatusFiles, Unwritten},
};

use super::work::Report;

/// Between two writes of one file that only report progress, and between two tries of one that fails.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long an agent that stops waits for its last status files.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// A file system that takes longer for one file is told of.
const SLOW: Duration = Duration::from_secs(10);

/// The way to the status files. Dropping it writes what is still waiting, within a limit.
#[derive(Debug)]
pub(super) struct Publisher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    news: Mutex<News>,
    /// Something was left for the thread, or it has ended.
    changed: Condvar,
}

/// What was left for the thread, the latest of each node.
#[derive(Debug, Default)]
struct News {
    /// What each file is to say; `None`: it is to go.
    files: BTreeMap<NodeName, Option<Box<Status>>>,
    /// What a machine printed in an attempt that failed; `None`: it has not.
    consoles: BTreeMap<NodeName, Option<ConsoleLog>>,
    closed: bool,
    /// The thread has ended, for whatever reason.
    ended: bool,
    /// Since when the thread is busy with one file.
    busy_since: Option<Instant>,
    told_slow: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, News> {
        // Each change is whole when the lock is let go, or would be lost with it.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut News)) {
        let mut news = self.lock();
        change(&mut news);
        if news.ended && !news.told_slow {
            news.told_slow = true;
            error!("the status thread is gone; status files are no longer written");
        } else if news.busy_since.is_some_and(|since| since.elapsed() > SLOW) && !news.told_slow {
            news.told_slow = true;
            warn!(
                "a status file has not been written for {} s: does its directory answer?",
                SLOW.as_secs()
            );
        }
        drop(news);
        self.changed.notify_all();
    }

    /// One file, which may hang.
    fn busy<T>(&self, with: impl FnOnce() -> T) -> T {
        self.lock().busy_since = Some(Instant::now());
        let done = with();
        let mut news = self.lock();
        news.busy_since = None;
        if mem::take(&mut news.told_slow) {
            info!("status files can be written again");
        }
        done
    }

    /// Waits for news, but not longer than this.
    fn wait(&self, limit: Duration) -> News {
        let is_idle =
            |news: &mut News| news.files.is_empty() && news.consoles.is_empty() && !news.closed;
        let waited = self.changed.wait_timeout_while(self.lock(), limit, is_idle);
        let (mut news, _) = waited.unwrap_or_else(PoisonError::into_inner);
        News {
            files: mem::take(&mut news.files),
            consoles: mem::take(&mut news.consoles),
            closed: news.closed,
            ..News::default()
        }
    }
}

impl Publisher {
    /// Starts the thread, which looks through all files once in every `rescan`. A node whose file is not as it was written is brought a
    /// tick by `driver`, and so shown again.
    pub(super) fn start(files: StatusFiles, rescan: Duration, driver: WeakSender<Report>) -> Self {
        let shared = Arc::new(Shared::default());
        let mut writer = StatusWriter {
            files,
            rescan,
            driver,
            shared: Arc::clone(&shared),
            looked: Instant::now(),
            shown: BTreeMap::new(),
            waiting: BTreeMap::new(),
            failed: BTreeMap::new(),
            told_unwritten: None,
        };
        let ends = EndsOnDrop(Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let _ends = ends;
            writer.work();
        });
        Self { shared, thread: Some(thread) }
    }

    /// Shows a status, soon.
    pub(super) fn show(&self, status: Status) {
        let node = status.node.clone();
        self.shared.change(|news| drop(news.files.insert(node, Some(Box::new(status)))));
    }

    /// Keeps what a machine printed.
    pub(super) fn keep_console(&self, log: ConsoleLog) {
        let node = log.node.clone();
        self.shared.change(|news| drop(news.consoles.insert(node, Some(log))));
    }

    /// Removes what was kept of it.
    pub(super) fn drop_console(&self, name: &NodeName) {
        self.shared.change(|news| drop(news.consoles.insert(name.clone(), None)));
    }

    /// Removes a node's files.
    pub(super) fn remove(&self, name: &NodeName) {
        self.shared.change(|news| {
            news.files.insert(name.clone(), None);
            news.consoles.insert(name.clone(), None);
        });
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.shared.change(|news| news.closed = true);
        let waited =
            self.shared
                .changed
                .wait_timeout_while(self.shared.lock(), STOP_LIMIT, |news| !news.ended);
        let (news, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if !news.ended {
            // It ends with the process.
            return warn!("the last status files were not written in time");
        }
        drop(news);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the status thread panicked");
        }
    }
}

/// Says that the thread has ended, also when it panics.
struct EndsOnDrop(Arc<Shared>);

impl Drop for EndsOnDrop {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

/// The thread's own.
struct StatusWriter {
    files: StatusFiles,
    rescan: Duration,
    driver: WeakSender<Report>,
    shared: Arc<Shared>,
    /// When the files were last looked through.
    looked: Instant,
    shown: BTreeMap<NodeName, Shown>,
    /// What each file is to say; `None`: it is to go.
    waiting: BTreeMap<NodeName, Option<Box<Status>>>,
    /// Files that could not be changed: why, and when that was last tried.
    failed: BTreeMap<NodeName, (String, Instant)>,
    /// What is said of them beside the files; `None`: nobody knows.
    told_unwritten: Option<Unwritten>,
}

/// What a file says. The status itself is not kept: the driver has it.
struct Shown {
    file: status_file::Shown,
    phase: Phase,
    /// Since when.
    at: Instant,
}

impl StatusWriter {
    fn work(&mut self) {
        loop {
            let News { files, consoles, closed, .. } = self.shared.wait(self.until_due());
            self.waiting.extend(files);
            for (name, console) in consoles {
                self.keep_console(&name, console.as_ref());
            }
            if self.looked.elapsed() >= self.rescan {
                self.look_through();
            }
            self.write_due(closed);
            self.tell_unwritten();
            if closed {
                return;
            }
        }
    }

    fn keep_console(&self, name: &NodeName, console: Option<&ConsoleLog>) {
        let kept = self.shared.busy(|| match console {
            Some(log) => self.files.write_console(log),
            None => self.files.remove_console(name),
        });
        if let Err(error) = kept {
            let what = if console.is_some() { "kept" } else { "removed" };
            warn!(node = %name, %error, "what its machine printed cannot be {what}");
        }
    }

    /// Finds the files that somebody else removed or changed, and has their nodes shown again.
    fn look_through(&mut self) {
        let mut lost = Vec::new();
        for (name, shown) in &mut self.shown {
            let stands = self.waiting.contains_key(name)
                || self.shared.busy(|| self.files.still_says(name, &mut shown.file));
            if !stands {
                info!(node = %name, "its status file is not as it was written: written again");
                lost.push(name.clone());
            }
        }
        for name in lost {
            self.shown.remove(&name);
            if let Some(driver) = self.driver.upgrade()
                && driver.blocking_send((name, Event::Tick)).is_err()
            {
                // The agent is stopping; the next one shows every node.
            }
        }
        self.looked = Instant::now();
    }

    /// How long nothing that waits is due.
    fn until_due(&self) -> Duration {
        let waiting = self.waiting.iter();
        waiting.map(|(name, wanted)| self.due_in(name, wanted.as_deref())).min().unwrap_or(INTERVAL)
    }

    /// How long a file must still be left alone.
    fn due_in(&self, name: &NodeName, wanted: Option<&Status>) -> Duration {
        let touched = match (self.failed.get(name), self.shown.get(name)) {
            (Some((_, tried)), _) => tried,
            (None, Some(shown)) if wanted.is_some_and(|wanted| wanted.phase == shown.phase) => {
                &shown.at
            }
            (None, _) => return Duration::ZERO,
        };
        INTERVAL.saturating_sub(touched.elapsed())
    }

    fn write_due(&mut self, all: bool) {
        let due: Vec<NodeName> = self
            .waiting
            .iter()
            .filter(|(name, wanted)| all || self.due_in(name, wanted.as_deref()).is_zero())
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(wanted) = self.waiting.remove(&name) else { continue };
            if let Err(error) = self.write(&name, wanted.as_deref()) {
                self.put_off(name, wanted, error.to_string());
            } else if self.failed.remove(&name).is_some() {
                info!(node = %name, "its status file can be written again");
            }
        }
    }

    fn write(&mut self, name: &NodeName, wanted: Option<&Status>) -> Result<(), StatusFileError> {
        let Some(status) = wanted else {
            self.shared.busy(|| self.files.remove(name))?;
            self.shown.remove(name);
            return Ok(());
        };
        let text = self.files.render(status)?;
        let found = match self.shown.get(name) {
            Some(shown) if shown.file.is(&text) => return Ok(()),
            Some(_) => None,
            // The agent before this one may have written just that.
            None => self.shared.busy(|| self.files.find(&text)),
        };
        let file = match found {
            Some(file) => Some(file),
            None => self.shared.busy(|| self.files.put(&text))?,
        };
        if let Some(file) = file {
            let shown = Shown { file, phase: status.phase, at: Instant::now() };
            self.shown.insert(name.clone(), shown);
        }
        Ok(())
    }

    /// Says which files are old, so that no reader takes them for the truth.
    fn tell_unwritten(&mut self) {
        let why = |(name, (why, _)): (&NodeName, &(String, Instant))| (name.clone(), why.clone());
        let unwritten: Unwritten = self.failed.iter().map(why).collect();
        if self.told_unwritten.as_ref() == Some(&unwritten) {
            return;
        }
        match self.shared.busy(|| self.files.tell_unwritten(&unwritten)) {
            Ok(()) => self.told_unwritten = Some(unwritten),
            // It is told again with the next status; why a file cannot be written is in the log
            // already.
            Err(error) => debug!(%error, "nobody can be told which status files are old"),
        }
    }

    /// It is tried again soon, and told once.
    fn put_off(&mut self, name: NodeName, wanted: Option<Box<Status>>, error: String) {
        let told = self.failed.get(&name).is_some_and(|(told, _)| *told == error);
        if !told {
            error!(node = %name, error, "a status file cannot be changed; tried again until it can");
        }
        self.failed.insert(name.clone(), (error, Instant::now()));
        // What came meanwhile is newer.
        self.waiting.entry(name).or_insert(wanted);
    }
}

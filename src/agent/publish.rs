//! Status files, and consoles beside them: written by a thread of its own, so that a slow disk never holds up the driver, and at most once a
//! second for a node whose phase has not changed. A file that cannot be written, or that somebody removed or changed, is written again.

use std::{
    collections::BTreeMap,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use crate::{
    model::{ids::NodeName, status::Status},
    status_file::{ConsoleLog, StatusFiles},
};

/// Between two writes of one file that only report progress, and between two tries of one that fails.
const INTERVAL: Duration = Duration::from_secs(1);
/// Statuses that may wait for the thread; a full channel slows the driver down to the disk's pace.
const DEPTH: usize = 4096;

/// The way to the status files. Dropping it writes what is still waiting.
#[derive(Debug)]
pub(super) struct Publisher {
    news: Option<SyncSender<News>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum News {
    Show(Box<Status>),
    Remove(NodeName),
    /// The attempt has failed.
    Console(Box<ConsoleLog>),
    /// It has not.
    NoConsole(NodeName),
}

impl Publisher {
    /// Starts the thread, which looks through all files once in every `rescan`.
    pub(super) fn start(files: StatusFiles, rescan: Duration) -> Self {
        let (news, inbox) = sync_channel(DEPTH);
        let mut desk = Desk {
            files,
            rescan,
            looked: Instant::now(),
            shown: BTreeMap::new(),
            waiting: BTreeMap::new(),
            failed: BTreeMap::new(),
        };
        let thread = std::thread::spawn(move || desk.work(&inbox));
        Self { news: Some(news), thread: Some(thread) }
    }

    /// Shows a status, soon.
    pub(super) fn show(&self, status: Status) {
        self.send(News::Show(Box::new(status)));
    }

    /// Keeps what a machine printed.
    pub(super) fn keep_console(&self, log: ConsoleLog) {
        self.send(News::Console(Box::new(log)));
    }

    /// Removes what was kept of it.
    pub(super) fn drop_console(&self, name: &NodeName) {
        self.send(News::NoConsole(name.clone()));
    }

    /// Removes a node's files.
    pub(super) fn remove(&self, name: &NodeName) {
        self.send(News::Remove(name.clone()));
    }

    fn send(&self, news: News) {
        if self.news.as_ref().is_some_and(|inbox| inbox.send(news).is_err()) {
            error!("the status thread is gone; status files are no longer written");
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        drop(self.news.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the status thread panicked");
        }
    }
}

struct Desk {
    files: StatusFiles,
    rescan: Duration,
    /// When the files were last looked through.
    looked: Instant,
    /// What each file says, and since when.
    shown: BTreeMap<NodeName, (Status, Instant)>,
    /// What each file is to say; `None`: it is to go.
    waiting: BTreeMap<NodeName, Option<Status>>,
    /// Files that could not be changed: why, and when that was last tried.
    failed: BTreeMap<NodeName, (String, Instant)>,
}

impl Desk {
    fn work(&mut self, inbox: &Receiver<News>) {
        loop {
            match inbox.recv_timeout(INTERVAL) {
                Ok(News::Show(status)) => self.take(*status),
                Ok(News::Remove(name)) => {
                    self.drop_console(&name);
                    self.waiting.insert(name, None);
                }
                Ok(News::Console(log)) => {
                    if let Err(error) = self.files.write_console(&log) {
                        warn!(node = %log.node, %error, "what its machine printed cannot be kept");
                    }
                }
                Ok(News::NoConsole(name)) => self.drop_console(&name),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.write_due(true),
            }
            if self.looked.elapsed() >= self.rescan {
                self.look_through();
            }
            self.write_due(false);
        }
    }

    fn drop_console(&self, name: &NodeName) {
        if let Err(error) = self.files.remove_console(name) {
            warn!(node = %name, %error, "what its machine printed cannot be removed");
        }
    }

    fn take(&mut self, status: Status) {
        let same = self.shown.get(&status.node).is_some_and(|(shown, _)| {
            *shown == Status { updated: shown.updated, ..status.clone() }
        });
        if same {
            self.waiting.remove(&status.node);
        } else {
            self.waiting.insert(status.node.clone(), Some(status));
        }
    }

    /// Finds the files that somebody else removed or changed.
    fn look_through(&mut self) {
        let files = &self.files;
        self.shown.retain(|name, (status, _)| {
            let stands = self.waiting.contains_key(name) || files.shows(status);
            if !stands {
                info!(node = %name, "its status file is not as it was written: written again");
                self.waiting.insert(name.clone(), Some(status.clone()));
            }
            stands
        });
        self.looked = Instant::now();
    }

    fn write_due(&mut self, all: bool) {
        let due = |name: &NodeName, wanted: &Option<Status>| {
            if let Some((_, tried)) = self.failed.get(name) {
                return tried.elapsed() >= INTERVAL;
            }
            let phase = wanted.as_ref().map(|status| status.phase);
            self.shown
                .get(name)
                .is_none_or(|(shown, at)| Some(shown.phase) != phase || at.elapsed() >= INTERVAL)
        };
        let due: Vec<NodeName> = self
            .waiting
            .iter()
            .filter(|(name, wanted)| all || due(name, wanted))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(wanted) = self.waiting.remove(&name) else { continue };
            let changed = match &wanted {
                Some(status) => self.files.write(status),
                None => self.files.remove(&name),
            };
            if let Err(error) = changed {
                self.put_off(name, wanted, error.to_string());
                continue;
            }
            if self.failed.remove(&name).is_some() {
                info!(node = %name, "its status file can be written again");
            }
            match wanted {
                Some(status) => drop(self.shown.insert(name, (status, Instant::now()))),
                None => drop(self.shown.remove(&name)),
            }
        }
    }

    /// It is tried again soon, and told once.
    fn put_off(&mut self, name: NodeName, wanted: Option<Status>, error: String) {
        let told = self.failed.get(&name).is_some_and(|(told, _)| *told == error);
        if !told {
            error!(node = %name, error, "a status file cannot be changed; tried again until it can");
        }
        self.failed.insert(name.clone(), (error, Instant::now()));
        self.waiting.insert(name, wanted);
    }
}

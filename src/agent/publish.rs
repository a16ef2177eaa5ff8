//! Status files: written by a thread of its own, so that a slow disk never holds up the driver, and at most once a second for a node
//! whose phase has not changed.

use std::{
    collections::BTreeMap,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tracing::error;

use crate::{
    model::{ids::NodeName, status::Status},
    status_file::StatusFiles,
};

/// Between two writes of one file that only report progress.
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
}

impl Publisher {
    /// Starts the thread.
    pub(super) fn start(files: StatusFiles) -> Self {
        let (news, inbox) = sync_channel(DEPTH);
        let mut desk = Desk { files, shown: BTreeMap::new(), waiting: BTreeMap::new() };
        let thread = std::thread::spawn(move || desk.work(&inbox));
        Self { news: Some(news), thread: Some(thread) }
    }

    /// Shows a status, soon.
    pub(super) fn show(&self, status: Status) {
        self.send(News::Show(Box::new(status)));
    }

    /// Removes a node's file.
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
    /// What each file says, and since when.
    shown: BTreeMap<NodeName, (Status, Instant)>,
    waiting: BTreeMap<NodeName, Status>,
}

impl Desk {
    fn work(&mut self, inbox: &Receiver<News>) {
        loop {
            match inbox.recv_timeout(INTERVAL) {
                Ok(News::Show(status)) => self.take(*status),
                Ok(News::Remove(name)) => self.remove(&name),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.write_due(true),
            }
            self.write_due(false);
        }
    }

    fn take(&mut self, status: Status) {
        let same = self.shown.get(&status.node).is_some_and(|(shown, _)| {
            *shown == Status { updated: shown.updated, ..status.clone() }
        });
        if same {
            self.waiting.remove(&status.node);
        } else {
            self.waiting.insert(status.node.clone(), status);
        }
    }

    fn remove(&mut self, name: &NodeName) {
        self.waiting.remove(name);
        self.shown.remove(name);
        if let Err(error) = self.files.remove(name) {
            error!(node = %name, %error, "a status file cannot be removed");
        }
    }

    fn write_due(&mut self, all: bool) {
        let shown = &self.shown;
        let due = |status: &Status| {
            shown
                .get(&status.node)
                .is_none_or(|(shown, at)| shown.phase != status.phase || at.elapsed() >= INTERVAL)
        };
        let due: Vec<Status> =
            self.waiting.values().filter(|status| all || due(status)).cloned().collect();
        for status in due {
            self.waiting.remove(&status.node);
            // A status that cannot be written is as good as shown: it is tried again when there is news.
            if let Err(error) = self.files.write(&status) {
                error!(node = %status.node, %error, "a status file cannot be written");
            }
            self.shown.insert(status.node.clone(), (status, Instant::now()));
        }
    }
}

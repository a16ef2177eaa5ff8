//! Writes status files, console logs and ramdisks' logs in a thread of its own: at most once a
//! second for a node whose phase has not changed. A slow disk never delays the driver. The thread
//! retries a status file that cannot be written, and restores one that somebody removed or changed.
//!
//! Called by the driver, which puts the latest status of each node into a map; the thread takes it
//! from there. A directory that hangs delays only its own files: the driver never waits for them,
//! and the pause that it makes after many new specs while [`Publisher::backlog`] is large is short.
//! A file that is up to date is not touched.

use std::{
    collections::BTreeMap,
    io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
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
    status_file::{ConsoleLog, KeptLog, StatusFileError, StatusFiles, StatusOnDisk, Unwritten},
};

use super::work::NodeEvent;

/// The pause between two writes of a file in the same phase, and between two tries after an error.
const INTERVAL: Duration = Duration::from_secs(1);
/// The wait for further updates after the first one. Updates often come in hundreds, and waking up
/// for each costs more than its file.
const GATHERING: Duration = Duration::from_millis(20);
/// How long a stopping agent waits for its last status files.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// A write that takes longer is reported.
const SLOW: Duration = Duration::from_secs(10);

/// Passes statuses to the writing thread. Dropping it writes the waiting files, within a limit.
#[derive(Debug)]
pub(super) struct Publisher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    updates: Mutex<Updates>,
    /// Signals new updates, or the end of the thread.
    changed: Condvar,
}

/// The latest updates of each node, for the thread.
#[derive(Debug, Default)]
struct Updates {
    /// Each node's new status; `None`: the file is to be removed.
    files: BTreeMap<NodeName, Option<Box<Status>>>,
    /// Each node's console of a failed attempt; `None`: the log is to be removed.
    consoles: BTreeMap<NodeName, Option<ConsoleLog>>,
    /// Each node's ramdisk log; `None`: the log is to be removed.
    ramdisk_logs: BTreeMap<NodeName, Option<Box<KeptLog>>>,
    closed: bool,
    /// The thread has ended, perhaps by a panic.
    ended: bool,
    /// The number of files that the thread has taken and not written yet.
    in_hand: usize,
    /// When the thread began with its current file.
    busy_since: Option<Instant>,
    reported_slow: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Updates> {
        // A panic leaves no update half made.
        self.updates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Updates)) {
        let mut updates = self.lock();
        change(&mut updates);
        if updates.ended && !updates.reported_slow {
            updates.reported_slow = true;
            error!("the status thread is gone; status files are no longer written");
        } else if updates.busy_since.is_some_and(|since| since.elapsed() > SLOW)
            && !updates.reported_slow
        {
            updates.reported_slow = true;
            warn!(
                "a status file has not been written for {} s: does its directory answer?",
                SLOW.as_secs()
            );
        }
        drop(updates);
        self.changed.notify_all();
    }

    /// Runs an operation on one file, which may hang, and notes how long it takes.
    fn busy<T>(&self, with: impl FnOnce() -> T) -> T {
        self.lock().busy_since = Some(Instant::now());
        let done = with();
        let mut updates = self.lock();
        updates.busy_since = None;
        if mem::take(&mut updates.reported_slow) {
            info!("status files can be written again");
        }
        done
    }

    /// Waits for updates, at most for `limit`, and gathers those that come at the same time.
    fn wait(&self, limit: Duration) -> Updates {
        let is_idle = |updates: &mut Updates| {
            updates.files.is_empty()
                && updates.consoles.is_empty()
                && updates.ramdisk_logs.is_empty()
                && !updates.closed
        };
        let waited = self.changed.wait_timeout_while(self.lock(), limit, is_idle);
        let (mut updates, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if !timeout.timed_out() && !updates.closed {
            drop(updates);
            thread::sleep(GATHERING);
            updates = self.lock();
        }
        Updates {
            files: mem::take(&mut updates.files),
            consoles: mem::take(&mut updates.consoles),
            ramdisk_logs: mem::take(&mut updates.ramdisk_logs),
            closed: updates.closed,
            ..Updates::default()
        }
    }
}

impl Publisher {
    /// Starts the thread, which reads all files once in every `rescan`. For a file that differs, it
    /// sends the node a tick by `driver`, and the driver shows the node again.
    pub(super) fn start(
        files: StatusFiles,
        rescan: Duration,
        driver: WeakSender<NodeEvent>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let mut writer = StatusWriter::new(files, rescan, driver, Arc::clone(&shared));
        let ends = EndsOnDrop(Arc::clone(&shared));
        let thread = thread::spawn(move || {
            let _ends = ends;
            writer.work();
        });
        Self { shared, thread: Some(thread) }
    }

    /// Queues a node's status to be written.
    pub(super) fn show(&self, status: Status) {
        let node = status.node.clone();
        self.shared.change(|updates| drop(updates.files.insert(node, Some(Box::new(status)))));
    }

    /// The number of status files that wait to be written. Each takes memory.
    pub(super) fn backlog(&self) -> usize {
        let updates = self.shared.lock();
        updates.files.len() + updates.in_hand
    }

    /// Queues a console log to be written.
    pub(super) fn keep_console(&self, log: ConsoleLog) {
        let node = log.node.clone();
        self.shared.change(|updates| drop(updates.consoles.insert(node, Some(log))));
    }

    /// Queues a console log to be removed.
    pub(super) fn drop_console(&self, name: &NodeName) {
        self.shared.change(|updates| drop(updates.consoles.insert(name.clone(), None)));
    }

    /// Queues a ramdisk log to be written.
    pub(super) fn keep_ramdisk_log(&self, log: KeptLog) {
        let node = log.node.clone();
        self.shared.change(|updates| drop(updates.ramdisk_logs.insert(node, Some(Box::new(log)))));
    }

    /// Queues a node's files to be removed.
    pub(super) fn remove(&self, name: &NodeName) {
        self.shared.change(|updates| {
            updates.files.insert(name.clone(), None);
            updates.consoles.insert(name.clone(), None);
            updates.ramdisk_logs.insert(name.clone(), None);
        });
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.shared.change(|updates| updates.closed = true);
        let waited =
            self.shared
                .changed
                .wait_timeout_while(self.shared.lock(), STOP_LIMIT, |updates| !updates.ended);
        let (updates, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if !updates.ended {
            // The thread ends with the process.
            return warn!("the last status files were not written in time");
        }
        drop(updates);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the status thread panicked");
        }
    }
}

/// Notes the end of the thread, even by a panic.
struct EndsOnDrop(Arc<Shared>);

impl Drop for EndsOnDrop {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

/// The thread's state.
struct StatusWriter {
    files: StatusFiles,
    rescan: Duration,
    driver: WeakSender<NodeEvent>,
    shared: Arc<Shared>,
    /// When the thread last read all files.
    scanned_at: Instant,
    written: BTreeMap<NodeName, WrittenStatus>,
    /// Each node's new status; `None`: the file is to be removed.
    waiting: BTreeMap<NodeName, Option<Box<Status>>>,
    /// Files that cannot be changed, each with the error and the time of the last try.
    failed: BTreeMap<NodeName, (String, Instant)>,
    /// The failed files as `_unwritten.status.toml` lists them; `None`: unknown.
    reported_unwritten: Option<Unwritten>,
}

/// A written status file. The driver keeps the status itself.
struct WrittenStatus {
    file: StatusOnDisk,
    phase: Phase,
    /// When the file was written.
    at: Instant,
}

impl StatusWriter {
    fn new(
        files: StatusFiles,
        rescan: Duration,
        driver: WeakSender<NodeEvent>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            files,
            rescan,
            driver,
            shared,
            scanned_at: Instant::now(),
            written: BTreeMap::new(),
            waiting: BTreeMap::new(),
            failed: BTreeMap::new(),
            reported_unwritten: None,
        }
    }

    fn work(&mut self) {
        loop {
            let updates = self.shared.wait(self.until_due(Instant::now()));
            let closed = updates.closed;
            self.take_up(updates, Instant::now());
            if closed {
                return;
            }
        }
    }

    /// Takes the updates and writes the files that are due.
    fn take_up(&mut self, updates: Updates, now: Instant) {
        let Updates { files, consoles, ramdisk_logs, closed, .. } = updates;
        self.waiting.extend(files);
        self.shared.lock().in_hand = self.waiting.len();
        for (name, console) in consoles {
            let kept = self.shared.busy(|| match &console {
                Some(log) => self.files.write_console(log),
                None => self.files.remove_console(&name),
            });
            log_unkept(&name, kept, "console log");
        }
        for (name, log) in ramdisk_logs {
            let kept = self.shared.busy(|| match &log {
                Some(log) => self.files.write_ramdisk_log(log),
                None => self.files.remove_ramdisk_log(&name),
            });
            log_unkept(&name, kept, "ramdisk log");
        }
        if now.duration_since(self.scanned_at) >= self.rescan {
            self.find_changed();
        }
        self.write_due(closed, now);
        self.tell_unwritten();
    }

    /// Finds the files that somebody else removed or changed, and sends their nodes a tick.
    fn find_changed(&mut self) {
        let mut lost = Vec::new();
        for (name, written) in &mut self.written {
            let is_current = self.waiting.contains_key(name)
                || self.shared.busy(|| self.files.is_unchanged(name, &mut written.file));
            if !is_current {
                info!(
                    node = %name,
                    "its status file was changed or removed: the agent writes it again"
                );
                lost.push(name.clone());
            }
        }
        for name in lost {
            self.written.remove(&name);
            if let Some(driver) = self.driver.upgrade()
                && driver.blocking_send((name, Event::Tick)).is_err()
            {
                // The agent is stopping; the next one shows every node.
            }
        }
        self.scanned_at = Instant::now();
    }

    /// Computes the time until the next waiting file is due.
    fn until_due(&self, now: Instant) -> Duration {
        let due =
            self.waiting.iter().map(|(name, wanted)| self.due_in(name, wanted.as_deref(), now));
        due.min().unwrap_or(INTERVAL)
    }

    /// Computes the time until a file may be written.
    fn due_in(&self, name: &NodeName, wanted: Option<&Status>, now: Instant) -> Duration {
        let touched = match (self.failed.get(name), self.written.get(name)) {
            (Some((_, tried)), _) => tried,
            (None, Some(written)) if wanted.is_some_and(|wanted| wanted.phase == written.phase) => {
                &written.at
            }
            (None, _) => return Duration::ZERO,
        };
        INTERVAL.saturating_sub(now.duration_since(*touched))
    }

    fn write_due(&mut self, all: bool, now: Instant) {
        let is_due = |(name, wanted): &(&NodeName, &Option<Box<Status>>)| {
            all || self.due_in(name, wanted.as_deref(), now).is_zero()
        };
        let due: Vec<NodeName> =
            self.waiting.iter().filter(is_due).map(|(name, _)| name.clone()).collect();
        for name in due {
            let Some(wanted) = self.waiting.remove(&name) else { continue };
            self.shared.lock().in_hand = self.waiting.len();
            if let Err(error) = self.write(&name, wanted.as_deref(), now) {
                self.put_off(name, wanted, format!("{error}{}", way_out(&error)), now);
            } else if self.failed.remove(&name).is_some() {
                info!(node = %name, "its status file can be written again");
            }
        }
    }

    fn write(
        &mut self,
        name: &NodeName,
        wanted: Option<&Status>,
        now: Instant,
    ) -> Result<(), StatusFileError> {
        let Some(status) = wanted else {
            self.shared.busy(|| self.files.remove(name))?;
            self.written.remove(name);
            return Ok(());
        };
        let text = self.files.render(status)?;
        let found = match self.written.get(name) {
            Some(written) if written.file.has(&text) => return Ok(()),
            Some(_) => None,
            // An earlier agent may have written this status already.
            None => self.shared.busy(|| self.files.find(&text)),
        };
        let file = match found {
            Some(file) => Some(file),
            None => self.shared.busy(|| self.files.put(&text))?,
        };
        if let Some(file) = file {
            let written = WrittenStatus { file, phase: status.phase, at: now };
            self.written.insert(name.clone(), written);
        }
        Ok(())
    }

    /// Lists the files that are old, so that no reader relies on them.
    fn tell_unwritten(&mut self) {
        let why = |(name, (why, _)): (&NodeName, &(String, Instant))| (name.clone(), why.clone());
        let unwritten: Unwritten = self.failed.iter().map(why).collect();
        if self.reported_unwritten.as_ref() == Some(&unwritten) {
            return;
        }
        match self.shared.busy(|| self.files.tell_unwritten(&unwritten)) {
            Ok(()) => self.reported_unwritten = Some(unwritten),
            // The next status retries this; the log has the reason already.
            Err(error) => debug!(%error, "the list of old status files cannot be written"),
        }
    }

    /// Queues a failed write again, and logs its error once.
    fn put_off(
        &mut self,
        name: NodeName,
        wanted: Option<Box<Status>>,
        error: String,
        now: Instant,
    ) {
        let is_known = self.failed.get(&name).is_some_and(|(known, _)| *known == error);
        if !is_known {
            error!(
                node = %name, error,
                "a status file cannot be changed; the agent retries every second"
            );
        }
        self.failed.insert(name.clone(), (error, now));
        // A status that arrived meanwhile is newer.
        self.waiting.entry(name).or_insert(wanted);
    }
}

/// Logs that a console log or a ramdisk log cannot be changed. There is no retry.
fn log_unkept(node: &NodeName, kept: Result<(), StatusFileError>, what: &str) {
    if let Err(error) = kept {
        warn!(%node, %error, "its {what} cannot be changed");
    }
}

/// The advice for an agent that may not write there.
fn way_out(error: &StatusFileError) -> &'static str {
    match error {
        StatusFileError::Io { source, .. }
            if source.kind() == io::ErrorKind::ReadOnlyFilesystem =>
        {
            "; unless that file system is meant to be read-only, name the directory in \
             ReadWritePaths= in a drop-in for the unit"
        }
        StatusFileError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "; the directory has to be writable for hostler's user"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tokio::sync::mpsc::channel;

    use super::*;
    use crate::status_file;

    const HOUR: Duration = Duration::from_secs(3600);
    const POLL_INTERVAL: Duration = Duration::from_millis(10);
    /// The limit for one small file on a busy machine.
    const LIMIT: Duration = Duration::from_secs(30);

    fn status(message: &str) -> Status {
        let at = "2026-11-30T12:00:00Z";
        let text = format!(
            "version = 2\nnode = \"edge-07\"\nphase = \"imaging\"\nready = false\n\
             message = {message:?}\nspec_valid = true\nsince = {at:?}\nattempt = 1\n\
             updated = {at:?}\n"
        );
        toml::from_str(&text).unwrap()
    }

    /// The updates for a status with this message.
    fn updates(message: &str) -> Updates {
        let status = status(message);
        let files = BTreeMap::from([(status.node.clone(), Some(Box::new(status)))]);
        Updates { files, ..Updates::default() }
    }

    fn message(dir: &Path) -> Option<String> {
        let status = status_file::read(&dir.join("edge-07.status.toml")).ok()?;
        Some(status.message)
    }

    /// Invariant (status): A status that was put off, or could not be written, is written when it
    /// is due.
    #[test]
    fn a_status_that_was_put_off_is_written_when_it_is_due_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let files = StatusFiles::new(dir.path());
        let (driver, _reports) = channel(1);
        let mut writer = StatusWriter::new(files, HOUR, driver.downgrade(), Arc::default());
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let says = |text: &str| message(dir.path()).as_deref() == Some(text);

        writer.take_up(updates("10%"), at(0));
        assert!(says("10%"));
        for (ms, text) in [(300, "20%"), (700, "30%")] {
            writer.take_up(updates(text), at(ms));
            assert!(says("10%"), "written after {ms} ms");
            assert_eq!(writer.until_due(at(ms)), Duration::from_millis(1000 - ms));
        }
        writer.take_up(Updates::default(), at(999));
        assert!(says("10%"));
        writer.take_up(Updates::default(), at(1000));
        assert!(says("30%"), "{:?}", message(dir.path()));
        assert_eq!(writer.until_due(at(1000)), INTERVAL, "nothing waits");
    }

    /// Invariant (status): A status that was put off, or could not be written, is written when it
    /// is due.
    #[test]
    fn a_status_that_cannot_be_written_is_tried_again_when_it_is_due() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let (driver, _reports) = channel(1);
        let files = StatusFiles::new(&gone);
        let mut writer = StatusWriter::new(files, HOUR, driver.downgrade(), Arc::default());
        let start = Instant::now();
        writer.take_up(updates("10%"), start);
        assert_eq!(writer.until_due(start), INTERVAL);
        fs::create_dir(&gone).unwrap();
        writer.take_up(Updates::default(), start + INTERVAL / 2);
        assert_eq!(message(&gone), None, "it is too early");
        writer.take_up(Updates::default(), start + INTERVAL);
        assert_eq!(message(&gone).as_deref(), Some("10%"));
        assert!(writer.failed.is_empty());
    }

    #[test]
    fn the_backlog_has_each_file_that_waits_and_none_that_is_written_or_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        for (files, is_there) in [(dir.path(), true), (&gone, false)] {
            let (driver, _reports) = channel(1);
            let shared = Arc::<Shared>::default();
            let publisher = Publisher { shared: Arc::clone(&shared), thread: None };
            let files = StatusFiles::new(files);
            let mut writer =
                StatusWriter::new(files, HOUR, driver.downgrade(), Arc::clone(&shared));
            let start = Instant::now();
            publisher.show(status("10%"));
            assert_eq!(publisher.backlog(), 1);
            writer.take_up(shared.wait(HOUR), start);
            assert_eq!(publisher.backlog(), 0);
            publisher.show(status("20%"));
            writer.take_up(shared.wait(HOUR), start + INTERVAL / 2);
            assert_eq!(publisher.backlog(), 1, "it is put off");
            writer.take_up(Updates::default(), start + INTERVAL);
            assert_eq!(publisher.backlog(), 0);
            assert_eq!(message(dir.path()).is_some(), is_there);
            drop(EndsOnDrop(shared));
            drop(publisher);
            assert!(!is_there || message(dir.path()).as_deref() == Some("20%"));
            fs::remove_file(dir.path().join("edge-07.status.toml")).unwrap_or_default();
        }
    }

    /// Invariant (status): A status that was put off, or could not be written, is written when it
    /// is due.
    #[test]
    fn the_thread_wakes_by_itself_for_a_status_that_was_put_off() {
        let dir = tempfile::tempdir().unwrap();
        let (driver, _reports) = channel(1);
        let files = StatusFiles::new(dir.path());
        let publisher = Publisher::start(files, HOUR, driver.downgrade());
        for text in ["10%", "20%"] {
            publisher.show(status(text));
            let deadline = Instant::now() + LIMIT;
            while message(dir.path()).as_deref() != Some(text) {
                assert!(Instant::now() < deadline, "{:?}", message(dir.path()));
                thread::sleep(POLL_INTERVAL);
            }
        }
    }
}

//! Gives a deploy ramdisk a moment to send its last log, before its machine is switched off.
//!
//! Used by the effects. A ramdisk learns from a reply that its attempt is over, and then sends its
//! log, with the kernel's errors; a quick BMC would cut that off. The moment is short and has the
//! same length for every ramdisk: nothing that a ramdisk does or leaves undone may extend it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};

use crate::{
    model::{callback::Reply, ids::NodeName},
    progress::{Cancel, stopped},
};

/// The longest wait for a log.
const LOG_WAIT: Duration = Duration::from_secs(3);
/// A ramdisk whose last call was longer ago does not learn in time that its attempt is over: its
/// poll of the deploy state is answered within half a minute.
const ALIVE_FOR: Duration = Duration::from_secs(60);

/// The deploy ramdisks that have called.
#[derive(Debug, Default)]
pub(super) struct LastWords(BTreeMap<NodeName, CallingRamdisk>);

#[derive(Debug)]
struct CallingRamdisk {
    called_at: Instant,
    /// Ticks with each accepted log.
    logs: watch::Sender<()>,
}

/// The wait for a ramdisk's last log.
#[derive(Debug)]
pub(super) struct LogWait(Option<watch::Receiver<()>>);

impl LastWords {
    /// Notes the answer to a call. A refused one may be anybody's.
    pub(super) fn note_reply(&mut self, node: &NodeName, reply: &Reply, now: Instant) {
        if *reply == Reply::Refused {
            return;
        }
        if let Some(ramdisk) = self.0.get_mut(node) {
            ramdisk.called_at = now;
        } else {
            let (logs, _) = watch::channel(());
            self.0.insert(node.clone(), CallingRamdisk { called_at: now, logs });
        }
    }

    /// Notes an accepted log.
    pub(super) fn note_log(&self, node: &NodeName) {
        if let Some(ramdisk) = self.0.get(node) {
            ramdisk.logs.send_replace(());
        }
    }

    /// Begins the wait for the last log of a node's ramdisk, which has none if no ramdisk lives.
    pub(super) fn wait_for(&mut self, node: &NodeName, now: Instant) -> LogWait {
        let ramdisk = self.0.remove(node);
        let living = ramdisk.filter(|ramdisk| now.duration_since(ramdisk.called_at) < ALIVE_FOR);
        let logs = living.map(|ramdisk| {
            let logs = ramdisk.logs.subscribe();
            self.0.insert(node.clone(), ramdisk);
            logs
        });
        LogWait(logs)
    }

    pub(super) fn forget(&mut self, node: &NodeName) {
        self.0.remove(node);
    }
}

impl LogWait {
    /// Waits for the log, until the limit or the cancellation.
    pub(super) async fn over(self, mut cancel: Cancel) {
        let Some(mut logs) = self.0 else { return };
        tokio::select! {
            () = stopped(&mut cancel) => {}
            // Without a sender, the node is forgotten.
            _ = timeout(LOG_WAIT, logs.changed()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeName {
        "edge-07".parse().unwrap()
    }

    /// How long the wait took.
    async fn took(wait: LogWait, cancel: &Cancel) -> Duration {
        let began = tokio::time::Instant::now();
        wait.over(cancel.clone()).await;
        began.elapsed()
    }

    /// Invariant (ramdisk): A ramdisk that has just called may send its last log within 3 s, and
    /// delays a clean-up no longer.
    #[tokio::test(start_paused = true)]
    async fn only_a_living_ramdisk_is_waited_for_and_no_longer_than_its_log_takes() {
        let (stop, cancel) = watch::channel(false);
        let (mut words, start) = (LastWords::default(), Instant::now());
        assert_eq!(took(words.wait_for(&node(), start), &cancel).await, Duration::ZERO);
        words.note_reply(&node(), &Reply::Refused, start);
        let wait = words.wait_for(&node(), start);
        assert_eq!(took(wait, &cancel).await, Duration::ZERO, "a stranger's call");
        words.note_reply(&node(), &Reply::Accepted, start);
        assert_eq!(took(words.wait_for(&node(), start), &cancel).await, LOG_WAIT);
        // A log from before the end of the attempt does not count, the one after it does.
        words.note_log(&node());
        let wait = words.wait_for(&node(), start);
        words.note_log(&node());
        assert_eq!(took(wait, &cancel).await, Duration::ZERO);
        // A cancelled clean-up ends at once.
        let wait = words.wait_for(&node(), start);
        stop.send_replace(true);
        assert_eq!(took(wait, &cancel).await, Duration::ZERO);
        stop.send_replace(false);
        assert_eq!(took(words.wait_for(&node(), start + ALIVE_FOR), &cancel).await, Duration::ZERO);
        words.note_log(&node());
        assert!(words.0.is_empty(), "a dead one is forgotten");
    }
}

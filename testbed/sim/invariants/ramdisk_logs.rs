//! Invariants of ramdisks' logs: each is of its attempt and from its machine, there are only so
//! many, and their files are bounded and have no key inside.

use hostler::{
    lifecycle::ReceivedLog,
    model::{callback::Reply, ids::NodeName, secret::AttemptKey},
    status_file::KeptLog,
};

use crate::{watch::ServedKey, world::Site};

/// Most logs of one attempt that an agent keeps.
const LOGS_MAX: u32 = 8;
/// Most bytes of a log's file: the kernel's part, the ramdisk's part and their titles.
const FILE_BYTES_MAX: usize = 2 * (64 << 10) + 256;

impl Site {
    /// Notes that a menu with this key is served.
    pub(crate) fn note_key(&mut self, node: &NodeName, key: &AttemptKey, attempt: u32) {
        let keys = self.watch.keys.entry(node.clone()).or_default();
        if keys.last().is_none_or(|last| last.key != *key) {
            keys.push(ServedKey { key: key.clone(), attempt, logs: 0, is_over: false });
        }
    }

    /// Notes that the node's next attempt begins.
    pub(crate) fn note_next_attempt(&mut self, node: &NodeName) {
        if let Some(last) = self.watch.keys.get_mut(node).and_then(|keys| keys.last_mut()) {
            last.is_over = true;
        }
    }

    /// Whether a ramdisk's log may be kept: no later attempt has begun, and the agent has not kept
    /// as many logs as it may.
    pub(crate) fn may_log(&self, ramdisk: usize) -> bool {
        let ramdisk = &self.ramdisks[ramdisk];
        let last = self.watch.keys.get(&ramdisk.node).and_then(|keys| keys.last());
        let last = last.filter(|last| last.key == ramdisk.key && !last.is_over);
        last.is_some_and(|last| last.logs < LOGS_MAX)
    }

    /// Judges an answer to a log.
    pub(crate) fn judge_log_reply(&mut self, ramdisk: usize, may: bool, reply: &Reply) {
        let expected = *reply == Reply::Refused || may && *reply == Reply::Accepted;
        if !expected {
            let node = self.ramdisks[ramdisk].node.clone();
            let what = format!("a log is answered with {reply:?}, and it may be kept: {may}");
            self.broken("ramdisk_logs_are_their_attempts", Some(&node), what);
        }
    }

    /// Judges a log that is kept.
    pub(crate) fn judge_log(&mut self, node: &NodeName, received: ReceivedLog) {
        let now = self.now();
        let address = self.booted_with(&received.key).map(|machine| machine.ip);
        let keys = self.watch.keys.entry(node.clone()).or_default();
        let own = keys.iter_mut().find(|served| served.key == received.key);
        let (attempt, count) = own.map_or((None, 0), |served| {
            served.logs += 1;
            (Some(served.attempt), served.logs)
        });
        let ReceivedLog { attempt: number, peer, key, log } = received;
        if attempt != Some(number) || address != Some(peer) || count > LOGS_MAX {
            let what = format!(
                "log {count} of attempt {number} from {peer} is kept, and its key was served in \
                 attempt {attempt:?} to {address:?}"
            );
            self.broken("ramdisk_logs_are_their_attempts", Some(node), what);
        }
        let file = KeptLog { node: node.clone(), attempt: number, peer, at: now, log, key };
        let text = file.text();
        let plain = text.chars().all(|c| matches!(c, '\n' | '\t') || !c.is_control());
        if text.len() > FILE_BYTES_MAX || !plain {
            let what =
                format!("a file of {} bytes, without control characters: {plain}", text.len());
            self.broken("ramdisk_logs_are_their_attempts", Some(node), what);
        }
        let (keys, _) = self.secrets_of(node);
        if keys.iter().any(|key| text.contains(key)) {
            self.broken("secrets_stay_inside", Some(node), text);
        }
    }

    /// The next agent has kept no logs yet.
    pub(crate) fn forget_log_counts(&mut self) {
        for served in self.watch.keys.values_mut().flatten() {
            served.logs = 0;
        }
    }
}

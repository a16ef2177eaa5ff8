//! Judges deploy ramdisks' logs: the sender and the number.
//!
//! Called by `callback.rs`. An accepted log becomes an action and changes nothing else: no state,
//! no deadline, no record. A log, or a missing one, must never change the course of an attempt.
//!
//! A ramdisk learns late that its attempt is over; a machine without a BMC learns it from the
//! answer that ends the attempt. The attempt's key is therefore valid for this call until the next
//! attempt begins. After a restart of the agent it is not, because the record no longer has the
//! key.

use std::net::IpAddr;

use crate::model::{
    callback::{RamdiskLog, Reply},
    secret::AttemptKey,
};

use super::{
    event::{Action, ReceivedLog},
    node::Node,
};

/// Most logs of one attempt. A ramdisk sends one before its first lookup and at most two at its
/// end, and a machine may boot more than once in an attempt.
pub(super) const LOGS_MAX: u32 = 8;

/// The hint of a fault of which the ramdisk's log tells more.
pub(super) const READ_ITS_LOG: &str = "read the log of its deploy ramdisk, which hostler explain \
    names, or look at the machine's console";

impl Node {
    /// Accepts a log, or returns the reason why not.
    pub(super) fn take_log(
        &mut self,
        peer: IpAddr,
        key: &AttemptKey,
        log: RamdiskLog,
        actions: &mut Vec<Action>,
    ) -> Result<Reply, &'static str> {
        let ended = self.ramdisk_logs.ended.as_deref();
        let (number, wanted, bound) = match (self.record.state.attempt(), ended) {
            (Some(attempt), _) => (self.record.attempt, &attempt.key, attempt.peer),
            (None, Some(ended)) => (ended.number, &ended.key, ended.peer),
            (None, None) => return Err("no attempt is under way"),
        };
        if key != wanted {
            return Err("wrong key");
        }
        if bound.is_some_and(|bound| bound != peer) {
            return Err("another address than the one that used the key first");
        }
        if self.ramdisk_logs.count >= LOGS_MAX {
            return Err("this attempt has sent as many logs as are taken");
        }
        self.ramdisk_logs.count += 1;
        let log = ReceivedLog { attempt: number, peer, key: key.clone(), log };
        actions.push(Action::KeepLog(Box::new(log)));
        Ok(Reply::Accepted)
    }
}

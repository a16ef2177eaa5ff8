//! The deploy ramdisk's log: who may send one, and how many.
//!
//! Called by `callback.rs`. A log is passed on to be kept and changes nothing: no state, no
//! deadline, no record. An attempt must never go another way because of what its ramdisk logs, or
//! because of a log that does not come.
//!
//! A ramdisk learns late that its attempt is over, and a machine without a BMC is even told so by
//! the answer that ends it. So the attempt's key is good for this one call until the next attempt
//! begins; but not after a restart of the agent, because the record does not know it any more.

use std::net::IpAddr;

use crate::model::{
    callback::{RamdiskLog, Reply},
    secret::AttemptKey,
};

use super::{
    event::{Action, ReceivedLog},
    node::Node,
};

/// The logs of one attempt that are taken. A ramdisk sends one before its first lookup and two at
/// most when it is through, and a machine may start more than once in an attempt.
pub(super) const LOGS_MAX: u32 = 8;

/// The hint of a fault that the deploy ramdisk has seen more of.
pub(super) const READ_ITS_LOG: &str = "read the log of its deploy ramdisk, which hostler explain \
    names, or look at the machine's console";

impl Node {
    /// Has a log kept, if it may be sent.
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

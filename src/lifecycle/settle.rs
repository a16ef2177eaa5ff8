//! The end of every step, whatever the event: afterwards nothing is overdue and nothing is left
//! undone.
//!
//! Called by [`Node::step`] only. The passes run in this order because each relies on those before
//! it. Settling a node again at the same time must change nothing, which the tests check after each
//! of their steps.

use jiff::Timestamp;

use super::{
    event::Action,
    node::Node,
    state::{Attempt, State},
};

impl Node {
    /// Restores the node's invariants, one in each pass.
    pub(super) fn settle(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        // No wait outlasts its deadline, and no operation its patience. (`wait.rs`)
        self.expire(now, actions);
        // No clean-up without anything to do goes on.
        self.end_empty_clean_up(now);
        // A node is `Booting` exactly while its first boot is awaited and its spec wants the
        // machine to run. (`first_boot.rs`)
        self.await_boot(now, actions);
        // A node is held as `RecordLost` exactly while its spec wants an installation, the disk's
        // content is unknown, and nobody has consented. Comes after `await_boot`, which may end a
        // first boot.
        self.hold_lost_record(now);
        // A machine without a BMC is never held for being on, and never waits for a poll.
        // (`manual_power.rs`)
        self.advance_manual_power(now);
        // The operation that the state needs is running, unless something blocks it. Comes after
        // every change of state.
        self.drive(now, actions);
        // Only a node that may start an attempt is queued for one. (`permits.rs`)
        self.stay_queued();
        // A node is queued for a poll exactly while one is due and no operation runs. Comes after
        // `drive`. (`polling.rs`)
        self.queue_for_poll(now);
        // The record names the phase that is shown, and the history ends with it. Comes last,
        // because everything above changes the phase. (`history.rs`)
        self.note_phase(now);
    }

    /// Ends a clean-up that has nothing to do once no operation runs.
    fn end_empty_clean_up(&mut self, now: Timestamp) {
        if self.running.is_some() || self.unread {
            return;
        }
        if let State::CleaningUp { attempt, purpose } = &self.record.state
            && attempt.as_deref().is_none_or(Attempt::ends_by_itself)
        {
            let purpose = *purpose;
            self.conclude(now, purpose);
        }
    }
}

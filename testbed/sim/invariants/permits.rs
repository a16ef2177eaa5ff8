//! Concurrency limits: never more at once than allowed, first come, first served.

use hostler::{
    lifecycle::{Record, State},
    model::{
        ids::NodeName,
        status::{Phase, Status},
    },
};
use jiff::Timestamp;

use crate::{
    watch::{QueuePlace, Share},
    world::Site,
};

impl Site {
    pub(crate) fn note_share(&mut self, node: &NodeName, record: &Record) {
        let share = match &record.state {
            State::Imaging { granted: true, .. } => Some(Share::Imaging),
            // The wait for an operator takes no permit.
            State::PoweringOn { attempt }
            | State::WaitingRamdisk { attempt }
            | State::Imaging { attempt, .. }
                if attempt.power_control().waits_for_operator() =>
            {
                None
            }
            State::Preparing { .. }
            | State::PoweringOn { .. }
            | State::WaitingRamdisk { .. }
            | State::Imaging { .. } => Some(Share::Attempt),
            _ => None,
        };
        match share {
            Some(share) => self.watch.shares.insert(node.clone(), share),
            None => self.watch.shares.remove(node),
        };
    }

    pub(crate) fn check_permits(&mut self) {
        let count = |wanted| self.watch.shares.values().filter(|share| **share == wanted).count();
        let (attempts, imagings) = (count(Share::Attempt), count(Share::Imaging));
        let policy = self.plan.policy;
        if attempts > policy.attempts_max || imagings > policy.imagings_max {
            let what = format!(
                "{attempts} machines are being brought up and {imagings} disks written, with \
                 {policy:?}"
            );
            self.broken("turns_within_limits", None, what);
        }
    }

    /// Records the nodes whose status says that they wait for a permit.
    pub(crate) fn note_queue(&mut self, status: &Status) {
        // A full disk hides it: who came first meanwhile can no longer be is_known.
        if status.message.ends_with("until it can be written") {
            let hidden = QueuePlace { attempt: status.attempt, since: Timestamp::MIN };
            self.watch.queue.insert(status.node.clone(), hidden);
            return;
        }
        let waits =
            status.phase == Phase::Pending && status.message.starts_with("waiting for its turn");
        if waits {
            let place = QueuePlace { attempt: status.attempt, since: self.now() };
            let kept = self.watch.queue.entry(status.node.clone()).or_insert(place);
            kept.attempt = status.attempt;
        } else {
            self.watch.queue.remove(&status.node);
        }
    }

    /// Judges a node's permit for this attempt.
    pub(crate) fn judge_permit(&mut self, node: &NodeName, attempt: u32) {
        let latest = QueuePlace { attempt: attempt.saturating_sub(1), since: self.now() };
        let own = self.watch.queue.get(node).copied().unwrap_or(latest);
        let overtaken = self.watch.queue.iter().find(|(name, place)| {
            // A node in a poll cannot start.
            let ready = *name != node && !self.runs(name) && !self.unsaved.contains(*name);
            let is_known = place.since != Timestamp::MIN;
            ready && is_known && place.attempt <= own.attempt && place.since < own.since
        });
        if let Some((name, place)) = overtaken {
            let what = format!("with {own:?} overtakes {name}, which has {place:?}");
            self.broken("fair", Some(node), what);
        }
    }
}

//! Concurrency limits: never more at once than allowed, and first come, first served.

use hostler::{
    lifecycle::{Record, State},
    model::{
        ids::NodeName,
        status::{Phase, Status},
    },
};
use jiff::Timestamp;

use crate::world::Site;

/// What a node does that only so many may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    Attempt,
    Imaging,
}

/// A place in the line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    attempt: u32,
    pub(crate) since: Timestamp,
}

impl Site {
    pub(crate) fn note_share(&mut self, node: &NodeName, record: &Record) {
        let share = match &record.state {
            State::Imaging { granted: true, .. } => Some(Share::Imaging),
            // What an operator does takes nobody's turn.
            State::PoweringOn { attempt }
            | State::WaitingRamdisk { attempt }
            | State::Imaging { attempt, .. }
                if attempt.bmc.is_none() =>
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
                "{attempts} machines are being brought up and {imagings} disks written, with {policy:?}"
            );
            self.broken("turns_within_limits", None, what);
        }
    }

    /// Who waits for its turn says so.
    pub(crate) fn note_line(&mut self, status: &Status) {
        // A full disk hides it: who came first meanwhile can no longer be told.
        if status.message.ends_with("until it can be written") {
            let hidden = Place { attempt: status.attempt, since: Timestamp::MIN };
            self.watch.line.insert(status.node.clone(), hidden);
            return;
        }
        let waits =
            status.phase == Phase::Pending && status.message.starts_with("waiting for its turn");
        if waits {
            let place = Place { attempt: status.attempt, since: self.now() };
            let kept = self.watch.line.entry(status.node.clone()).or_insert(place);
            kept.attempt = status.attempt;
        } else {
            self.watch.line.remove(&status.node);
        }
    }

    /// A node's turn has come, for this attempt.
    pub(crate) fn judge_permit(&mut self, node: &NodeName, attempt: u32) {
        let latest = Place { attempt: attempt.saturating_sub(1), since: self.now() };
        let own = self.watch.line.get(node).copied().unwrap_or(latest);
        let overtaken = self.watch.line.iter().find(|(name, place)| {
            // Who is just being looked at cannot go.
            let ready = *name != node && !self.runs(name) && !self.unsaved.contains(*name);
            let told = place.since != Timestamp::MIN;
            ready && told && place.attempt <= own.attempt && place.since < own.since
        });
        if let Some((name, place)) = overtaken {
            let what = format!("with {own:?} overtakes {name}, which has {place:?}");
            self.broken("fair", Some(node), what);
        }
    }
}

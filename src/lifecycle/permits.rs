//! Permits, which limit how many nodes bring up their machine, write their disk or poll their BMC
//! at the same time.
//!
//! Owned by the [`super::Fleet`], which after each step of a node updates the permits that it holds
//! and waits for. They are derived from the node's state, never acquired or released, so that none
//! can leak. First attempts precede repeated ones, so that a machine that never comes up delays
//! others only once. A machine without a BMC delays none: after its image is prepared, it holds no
//! permit until its disk is written.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::model::{ids::NodeName, power::PowerState};

use super::{
    event::{Permit, PermitPlace},
    limits::{PROGRAM_POLLS_MAX, Policy},
    node::Node,
    polls,
    state::State,
    transitions::Cause,
};

#[derive(Debug)]
pub(super) struct ConcurrencyLimits {
    attempts: PermitQueue,
    imagings: PermitQueue,
    polls: PermitQueue,
    program_polls: PermitQueue,
}

#[derive(Debug)]
struct PermitQueue {
    limit: usize,
    /// The number of permits that a class of nodes may hold, for queues with classes.
    shares: Option<fn(usize, u32) -> usize>,
    holders: BTreeSet<NodeName>,
    waiting: BTreeSet<(PermitPlace, NodeName)>,
    places: BTreeMap<NodeName, PermitPlace>,
}

impl ConcurrencyLimits {
    pub(super) fn new(policy: &Policy) -> Self {
        let by_class: Option<fn(usize, u32) -> usize> = Some(polls::share);
        Self {
            attempts: PermitQueue::new(policy.attempts_max, None),
            imagings: PermitQueue::new(policy.imagings_max, None),
            polls: PermitQueue::new(policy.polls_max, by_class),
            program_polls: PermitQueue::new(policy.polls_max.min(PROGRAM_POLLS_MAX), by_class),
        }
    }

    /// Updates the permits that a node holds, in its state and in its durable record, and those
    /// that it waits for.
    pub(super) fn put(
        &mut self,
        node: &NodeName,
        holds: [Option<Permit>; 3],
        waits: [Option<(Permit, PermitPlace)>; 2],
    ) {
        for (permit, queue) in [
            (Permit::Attempt, &mut self.attempts),
            (Permit::Imaging, &mut self.imagings),
            (Permit::Poll, &mut self.polls),
            (Permit::ProgramPoll, &mut self.program_polls),
        ] {
            let place = waits.iter().flatten().find(|(wanted, _)| *wanted == permit);
            queue.put(node, holds.contains(&Some(permit)), place.map(|(_, place)| *place));
        }
    }

    /// The next node that may get a permit.
    pub(super) fn next(&self) -> Option<(NodeName, Permit)> {
        // A node whose machine is up comes first.
        [
            (Permit::Imaging, &self.imagings),
            (Permit::Attempt, &self.attempts),
            (Permit::Poll, &self.polls),
            (Permit::ProgramPoll, &self.program_polls),
        ]
        .into_iter()
        .find_map(|(permit, queue)| Some((queue.next()?, permit)))
    }
}

impl PermitQueue {
    fn new(limit: usize, shares: Option<fn(usize, u32) -> usize>) -> Self {
        let (holders, waiting, places) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        Self { limit, shares, holders, waiting, places }
    }

    fn put(&mut self, node: &NodeName, holds: bool, place: Option<PermitPlace>) {
        if holds {
            self.holders.insert(node.clone());
        } else {
            self.holders.remove(node);
        }
        if self.places.get(node).copied() == place {
            return;
        }
        if let Some(before) = self.places.remove(node) {
            self.waiting.remove(&(before, node.clone()));
        }
        if let Some(place) = place {
            self.places.insert(node.clone(), place);
            self.waiting.insert((place, node.clone()));
        }
    }

    fn next(&self) -> Option<NodeName> {
        let ((class, _), node) = self.waiting.first()?;
        let limit = self.shares.map_or(self.limit, |share| share(self.limit, *class));
        (self.holders.len() < limit).then(|| node.clone())
    }
}

impl State {
    /// Whether an exported disk waits for its permit.
    const fn waits_to_image(&self) -> bool {
        matches!(self, Self::Imaging { granted: false, .. })
    }

    /// The permit of a node in this state.
    pub(super) fn holds(&self) -> Option<Permit> {
        match self {
            Self::Preparing { .. } => Some(Permit::Attempt),
            Self::PoweringOn { attempt }
            | Self::WaitingRamdisk { attempt }
            | Self::Imaging { attempt, granted: false, .. } => {
                attempt.power_control().takes_attempt_permit().then_some(Permit::Attempt)
            }
            Self::Imaging { granted: true, .. } => Some(Permit::Imaging),
            Self::Idle
            | Self::Held { .. }
            | Self::Failed
            | Self::SettingPower { .. }
            | Self::Switching { .. }
            | Self::WaitingCompleted { .. }
            | Self::Restarting { .. }
            | Self::Booting { .. }
            | Self::CleaningUp { .. } => None,
        }
    }
}

impl Node {
    /// The permit that the node waits for, with its place in the queue.
    pub(super) fn waits_for(&self) -> Option<(Permit, PermitPlace)> {
        if self.unread || self.running.is_some() {
            return None;
        }
        let attempt = self.record.attempt;
        if self.record.state.waits_to_image() {
            return Some((Permit::Imaging, (attempt, self.record.since)));
        }
        let since = self.queued_since.filter(|_| self.record.state == State::Idle)?;
        Some((Permit::Attempt, (attempt, since)))
    }

    /// Takes a permit, or ignores one that the node no longer needs.
    pub(super) fn take_permit(&mut self, now: Timestamp, permit: Permit) {
        match permit {
            Permit::Attempt if self.record.state == State::Idle => {
                let was_queued = self.queued_since.take().is_some();
                let seen = self.power.map(|power| power.observed);
                let seen =
                    if self.power_control().can_switch() { seen } else { Some(PowerState::Off) };
                let wipes = seen.is_some_and(|seen| self.may_wipe(seen));
                if was_queued && wipes && self.may_start() {
                    self.begin(now);
                }
            }
            Permit::Imaging if self.record.state.waits_to_image() => {
                // From here on, the disk's old content is gone.
                self.record.know_nothing_installed();
                // The deadline for writing begins now, after the wait.
                self.enter(now, Cause::ImagingGranted);
                let message = self.message();
                if let Some(entry) = self.record.history.last_mut() {
                    entry.message = message;
                }
            }
            Permit::Poll | Permit::ProgramPoll => self.polls.grant(),
            // No longer needed.
            Permit::Attempt | Permit::Imaging => {}
        }
    }

    /// Leaves the queue for attempts if no attempt may start any more.
    pub(super) fn stay_queued(&mut self) {
        if self.record.state != State::Idle || !self.may_start() {
            self.queued_since = None;
        }
    }
}

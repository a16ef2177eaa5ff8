//! Permits: only so many nodes bring up their machine, write their disk, or poll their BMC at the
//! same time.
//!
//! Kept by the [`super::Fleet`], which asks each node after each of its steps what it holds and
//! what it waits for. A permit is never taken or given back by a call of its own, so that none can
//! leak. First attempts go before repeated ones: a machine that never comes up does not keep the
//! others waiting twice. A machine that an operator has to switch on keeps none waiting at all:
//! once its image is here it holds no permit until its disk is to be written.

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
    /// The part of the permits that nodes of a class may take, where the first number of their
    /// place is a class.
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

    /// Notes what a node holds, also according to its record as it was last written, and what it
    /// waits for now.
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

    /// The next node that may go on, and with what.
    pub(super) fn next(&self) -> Option<(NodeName, Permit)> {
        // A node that already has its machine up goes first.
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
    /// Whether a disk is exported and waits for its turn to be written.
    const fn waits_to_image(&self) -> bool {
        matches!(self, Self::Imaging { granted: false, .. })
    }

    /// The permit that a node in this state holds.
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
    /// The permit that the node waits for, and its place in that queue.
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

    /// Takes a permit. One that is no longer wanted passes.
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
                // From here on the disk's old contents are gone.
                self.record.know_nothing_installed();
                // Waiting was not writing: the whole time for it begins now.
                self.enter(now, Cause::ImagingGranted);
                let message = self.message();
                if let Some(entry) = self.record.history.last_mut() {
                    entry.message = message;
                }
            }
            Permit::Poll | Permit::ProgramPoll => self.polls.grant(),
            // Not wanted any more.
            Permit::Attempt | Permit::Imaging => {}
        }
    }

    /// Leaves the queue for attempts if nothing is wanted any more.
    pub(super) fn stay_queued(&mut self) {
        if self.record.state != State::Idle || !self.may_start() {
            self.queued_since = None;
        }
    }
}

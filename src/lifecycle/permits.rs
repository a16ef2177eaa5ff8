//! Whose turn it is: only so many nodes bring up their machine, or write their disk, at the same time.
//!
//! Kept by the [`super::Fleet`], which asks each node after each of its steps what it holds and what it waits for. A turn is never
//! taken or given back by a call of its own, so that none can leak. First attempts go before repeated ones: a machine that never
//! comes up does not keep the others waiting twice. One that an operator has to switch on keeps none waiting at all: once its image is
//! here it has no turn until its disk is to be written.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::model::{ids::NodeName, power::PowerState};

use super::{
    event::Permit,
    fleet::Policy,
    node::Node,
    polls::{self, PROGRAM_POLLS_MAX},
    state::State,
    transitions::Cause,
};

/// A node's place in the line: its attempt, and since when it waits.
pub(super) type Place = (u32, Timestamp);

#[derive(Debug)]
pub(super) struct ConcurrencyLimits {
    attempts: Line,
    imagings: Line,
    polls: Line,
    program_polls: Line,
}

#[derive(Debug)]
struct Line {
    limit: usize,
    /// How many of the places those in a class may take, where the first number of their place is a class.
    shares: Option<fn(usize, u32) -> usize>,
    holders: BTreeSet<NodeName>,
    waiting: BTreeSet<(Place, NodeName)>,
    places: BTreeMap<NodeName, Place>,
}

impl ConcurrencyLimits {
    pub(super) fn new(policy: &Policy) -> Self {
        let by_class: Option<fn(usize, u32) -> usize> = Some(polls::share);
        Self {
            attempts: Line::new(policy.attempts_max, None),
            imagings: Line::new(policy.imagings_max, None),
            polls: Line::new(policy.polls_max, by_class),
            program_polls: Line::new(policy.polls_max.min(PROGRAM_POLLS_MAX), by_class),
        }
    }

    /// Writes down what a node holds, also according to its record as it was last written, and what it waits for now.
    pub(super) fn put(
        &mut self,
        node: &NodeName,
        holds: [Option<Permit>; 3],
        waits: [Option<(Permit, Place)>; 2],
    ) {
        for (permit, line) in [
            (Permit::Attempt, &mut self.attempts),
            (Permit::Imaging, &mut self.imagings),
            (Permit::Poll, &mut self.polls),
            (Permit::ProgramPoll, &mut self.program_polls),
        ] {
            let place = waits.iter().flatten().find(|(wanted, _)| *wanted == permit);
            line.put(node, holds.contains(&Some(permit)), place.map(|(_, place)| *place));
        }
    }

    /// The next node that may go on, and with what.
    pub(super) fn next(&self) -> Option<(NodeName, Permit)> {
        // Who already has a machine up goes first.
        [
            (Permit::Imaging, &self.imagings),
            (Permit::Attempt, &self.attempts),
            (Permit::Poll, &self.polls),
            (Permit::ProgramPoll, &self.program_polls),
        ]
        .into_iter()
        .find_map(|(permit, line)| Some((line.next()?, permit)))
    }
}

impl Line {
    fn new(limit: usize, shares: Option<fn(usize, u32) -> usize>) -> Self {
        let (holders, waiting, places) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        Self { limit, shares, holders, waiting, places }
    }

    fn put(&mut self, node: &NodeName, holds: bool, place: Option<Place>) {
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

    /// What a node in this state does that only so many may do.
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
            | Self::CleaningUp { .. } => None,
        }
    }
}

impl Node {
    /// What it waits for its turn to do.
    pub(super) fn waits_for(&self) -> Option<(Permit, Place)> {
        if self.unread || self.running.is_some() {
            return None;
        }
        let attempt = self.record.attempt;
        if self.record.state.waits_to_image() {
            return Some((Permit::Imaging, (attempt, self.record.since)));
        }
        let since = self.in_line_since.filter(|_| self.record.state == State::Idle)?;
        Some((Permit::Attempt, (attempt, since)))
    }

    /// Its turn has come. One that is no longer wanted passes.
    pub(super) fn take_permit(&mut self, now: Timestamp, permit: Permit) {
        match permit {
            Permit::Attempt if self.record.state == State::Idle => {
                let in_line = self.in_line_since.take().is_some();
                let seen = self.power.map(|power| power.observed);
                let seen =
                    if self.power_control().can_switch() { seen } else { Some(PowerState::Off) };
                let wipes = seen.is_some_and(|seen| self.may_wipe(seen));
                if in_line && wipes && self.may_start() {
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

    /// Leaves the line if nothing is wanted any more.
    pub(super) fn stay_in_line(&mut self) {
        if self.record.state != State::Idle || !self.may_start() {
            self.in_line_since = None;
        }
    }
}

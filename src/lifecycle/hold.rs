//! Being held: a node to whose machine nothing is done before an operator consents.
//!
//! Called wherever the core asks whether a node is held, why, or whether a disk may be wiped. Three
//! things on record say so, and nothing else reads them: the state [`State::Held`], the breaker's
//! `too_many_changes`, and `record_lost` while nobody has consented. [`Node::held_for`] is the
//! answer that is shown; it counts since [`Record::since`].

use std::sync::Arc;

use jiff::Timestamp;

use crate::model::{
    power::PowerState,
    spec::{Goal, NodeSpec},
};

use super::{
    node::Node,
    state::{Hold, Record, State},
    transitions::Cause,
};

impl Record {
    /// Whether nobody knows what is on the machine's disk.
    pub(super) const fn is_disk_unknown(&self) -> bool {
        self.record_lost
    }

    /// Whether the breaker holds the node, shown or not.
    pub(super) const fn is_held_by_breaker(&self) -> bool {
        self.too_many_changes
    }
}

impl Node {
    /// The reason why the node is held, if it is, since [`Record::since`].
    pub fn held_for(&self) -> Option<Hold> {
        let spec = self.record.spec.as_ref().filter(|spec| !self.clash && !spec.paused)?;
        let state = &self.record.state;
        if !state.at_rest() && !matches!(state, State::SettingPower { .. }) {
            return None;
        }
        let waits = if let State::Held { reason, .. } = state { Some(*reason) } else { None };
        match spec.goal {
            Goal::Unmanaged => None,
            Goal::Available => waits.filter(|reason| *reason == Hold::PoweredOn),
            Goal::Deployed if self.owes_restart() || !self.wants_install() => None,
            Goal::Deployed if self.record.too_many_changes => Some(Hold::TooManyChanges),
            Goal::Deployed => waits,
        }
    }

    /// Whether nothing may start before somebody consents, even if the machine is off.
    pub(super) fn needs_consent(&self) -> bool {
        self.record.too_many_changes || self.is_lost()
    }

    /// Whether nobody knows what is on the disk, and nobody has consented to lose it.
    fn is_lost(&self) -> bool {
        self.record.record_lost && !self.record.consented
    }

    /// Whether a machine in this power state may be wiped. A reinstall is wanted only after
    /// `redeploy` was changed, and that is consent.
    pub(super) fn may_wipe(&self, observed: PowerState) -> bool {
        let is_strangers = observed == PowerState::On || self.record.record_lost;
        !is_strangers || self.record.consented || self.record.installed.is_some()
    }

    /// Whether the machine's being off would be taken for consent to wipe and install it, now or
    /// when the node may go on.
    pub fn is_wiped_when_off(&self) -> bool {
        let waits = match &self.record.state {
            State::Held { reason, .. } => *reason == Hold::PoweredOn,
            state => *state == State::Idle,
        };
        waits && self.wants_install()
    }

    /// The machine may not be wiped as it is: an operator must say so.
    pub(super) fn hold(&mut self, now: Timestamp, spec: &NodeSpec) {
        let reason = if self.is_lost() { Hold::RecordLost } else { Hold::PoweredOn };
        self.hold_for(now, spec, reason);
    }

    pub(super) fn hold_for(&mut self, now: Timestamp, spec: &NodeSpec, reason: Hold) {
        let redeploy = spec.redeploy.clone();
        self.enter(now, Cause::ConsentMissing { redeploy, reason });
    }

    /// Holds the node from wherever it comes to rest, and for as long as the disk is to be written.
    pub(super) fn hold_lost_record(&mut self, now: Timestamp) {
        let holds = self.is_lost() && self.wants_install();
        let is_held = matches!(self.record.state, State::Held { reason: Hold::RecordLost, .. });
        if holds && self.record.state == State::Idle {
            let Some(spec) = self.record.spec.clone() else { return };
            self.hold_for(now, &spec, Hold::RecordLost);
        } else if is_held && !holds {
            self.enter(now, Cause::DiskKnown);
        }
    }

    /// The machine is off, or nothing can tell: being on is no reason to hold it any more.
    pub(super) fn release_powered_on(&mut self, now: Timestamp) {
        if matches!(self.record.state, State::Held { reason: Hold::PoweredOn, .. }) {
            self.enter(now, Cause::NotSeenOn);
        }
    }

    /// A changed spec is read while the node is held. Only a `redeploy` that is another one than
    /// when the hold was shown is consent.
    pub(super) fn consider_hold(&mut self, now: Timestamp, spec: &Arc<NodeSpec>, is_first: bool) {
        let State::Held { redeploy, .. } = &mut self.record.state else { return };
        if is_first {
            redeploy.clone_from(&spec.redeploy);
        } else if spec.goal == Goal::Deployed
            && spec.redeploy.is_some()
            && spec.redeploy != *redeploy
        {
            self.approve(now);
        }
    }

    /// An operator consents. It counts only while the node shows that it waits for that.
    pub(super) fn approve(&mut self, now: Timestamp) {
        if self.held_for().is_some() {
            self.record.consented = true;
            self.record.too_many_changes = false;
            self.polls.ask(now);
            self.start_afresh(now);
        }
    }
}

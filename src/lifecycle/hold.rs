//! Held nodes, whose machines hostler does not touch before an operator consents.
//!
//! Called wherever the core needs to know whether and why a node is held, or whether a disk may be
//! WIPED. Three parts of the record decide, and only this file reads them: the state
//! [`State::Held`], the breaker's `too_many_changes`, and `record_lost` without consent.
//! [`Node::held_for`] is the reason that is shown, since [`Record::since`].

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
    /// Whether the content of the machine's disk is unknown.
    pub(super) const fn is_disk_unknown(&self) -> bool {
        self.record_lost
    }

    /// Whether the breaker holds the node, even if another phase is shown.
    pub(super) const fn is_held_by_breaker(&self) -> bool {
        self.too_many_changes
    }
}

impl Node {
    /// The reason why the node is held, since [`Record::since`].
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

    /// Whether nothing may start without consent, even if the machine is off.
    pub(super) fn needs_consent(&self) -> bool {
        self.record.too_many_changes || self.is_lost()
    }

    /// Whether the disk's content is unknown and nobody has consented to WIPE it.
    fn is_lost(&self) -> bool {
        self.record.record_lost && !self.record.consented
    }

    /// Whether a machine in this power state may be WIPED. For a reinstall, the change of
    /// `redeploy` is consent.
    pub(super) fn may_wipe(&self, observed: PowerState) -> bool {
        let may_be_in_use = observed == PowerState::On || self.record.record_lost;
        !may_be_in_use || self.record.consented || self.record.installed.is_some()
    }

    /// Whether switching the machine off is consent to WIPE and install it, now or once nothing
    /// blocks the node.
    pub fn is_wiped_when_off(&self) -> bool {
        let state = &self.record.state;
        let is_held_on = matches!(state, State::Held { reason: Hold::PoweredOn, .. });
        (is_held_on || *state == State::Idle) && self.wants_install()
    }

    /// Holds the node until an operator consents to WIPE its machine.
    pub(super) fn hold(&mut self, now: Timestamp, spec: &NodeSpec) {
        let reason = if self.is_lost() { Hold::RecordLost } else { Hold::PoweredOn };
        self.hold_for(now, spec, reason);
    }

    pub(super) fn hold_for(&mut self, now: Timestamp, spec: &NodeSpec, reason: Hold) {
        let redeploy = spec.redeploy.clone();
        self.enter(now, Cause::ConsentMissing { redeploy, reason });
    }

    /// Holds a node at rest while its disk's content is unknown and its spec wants an installation.
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

    /// Ends the hold of a machine that was on, because it is off now or has no BMC.
    pub(super) fn release_powered_on(&mut self, now: Timestamp) {
        if matches!(self.record.state, State::Held { reason: Hold::PoweredOn, .. }) {
            self.enter(now, Cause::NotSeenOn);
        }
    }

    /// Judges a changed spec of a held node. A `redeploy` that differs from that at the beginning
    /// of the hold is consent.
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

    /// Takes an operator's consent, which counts only while the node is shown as held. Before the
    /// spec is read, the agent does not know a clash that the status shows.
    pub(super) fn approve(&mut self, now: Timestamp) {
        if self.held_for().is_some() && !self.unread {
            self.record.consented = true;
            self.record.too_many_changes = false;
            self.polls.ask(now);
            self.start_afresh(now);
        }
    }
}

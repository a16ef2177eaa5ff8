//! The power of a machine outside of an attempt: what its spec wants, and when hostler switches it.
//!
//! Called by `node.rs` and `attempt.rs`. A machine is switched when its spec is changed to want
//! another state, or somebody says so; a machine that differs later has drifted, which is shown,
//! and mended only if the agent's configuration says so. It must never switch a machine that
//! hostler has not installed and nobody has consented to.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::model::{
    fault::{Fault, Step},
    machine::MachineChange,
    power::PowerState,
    spec::{Goal, NodeSpec, WantedPower},
    status::LastError,
};

use super::{
    limits::after,
    node::Node,
    power_control::PowerControl,
    state::{Hold, State},
    transitions::Cause,
};

/// Between two enforcements: a machine that cannot hold its power state must not be switched
/// without end.
const ENFORCEMENT_INTERVAL: Duration = Duration::from_secs(15 * 60);
impl Node {
    /// The power state the machine should be in now; none in an attempt, before one, if it does not
    /// matter, or without a BMC.
    pub(super) fn wanted_power(&self) -> Option<PowerState> {
        let spec = self.record.spec.as_ref().filter(|spec| PowerControl::of(spec).can_switch())?;
        match (spec.goal, spec.power) {
            (Goal::Unmanaged, _) | (Goal::Deployed, WantedPower::Ignore) => None,
            (Goal::Deployed, _) if self.wants_install() => None,
            (Goal::Deployed, WantedPower::On) => Some(PowerState::On),
            (Goal::Deployed, WantedPower::Off) | (Goal::Available, _) => Some(PowerState::Off),
        }
    }

    /// The power state in which an installed machine is left.
    pub(super) fn power_after_install(&self) -> PowerState {
        let power = self.record.spec.as_ref().map(|spec| spec.power);
        if power == Some(WantedPower::Off) { PowerState::Off } else { PowerState::On }
    }

    /// Whether the machine was seen in another power state than it should be in.
    pub(super) fn power_differs(&self) -> bool {
        self.power_missed().is_some()
    }

    /// The power state the machine should be in, if it was seen in another.
    pub fn power_missed(&self) -> Option<PowerState> {
        self.wanted_power()
            .filter(|wanted| self.power.is_some_and(|power| power.observed != *wanted))
    }

    /// A changed `state` or `power` is an order, if it is about a machine that hostler knows. What
    /// changes for another reason, such as a `redeploy` that is taken back, is none.
    pub(super) fn order_power(&mut self, now: Timestamp, old: Option<&NodeSpec>, new: &NodeSpec) {
        let same_machine = old.filter(|old| old.machine_change(new) == MachineChange::None);
        match (same_machine.filter(|_| PowerControl::of(new).can_switch()), new.goal, new.power) {
            (None, ..) | (_, Goal::Unmanaged, _) | (_, Goal::Deployed, WantedPower::Ignore) => {
                self.record.power_ordered = false;
            }
            (Some(old), goal, power)
                if (old.goal, old.power) != (goal, power) && self.knows_machine() =>
            {
                self.record.power_ordered = true;
                self.polls.ask(now);
            }
            (Some(_), ..) => {}
        }
    }

    /// Whether the machine is hostler's to switch: installed by it, being installed, or consented
    /// to.
    fn knows_machine(&self) -> bool {
        let busy = self.record.state.attempt().is_some();
        self.record.installed.is_some() || self.record.consented || busy
    }

    /// Whether the BMC is the one by which the machine was installed. Behind another address may be
    /// another machine, which nobody switches without an order.
    pub(super) fn answers_where_installed(&self) -> bool {
        let machine =
            self.record.installed.as_ref().and_then(|installed| installed.machine.as_ref());
        let spec = self.record.spec.as_ref();
        machine.zip(spec).is_some_and(|(machine, spec)| machine.bmc.as_ref() == spec.bmc_address())
    }

    /// The BMC has said how the machine is: switch it, ask somebody, or let it be.
    pub(super) fn consider_power(&mut self, now: Timestamp, observed: PowerState) {
        if self.owes_restart() {
            return self.consider_restart(now, observed);
        }
        let Some(wanted) = self.wanted_power() else { return };
        if observed == wanted {
            return self.power_as_wanted();
        }
        let Some(spec) = &self.record.spec else { return };
        if self.record.state != State::Idle || self.stands_still() {
            return;
        }
        if !self.knows_machine() {
            // Only a spec that wants a machine off wants something of one that is not installed.
            let spec = Arc::clone(spec);
            return self.hold_for(now, &spec, Hold::PoweredOn);
        }
        let rested =
            self.record.power_forced_at.is_none_or(|at| after(at, ENFORCEMENT_INTERVAL) <= now);
        let enforced = self.policy.enforce_power && rested && self.answers_where_installed();
        if self.record.power_ordered || self.record.consented || enforced {
            self.record.power_forced_at = Some(now);
            self.enter(now, Cause::PowerWanted(wanted));
        }
    }

    /// Whether the machine's disk is written and the machine was not restarted since.
    pub fn owes_restart(&self) -> bool {
        let deployed =
            |spec: &NodeSpec| spec.goal == Goal::Deployed && PowerControl::of(spec).can_switch();
        self.record.awaits_restart
            && self.record.installed.is_some()
            && self.record.spec.as_deref().is_some_and(deployed)
            && !self.wants_install()
    }

    /// A machine that is on may run its own system by now, if somebody has restarted it: it is
    /// restarted when an operator says so.
    fn consider_restart(&mut self, now: Timestamp, observed: PowerState) {
        if observed == PowerState::Off {
            self.needs_no_restart();
            return self.consider_power(now, observed);
        }
        if self.record.power_ordered && self.record.state == State::Idle && !self.stands_still() {
            let wanted = self.power_after_install();
            self.enter(now, Cause::PowerWanted(wanted));
        }
    }

    /// The machine was seen off: whatever it ran before, it boots what was written, and is switched
    /// on for the first time if its spec wants it on.
    pub(super) fn needs_no_restart(&mut self) {
        if std::mem::take(&mut self.record.awaits_restart) {
            self.record.power_ordered = true;
            self.record.last_error = None;
        }
    }

    /// Nothing is left to do, whoever did it.
    fn power_as_wanted(&mut self) {
        self.record.power_ordered = false;
        self.record.last_error.take_if(|error| error.fault.step == Step::Power);
    }

    /// The machine was switched.
    pub(super) fn power_set(&mut self, now: Timestamp, reached: PowerState) {
        self.power_as_wanted();
        if std::mem::take(&mut self.record.awaits_restart) {
            self.record.last_error = None;
        }
        self.enter(now, Cause::PowerReached);
        self.see_power(now, reached);
    }

    /// Notes that the BMC could not switch the machine, in all its tries: it is left as it is, and
    /// that is shown.
    pub(super) fn power_not_set(&mut self, now: Timestamp, fault: Fault) {
        self.record.power_ordered = false;
        let attempt = self.record.attempt;
        self.record.last_error = Some(LastError { at: now, attempt, fault: fault.clone() });
        self.enter(now, Cause::PowerMissed);
        self.miss_power(now, fault);
    }
}

//! The power of a machine outside of an attempt: the wanted state, and when hostler switches.
//!
//! Called by `node.rs` and `attempt.rs`. A changed spec or an operator orders a power state. A
//! later difference is drift, which is shown and, only with `safety.enforce_power`, corrected. It
//! must never switch a machine that hostler has not installed, unless somebody consented.

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

/// The least time between two corrections: a machine that cannot keep its power state must not be
/// switched endlessly.
const ENFORCEMENT_INTERVAL: Duration = Duration::from_secs(15 * 60);
impl Node {
    /// The power state that the machine should be in now. `None` in or before an attempt, if the
    /// state does not matter, or without a BMC.
    pub(super) fn wanted_power(&self) -> Option<PowerState> {
        let spec = self.record.spec.as_ref().filter(|spec| PowerControl::of(spec).can_switch())?;
        match (spec.goal, spec.power) {
            (Goal::Unmanaged, _) | (Goal::Deployed, WantedPower::Ignore) => None,
            (Goal::Deployed, _) if self.wants_install() => None,
            (Goal::Deployed, WantedPower::On) => Some(PowerState::On),
            (Goal::Deployed, WantedPower::Off) | (Goal::Available, _) => Some(PowerState::Off),
        }
    }

    /// The power state of the machine after its installation.
    pub(super) fn power_after_install(&self) -> PowerState {
        let power = self.record.spec.as_ref().map(|spec| spec.power);
        if power == Some(WantedPower::Off) { PowerState::Off } else { PowerState::On }
    }

    /// Whether the observed power state differs from the wanted one.
    pub(super) fn power_differs(&self) -> bool {
        self.power_missed().is_some()
    }

    /// The wanted power state, if the observed one differs.
    pub fn power_missed(&self) -> Option<PowerState> {
        self.wanted_power()
            .filter(|wanted| self.power.is_some_and(|power| power.observed != *wanted))
    }

    /// Orders a power state if the spec's `state` or `power` changed and hostler knows the machine.
    /// Any other change, such as a `redeploy` that is taken back, is no order.
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

    /// Whether hostler may switch the machine: it is installed, being installed, or has consent.
    fn knows_machine(&self) -> bool {
        let busy = self.record.state.attempt().is_some();
        self.record.installed.is_some() || self.record.consented || busy
    }

    /// Whether the BMC has the same address as at the installation. Another address may be another
    /// machine's, which hostler never switches without an order.
    pub(super) fn answers_where_installed(&self) -> bool {
        let machine =
            self.record.installed.as_ref().and_then(|installed| installed.machine.as_ref());
        let spec = self.record.spec.as_ref();
        machine.zip(spec).is_some_and(|(machine, spec)| machine.bmc.as_ref() == spec.bmc_address())
    }

    /// Considers the reported power state: hostler switches the machine, holds the node, or does
    /// nothing.
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
            // Only a spec that wants an uninstalled machine off gets here.
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

    /// Whether the machine was not restarted since its disk was written.
    pub fn owes_restart(&self) -> bool {
        let deployed =
            |spec: &NodeSpec| spec.goal == Goal::Deployed && PowerControl::of(spec).can_switch();
        self.record.awaits_restart
            && self.record.installed.is_some()
            && self.record.spec.as_deref().is_some_and(deployed)
            && !self.wants_install()
    }

    /// Considers a pending restart. Only an operator's order restarts a machine that is on, because
    /// somebody may have restarted it already.
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

    /// Ends a pending restart, because the machine is off and will boot the installed system. It is
    /// then switched on if the spec wants that.
    pub(super) fn needs_no_restart(&mut self) {
        if std::mem::take(&mut self.record.awaits_restart) {
            self.record.power_ordered = true;
            self.record.last_error = None;
        }
    }

    /// Notes that the power state is the wanted one, whoever set it.
    fn power_as_wanted(&mut self) {
        self.record.power_ordered = false;
        self.record.last_error.take_if(|error| error.fault.step == Step::Power);
    }

    /// Notes that the BMC has switched the machine.
    pub(super) fn power_set(&mut self, now: Timestamp, reached: PowerState) {
        self.power_as_wanted();
        if reached == PowerState::On {
            self.note_own_boot(now);
        }
        if std::mem::take(&mut self.record.awaits_restart) {
            self.record.last_error = None;
        }
        self.enter(now, Cause::PowerReached);
        self.see_power(now, reached);
    }

    /// Notes that all tries to switch the machine failed. It stays as it is, and the status says
    /// so.
    pub(super) fn power_not_set(&mut self, now: Timestamp, fault: Fault) {
        self.record.power_ordered = false;
        let attempt = self.record.attempt;
        self.record.last_error = Some(LastError { at: now, attempt, fault: fault.clone() });
        self.enter(now, Cause::PowerMissed);
        self.miss_power(now, fault);
    }
}

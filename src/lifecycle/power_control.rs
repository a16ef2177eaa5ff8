//! Power control: the BMC switches a machine, or an operator and the deploy ramdisk do.
//!
//! Derived from the BMC in the attempt's record or in the spec. The core asks one of these methods
//! instead of checking for a BMC, so that every difference has a name.

use crate::model::spec::{Bmc, NodeSpec};

use super::{node::Node, state::Attempt};

/// The way in which a machine is switched on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerControl {
    /// By its BMC.
    Bmc,
    /// By an operator, and by the deploy ramdisk on the machine.
    Manual,
}

impl PowerControl {
    pub(super) const fn by(bmc: Option<&Bmc>) -> Self {
        if bmc.is_some() { Self::Bmc } else { Self::Manual }
    }

    /// The power control of a spec's machine.
    pub(super) fn of(spec: &NodeSpec) -> Self {
        Self::by(spec.bmc.as_deref())
    }

    /// Whether hostler can read and set the power state.
    pub(super) const fn can_switch(self) -> bool {
        matches!(self, Self::Bmc)
    }

    /// Whether an attempt waits for an operator to netboot the machine. Pressing the power button
    /// is the consent, so that the power state does not matter before.
    pub const fn waits_for_operator(self) -> bool {
        matches!(self, Self::Manual)
    }

    /// Whether the deploy ramdisk restarts its machine or switches it off.
    pub const fn restarts_itself(self) -> bool {
        matches!(self, Self::Manual)
    }

    /// Whether bringing up the machine needs one of the permits of `limits.waiting`. An operator
    /// may come at any time, and then the machine comes up with or without a permit.
    pub const fn takes_attempt_permit(self) -> bool {
        matches!(self, Self::Bmc)
    }
}

impl Attempt {
    /// The power control of the attempt's machine, which the spec may no longer name.
    pub fn power_control(&self) -> PowerControl {
        PowerControl::by(self.bmc.as_deref())
    }

    /// Whether the attempt ends without a clean-up: there is no BMC, and no ramdisk has called.
    pub(super) fn ends_by_itself(&self) -> bool {
        self.power_control().restarts_itself() && self.peer.is_none()
    }
}

impl Node {
    /// The power control of the spec's machine. Without a spec, no node waits for an operator.
    pub(super) fn power_control(&self) -> PowerControl {
        self.record.spec.as_deref().map_or(PowerControl::Bmc, PowerControl::of)
    }
}

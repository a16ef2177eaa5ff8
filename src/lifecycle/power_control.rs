//! Power control: hostler switches a machine through its BMC, or an operator and the machine's own
//! deploy ramdisk do.
//!
//! Derived from the BMC that an attempt has on record, or that the spec names. The core asks what
//! follows from it, one question a method, and never whether there is a BMC.

use crate::model::spec::{Bmc, NodeSpec};

use super::{node::Node, state::Attempt};

/// The way in which a machine is switched on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerControl {
    /// Through its BMC.
    Bmc,
    /// By an operator, and by the deploy ramdisk that runs on it.
    Manual,
}

impl PowerControl {
    pub(super) const fn by(bmc: Option<&Bmc>) -> Self {
        if bmc.is_some() { Self::Bmc } else { Self::Manual }
    }

    /// The power control of the machine that a spec names.
    pub(super) fn of(spec: &NodeSpec) -> Self {
        Self::by(spec.bmc.as_deref())
    }

    /// Whether hostler can find out if the machine is on, and switch it.
    pub(super) const fn can_switch(self) -> bool {
        matches!(self, Self::Bmc)
    }

    /// Whether an attempt waits until an operator has the machine boot from the network. The hand
    /// on the power button is the consent, so that the power state is not asked for before.
    pub const fn waits_for_operator(self) -> bool {
        matches!(self, Self::Manual)
    }

    /// Whether the deploy ramdisk restarts its machine or switches it off, once it hears that it
    /// may.
    pub const fn restarts_itself(self) -> bool {
        matches!(self, Self::Manual)
    }

    /// Whether a machine that is brought up takes one of `limits.waiting`. Nobody knows when an
    /// operator comes, and then the machine is up whether its turn has come or not.
    pub const fn takes_attempt_permit(self) -> bool {
        matches!(self, Self::Bmc)
    }
}

impl Attempt {
    /// The power control of the attempt's machine, whatever the spec says by now.
    pub fn power_control(&self) -> PowerControl {
        PowerControl::by(self.bmc.as_deref())
    }

    /// Whether it ends without anything being done: nothing can switch the machine off, and no
    /// ramdisk has called that could be told to.
    pub(super) fn ends_by_itself(&self) -> bool {
        self.power_control().restarts_itself() && self.peer.is_none()
    }
}

impl Node {
    /// The power control of the machine that the spec names. Without a spec no operator is waited
    /// for.
    pub(super) fn power_control(&self) -> PowerControl {
        self.record.spec.as_deref().map_or(PowerControl::Bmc, PowerControl::of)
    }
}

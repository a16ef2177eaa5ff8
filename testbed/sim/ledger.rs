//! The rules' knowledge of each node and its machine, and of the machine that a spec names.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hostler::model::{
    ids::NodeName,
    machine::Machine,
    power::PowerState,
    spec::{Goal, MachineId, NodeSpec},
};
use jiff::Timestamp;

type Redeploy = Option<String>;
/// The knowledge of a machine; `None` if it exists, but its content is unknown.
pub(crate) type Known = Option<Ledger>;

/// The knowledge of one node and its machine.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "a list of what was said and seen")]
pub(crate) struct Ledger {
    /// The last good spec that the core received.
    pub(crate) spec: Option<Arc<NodeSpec>>,
    /// Whether an operator consented, or a series of attempts began with consent, and no new reason
    /// has come up since.
    pub(crate) approved: bool,
    /// Whether an operator ordered a change of the machine's power.
    pub(crate) power_ordered: bool,
    /// The `redeploy` of the installation: only a change from it is consent to reinstall.
    pub(crate) under: Option<Redeploy>,
    /// The `redeploy` of the first spec that named it. While its record waits to be written, a hold
    /// counts from here.
    pub(crate) first_redeploy: Option<Redeploy>,
    /// The machine's names at the time of the installation.
    pub(crate) installed_as: Option<Machine>,
    /// Whether the disk's content is unknown: being off is then no consent. Ends when the disk is
    /// written.
    pub(crate) unknown: bool,
    /// Whether the spec newly names this machine, without consent since.
    pub(crate) turned: bool,
    /// The power state that the BMC last reported, and its machine.
    pub(crate) polled: Option<(PowerState, MachineId)>,
    /// The machine that the current attempt switched on, and its spec.
    pub(crate) begun: Option<(MachineId, Arc<NodeSpec>)>,
    /// The machine of the last attempt, during its clean-up. `None` if no record had the attempt,
    /// so that its machine was never touched.
    pub(crate) abandoned: Option<MachineId>,
    pub(crate) restarted: bool,
    /// Whether the disk is written, without an observed restart since.
    pub(crate) unrestarted: bool,
    /// The time of the installation whose first boot last restarted the machine.
    pub(crate) restarted_again: Option<Timestamp>,
    /// The time when the wanted reinstall came up, and the number of nodes installed then.
    pub(crate) came_up: Option<Change>,
    /// Whether an operator has consented to it since.
    pub(crate) agreed: bool,
    pub(crate) next_attempt_at: Option<Timestamp>,
}

/// A newly wanted reinstall.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) at: Timestamp,
    /// The time by a steady clock, in milliseconds.
    pub(crate) t: u64,
    pub(crate) deployed: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct LetThrough {
    pub(crate) node: NodeName,
    pub(crate) change: Change,
}

impl Ledger {
    /// Takes over another node's knowledge, or none.
    pub(crate) fn learn(&mut self, known: Option<Self>, new: &NodeSpec) {
        let known = known.filter(|known| known.under.is_some());
        self.unknown = known.is_none();
        self.under = known.as_ref().map(|_| new.redeploy.clone());
        self.installed_as = known.and_then(|known| known.installed_as);
    }

    /// Whether the spec names an interface of the installed machine.
    pub(crate) fn shares_mac(&self, spec: &NodeSpec) -> bool {
        let installed_as = self.installed_as.as_ref().filter(|_| self.under.is_some());
        installed_as
            .is_some_and(|machine| machine.macs.iter().any(|mac| spec.boot.macs.contains(mac)))
    }

    /// Whether the knowledge of the machine applies to the new spec's, too.
    pub(crate) fn is_taken_along(&self, old: &NodeSpec, new: &NodeSpec) -> bool {
        let installed_as = self.installed_as.as_ref().filter(|_| self.under.is_some());
        is_same(old, new)
            || installed_as.map_or_else(
                || shares(&Machine::named_by(old), new),
                |machine| shares(machine, new),
            )
    }

    pub(crate) fn wants_reinstall(&self, spec: &NodeSpec) -> bool {
        let reworded = self
            .under
            .as_ref()
            .is_some_and(|under| spec.redeploy.is_some() && spec.redeploy != *under);
        spec.goal == Goal::Deployed && reworded
    }
}

/// Whether both specs name the same machine by all its names.
pub(crate) fn is_same(old: &NodeSpec, new: &NodeSpec) -> bool {
    let macs = |spec: &NodeSpec| spec.boot.macs.iter().copied().collect::<BTreeSet<_>>();
    old.bmc_address() == new.bmc_address() && macs(old) == macs(new)
}

/// Whether the spec names the machine by at least one of its names.
pub(crate) fn shares(machine: &Machine, spec: &NodeSpec) -> bool {
    let bmc = machine.bmc.is_some() && machine.bmc.as_ref() == spec.bmc_address();
    bmc || machine.macs.iter().any(|mac| spec.boot.macs.contains(mac))
}

/// Keeps the knowledge of a machine that no node has any more.
pub(crate) fn leave(unclaimed: &mut BTreeMap<MachineId, Ledger>, ledger: &Ledger) {
    let Some(spec) = &ledger.spec else { return };
    let former = ledger.installed_as.as_ref().filter(|_| ledger.under.is_some()).map(Machine::id);
    for machine in [Some(spec.machine()), former].into_iter().flatten() {
        if ledger.under.is_some() || ledger.unknown {
            unclaimed.insert(machine, ledger.clone());
        } else {
            unclaimed.remove(&machine);
        }
    }
}

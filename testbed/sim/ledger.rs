//! The knowledge of the rules about each node and its machine, and which machine a spec names.

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
/// The knowledge of a machine; `None`: only that there is something to know.
pub(crate) type Known = Option<Ledger>;

/// The knowledge of one node and its machine.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "a list of what was said and seen")]
pub(crate) struct Ledger {
    /// The last good spec the core was told.
    pub(crate) spec: Option<Arc<NodeSpec>>,
    /// Somebody said so, or a series of attempts was begun with consent, and no reason has come up
    /// to ask again.
    pub(crate) approved: bool,
    /// Somebody wants the machine switched.
    pub(crate) power_ordered: bool,
    /// The `redeploy` that what is installed answers to: only a change from it is consent to
    /// reinstall.
    pub(crate) under: Option<Redeploy>,
    /// The `redeploy` of the first spec that named it. While its record waits to be written, a hold
    /// counts from here.
    pub(crate) first_redeploy: Option<Redeploy>,
    /// The machine as it was named when that was installed.
    pub(crate) installed_as: Option<Machine>,
    /// Nobody knows what is on its disk: being off is no consent. It ends when the disk is written.
    pub(crate) unknown: bool,
    /// Whether the spec names a machine that it did not name before, and nobody has consented to
    /// anything since.
    pub(crate) turned: bool,
    /// The power state that the BMC last reported, of which machine.
    pub(crate) polled: Option<(PowerState, MachineId)>,
    /// The machine that the present attempt switched on, and for which installation.
    pub(crate) begun: Option<(MachineId, Arc<NodeSpec>)>,
    /// The machine of the last attempt, for as long as that is cleaned up.
    pub(crate) abandoned: Option<MachineId>,
    pub(crate) restarted: bool,
    /// Whether the disk is written, and nobody has seen the machine restarted into that.
    pub(crate) unrestarted: bool,
    /// When the reinstall that is wanted came up, and how many nodes were installed then.
    pub(crate) came_up: Option<Change>,
    /// Somebody consented to it since.
    pub(crate) agreed: bool,
    pub(crate) next_attempt_at: Option<Timestamp>,
}

/// A reinstall that is newly wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) at: Timestamp,
    /// The time by a clock that nobody sets, in milliseconds.
    pub(crate) t: u64,
    pub(crate) deployed: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct LetThrough {
    pub(crate) node: NodeName,
    pub(crate) change: Change,
}

impl Ledger {
    /// Takes over knowledge from elsewhere, or that nobody knows.
    pub(crate) fn learn(&mut self, known: Option<Self>, new: &NodeSpec) {
        let known = known.filter(|known| known.under.is_some());
        self.unknown = known.is_none();
        self.under = known.as_ref().map(|_| new.redeploy.clone());
        self.installed_as = known.and_then(|known| known.installed_as);
    }

    /// Whether the spec names an interface of the machine that is known to be installed.
    pub(crate) fn shares_mac(&self, spec: &NodeSpec) -> bool {
        let installed_as = self.installed_as.as_ref().filter(|_| self.under.is_some());
        installed_as
            .is_some_and(|machine| machine.macs.iter().any(|mac| spec.boot.macs.contains(mac)))
    }

    /// Whether what is known of the machine is about the one that the new spec names, too.
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

/// Whether both specs name one machine by all its names.
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

//! What the rules know of each node and its machine, and which machine a spec names.

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
/// What is known of a machine; `None`: only that there is something to know.
pub(super) type Known = Option<Ledger>;

/// What is known of one node and its machine.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "a list of what was said and seen")]
pub(crate) struct Ledger {
    /// The last good spec the core was told.
    pub(crate) spec: Option<Arc<NodeSpec>>,
    /// Somebody said so, or a series of attempts was begun with consent, and no reason has come up to ask again.
    pub(crate) approved: bool,
    /// Somebody wants the machine switched.
    pub(crate) power_asked: bool,
    /// The `redeploy` that what is installed answers to: only a change from it is consent to reinstall.
    pub(crate) under: Option<Redeploy>,
    /// The `redeploy` of the first spec that named it. While its record waits to be written, a hold counts from here.
    pub(super) first_redeploy: Option<Redeploy>,
    /// The machine as it was named when that was installed.
    pub(crate) place: Option<Machine>,
    /// Nobody knows what is on its disk: being off is no consent. It ends when the disk is written.
    pub(crate) unknown: bool,
    /// Its spec names a machine that it did not name before, and nobody has consented to anything since.
    pub(crate) turned: bool,
    /// What the BMC last said, of which machine.
    pub(super) looked: Option<(PowerState, MachineId)>,
    /// The machine that the present attempt switched on, and for which installation.
    pub(super) begun: Option<(MachineId, Arc<NodeSpec>)>,
    pub(super) restarted: bool,
    /// Its disk is written, and nobody has seen it restarted into that.
    pub(super) unrestarted: bool,
    /// When the reinstall that is wanted came up, and how many nodes were installed then.
    pub(super) came_up: Option<Change>,
    /// Somebody consented to it since.
    pub(super) agreed: bool,
    pub(super) next_attempt_at: Option<Timestamp>,
}

/// A reinstall that is newly wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) at: Timestamp,
    /// The same by a clock that nobody sets, in milliseconds.
    pub(super) t: u64,
    pub(super) deployed: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct LetThrough {
    pub(super) node: NodeName,
    pub(super) change: Change,
}

impl Ledger {
    /// What is on its machine is known from elsewhere, or it is known that nobody knows.
    pub(super) fn learn(&mut self, known: Option<Self>, new: &NodeSpec) {
        let known = known.filter(|known| known.under.is_some());
        self.unknown = known.is_none();
        self.under = known.as_ref().map(|_| new.redeploy.clone());
        self.place = known.and_then(|known| known.place);
    }

    /// Whether the spec names an interface of the machine that is known to be installed.
    pub(super) fn shares_mac(&self, spec: &NodeSpec) -> bool {
        let place = self.place.as_ref().filter(|_| self.under.is_some());
        place.is_some_and(|place| place.macs.iter().any(|mac| spec.boot.macs.contains(mac)))
    }

    /// Whether what is known of the machine is about the one that the new spec names, too.
    pub(super) fn is_taken_along(&self, old: &NodeSpec, new: &NodeSpec) -> bool {
        let place = self.place.as_ref().filter(|_| self.under.is_some());
        is_same(old, new)
            || place
                .map_or_else(|| shares(&Machine::named_by(old), new), |place| shares(place, new))
    }

    pub(super) fn wants_reinstall(&self, spec: &NodeSpec) -> bool {
        let reworded = self
            .under
            .as_ref()
            .is_some_and(|under| spec.redeploy.is_some() && spec.redeploy != *under);
        spec.goal == Goal::Deployed && reworded
    }
}

/// Whether both specs name one machine by all its names.
pub(super) fn is_same(old: &NodeSpec, new: &NodeSpec) -> bool {
    let macs = |spec: &NodeSpec| spec.boot.macs.iter().copied().collect::<BTreeSet<_>>();
    old.bmc_address() == new.bmc_address() && macs(old) == macs(new)
}

/// Whether the spec names the machine by at least one of its names.
pub(super) fn shares(machine: &Machine, spec: &NodeSpec) -> bool {
    let bmc = machine.bmc.is_some() && machine.bmc.as_ref() == spec.bmc_address();
    bmc || machine.macs.iter().any(|mac| spec.boot.macs.contains(mac))
}

/// What is known of a machine that no node has any more.
pub(super) fn leave(unclaimed: &mut BTreeMap<MachineId, Ledger>, ledger: &Ledger) {
    let Some(spec) = &ledger.spec else { return };
    let former = ledger.place.as_ref().filter(|_| ledger.under.is_some()).map(Machine::id);
    for machine in [Some(spec.machine()), former].into_iter().flatten() {
        if ledger.under.is_some() || ledger.unknown {
            unclaimed.insert(machine, ledger.clone());
        } else {
            unclaimed.remove(&machine);
        }
    }
}

//! The knowledge beside the nodes' records: installations of unclaimed machines, which nodes have a
//! record, which reinstalls were let through lately, and whether any of that was ever lost.
//!
//! A spec file that is renamed, swapped or comes back finds its machine as it was left, because
//! nothing is ever wiped because a file went away. A record that is gone is missed by its name and
//! its machine, so that its node is not taken for one never seen.
//!
//! Kept by the [`super::Fleet`]; the [`super::Executor`] makes it durable before the record that
//! knew it is changed or removed, and before anything is done to a machine whose record would not
//! be missed. An entry that is found again stays: the node that has the machine now writes it anew
//! when it leaves.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{
    ids::NodeName,
    machine::Machine,
    spec::{BmcAddress, MachineId, NodeSpec},
    status::Installed,
};

use super::state::Record;

/// Machines that are remembered: more than a site has, and small enough for any memory. What is
/// more than that is forgotten, and known to be.
const LEFT_MAX: usize = 20_000;

/// An installation. `None`: a record was lost, and nobody knows what is installed.
pub type Known = Option<Installed>;

/// Unclaimed installations, and what else is known beside the records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "File", into = "File")]
pub struct UnclaimedInstalls {
    machines: BTreeMap<MachineId, Known>,
    /// The installations of nodes that never had a spec here, so that only their name is known:
    /// what status files say where a record is lost.
    nodes: BTreeMap<NodeName, Known>,
    /// The nodes that have a record, with the machine that their spec named.
    listed: BTreeMap<NodeName, Option<MachineId>>,
    /// Reinstalls that the breaker let through lately.
    reinstalls: BTreeMap<NodeName, Timestamp>,
    /// Whether some of this was lost: any machine that is named for the first time may be
    /// installed.
    incomplete: bool,
    changes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    incomplete: bool,
    machines: Vec<(MachineId, Known)>,
    nodes: Vec<(NodeName, Known)>,
    listed: Vec<(NodeName, Option<MachineId>)>,
    reinstalls: Vec<(NodeName, Timestamp)>,
}

impl From<File> for UnclaimedInstalls {
    fn from(File { incomplete, machines, nodes, listed, reinstalls }: File) -> Self {
        Self {
            machines: machines.into_iter().collect(),
            nodes: nodes.into_iter().collect(),
            listed: listed.into_iter().collect(),
            reinstalls: reinstalls.into_iter().collect(),
            incomplete,
            changes: 0,
        }
    }
}

impl From<UnclaimedInstalls> for File {
    fn from(
        UnclaimedInstalls { machines, nodes, listed, reinstalls, incomplete, .. }: UnclaimedInstalls,
    ) -> Self {
        Self {
            incomplete,
            machines: machines.into_iter().collect(),
            nodes: nodes.into_iter().collect(),
            listed: listed.into_iter().collect(),
            reinstalls: reinstalls.into_iter().collect(),
        }
    }
}

impl UnclaimedInstalls {
    /// The knowledge once it was lost. Until an operator ends that, a machine that a spec names for
    /// the first time is one that may be installed.
    pub fn lost() -> Self {
        Self { incomplete: true, ..Self::default() }
    }

    /// Whether some of it was lost.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// Whether a machine that is named for the first time may be installed.
    pub fn set_incomplete(&mut self, incomplete: bool) {
        self.changes += u64::from(self.incomplete != incomplete);
        self.incomplete = incomplete;
    }

    /// The nodes whose record is gone, or knows nothing any more.
    pub fn missing<'a>(
        &'a self,
        records: &'a BTreeMap<NodeName, Record>,
    ) -> impl Iterator<Item = &'a NodeName> {
        let is_known = |name| records.get(name).is_some_and(|record| record.spec.is_some());
        self.listed.keys().filter(move |name| !is_known(name))
    }

    /// A record that is gone makes its node and its machine such as nobody knows, unless a status
    /// file says more. From now on this says so, and the list no longer has to.
    pub(super) fn miss(&mut self, records: &BTreeMap<NodeName, Record>) {
        let missing: Vec<NodeName> = self.missing(records).cloned().collect();
        for name in missing {
            let machine = self.listed.remove(&name).flatten();
            let known = self.nodes.entry(name).or_insert(None).clone();
            if let Some(machine) = machine {
                self.machines.insert(machine, known);
            }
        }
    }

    /// Whether the node's record would be missed, and with it its machine.
    pub(super) fn lists(&self, name: &NodeName, machine: Option<&MachineId>) -> bool {
        self.listed.get(name).is_some_and(|listed| machine.is_none() || listed.as_ref() == machine)
    }

    /// These nodes have a durable record. One without a spec keeps the machine that it was listed
    /// with. Answers which were not listed so.
    pub(super) fn list<'a>(
        &mut self,
        nodes: impl Iterator<Item = (&'a NodeName, Option<MachineId>)>,
    ) -> Vec<NodeName> {
        let mut newly = Vec::new();
        for (name, machine) in nodes {
            if !self.lists(name, machine.as_ref()) {
                self.listed.insert(name.clone(), machine);
                self.changes += 1;
                newly.push(name.clone());
            }
        }
        newly
    }

    /// The node's record is about to be removed.
    pub(super) fn unlist(&mut self, name: &NodeName) {
        self.changes += u64::from(self.listed.remove(name).is_some());
    }

    /// Reinstalls that the breaker let through, with when each came up.
    pub(super) fn reinstalls(&self) -> &BTreeMap<NodeName, Timestamp> {
        &self.reinstalls
    }

    /// Replaces the reinstalls that the breaker counts.
    pub(super) fn count_reinstalls(&mut self, reinstalls: BTreeMap<NodeName, Timestamp>) {
        self.changes += 1;
        self.reinstalls = reinstalls;
    }

    /// Takes in what status files say of nodes whose record is lost. Once: what has become of it
    /// since is known better here.
    pub(super) fn recover_from_status(&mut self, recovered: BTreeMap<NodeName, Known>) {
        for (node, known) in recovered {
            if self.nodes.contains_key(&node) {
                continue;
            }
            if let Some(machine) = known.as_ref().and_then(|one| Some(one.machine.as_ref()?.id()))
                && !self.machines.contains_key(&machine)
            {
                self.machines.insert(machine, known.clone());
                self.changes += 1;
            }
            self.nodes.insert(node, known);
        }
    }

    /// Everything that is known to be installed.
    pub(super) fn installed(&self) -> impl Iterator<Item = &Installed> {
        self.machines.values().chain(self.nodes.values()).flatten()
    }

    /// The BMCs of the machines of which something is known.
    pub(super) fn bmcs(&self) -> impl Iterator<Item = &BmcAddress> {
        let named = self.machines.keys().filter_map(|id| match id {
            MachineId::Bmc(address) => Some(address),
            MachineId::Nics(_) => None,
        });
        let installed = self.installed().filter_map(|known| known.machine.as_ref()?.bmc.as_ref());
        named.chain(installed)
    }

    /// Counts additions and changes.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether it is known what is installed on the machine of a node without a good record.
    pub fn knows(&self, name: &NodeName) -> bool {
        self.nodes.get(name).is_some_and(Option::is_some)
    }

    /// The installation of the machine that the spec names, if anything is known of it. Where only
    /// its BMC's address or one of its MAC addresses is known, it may be that machine or another
    /// one: then nobody knows.
    pub(super) fn machine(&self, spec: &NodeSpec) -> Option<Known> {
        let known = self.machines.get(&spec.machine()).or_else(|| self.with_mac_of(spec))?;
        Some(known.clone().filter(|installed| {
            let machine = installed.machine.as_ref();
            machine.is_none_or(|machine| {
                let bmc = self.machines.contains_key(&spec.machine())
                    || machine.bmc.as_ref() == spec.bmc_address();
                bmc && machine.shares_mac(spec)
            })
        }))
    }

    fn with_mac_of(&self, spec: &NodeSpec) -> Option<&Known> {
        let has_mac = |installed: &Installed| {
            installed.machine.as_ref().is_some_and(|machine| machine.shares_mac(spec))
        };
        self.machines.values().find(|known| known.as_ref().is_some_and(has_mac))
    }

    /// The installation of a node without a spec, if anything is known of it.
    pub(super) fn node(&self, name: &NodeName) -> Option<&Known> {
        self.nodes.get(name)
    }

    /// The node has a spec: from now on its machine is known by what its spec says.
    pub(super) fn found(&mut self, name: &NodeName) {
        self.nodes.remove(name);
    }

    /// The disk of a machine that the spec names is written from now on. What was kept under any of
    /// its names may be gone: should a spec come back to that name, nobody knows.
    pub(super) fn written(&mut self, spec: &NodeSpec) {
        let machine = spec.machine();
        let names = |known: &Known, id: Option<&MachineId>| {
            let named = known.as_ref().and_then(|installed| installed.machine.as_ref());
            let is_named = |named: &Machine| named.id() == machine || named.shares_mac(spec);
            known.is_some() && (id == Some(&machine) || named.is_some_and(is_named))
        };
        let by_machine = self.machines.iter_mut().map(|(id, known)| (Some(id), known));
        for (id, known) in by_machine.chain(self.nodes.values_mut().map(|known| (None, known))) {
            if names(known, id) {
                *known = None;
                self.changes += 1;
            }
        }
    }

    /// A node goes away, or turns to another machine.
    pub(super) fn remember(&mut self, name: &NodeName, record: &Record) {
        let Some(spec) = &record.spec else {
            self.changes += u64::from(remember(&mut self.nodes, name, record));
            return;
        };
        let machine = spec.machine();
        self.changes += u64::from(remember(&mut self.machines, &machine, record));
        // The installation was made at another address: should the machine come back to that, it is
        // found there.
        let installed_as = record.installed.as_ref().and_then(|one| one.machine.as_ref());
        if let Some(former) = installed_as.map(Machine::id).filter(|former| *former != machine) {
            self.changes += u64::from(remember(&mut self.machines, &former, record));
        }
        while self.machines.len() > LEFT_MAX {
            self.incomplete |= self.machines.pop_first().is_some();
        }
    }
}

/// Whether that changed anything.
fn remember<K: Ord + Clone>(unclaimed: &mut BTreeMap<K, Known>, key: &K, record: &Record) -> bool {
    if record.installed.is_none() && !record.is_disk_unknown() {
        return unclaimed.remove(key).is_some();
    }
    if unclaimed.get(key) == Some(&record.installed) {
        return false;
    }
    unclaimed.insert(key.clone(), record.installed.clone());
    true
}

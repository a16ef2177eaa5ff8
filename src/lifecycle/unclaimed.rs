//! The site file's content: unclaimed installations, the list of nodes with a record, the breaker's
//! recent reinstalls, and whether any of that was lost.
//!
//! A spec file that is renamed, swapped or restored gets back its machine's installation, because a
//! missing file never WIPES anything. A missing record is noticed by the list, so that its node
//! does not count as new.
//!
//! Owned by the [`super::Fleet`]; the [`super::Executor`] writes it durably before the record with
//! the same knowledge is changed or removed, and before any effect on a machine whose node is not
//! listed. An entry whose machine is claimed again stays, and is replaced when the machine becomes
//! unclaimed again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{
    ids::NodeName,
    machine::Machine,
    spec::{BmcAddress, MachineId, NodeSpec},
    status::Installed,
};

use super::state::{Record, Records};

/// Most machines that are remembered: more than any site has. Forgetting one beyond that sets
/// `incomplete`.
const MACHINES_MAX: usize = 20_000;

/// An installation, or `None` if a record was lost and the disk's content is unknown.
pub type Known = Option<Installed>;

/// Unclaimed installations, and the rest of the site file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "File", into = "File")]
pub struct UnclaimedInstalls {
    machines: BTreeMap<MachineId, Known>,
    /// The installations of nodes without a spec, from the status files of lost records.
    nodes: BTreeMap<NodeName, Known>,
    /// The nodes with a record, each with its spec's machine.
    listed: BTreeMap<NodeName, Option<MachineId>>,
    /// The breaker's recent reinstalls.
    reinstalls: BTreeMap<NodeName, Timestamp>,
    /// Whether some of this was lost, so that any machine that a spec names for the first time may
    /// be installed already.
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
    fn from(installs: UnclaimedInstalls) -> Self {
        let UnclaimedInstalls { machines, nodes, listed, reinstalls, incomplete, .. } = installs;
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
    /// The content after the loss of the site file. Until an operator approves new machines, a
    /// machine that a spec names for the first time may be installed already.
    pub fn lost() -> Self {
        Self { incomplete: true, ..Self::default() }
    }

    /// Whether some of the content was lost.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// Sets whether a machine that a spec names for the first time may be installed already.
    pub fn set_incomplete(&mut self, incomplete: bool) {
        self.changes += u64::from(self.incomplete != incomplete);
        self.incomplete = incomplete;
    }

    /// The listed nodes whose record is missing or has no spec.
    pub fn missing<'a>(&'a self, records: &'a Records) -> impl Iterator<Item = &'a NodeName> {
        let is_known = |name| records.get(name).is_some_and(|record| record.spec.is_some());
        self.listed.keys().filter(move |name| !is_known(name))
    }

    /// Marks the nodes of missing records, and their machines, as unknown unless a status file has
    /// their installation, and takes them off the list.
    pub(super) fn miss(&mut self, records: &Records) {
        let missing: Vec<NodeName> = self.missing(records).cloned().collect();
        for name in missing {
            let machine = self.listed.remove(&name).flatten();
            let known = self.nodes.entry(name).or_insert(None).clone();
            if let Some(machine) = machine {
                self.machines.insert(machine, known);
            }
        }
    }

    /// Whether the node is listed with this machine.
    pub(super) fn lists(&self, name: &NodeName, machine: Option<&MachineId>) -> bool {
        self.listed.get(name).is_some_and(|listed| machine.is_none() || listed.as_ref() == machine)
    }

    /// Lists nodes with a durable record, and returns the newly listed ones. A node without a spec
    /// keeps its listed machine.
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

    /// Takes a node off the list, before its record is removed.
    pub(super) fn unlist(&mut self, name: &NodeName) {
        self.changes += u64::from(self.listed.remove(name).is_some());
    }

    /// The breaker's recent reinstalls, each with its time.
    pub(super) fn reinstalls(&self) -> &BTreeMap<NodeName, Timestamp> {
        &self.reinstalls
    }

    /// Replaces the breaker's recent reinstalls.
    pub(super) fn count_reinstalls(&mut self, reinstalls: BTreeMap<NodeName, Timestamp>) {
        self.changes += 1;
        self.reinstalls = reinstalls;
    }

    /// Adds the installations in status files of nodes with a lost record. An existing entry is
    /// newer and stays.
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

    /// All known installations.
    pub(super) fn installed(&self) -> impl Iterator<Item = &Installed> {
        self.machines.values().chain(self.nodes.values()).flatten()
    }

    /// The BMCs of all machines with an entry.
    pub(super) fn bmcs(&self) -> impl Iterator<Item = &BmcAddress> {
        let named = self.machines.keys().filter_map(|id| match id {
            MachineId::Bmc(address) => Some(address),
            MachineId::Nics(_) => None,
        });
        let installed = self.installed().filter_map(|known| known.machine.as_ref()?.bmc.as_ref());
        named.chain(installed)
    }

    /// The number of changes so far, by which the executor knows that a write is due.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether it is known what is installed on the machine of a node without a good record.
    pub fn knows(&self, name: &NodeName) -> bool {
        self.nodes.get(name).is_some_and(Option::is_some)
    }

    /// The known installation of the spec's machine, if there is an entry. If only its BMC's
    /// address or one of its MAC addresses matches, it may be another machine: the installation is
    /// unknown.
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

    /// The known installation of a node without a spec, if there is an entry.
    pub(super) fn node(&self, name: &NodeName) -> Option<&Known> {
        self.nodes.get(name)
    }

    /// Drops the entry of a node that has a spec now, which identifies its machine.
    pub(super) fn found(&mut self, name: &NodeName) {
        self.nodes.remove(name);
    }

    /// Marks the entries of the spec's machine as unknown, under all its names, because its disk is
    /// being written.
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

    /// Remembers the installation of a node that is forgotten or changes its machine.
    pub(super) fn remember(&mut self, name: &NodeName, record: &Record) {
        let Some(spec) = &record.spec else {
            self.changes += u64::from(remember(&mut self.nodes, name, record));
            return;
        };
        let machine = spec.machine();
        self.changes += u64::from(remember(&mut self.machines, &machine, record));
        // The machine had another identity at its installation, under which it may come back.
        let installed_as = record.installed.as_ref().and_then(|one| one.machine.as_ref());
        if let Some(former) = installed_as.map(Machine::id).filter(|former| *former != machine) {
            self.changes += u64::from(remember(&mut self.machines, &former, record));
        }
        while self.machines.len() > MACHINES_MAX {
            self.incomplete |= self.machines.pop_first().is_some();
        }
    }
}

/// Sets or removes one entry; returns whether that changed anything.
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

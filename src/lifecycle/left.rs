//! What is known of machines that no node has any more: a spec file that is renamed, swapped or comes back finds its machine as it was
//! left, because nothing is ever wiped because a file went away.
//!
//! Kept by the [`super::Fleet`]; the [`super::Carrier`] has it made durable before the record that knew it is changed or removed. What is
//! found again is not taken out: the node that has the machine now writes it anew when it leaves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{
    ids::NodeName,
    machine::Machine,
    spec::{MachineId, NodeSpec},
    status::Installed,
};

use super::state::Record;

/// Machines that are remembered: more than a site has, and small enough for any memory.
const LEFT_MAX: usize = 10_000;

/// What is installed; `None`: a record was lost, and nobody knows.
pub(super) type Known = Option<Installed>;

/// Installations that no node has any more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "File", into = "File")]
pub struct Left {
    machines: BTreeMap<MachineId, Known>,
    /// The same of nodes that never had a spec here, so that only their name is known: what status files say where a record is lost.
    nodes: BTreeMap<NodeName, Known>,
    changes: u64,
}

#[derive(Serialize, Deserialize)]
struct File {
    machines: Vec<(MachineId, Known)>,
    nodes: Vec<(NodeName, Known)>,
}

impl From<File> for Left {
    fn from(File { machines, nodes }: File) -> Self {
        let (machines, nodes) = (machines.into_iter().collect(), nodes.into_iter().collect());
        Self { machines, nodes, changes: 0 }
    }
}

impl From<Left> for File {
    fn from(Left { machines, nodes, .. }: Left) -> Self {
        Self { machines: machines.into_iter().collect(), nodes: nodes.into_iter().collect() }
    }
}

impl Left {
    /// Takes in what status files say of nodes whose record is lost, unless more is known.
    pub(super) fn witness(&mut self, witnessed: BTreeMap<NodeName, Installed>) {
        for (node, installed) in witnessed {
            if let Some(machine) = installed.machine.as_ref().map(Machine::id)
                && !self.machines.contains_key(&machine)
            {
                self.machines.insert(machine, Some(installed.clone()));
                self.changes += 1;
            }
            self.nodes.entry(node).or_insert(Some(installed));
        }
    }

    /// Every record is lost. If a status file is left whose spec is gone, a name that has none may be that node's new one.
    pub(super) fn doubt_new_names<'a>(
        &mut self,
        specs: impl Iterator<Item = &'a NodeName> + Clone,
    ) {
        let is_found = |name: &NodeName| specs.clone().any(|spec| spec == name);
        if !self.nodes.keys().all(is_found) {
            self.doubt(specs);
        }
    }

    /// Nobody knows what is on the machines of these, unless a status file says it.
    pub(super) fn doubt<'a>(&mut self, names: impl Iterator<Item = &'a NodeName>) {
        for name in names {
            self.nodes.entry(name.clone()).or_insert(None);
        }
    }

    /// How often something was added or changed.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// What is on the machine that the spec names, if anything is known of it. Where only its BMC's address or one of its MAC addresses
    /// is known, it may be that machine or another one: then nobody knows.
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

    /// What is on the machine of a node without a spec, if anything is known of it.
    pub(super) fn node(&self, name: &NodeName) -> Option<&Known> {
        self.nodes.get(name)
    }

    /// The node has a spec: from now on its machine is known by what its spec says.
    pub(super) fn found(&mut self, name: &NodeName) {
        self.nodes.remove(name);
    }

    /// A node goes away, or turns to another machine.
    pub(super) fn leave(&mut self, name: &NodeName, record: &Record) {
        let Some(spec) = &record.spec else {
            self.changes += u64::from(leave(&mut self.nodes, name, record));
            return;
        };
        let machine = spec.machine();
        self.changes += u64::from(leave(&mut self.machines, &machine, record));
        // It was another address when that was installed: should it come back to that, it is found there.
        let installed_as = record.installed.as_ref().and_then(|one| one.machine.as_ref());
        if let Some(former) = installed_as.map(Machine::id).filter(|former| *former != machine) {
            self.changes += u64::from(leave(&mut self.machines, &former, record));
        }
    }
}

/// Whether that changed anything.
fn leave<K: Ord + Clone>(left: &mut BTreeMap<K, Known>, key: &K, record: &Record) -> bool {
    if record.installed.is_none() && !record.record_lost {
        return left.remove(key).is_some();
    }
    if left.get(key) == Some(&record.installed) {
        return false;
    }
    left.insert(key.clone(), record.installed.clone());
    if left.len() > LEFT_MAX {
        left.pop_first();
    }
    true
}

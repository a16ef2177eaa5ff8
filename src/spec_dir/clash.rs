//! Two specs that would touch the same machine.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{
    ids::NodeName,
    problem::Problem,
    spec::{BmcAddress, NodeSpec},
};

/// The nodes that share a NIC or a BMC with another, each with a problem that names the others.
/// `shown_as` is the directory's name in messages. Give it every spec in force: one that is kept
/// because its file broke may clash with a new file.
pub fn clashes<'a>(
    shown_as: &str,
    specs: impl IntoIterator<Item = &'a NodeSpec>,
) -> BTreeMap<NodeName, Vec<Problem>> {
    let mut nics: BTreeMap<_, BTreeSet<&NodeName>> = BTreeMap::new();
    let mut bmcs: BTreeMap<&BmcAddress, BTreeSet<&NodeName>> = BTreeMap::new();
    for spec in specs {
        for mac in &spec.boot.macs {
            nics.entry(mac).or_default().insert(&spec.name);
        }
        if let Some(address) = spec.bmc_address() {
            bmcs.entry(address).or_default().insert(&spec.name);
        }
    }
    let mut found: BTreeMap<NodeName, Vec<Problem>> = BTreeMap::new();
    let mut note = |key: &str, value: String, nodes: &BTreeSet<&NodeName>| {
        for &node in nodes.iter().filter(|_| nodes.len() > 1) {
            let others: Vec<String> = nodes
                .iter()
                .filter(|other| **other != node)
                .map(|other| format!("{shown_as}/{other}.toml"))
                .collect();
            found.entry(node.clone()).or_default().push(Problem {
                file: format!("{shown_as}/{node}.toml"),
                at: None,
                key: key.to_owned(),
                message: format!("{value} is also in {}", others.join(", ")),
            });
        }
    };
    for (mac, nodes) in &nics {
        note("boot.mac", mac.to_string(), nodes);
    }
    for (address, nodes) in &bmcs {
        note("bmc.address", address.to_string(), nodes);
    }
    found
}

//! Finds clashes: specs that name the same machine.

use std::{collections::BTreeMap, fmt::Display};

use crate::model::{ids::NodeName, problem::Problem, spec::NodeSpec};

/// Finds the nodes that share a NIC or a BMC, each with a problem that names the others. `shown_as`
/// is the directory's name in messages. `specs` must include every effective spec: one whose file
/// is broken now may clash with a new file.
pub fn clashes<'a>(
    shown_as: &str,
    specs: impl IntoIterator<Item = &'a NodeSpec>,
) -> BTreeMap<NodeName, Vec<Problem>> {
    let (mut nics, mut bmcs) = (Vec::new(), Vec::new());
    for spec in specs {
        nics.extend(spec.boot.macs.iter().map(|mac| (mac, &spec.name)));
        bmcs.extend(spec.bmc_address().map(|address| (address, &spec.name)));
    }
    let mut found = BTreeMap::new();
    note_shared(&mut found, shown_as, "boot.mac", nics);
    note_shared(&mut found, shown_as, "bmc.address", bmcs);
    found
}

/// Adds a problem for each node that shares its value of a key.
fn note_shared<V: Ord + Display>(
    found: &mut BTreeMap<NodeName, Vec<Problem>>,
    shown_as: &str,
    key: &str,
    mut claims: Vec<(V, &NodeName)>,
) {
    claims.sort_unstable();
    // A node may have two effective specs while it changes its machine.
    claims.dedup();
    for shared in claims.chunk_by(|(one, _), (other, _)| one == other) {
        for (value, node) in shared.iter().filter(|_| shared.len() > 1) {
            let others: Vec<String> = shared
                .iter()
                .filter(|(_, other)| other != node)
                .map(|(_, other)| format!("{shown_as}/{other}.toml"))
                .collect();
            found.entry((*node).clone()).or_default().push(Problem {
                file: format!("{shown_as}/{node}.toml"),
                at: None,
                key: key.to_owned(),
                message: format!("{value} is also in {}", others.join(", ")),
            });
        }
    }
}

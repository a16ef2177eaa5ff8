//! Finds clashes: specs that name the same machine.

use std::{collections::BTreeMap, ffi::OsStr, fmt::Display};

use super::directory::named;
use crate::model::{
    ids::NodeName,
    problem::{Problem, ProblemKind},
    spec::NodeSpec,
};

/// Most other specs that a problem names: an address in the defaults is every spec's.
const NAMED_MAX: usize = 3;

/// Nodes that share a machine.
pub(super) struct Clash<'a> {
    /// The key that they share.
    pub(super) key: &'static str,
    value: String,
    pub(super) nodes: Vec<&'a NodeName>,
}

impl Clash<'_> {
    /// The problem of one of the nodes, which names the others.
    pub(super) fn problem(&self, shown_as: &str, node: &NodeName) -> Problem {
        let file = |node: &NodeName| named(shown_as, OsStr::new(&format!("{node}.toml")));
        let others = self.nodes.iter().filter(|other| **other != node);
        let named: Vec<String> = others.take(NAMED_MAX).map(|other| file(other)).collect();
        let more = match (self.nodes.len() - 1).saturating_sub(named.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Problem {
            key: self.key.to_owned(),
            message: format!("{} is also in {}{more}", self.value, named.join(", ")),
            ..Problem::of_file(file(node), "").of_kind(ProblemKind::Clash)
        }
    }
}

/// Finds the nodes that share a NIC or a BMC, each with a problem that names the others. `shown_as`
/// is the directory's name in messages. `specs` must include every effective spec: one whose file
/// is broken now may clash with a new file.
pub fn clashes<'a>(
    shown_as: &str,
    specs: impl IntoIterator<Item = &'a NodeSpec>,
) -> BTreeMap<NodeName, Vec<Problem>> {
    let mut found: BTreeMap<NodeName, Vec<Problem>> = BTreeMap::new();
    for clash in shared(specs) {
        for node in &clash.nodes {
            found.entry((*node).clone()).or_default().push(clash.problem(shown_as, node));
        }
    }
    found
}

/// Finds what nodes share.
pub(super) fn shared<'a>(specs: impl IntoIterator<Item = &'a NodeSpec>) -> Vec<Clash<'a>> {
    let (mut nics, mut bmcs) = (Vec::new(), Vec::new());
    for spec in specs {
        nics.extend(spec.boot.macs.iter().map(|mac| (mac, &spec.name)));
        bmcs.extend(spec.bmc_address().map(|address| (address, &spec.name)));
    }
    let mut found = of_key("boot.mac", nics);
    found.extend(of_key("bmc.address", bmcs));
    found
}

/// The clashes of nodes with the same value of a key.
fn of_key<'a, V: Ord + Display>(
    key: &'static str,
    mut claims: Vec<(V, &'a NodeName)>,
) -> Vec<Clash<'a>> {
    claims.sort_unstable();
    // A node may have two effective specs while it changes its machine.
    claims.dedup();
    claims
        .chunk_by(|(one, _), (other, _)| one == other)
        .filter(|claims| claims.len() > 1)
        .filter_map(|claims| {
            let nodes = claims.iter().map(|(_, node)| *node).collect();
            Some(Clash { key, value: claims.first()?.0.to_string(), nodes })
        })
        .collect()
}

//! Direct dependencies: each has its reason in the book.

use std::collections::BTreeSet;

use crate::documents::read;

const PAGE: &str = "docs/contributing/dependencies.md";
const MANIFESTS: [&str; 3] = ["Cargo.toml", "testbed/fuzz/Cargo.toml", "testbed/sim/Cargo.toml"];

/// Invariant (code): The book names every direct dependency with its reason, and no other crate.
#[test]
fn every_direct_dependency_has_its_reason_in_the_book() {
    let page = read(PAGE);
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let named: BTreeSet<String> = rows
        .flat_map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            assert!(cells.len() == 4 && cells[2].len() > 10, "{row}: no reason");
            let crates = cells[1].split(',').map(|name| name.trim().trim_matches('`').to_owned());
            crates.collect::<Vec<_>>()
        })
        .collect();
    let used: BTreeSet<String> = MANIFESTS
        .iter()
        .flat_map(|path| {
            let manifest: toml::Table = read(path).parse().unwrap();
            let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
            let tables = tables.iter().filter_map(|table| manifest.get(*table)?.as_table());
            tables.flat_map(|table| table.keys().cloned()).collect::<Vec<_>>()
        })
        .filter(|name| name != "hostler")
        .collect();
    assert_eq!(named, used);
}

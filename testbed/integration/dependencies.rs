//! The crates that hostler is built from, against the book: reasons, licences, sources, versions.

#![expect(clippy::indexing_slicing, reason = "helpers of tests may fail like tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;
use spdx::{Expression, ParseMode};

use crate::documents::read;

const PAGE: &str = "docs/contributing/dependencies.md";
const MANIFESTS: [&str; 3] = ["Cargo.toml", "testbed/fuzz/Cargo.toml", "testbed/sim/Cargo.toml"];
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The names in the first column of the tables of some sections of the page.
fn named(is_wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let page = read(PAGE);
    let sections = page.split("\n## ").skip(1).filter(|section| is_wanted(section));
    let rows = sections.flat_map(str::lines).filter(|line| line.starts_with("| `"));
    let names = rows.flat_map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert!(cells.len() == 4 && !cells[2].is_empty(), "{row}: no reason");
        cells[1].split(", ").map(|name| name.trim_matches('`').to_owned()).collect::<Vec<_>>()
    });
    names.collect()
}

fn is_of(heading: &'static str) -> impl Fn(&str) -> bool {
    move |section| section.starts_with(heading)
}

/// All packages of the programs and tests on a PC, as `cargo metadata` describes them.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version=1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let is_used = |package: &Value| {
        let mut nodes = metadata["resolve"]["nodes"].as_array().unwrap().iter();
        nodes.any(|node| node["id"] == package["id"])
    };
    let all = metadata["packages"].as_array().unwrap();
    let packages: Vec<Value> = all.iter().filter(|package| is_used(package)).cloned().collect();
    assert!(packages.len() > 100, "only {} packages", packages.len());
    packages
}

/// Invariant (code): The book names every direct dependency with its reason, and no other crate.
#[test]
fn every_direct_dependency_has_its_reason_in_the_book() {
    let reasons = named(|section| {
        !is_of("Licences and sources")(section) && !is_of("Crates in two versions")(section)
    });
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
    assert_eq!(reasons, used);
}

/// Invariant (code): Every crate comes from crates.io, under a licence that the book permits.
#[test]
fn every_crate_comes_from_crates_io_under_a_permitted_licence() {
    let permitted = named(is_of("Licences and sources"));
    let is_permitted = |package: &Value| {
        let text = package["license"].as_str().unwrap_or_default();
        Expression::parse_mode(text, ParseMode::LAX).is_ok_and(|licence| {
            licence.evaluate(|one| one.license.id().is_some_and(|id| permitted.contains(id.name)))
        })
    };
    for package in packages().iter().filter(|package| !package["source"].is_null()) {
        let (name, licence) = (&package["name"], &package["license"]);
        assert_eq!(package["source"], CRATES_IO, "{name}");
        assert!(is_permitted(package), "{name} has the licence {licence}: see {PAGE}");
    }
}

/// Invariant (code): The book names every crate that is built in two versions.
#[test]
fn every_crate_in_two_versions_is_known() {
    let mut versions: BTreeMap<String, usize> = BTreeMap::new();
    for package in packages() {
        *versions.entry(package["name"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let twice: BTreeSet<String> =
        versions.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name).collect();
    assert_eq!(twice, named(is_of("Crates in two versions")));
}

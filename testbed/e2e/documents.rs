//! The commands in README.md, CONTRIBUTING.md and the pages of docs/, and the suite of
//! `testbed/check` that runs each.
//!
//! The suite `host` runs most of them, and `testbed/integration/docs.rs` finds commands without a
//! suite.

#![allow(dead_code, reason = "either of its two users leaves something to the other")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The installation's page: its numbered steps are run as a whole.
pub(crate) const INSTALL: &str = "docs/using/install.md";
/// The host suite: `testbed/e2e/host.rs`.
pub(crate) const HOST: &str = "host";
/// Not run by a suite: the benchmarks need a machine of their own.
pub(crate) const BENCH: &str = "bench";
/// Not run by a suite, because the reader chooses a name: the files and tests in these commands
/// exist.
pub(crate) const HAND: &str = "hand";

/// Every line of a shell block, with the suite that runs it. The numbered steps of [`INSTALL`] are
/// omitted: the host suite runs all of them, in order.
pub(crate) const LINES: [(&str, &str); 59] = [
    ("./testbed/demo", "demo"),
    ("./testbed/demo --real", HAND),
    ("examples/images/debian debian-12.qcow2", "e2e"),
    ("examples/images/debian --layout ext4 debian-12.ext4", "e2e"),
    ("examples/images/debian --layout xfs debian-12.xfs", "real"),
    ("examples/images/debian --layout btrfs debian-12.btrfs", "real"),
    ("examples/images/debian --layout ext4 --without-cloud-init --files my-files mine.ext4", "e2e"),
    // The suites themselves.
    ("./testbed/check", "fmt"),
    ("./testbed/check quick", "fmt"),
    ("./testbed/bench imaging", BENCH),
    ("./testbed/bench tftp", BENCH),
    ("./testbed/bench ipmi", BENCH),
    ("./testbed/bench scale", BENCH),
    ("THIN=1 ./testbed/bench link", BENCH),
    ("cargo build --locked", "lib"),
    ("./testbed/build binaries", "build"),
    ("./testbed/package", "package"),
    ("./testbed/install arm", "arm"),
    ("./testbed/aarch64/site", "arm"),
    ("./testbed/package arm64", "arm"),
    ("cargo test --locked --lib a_spec_that_goes_away", HAND),
    ("cargo test --locked --test integration a_client_that_asks", HAND),
    ("testbed/check build", "build"),
    ("cargo test --locked --test e2e machines_without_a_bmc", HAND),
    ("FUZZ_SECONDS=600 testbed/fuzz/run spec", HAND),
    ("testbed/install", "demo"),
    ("testbed/build", "build"),
    ("testbed/rack up 1 --firmware uefi", HAND),
    ("testbed/rack list", HAND),
    ("testbed/rack console node-1", HAND),
    ("testbed/rack down", HAND),
    ("SIM_SEED=1234 SIM_TRACE=1 testbed/check sim", "sim"),
    ("hostler check nodes", HOST),
    ("hostler help boot.after", HOST),
    ("hostler schema spec", HOST),
    ("hostler schema config", HOST),
    ("hostler doctor", HOST),
    ("hostler plan", HOST),
    ("hostler plan pull-request/nodes --status-dir nodes -o json", HOST),
    ("hostler show edge-07", HOST),
    ("hostler cache list", HOST),
    ("hostler cache fetch edge-07", HOST),
    ("hostler cache prune --to 5GiB", HOST),
    ("hostler status", HOST),
    ("hostler status -o json", HOST),
    ("hostler watch", HOST),
    ("grep '^phase' nodes/*.status.toml", HOST),
    ("hostler explain edge-07", HOST),
    ("hostler digest nodes/edge-07.toml", HOST),
    ("hostler wait edge-07 --timeout 2h", HOST),
    ("hostler approve edge-07", HOST),
    ("hostler approve --all", HOST),
    ("hostler retry edge-07", HOST),
    ("hostler bmc edge-07 status", HOST),
    ("hostler bmc edge-07 info", HOST),
    ("hostler bmc edge-07 cycle", HOST),
    ("hostler show-boot 52:54:00:00:00:01", HOST),
    ("apt-get remove hostler", HOST),
    ("apt-get purge hostler", HOST),
];

/// A shell block.
pub(crate) struct Block {
    /// The document it is in, by its path from the repository's root.
    pub(crate) document: String,
    /// Whether it belongs to a numbered step.
    pub(crate) is_step: bool,
    /// The commands as a reader copies them.
    pub(crate) text: String,
}

/// The steps that install hostler.
pub(crate) fn install_steps() -> Vec<Block> {
    let blocks = fenced(INSTALL, &read(INSTALL), "sh");
    blocks.into_iter().filter(|block| block.is_step).collect()
}

/// All shell blocks of all documents.
pub(crate) fn shell_blocks() -> Vec<Block> {
    let documents = documents();
    documents.iter().flat_map(|document| fenced(document, &read(document), "sh")).collect()
}

/// The first block of that language under a heading of the second level.
pub(crate) fn first_block(document: &str, heading: &str, language: &str) -> String {
    let text = read(document);
    let (_, rest) = text
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("{document} has no section {heading:?}"));
    let section = rest.split("\n## ").next().unwrap_or_default();
    fenced(document, section, language).into_iter().next().unwrap().text
}

/// Every Markdown document of the project, by its path from the repository's root.
pub(crate) fn documents() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("docs")];
    let top = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    found.extend(top.filter(|path| path.extension().is_some_and(|is| is == "md")));
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    let mut found: Vec<String> = found.iter().map(relative).collect();
    found.sort_unstable();
    found
}

pub(crate) fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap_or_else(|error| panic!("{document}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn fenced(document: &str, text: &str, language: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(fence) = lines.next() {
        let Some((indent, rest)) = fence.split_once("```") else { continue };
        let inside: Vec<&str> =
            lines.by_ref().take_while(|line| !line.trim_start().starts_with("```")).collect();
        if rest != language {
            continue;
        }
        let lines = inside.into_iter().map(|line| line.strip_prefix(indent).unwrap_or(line));
        let text = lines.flat_map(|line| [line, "\n"]).collect();
        blocks.push(Block { document: document.to_owned(), is_step: !indent.is_empty(), text });
    }
    blocks
}

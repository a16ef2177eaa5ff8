//! README.md's commands, and which suite of `testbed/check` runs each.
//!
//! Used by the suite `host`, which runs most of them, and by `testbed/integration/docs.rs`, which finds
//! those that nothing runs.

#![allow(dead_code, reason = "either of its two users leaves something to the other")]

use std::{fs, path::Path};

/// The host suite: `testbed/e2e/host.rs`.
pub(crate) const HOST: &str = "host";
/// Run by hand: the benchmarks want a machine to themselves.
pub(crate) const BENCH: &str = "bench";

/// Every line of a shell block with the suite that runs it. The numbered steps of "Install it" are
/// not here: the host suite runs all of them, in their order.
pub(crate) const LINES: [(&str, &str); 28] = [
    ("./testbed/demo", "demo"),
    // The suites themselves.
    ("./testbed/check", "fmt"),
    ("./testbed/bench imaging", BENCH),
    ("./testbed/bench tftp", BENCH),
    ("./testbed/bench ipmi", BENCH),
    ("./testbed/bench scale", BENCH),
    ("./testbed/build binaries", "build"),
    ("hostler check nodes", HOST),
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
];

/// A shell block.
pub(crate) struct Block {
    /// Whether it belongs to a numbered step.
    pub(crate) step: bool,
    /// As a reader copies it.
    pub(crate) text: String,
}

/// All shell blocks under a heading of the second level.
pub(crate) fn blocks(heading: &str) -> Vec<Block> {
    fenced(&section(heading), "sh")
}

/// All shell blocks.
pub(crate) fn all_blocks() -> Vec<Block> {
    fenced(&readme(), "sh")
}

/// The first block of that language under a heading.
pub(crate) fn first_block(heading: &str, language: &str) -> String {
    let blocks = fenced(&section(heading), language);
    blocks.into_iter().next().unwrap().text
}

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

fn section(heading: &str) -> String {
    let readme = readme();
    let (_, rest) = readme
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("README.md has no section {heading:?}"));
    rest.split("\n## ").next().unwrap_or_default().to_owned()
}

fn fenced(text: &str, language: &str) -> Vec<Block> {
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
        blocks.push(Block { step: !indent.is_empty(), text });
    }
    blocks
}

//! The documents against the code and against each other: tests, commands, files and keys in a
//! document exist, links have targets, and no line is too wide.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use clap::Parser as _;
use hostler::cli::Args;

use crate::{
    documents::{self, documents, read},
    layers::sources,
};

/// Generated from the tests, and compared by `invariants`.
const INVARIANTS: &str = "docs/contributing/invariants.md";
/// The changelog, which also names former functions and files.
const CHANGELOG: &str = "CHANGELOG.md";
const WIDTH: usize = 100;
/// The first directories of paths in the documents.
const ROOTS: [&str; 6] = ["src/", "testbed/", "docs/", "systemd/", "packaging/", "examples/"];

/// The names of all functions.
fn functions() -> BTreeSet<String> {
    let functions = |file: PathBuf| -> Vec<String> {
        let text = fs::read_to_string(file).unwrap();
        let names =
            text.lines().filter_map(|line| line.split_once("fn ")?.1.split_once(['(', '<']));
        names.map(|(name, _)| name.trim().to_owned()).collect()
    };
    [sources("src"), sources("testbed")].concat().into_iter().flat_map(functions).collect()
}

/// The inline code of a document, outside of blocks.
fn code(document: &str) -> Vec<String> {
    let text = prose(document);
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// A document without its blocks of code.
fn prose(document: &str) -> String {
    let mut is_inside = false;
    let text = read(document);
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_inside ^= is_fence;
        !is_inside && !is_fence
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn every_test_that_a_document_names_exists() {
    let functions = functions();
    let mut named = 0;
    for document in documents().iter().filter(|document| *document != INVARIANTS) {
        for code in code(document) {
            // A path into the code, such as `axum::serve`, is short; a test's name is a sentence.
            let name = code.rsplit("::").next().unwrap();
            let is_name =
                name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_name && name.matches('_').count() >= 3 {
                assert!(functions.contains(name), "{document} names {code}, which is no test");
                named += 1;
            }
        }
    }
    assert!(named > 30, "only {named} tests are named");
}

#[test]
fn every_path_that_a_document_names_exists() {
    let mut named = 0;
    for document in documents().iter().filter(|document| *document != CHANGELOG) {
        for path in code(document).iter().filter(|code| is_path(code)) {
            assert!(root().join(path).exists(), "{document} names {path}, which is not there");
            named += 1;
        }
    }
    assert!(named > 100, "only {named} paths are named");
}

fn is_path(code: &str) -> bool {
    // A command has arguments, and a pattern stands for several.
    ROOTS.iter().any(|root| code.starts_with(root))
        && !code.contains([' ', '*', '…', '{'])
        && !code.contains("NAME")
}

#[test]
fn the_ten_changes_name_their_files() {
    let page = prose("docs/contributing/architecture.md");
    let (_, list) = page.split_once("\n## Ten changes\n").unwrap();
    let changes: Vec<&str> = list.split("\n## ").next().unwrap().split("\n### ").skip(1).collect();
    assert_eq!(changes.len(), 10);
    for change in changes {
        let files = change.split('`').skip(1).step_by(2).filter(|code| is_path(code)).count();
        assert!(files >= 2, "{change}");
    }
}

#[test]
fn every_command_in_a_document_is_one() {
    let blocks = documents::shell_blocks();
    let text = blocks.iter().map(|block| &*block.text).collect::<String>().replace("\\\n", "");
    let commands: Vec<&str> = text.lines().filter(|line| line.starts_with("hostler ")).collect();
    assert!(commands.len() >= 6, "{commands:?}");
    for command in commands {
        let parsed = Args::try_parse_from(command.split_whitespace());
        assert!(parsed.is_ok(), "{command}: {}", parsed.unwrap_err());
    }
}

/// Invariant (code): A suite runs every command that the documents show.
///
/// Only the host suite runs the numbered steps of the page "Install", and it runs nothing else as a
/// whole.
#[test]
fn every_line_of_the_documents_shell_blocks_is_run_by_a_suite() {
    let steps = documents::install_steps();
    let install: BTreeSet<&str> = steps.iter().flat_map(|block| block.text.lines()).collect();
    let blocks = documents::shell_blocks();
    let (all_steps, others): (Vec<_>, Vec<_>) = blocks.iter().partition(|block| block.is_step);
    for step in &all_steps {
        assert_eq!(step.document, documents::INSTALL, "commands in a numbered step: {}", step.text);
    }
    let known: BTreeSet<&str> = documents::LINES.iter().map(|(line, _)| *line).collect();
    let shown: BTreeSet<&str> = others.iter().flat_map(|block| block.text.lines()).collect();
    let unknown: Vec<_> =
        shown.iter().filter(|line| !known.contains(*line) && !install.contains(*line)).collect();
    assert!(unknown.is_empty(), "nothing runs {unknown:?}: name it in testbed/e2e/documents.rs");
    let gone: Vec<_> = known.difference(&shown).collect();
    assert!(gone.is_empty(), "no document shows {gone:?}");
    let (check, bench) = (read("testbed/check"), read("testbed/bench"));
    let functions = functions();
    for (line, suite) in documents::LINES {
        let last = line.split_whitespace().next_back().unwrap();
        match suite {
            documents::BENCH => assert!(bench.contains(last), "{line}"),
            documents::HAND => assert_names_what_exists(line, last, &functions),
            _ => {
                let is_suite = check.contains(&format!("\nsuite_{suite}() {{"));
                assert!(is_suite, "{line}: {suite} is no suite");
            }
        }
    }
}

/// Asserts that the programs, tests or fuzz targets in a manual command exist.
fn assert_names_what_exists(line: &str, last: &str, functions: &BTreeSet<String>) {
    for path in line.split_whitespace().filter(|word| word.starts_with("testbed/")) {
        assert!(root().join(path).exists(), "{line}: {path} is not there");
    }
    if line.starts_with("cargo test") {
        let is_test = functions.iter().any(|name| name.contains(last));
        assert!(is_test, "{line}: no test's name contains {last}");
    }
    if line.contains("testbed/fuzz/run") {
        let target = root().join(format!("testbed/fuzz/fuzz_targets/{last}.rs"));
        assert!(target.exists(), "{line}: {} is not there", target.display());
    }
}

#[test]
fn every_link_and_every_anchor_leads_somewhere() {
    let anchors: BTreeMap<String, BTreeSet<String>> =
        documents().into_iter().map(|document| (document.clone(), anchors(&document))).collect();
    let mut links = 0;
    for document in anchors.keys() {
        let text = prose(document);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        for (target, _) in targets.filter(|(target, _)| !target.starts_with("https://")) {
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { document.clone() } else { beside(document, file) };
            assert!(root().join(&file).exists(), "{document} links to {target}");
            // The book holds only docs/.
            let stays = !document.starts_with("docs/") || file.starts_with("docs/");
            assert!(stays, "{document} links to {target}, which is not in the book: name the path");
            let known =
                anchor.is_empty() || anchors.get(&file).is_some_and(|of| of.contains(anchor));
            assert!(known, "{document} links to {target}: {file} has no such heading");
        }
    }
    assert!(links > 30, "only {links} links are found");
}

/// The path of a link's file from the repository's root.
fn beside(document: &str, link: &str) -> String {
    let mut path = PathBuf::new();
    for component in Path::new(document).parent().unwrap().join(link).components() {
        match component {
            Component::ParentDir => assert!(path.pop(), "{document} links to {link}, outside"),
            component => path.push(component),
        }
    }
    path.to_str().unwrap().to_owned()
}

/// The anchors of a document's headings, as in mdBook and forges.
fn anchors(document: &str) -> BTreeSet<String> {
    let text = prose(document);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let slug = |line: &str| -> String {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        heading.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn the_book_has_every_page() {
    let summary = read("docs/SUMMARY.md");
    for page in documents().iter().filter_map(|document| document.strip_prefix("docs/")) {
        let is_listed = page == "SUMMARY.md" || summary.contains(&format!("({page})"));
        assert!(is_listed, "docs/SUMMARY.md does not list {page}");
    }
}

#[test]
fn no_document_is_wider_than_the_code() {
    for document in documents() {
        let text = prose(&document);
        // Neither a table nor a single long word can be wrapped.
        let lines = text.lines().filter(|line| !line.starts_with('|'));
        for line in lines.filter(|line| line.chars().count() > WIDTH) {
            let words = line.split_whitespace().filter(|word| !matches!(*word, "-" | "*")).count();
            assert!(words <= 1, "{document}: over {WIDTH} columns: {line}");
        }
    }
    assert!(read("README.md").lines().count() <= 120, "README.md is one screen and a half");
}

/// The pages name codes of errors and conditions as `ChecksumMismatch`.
#[test]
fn every_code_that_the_pages_for_operators_name_is_one_of_hostlers() {
    let sources: String =
        sources("src").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let is_code = |word: &&str| {
        word.starts_with(char::is_uppercase)
            && word.chars().all(char::is_alphabetic)
            && word.chars().any(char::is_lowercase)
            && word.chars().filter(|c| c.is_uppercase()).count() > 1
    };
    let mut found = 0;
    for document in documents().iter().filter(|document| document.starts_with("docs/using/")) {
        let text = prose(document);
        for code in text.split('`').skip(1).step_by(2).filter(is_code) {
            found += 1;
            assert!(sources.contains(&format!("\"{code}\"")), "{document}: no code {code}");
        }
    }
    assert!(found > 20, "{found}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

//! The documents against the code: a test that a document names exists, a command that the README shows is one, a file it links to is there.

use std::{collections::BTreeSet, fs, path::Path};

use clap::Parser as _;
use hostler::cli::Args;

use crate::{layers::sources, readme};

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

#[test]
fn every_test_that_a_document_names_exists() {
    let functions: BTreeSet<String> = ["src", "testbed"]
        .iter()
        .flat_map(|root| sources(root))
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            let names =
                text.lines().filter_map(|line| line.split_once("fn ")?.1.split_once(['(', '<']));
            names.map(|(name, _)| name.trim().to_owned()).collect::<Vec<_>>()
        })
        .collect();
    let mut named = 0;
    for document in ["ARCHITECTURE.md", "SECURITY.md"] {
        let text = read(document);
        for path in text.split('`').skip(1).step_by(2).filter(|code| code.contains("::")) {
            // A path into the code, such as `axum::serve`, is short; the name of a test is a sentence.
            let (_, name) = path.rsplit_once("::").unwrap();
            if name.matches('_').count() >= 3 {
                assert!(functions.contains(name), "{document} names {path}, which is no test");
                named += 1;
            }
        }
    }
    assert!(named > 30, "only {named} tests are named");
}

#[test]
fn every_command_in_the_readme_is_one() {
    let text = readme::all_blocks().iter().map(|block| &*block.text).collect::<String>();
    let text = text.replace("\\\n", "");
    let commands: Vec<&str> = text.lines().filter(|line| line.starts_with("hostler ")).collect();
    assert!(commands.len() >= 6, "{commands:?}");
    for command in commands {
        let parsed = Args::try_parse_from(command.split_whitespace());
        assert!(parsed.is_ok(), "{command}: {}", parsed.unwrap_err());
    }
}

/// Only the host suite runs the steps of "Install it", and it runs nothing else as a whole.
#[test]
fn every_line_of_the_readmes_shell_blocks_is_run_by_a_suite() {
    let steps = readme::blocks("Install it").into_iter().filter(|block| block.step).count();
    let (all_steps, others): (Vec<_>, Vec<_>) =
        readme::all_blocks().into_iter().partition(|block| block.step);
    assert_eq!(all_steps.len(), steps, "a numbered step with commands outside of \"Install it\"");
    let known: BTreeSet<&str> = readme::LINES.iter().map(|(line, _)| *line).collect();
    let shown: BTreeSet<&str> = others.iter().flat_map(|block| block.text.lines()).collect();
    let unknown: Vec<_> = shown.difference(&known).collect();
    assert!(unknown.is_empty(), "nothing runs {unknown:?}: name it in testbed/e2e/readme.rs");
    let gone: Vec<_> = known.difference(&shown).collect();
    assert!(gone.is_empty(), "README.md does not show {gone:?}");
    let (check, bench) = (read("testbed/check"), read("testbed/bench"));
    for (line, suite) in readme::LINES {
        if suite == readme::BENCH {
            let name = line.split_whitespace().next_back().unwrap();
            assert!(bench.contains(name), "{line}");
        } else {
            assert!(
                check.contains(&format!("\nsuite_{suite}() {{")),
                "{line}: {suite} is no suite"
            );
        }
    }
}

#[test]
fn every_link_leads_somewhere() {
    for document in ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"] {
        let text = read(document);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        for (target, _) in targets.filter(|(target, _)| !target.starts_with("https://")) {
            assert!(
                Path::new(env!("CARGO_MANIFEST_DIR")).join(target).exists(),
                "{document} links to {target}"
            );
        }
    }
}

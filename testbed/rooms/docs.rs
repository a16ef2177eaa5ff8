//! The documents against the code: a test that a document names exists, a command that the README shows is one, a file it links to is there.

use std::{collections::BTreeSet, fs, path::Path};

use clap::Parser as _;
use hostler::cli::Args;

use crate::layers::sources;

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
    let readme = read("README.md");
    let shells = readme.split("```").skip(1).step_by(2).filter_map(|block| {
        block.strip_prefix(
            "sh
",
        )
    });
    let lines = shells.flat_map(str::lines).map(str::trim);
    let commands: Vec<&str> = lines.filter(|line| line.starts_with("hostler ")).collect();
    assert!(commands.len() >= 6, "{commands:?}");
    for command in commands {
        let parsed = Args::try_parse_from(command.split_whitespace());
        assert!(parsed.is_ok(), "{command}: {}", parsed.unwrap_err());
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

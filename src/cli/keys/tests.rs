//! The keys that readers request against their documentation, their schema and their pages.

use std::path::Path;

use expect_test::expect_file;

use crate::{
    cli::schema::schema,
    model::toml_reader::{Document, Shape},
};

use super::*;

fn pages() -> [(KeyFile, &'static str); 2] {
    [(KeyFile::Spec, "spec.md"), (KeyFile::Config, "config.md")]
}

/// The problems of a file at one key.
fn problems(file: KeyFile, text: &str, key: &str) -> Vec<String> {
    let found = match file {
        KeyFile::Spec => spec_dir::Defaults::new(Some(("_defaults.toml", text.as_bytes())), None)
            .problems()
            .to_vec(),
        KeyFile::Config => config::parse("hostler.toml", text.as_bytes()).err().unwrap_or_default(),
    };
    let is_of_key = |problem: &&crate::model::problem::Problem| problem.key.starts_with(key);
    found.iter().filter(is_of_key).map(ToString::to_string).collect()
}

/// Invariant (spec): Every key that a reader requests has a sentence of documentation.
#[test]
fn every_key_that_a_reader_requests_is_documented() {
    for file in KeyFile::ALL {
        for key in file.keys() {
            assert!(key.meaning.ends_with('.'), "{} has no documentation", key.key);
            let needs_example = !matches!(key.shape, Shape::Table { .. } | Shape::Foreign);
            assert!(!needs_example || example(&key).is_some(), "{} has no example", key.key);
        }
    }
}

/// Invariant (spec): An example and a default in the reference are values that the reader accepts.
#[test]
fn every_example_and_every_default_is_accepted() {
    let mut tried = 0;
    for file in KeyFile::ALL {
        for key in file.keys() {
            for value in example(&key).into_iter().chain(key.default.clone()) {
                let text = format!("{} = {value}\n", key.key);
                assert!(Document::parse("x.toml", text.as_bytes()).is_ok(), "{text}");
                assert_eq!(problems(file, &text, &key.key), [""; 0], "{text}");
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn the_pages_of_the_reference_are_made_of_the_readers() {
    for (file, name) in pages() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/using/reference");
        expect_file![directory.join(name)].assert_eq(&page(file));
    }
}

/// The values in the schema at each dotted key.
fn flattened(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
    let properties = schema["properties"].as_object();
    for (name, property) in properties.into_iter().flatten() {
        let dot = if path.is_empty() { "" } else { "." };
        let key = format!("{path}{dot}{name}");
        flattened(property, &key, found);
        found.push(key);
    }
}

#[test]
fn a_schema_has_every_key_and_no_other() {
    for file in KeyFile::ALL {
        let mut found = Vec::new();
        flattened(&schema(file), "", &mut found);
        let mut keys: Vec<String> = file.keys().into_iter().map(|key| key.key).collect();
        found.sort();
        keys.sort();
        assert_eq!(found, keys);
    }
}

fn said(words: &[&str]) -> Result<String, String> {
    let mut out = Vec::new();
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    help(&words, &mut out).map_err(|failure| failure.to_string())?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[test]
fn help_explains_keys_and_commands() {
    expect_test::expect![[r#"
        boot.after: key of a spec

          The device that the installed system boots from.

          values: "disk" or "network"
          default: "disk"
          example: boot.after = "network"
    "#]]
    .assert_eq(&said(&["boot.after"]).unwrap());
    let table = said(&["[retry]"]).unwrap();
    assert!(table.starts_with("[retry]: table of a spec\n"), "{table}");
    assert!(table.contains("  retry.backoff\n"), "{table}");
    assert!(said(&["state"]).unwrap().contains("[state]: table of hostler.toml"));
    assert!(said(&["cache", "fetch"]).unwrap().contains("Usage: hostler cache fetch"));
    assert!(said(&[]).unwrap().contains("Usage: hostler"));
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_one() {
    for (word, meant) in [
        ("mac", "did you mean `boot.mac`?"),
        ("bmc.adress", "did you mean `bmc.address`?"),
        ("boot.driver", "did you mean `bmc.driver`?"),
        ("xyzzyx", "the pages of the reference list all keys"),
    ] {
        let error = said(&[word]).unwrap_err();
        assert!(error.ends_with(meant), "{error}");
    }
}

//! The documented keys against the keys that the schema requests.

use crate::model::toml_reader::{Declared, Document, Shape};

use super::super::{keys, keys::KEYS, keys_of};

fn names(keys: Vec<Declared>) -> Vec<String> {
    let mut names: Vec<String> = keys.into_iter().map(|key| key.key).collect();
    names.sort();
    names
}

/// Invariant (spec): Every documented key of a spec is one that the schema requests.
#[test]
fn every_documented_key_is_requested() {
    let mut documented: Vec<&str> = KEYS.iter().map(|doc| doc.key).collect();
    documented.sort_unstable();
    assert_eq!(names(keys()), documented);
}

/// Invariant (spec): The schema requests the same keys of every spec, whatever it says.
#[test]
fn the_same_keys_are_requested_of_every_spec() {
    let usual = names(keys());
    let mut tried = 0;
    for key in keys() {
        let values = match &key.shape {
            Shape::Word(words) => words.iter().map(|word| format!("\"{word}\"")).collect(),
            Shape::Flag => vec!["true".to_owned(), "false".to_owned()],
            Shape::Table { .. } | Shape::OwnKeys => vec!["{}".to_owned(), "1".to_owned()],
            _ => vec![key.example.to_owned()],
        };
        for value in values.iter().filter(|value| !value.is_empty()) {
            let text = format!("{} = {value}\n", key.key);
            let document = Document::parse("x.toml", text.as_bytes()).unwrap();
            assert_eq!(names(keys_of(&document)), usual, "{text}");
            tried += 1;
        }
    }
    assert!(tried > 80, "{tried}");
}

//! The schemas against the readers, by a JSON Schema validator.

use boon::{Compiler, Draft, SchemaIndex, Schemas};
use proptest::prelude::*;

use crate::{
    config,
    model::problem::{Problem, ProblemKind},
    spec_dir::Defaults,
};

use super::*;

const ADDRESS: &str = "http://hostler.example/schema.json";
/// The kinds of problem that a schema can see, too.
const SEEN: [ProblemKind; 5] = [
    ProblemKind::UnknownKey,
    ProblemKind::UnknownWord,
    ProblemKind::WrongType,
    ProblemKind::BadNumber,
    ProblemKind::MissingKey,
];
const VALUES: [&str; 16] = [
    "1",
    "-1",
    "0",
    "17",
    "70000",
    "1.5",
    "true",
    "\"\"",
    "\"x\"",
    "\"2h\"",
    "\"5GiB\"",
    "[]",
    "[\"a\"]",
    "[1]",
    "{}",
    "{ x = 1 }",
];
const UNKNOWN: [&str; 4] = ["boot.firmwaer", "mac", "bmc.password", "limits.x"];

struct Validator {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Validator {
    /// Also checks the schema against the schema of schemas.
    fn new(file: KeyFile) -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.set_default_draft(Draft::V2020_12);
        compiler.add_resource(ADDRESS, schema(file)).unwrap();
        let index = compiler.compile(ADDRESS, &mut schemas).unwrap();
        Self { schemas, index }
    }

    fn accepts(&self, toml: &toml::Table) -> bool {
        self.schemas.validate(&serde_json::to_value(toml).unwrap(), self.index).is_ok()
    }
}

/// The problems of a file: a spec's as those of `_defaults.toml`, which may lack keys.
fn problems(file: KeyFile, text: &str) -> Vec<Problem> {
    match file {
        KeyFile::Spec => {
            Defaults::new(Some(("_defaults.toml", text.as_bytes())), None).problems().to_vec()
        }
        KeyFile::Config => match config::parse("hostler.toml", text.as_bytes()) {
            Ok(config) => Defaults::new(None, config.defaults.as_ref()).problems().to_vec(),
            Err(problems) => problems,
        },
    }
}

/// Sets a dotted key, unless a key above it is no table.
fn set(table: &mut toml::Table, key: &str, value: toml::Value) {
    let Some((first, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), value);
        return;
    };
    let inner = table.entry(first).or_insert_with(|| toml::Table::new().into());
    if let Some(inner) = inner.as_table_mut() {
        set(inner, rest, value);
    }
}

fn value(text: &str) -> toml::Value {
    let table: toml::Table = format!("value = {text}").parse().unwrap();
    table.get("value").unwrap().clone()
}

/// Keys with values: most of them right, some of another type, and unknown keys.
fn settings(file: KeyFile) -> impl Strategy<Value = Vec<(String, toml::Value)>> {
    let mut right = Vec::new();
    let mut any: Vec<String> = UNKNOWN.iter().map(|key| (*key).to_owned()).collect();
    for key in file.keys() {
        any.push(key.key.clone());
        let words = match &key.shape {
            Shape::Word(words) => words.iter().map(|word| format!("\"{word}\"")).collect(),
            _ => Vec::new(),
        };
        let values = words.into_iter().chain(example(&key)).chain(key.default.clone());
        right.extend(values.map(|text| (key.key.clone(), value(&text))));
    }
    let right = proptest::sample::select(right);
    let any = (proptest::sample::select(any), proptest::sample::select(&VALUES[..]));
    let any = any.prop_map(|(key, text)| (key, value(text)));
    proptest::collection::vec(prop_oneof![9 => right, 1 => any], 0..10)
}

fn assert_agree(file: KeyFile, validator: &Validator, table: &toml::Table) -> bool {
    let text = toml::to_string(table).unwrap();
    let problems = problems(file, &text);
    let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let is_accepted = validator.accepts(table);
    if problems.is_empty() {
        assert!(is_accepted, "the schema refuses a good file:\n{text}");
    }
    if problems.iter().any(|problem| SEEN.contains(&problem.kind)) {
        assert!(!is_accepted, "the schema accepts a bad file:\n{text}\n{}", said.join("\n"));
    }
    problems.is_empty()
}

/// Invariant (spec): A schema accepts each file that its reader accepts, and refuses unknown keys,
/// unknown words, wrong types and numbers out of range, as the reader does.
#[test]
fn a_schema_agrees_with_the_reader() {
    for file in [KeyFile::Spec, KeyFile::Config] {
        let validator = Validator::new(file);
        let good = std::cell::Cell::new(0);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 1000,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let base = "network.advertise = \"192.0.2.1\"\nspecs.dir = \"/etc/hostler/nodes\"\n\
            ramdisk = { kernel = \"/k\", initramfs = \"/r\" }";
        runner
            .run(&(settings(file), any::<bool>()), |(settings, is_whole)| {
                let mut table: toml::Table = match file {
                    KeyFile::Config if is_whole => base.parse().unwrap(),
                    _ => toml::Table::new(),
                };
                for (key, value) in settings {
                    set(&mut table, &key, value);
                }
                good.set(good.get() + usize::from(assert_agree(file, &validator, &table)));
                Ok(())
            })
            .unwrap();
        assert!((50..950).contains(&good.get()), "{} good files", good.get());
    }
}

/// Invariant (spec): The schemas accept the examples.
#[test]
fn the_schemas_accept_the_examples() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let spec = Validator::new(KeyFile::Spec);
    let mut tried = 0;
    for entry in std::fs::read_dir(root.join("nodes")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            let table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
            assert!(spec.accepts(&table), "{}", path.display());
            tried += 1;
        }
    }
    assert!(tried >= 5, "{tried}");
    let config = std::fs::read_to_string(root.join("hostler.toml")).unwrap();
    assert!(Validator::new(KeyFile::Config).accepts(&config.parse().unwrap()));
}

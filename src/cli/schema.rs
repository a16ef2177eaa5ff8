//! `hostler schema`: a JSON Schema of the specs or of the configuration, for editors.
//!
//! Made of the keys that the readers request. A schema must never refuse a file that `hostler
//! check` accepts; it cannot know all that `check` knows.

use std::{io::Write, process::ExitCode};

use serde_json::{Map, Value, json};

use crate::model::toml_reader::{Declared, Shape};

use super::{
    Failure,
    keys::{KeyFile, example},
    print,
};

#[cfg(test)]
mod tests;

pub(super) fn show(file: KeyFile, out: &mut impl Write) -> Result<ExitCode, Failure> {
    writeln!(out, "{}", print::json(&schema(file))?)?;
    Ok(ExitCode::SUCCESS)
}

/// The schema of one kind of file.
pub(super) fn schema(file: KeyFile) -> Value {
    let mut schema = match file {
        // `_defaults.toml` may have any key of a spec, so that a spec may lack it.
        KeyFile::Spec => table(&file.keys(), "", false),
        KeyFile::Config => table(&file.keys(), "", true),
    };
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
        schema.insert("title".into(), file.title().into());
        if file == KeyFile::Config {
            let spec = table(&KeyFile::Spec.keys(), "", false);
            schema.insert("$defs".into(), json!({ "spec": spec }));
        }
    }
    schema
}

/// The schema of the table at a dotted path.
fn table(keys: &[Declared], path: &str, is_whole: bool) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in keys {
        let (parent, name) = key.key.rsplit_once('.').unwrap_or(("", &key.key));
        if parent == path {
            properties.insert(name.to_owned(), property(keys, key, is_whole));
            if is_whole && is_needed(keys, key) {
                required.push(name);
            }
        }
    }
    let mut table =
        json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if let Some(table) = table.as_object_mut()
        && !required.is_empty()
    {
        table.insert("required".into(), required.into());
    }
    table
}

/// Whether a key, or one below it, must be there.
fn is_needed(keys: &[Declared], key: &Declared) -> bool {
    let is_below =
        |other: &&Declared| other.key.rsplit_once('.').is_some_and(|(table, _)| table == key.key);
    key.is_required
        || key.shape == Shape::Table { is_optional: false }
            && keys.iter().filter(is_below).any(|below| is_needed(keys, below))
}

fn property(keys: &[Declared], key: &Declared, is_whole: bool) -> Value {
    let text = json!({ "type": "string" });
    let mut property = match &key.shape {
        Shape::Table { .. } => table(keys, &key.key, is_whole),
        Shape::OwnKeys => {
            let texts = json!({ "type": "array", "items": text });
            json!({ "type": "object", "additionalProperties": { "anyOf": [text, texts] } })
        }
        Shape::Foreign => json!({ "$ref": "#/$defs/spec" }),
        Shape::Text(_) => text,
        Shape::Word(words) => json!({ "enum": words }),
        Shape::Flag => json!({ "type": "boolean" }),
        Shape::Number(least, None) => json!({ "type": "integer", "minimum": least }),
        Shape::Number(least, Some(most)) => {
            json!({ "type": "integer", "minimum": least, "maximum": most })
        }
        Shape::NumberOf(numbers) => json!({ "enum": numbers }),
        Shape::List => json!({ "type": "array", "items": text }),
        Shape::TextOrList => {
            let texts = json!({ "type": "array", "items": text, "minItems": 1 });
            json!({ "anyOf": [text, texts] })
        }
    };
    if let Some(property) = property.as_object_mut() {
        property.insert("description".into(), key.meaning.into());
        if let Some(default) = key.default.as_deref().and_then(to_json) {
            property.insert("default".into(), default);
        }
        if let Some(example) = example(key).and_then(|example| to_json(&example)) {
            property.insert("examples".into(), json!([example]));
        }
    }
    property
}

/// Converts a value from TOML.
fn to_json(value: &str) -> Option<Value> {
    let table: toml::Table = format!("value = {value}").parse().ok()?;
    serde_json::to_value(table.get("value")?).ok()
}

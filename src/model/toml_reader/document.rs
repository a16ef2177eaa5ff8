//! A TOML file as a tree with the offset of every key and value.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{FILE_BYTES_MAX, Origin, PROBLEMS_MAX, join};
use crate::model::problem::{Problem, shown};

/// A parsed file, or one table of it.
#[derive(Clone, Debug)]
pub struct Document {
    name: String,
    text: String,
    /// Dotted path of `root` in the file; empty for the whole file.
    prefix: String,
    pub(super) root: Table,
}

pub(super) type Table = BTreeMap<String, Node>;

/// A value with the byte offsets of its key, if it has one, and of itself.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) key_offset: usize,
    pub(super) offset: usize,
    pub(super) value: Value,
}

/// A TOML value.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    /// An integer beyond 64 bits, as written.
    HugeInteger(String),
    Float(f64),
    Boolean(bool),
    Datetime(toml::value::Datetime),
    List(Vec<Node>),
    #[serde(serialize_with = "serialize_table")]
    Table(Table),
}

impl Document {
    /// Parses a file. `name` is the file's name in messages. The error has all syntax errors.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, Vec<Problem>> {
        let whole = |message: String| Err(vec![Problem::of_file(name, message)]);
        if bytes.len() > FILE_BYTES_MAX {
            return whole(format!("{} bytes, at most {FILE_BYTES_MAX} are read", bytes.len()));
        }
        let at = |offset: usize, message: &str| Problem {
            file: name.to_owned(),
            at: Some(line_and_column(bytes, offset)),
            key: String::new(),
            message: shown(message),
        };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => return Err(vec![at(error.valid_up_to(), "not UTF-8")]),
        };
        if text.trim().is_empty() {
            return whole("empty".to_owned());
        }
        if let Some(offset) = conflict_marker(text) {
            return Err(vec![at(offset, "git conflict marker; resolve the conflict first")]);
        }
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let problem = |error: &toml::de::Error| {
                at(error.span().map_or(text.len(), |span| span.start), error.message())
            };
            let mut problems: Vec<_> = errors.iter().take(PROBLEMS_MAX).map(problem).collect();
            problems.sort();
            problems.dedup();
            return Err(problems);
        }
        let root = table(root.into_inner());
        Ok(Self { name: name.to_owned(), text: text.to_owned(), prefix: String::new(), root })
    }

    /// The file's name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the table at `path` as a document. Its problems still point into the file.
    pub(super) fn below(&self, path: &str, root: &Table) -> Self {
        Self {
            name: self.name.clone(),
            text: self.text.clone(),
            prefix: join(&self.prefix, path),
            root: root.clone(),
        }
    }

    /// The origin of the value at `offset`.
    pub(super) fn origin(&self, offset: usize) -> Origin {
        let (line, _) = line_and_column(self.text.as_bytes(), offset);
        Origin::File { file: shown(&self.name), line, table: shown(&self.prefix) }
    }

    /// Makes a problem of the value or key at `offset`, or of the whole file.
    pub(super) fn problem(&self, offset: Option<usize>, path: &str, message: &str) -> Problem {
        Problem {
            file: self.name.clone(),
            at: offset.map(|offset| line_and_column(self.text.as_bytes(), offset)),
            key: shown(&join(&self.prefix, path)),
            message: shown(message),
        }
    }
}

/// Compares values only, whatever their offsets.
impl PartialEq for Document {
    fn eq(&self, other: &Self) -> bool {
        self.root == other.root
    }
}

/// Serializes the values, without their offsets.
impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_table(&self.root, serializer)
    }
}

impl Value {
    pub(super) fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// Converts a string, an integer or a flag.
    pub(super) fn plain(value: toml::Value) -> Option<Self> {
        match value {
            toml::Value::String(text) => Some(Self::String(text)),
            toml::Value::Integer(number) => Some(Self::Integer(number)),
            toml::Value::Boolean(flag) => Some(Self::Boolean(flag)),
            toml::Value::Float(_)
            | toml::Value::Datetime(_)
            | toml::Value::Array(_)
            | toml::Value::Table(_) => None,
        }
    }

    /// Formats the value as TOML that reads back the same.
    pub(super) fn to_toml(&self) -> String {
        // Cannot fail: it came from TOML.
        toml::Value::try_from(self).map(|value| value.to_string()).unwrap_or_default()
    }

    /// The value's type, in words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) | Self::HugeInteger(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a datetime",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

fn serialize_table<S: Serializer>(table: &Table, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(table)
}

/// Copies the parser's tree, which borrows the text.
fn table(table: DeTable<'_>) -> Table {
    table
        .into_iter()
        .map(|(key, value)| {
            let offset = key.span().start;
            (key.into_inner().into_owned(), Node { key_offset: offset, ..node(value) })
        })
        .collect()
}

/// Copies a value. The parser limits the depth of nesting.
fn node(spanned: Spanned<DeValue<'_>>) -> Node {
    let offset = spanned.span().start;
    let value = match spanned.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        // TOML promises 64 bits.
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::HugeInteger(number.to_string()),
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Value::Boolean(flag),
        DeValue::Datetime(datetime) => Value::Datetime(datetime),
        DeValue::Array(list) => Value::List(list.into_iter().map(node).collect()),
        DeValue::Table(inner) => Value::Table(table(inner)),
    };
    Node { key_offset: offset, offset, value }
}

/// The offset of git's first conflict marker.
fn conflict_marker(text: &str) -> Option<usize> {
    let begins_line = |at: usize| text.get(..at).is_some_and(|t| t.is_empty() || t.ends_with('\n'));
    text.match_indices("<<<<<<<").map(|(at, _)| at).find(|at| begins_line(*at))
}

/// Converts an offset to line and column, both from 1; the column counts characters.
fn line_and_column(text: &[u8], offset: usize) -> (u32, u32) {
    let before = text.get(..offset).unwrap_or(text);
    let mut place = (1_u32, 1_u32);
    // A file has less than 2^32 bytes, and the continuation bytes of UTF-8 (10xxxxxx) begin no
    // character.
    for byte in before {
        match byte {
            b'\n' => place = (place.0 + 1, 1),
            0x80..=0xbf => {}
            _ => place.1 += 1,
        }
    }
    place
}

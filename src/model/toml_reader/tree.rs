//! The tree of a TOML file, with the place of every key and value.
//!
//! Made by the document from the parser's tree, which borrows the text. It must hold no message.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::model::problem::Span;

pub(super) type Table = BTreeMap<String, Node>;

/// A value with the places of its key, if it has one, and of itself.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) key_span: Span,
    pub(super) span: Span,
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

pub(super) fn serialize_table<S: Serializer>(
    table: &Table,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(table)
}

/// Copies the parser's tree, which borrows the text.
pub(super) fn table(table: DeTable<'_>) -> Table {
    table
        .into_iter()
        .map(|(key, value)| {
            let key_span = key.span().into();
            (key.into_inner().into_owned(), Node { key_span, ..node(value) })
        })
        .collect()
}

/// Copies a value. The parser limits the depth of nesting.
fn node(spanned: Spanned<DeValue<'_>>) -> Node {
    let span = spanned.span().into();
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
    Node { key_span: span, span, value }
}

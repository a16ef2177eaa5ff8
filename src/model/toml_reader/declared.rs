//! The keys that a reader requests, recorded instead of read.
//!
//! Called by the spec and config subsystems, for the schemas, the reference and `hostler help`. The
//! reader itself is the only list of keys: its own requests on an empty document are recorded. This
//! module must never know a key by itself.

use super::{Document, Extent, Field, Findings, Section, walk};
use crate::model::problem::ProblemKind;

/// The integers that are tried to learn which ones a key accepts: all ports and a few more.
const PROBED: std::ops::RangeInclusive<i64> = -1..=65_536;

/// The documentation of a key.
#[derive(Clone, Copy, Debug)]
pub struct KeyDoc {
    /// The dotted key.
    pub key: &'static str,
    /// The meaning, in Markdown.
    pub meaning: &'static str,
    /// A value as TOML; empty for a table and where the words or the default say enough.
    pub example: &'static str,
}

/// A key that a reader requests.
#[derive(Clone, Debug)]
pub struct Declared {
    /// The dotted key.
    pub key: String,
    /// The values that it accepts.
    pub shape: Shape,
    /// The default as TOML, if the reader has one.
    pub default: Option<String>,
    /// Whether it must be there, in its table or in one below it.
    pub is_required: bool,
    /// The reason why it is refused while the other keys have their defaults.
    pub idle: Option<String>,
    /// The meaning; empty without documentation.
    pub meaning: &'static str,
    /// A value as TOML, or empty.
    pub example: &'static str,
}

/// The values that a key accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A table of known keys.
    Table {
        /// Whether its required keys may be missing with it.
        is_optional: bool,
    },
    /// A table of the administrator's own keys.
    OwnKeys,
    /// A table that another reader checks.
    Foreign,
    /// A string. The kind of problem of a wrong one tells sizes from durations.
    Text(Option<ProblemKind>),
    /// One of these words.
    Word(Vec<String>),
    /// `true` or `false`.
    Flag,
    /// An integer from the first to the last, if there is one.
    Number(i64, Option<i64>),
    /// One of these integers.
    NumberOf(Vec<i64>),
    /// A list of strings.
    List,
    /// A string or a list of at least one.
    TextOrList,
}

/// Records the keys that `body` requests of a document, in its order, with the documentation in
/// `docs`. With an empty document, defaults and requirements are the usual ones.
pub fn declared<T>(
    document: &Document,
    body: impl FnOnce(&mut Section<'_>) -> T,
    docs: &[KeyDoc],
) -> Vec<Declared> {
    let findings = Findings { declared: Some(Vec::new()), ..Findings::default() };
    let (_, findings) = walk(document, &[], Extent::Part, findings, body);
    let mut declared = findings.declared.unwrap_or_default();
    for key in &mut declared {
        if let Some(doc) = docs.iter().find(|doc| doc.key == key.key) {
            (key.meaning, key.example) = (doc.meaning, doc.example);
        }
    }
    declared
}

impl Field<'_> {
    /// Records the key, unless it is recorded: a reader may be made of another one.
    pub(super) fn declare(&self, shape: impl FnOnce() -> Shape) {
        if let Some(declared) = &mut self.findings.borrow_mut().declared
            && !declared.iter().any(|other| other.key == self.path)
        {
            declared.push(Declared {
                key: self.path.clone(),
                shape: shape(),
                default: self.fallback.as_ref().map(super::Value::to_toml),
                is_required: self.is_required,
                idle: self.why_idle.clone(),
                meaning: "",
                example: "",
            });
        }
    }
}

impl Section<'_> {
    /// Records that the table has the administrator's own keys.
    pub(super) fn declare_own_keys(&self) {
        if let Some(declared) = &mut self.findings.borrow_mut().declared
            && let Some(table) = declared.iter_mut().find(|table| table.key == self.path)
        {
            table.shape = Shape::OwnKeys;
        }
    }
}

/// Returns the integers that `parse` accepts.
pub(super) fn accepted<T>(parse: impl Fn(i64) -> Result<T, String>) -> Shape {
    let numbers: Vec<i64> = PROBED.filter(|number| parse(*number).is_ok()).collect();
    let (Some(least), Some(most)) = (numbers.first(), numbers.last()) else {
        return Shape::NumberOf(numbers);
    };
    let are_all = most.checked_sub(*least).and_then(|last| usize::try_from(last).ok())
        == numbers.len().checked_sub(1);
    if are_all {
        Shape::Number(*least, parse(i64::MAX).is_err().then_some(*most))
    } else {
        Shape::NumberOf(numbers)
    }
}

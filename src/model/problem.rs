//! Problems of the administrator's files, with their places.
//!
//! Made by the spec and config readers; shown by `hostler check` and in status files.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::printable::excerpt;

mod kind;

pub use kind::{ProblemKind, Severity};

/// Longest key and message of a problem, in characters: a quoted value may be as large as the file.
const SHOWN_CHARS_MAX: usize = 300;

/// One problem in one file. Status files keep its first four fields only.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The file's name, as hostler got it.
    pub file: String,
    /// Line and column, both from 1; `None` for the whole file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<(u32, u32)>,
    /// The dotted key (`image.checksum`), or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// The problem, and after a semicolon the advice.
    pub message: String,
    /// The kind, which has a code.
    #[serde(skip)]
    pub kind: ProblemKind,
    /// The place in the file; `None` for the whole file.
    #[serde(skip)]
    pub span: Option<Span>,
    /// A second place that the problem is about.
    #[serde(skip)]
    pub other: Option<Box<OtherPlace>>,
    /// The text that would make it right.
    #[serde(skip)]
    pub fix: Option<Box<Fix>>,
}

/// A part of a file, in bytes from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The first byte.
    pub start: u32,
    /// The byte after the last one.
    pub end: u32,
}

/// The second place of a problem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherPlace {
    /// The file's name, as hostler got it.
    pub file: String,
    /// Line and column, both from 1.
    pub at: (u32, u32),
    /// The place in the file.
    pub span: Span,
    /// The place's part in the problem, in a few words.
    pub label: String,
}

/// A replacement of a part of the problem's file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fix {
    /// The part that is replaced.
    pub span: Span,
    /// The new text.
    pub text: String,
}

impl Problem {
    /// Makes a problem of a whole file that cannot be read.
    pub fn of_file(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self { file: file.into(), message: message.into(), ..Self::default() }
    }

    /// Sets the kind.
    #[must_use]
    pub fn of_kind(mut self, kind: ProblemKind) -> Self {
        self.kind = kind;
        self
    }

    /// The message without its advice, and the advice: the first semicolon outside of backquotes,
    /// between which values stand, separates them.
    pub fn message_and_help(&self) -> (&str, Option<&str>) {
        let is_outside = |at: usize| {
            self.message.get(..at).is_some_and(|before| before.matches('`').count() % 2 == 0)
        };
        let separator = self.message.match_indices("; ").find(|(at, _)| is_outside(*at));
        let split = separator.and_then(|(at, semicolon)| {
            Some((self.message.get(..at)?, self.message.get(at + semicolon.len()..)?))
        });
        split.map_or((&self.message, None), |(message, help)| (message, Some(help)))
    }
}

impl From<std::ops::Range<usize>> for Span {
    /// A file that is read has less than 2^32 bytes.
    fn from(range: std::ops::Range<usize>) -> Self {
        let [start, end] =
            [range.start, range.end].map(|byte| u32::try_from(byte).unwrap_or(u32::MAX));
        Self { start, end }
    }
}

impl From<Span> for std::ops::Range<usize> {
    fn from(span: Span) -> Self {
        span.start as usize..span.end as usize
    }
}

/// Shows for example `nodes/edge-07.toml:12:12: image.checksum: 63 hex digits, sha256 needs 64`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some((line, column)) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

/// Escapes and truncates a text that may quote a file.
pub(crate) fn shown(text: &str) -> String {
    excerpt(text, SHOWN_CHARS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_begins_at_the_first_semicolon_that_is_no_values() {
        let of = |message: &str| {
            let problem = Problem::of_file("f", message);
            let (message, help) = problem.message_and_help();
            (message.to_owned(), help.map(str::to_owned))
        };
        let pair =
            |message: &str, help: Option<&str>| (message.to_owned(), help.map(str::to_owned));
        assert_eq!(of("empty"), pair("empty", None));
        assert_eq!(of("`a; b` is odd; do c; or d"), pair("`a; b` is odd", Some("do c; or d")));
    }
}

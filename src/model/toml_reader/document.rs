//! A TOML file: its text, its tree, and its syntax errors.

use serde::{Serialize, Serializer};
use toml::de::DeTable;

use super::{
    FILE_BYTES_MAX, Origin, PROBLEMS_MAX, join, syntax,
    tree::{Table, Value, serialize_table, table},
};
use crate::model::problem::{Fix, OtherPlace, Problem, ProblemKind, Span, shown};

/// A parsed file, or one table of it.
#[derive(Clone, Debug)]
pub struct Document {
    name: String,
    text: String,
    /// Dotted path of `root` in the file; empty for the whole file.
    prefix: String,
    pub(super) root: Table,
}

impl Document {
    /// A document without a key.
    pub fn empty() -> Self {
        Self { name: String::new(), text: String::new(), prefix: String::new(), root: Table::new() }
    }

    /// Parses a file. `name` is the file's name in messages. The error has all syntax errors.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, Vec<Problem>> {
        let (document, problems) = Self::parse_recovering(name, bytes);
        document.filter(|_| problems.is_empty()).ok_or(problems)
    }

    /// Parses a file as far as possible: besides syntax errors, the document has the rest of it.
    pub fn parse_recovering(name: &str, bytes: &[u8]) -> (Option<Self>, Vec<Problem>) {
        let text = match readable(name, bytes) {
            Ok(text) => text,
            Err(problem) => return (None, vec![*problem]),
        };
        let (root, errors) = DeTable::parse_recoverable(text);
        let root = table(root.into_inner());
        let document =
            Self { name: name.to_owned(), text: text.to_owned(), prefix: String::new(), root };
        let found: Vec<_> = errors.iter().take(PROBLEMS_MAX).collect();
        let found = syntax::explain(text, &document.root, &found);
        let problems = found.into_iter().map(|error| document.syntax_problem(error)).collect();
        (Some(document), problems)
    }

    fn syntax_problem(&self, error: syntax::SyntaxError) -> Problem {
        let other = error.other.map(|(span, label)| self.other_place(span, label));
        Problem {
            other: other.map(Box::new),
            ..self.problem(Some(error.span), "", error.kind, &error.message, error.fix)
        }
    }

    /// A second place in this file, for a problem in this or another one.
    pub fn other_place(&self, span: Span, label: &str) -> OtherPlace {
        OtherPlace {
            file: self.name.clone(),
            at: line_and_column(self.text.as_bytes(), span.start as usize),
            span,
            label: label.to_owned(),
        }
    }

    /// The place of the value of a dotted key.
    pub fn value_span(&self, key: &str) -> Option<Span> {
        let (tables, key) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &self.root;
        for name in tables.split('.').filter(|name| !name.is_empty()) {
            let Value::Table(inner) = &table.get(name)?.value else { return None };
            table = inner;
        }
        Some(table.get(key)?.span)
    }

    /// Makes a problem of a value of this file that is no problem by itself.
    pub fn problem_at(&self, key: &str, kind: ProblemKind, message: &str) -> Problem {
        self.problem(self.value_span(key), key, kind, message, None)
    }

    /// The text of a place.
    pub(super) fn text_of(&self, span: Span) -> &str {
        self.text.get(std::ops::Range::from(span)).unwrap_or_default()
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
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

    /// The origin of the value at a place.
    pub(super) fn origin(&self, place: Span) -> Origin {
        let (line, _) = line_and_column(self.text.as_bytes(), place.start as usize);
        Origin::File { file: shown(&self.name), line, table: shown(&self.prefix) }
    }

    /// Makes a problem of a place, or of the whole file. `fix` is the place's right text.
    pub(super) fn problem(
        &self,
        span: Option<Span>,
        path: &str,
        kind: ProblemKind,
        message: &str,
        fix: Option<String>,
    ) -> Problem {
        let fix = span.zip(fix).map(|(span, text)| Box::new(Fix { span, text }));
        Problem {
            file: self.name.clone(),
            at: span.map(|span| line_and_column(self.text.as_bytes(), span.start as usize)),
            key: shown(&join(&self.prefix, path)),
            message: shown(message),
            kind,
            span,
            other: None,
            fix,
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

/// Checks a file's size and characters, and returns its text.
fn readable<'t>(name: &str, bytes: &'t [u8]) -> Result<&'t str, Box<Problem>> {
    let whole = |kind, message: &str| Problem::of_file(name, message).of_kind(kind);
    let at = |offset: usize, kind, message: &str| Problem {
        at: Some(line_and_column(bytes, offset)),
        span: Some((offset..offset).into()),
        ..whole(kind, message)
    };
    if bytes.len() > FILE_BYTES_MAX {
        let message = format!("{} bytes, at most {FILE_BYTES_MAX} are read", bytes.len());
        return Err(whole(ProblemKind::TooLarge, &message).into());
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        let message = "not UTF-8 but UTF-16; save it as UTF-8";
        return Err(at(0, ProblemKind::NotUtf8, message).into());
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| at(error.valid_up_to(), ProblemKind::NotUtf8, "not UTF-8"))?;
    if text.trim().is_empty() {
        return Err(whole(ProblemKind::Empty, "empty").into());
    }
    if let Some(offset) = conflict_marker(text) {
        let message = "git conflict marker; resolve the conflict first";
        let end = offset + CONFLICT_MARKER.len();
        let span = Some((offset..end).into());
        return Err(Problem { span, ..at(offset, ProblemKind::ConflictMarker, message) }.into());
    }
    Ok(text)
}

/// The start of a line with which git begins a conflict.
const CONFLICT_MARKER: &str = "<<<<<<<";

/// The offset of git's first conflict marker.
fn conflict_marker(text: &str) -> Option<usize> {
    let begins_line = |at: usize| text.get(..at).is_some_and(|t| t.is_empty() || t.ends_with('\n'));
    text.match_indices(CONFLICT_MARKER).map(|(at, _)| at).find(|at| begins_line(*at))
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

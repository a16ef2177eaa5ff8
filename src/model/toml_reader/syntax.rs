//! Syntax errors in the words of an administrator: missing quotes, YAML's colons, keys twice.
//!
//! Called by the document, with the parser's errors. It must never hide an error: a line that is
//! not understood keeps the parser's own message.

use std::{collections::BTreeMap, ops::Range};

use super::tree::{Table, Value};
use crate::model::problem::{ProblemKind, Span};

/// Quotation marks that are no quotes in TOML.
const TYPOGRAPHIC: &[char] = &['“', '”', '„', '‟', '″', '«', '»', '‘', '’', '‚', '‹', '›'];

/// One syntax error.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) span: Span,
    pub(super) kind: ProblemKind,
    pub(super) message: String,
    /// The right text of the place.
    pub(super) fix: Option<String>,
    /// A second place, with its part in the error.
    pub(super) other: Option<(Span, &'static str)>,
}

/// Explains the parser's errors, at most one for each line: one that is understood, or else the
/// leftmost, because the others follow from it. `root` is the parsed part.
pub(super) fn explain(text: &str, root: &Table, errors: &[&toml::de::Error]) -> Vec<SyntaxError> {
    let mut by_line: BTreeMap<usize, SyntaxError> = BTreeMap::new();
    for error in errors {
        let place = error.span().unwrap_or(text.len()..text.len());
        let line = Line::at(text, place.start);
        let explained = line.explained(text, root, error, &place);
        let is_better = by_line.get(&line.start).is_some_and(|known| {
            is_raw(known) && (explained.is_some() || place.start < known.span.start as usize)
        });
        let found = explained.unwrap_or_else(|| SyntaxError {
            span: place.into(),
            kind: ProblemKind::Syntax,
            message: error.message().to_owned(),
            fix: None,
            other: None,
        });
        if is_better {
            by_line.insert(line.start, found);
        } else {
            by_line.entry(line.start).or_insert(found);
        }
    }
    by_line.into_values().collect()
}

fn is_raw(error: &SyntaxError) -> bool {
    error.kind == ProblemKind::Syntax
}

/// A line of the file.
struct Line<'t> {
    /// Its offset in the file.
    start: usize,
    text: &'t str,
}

impl<'t> Line<'t> {
    fn at(text: &'t str, offset: usize) -> Self {
        let (before, after) = text.split_at_checked(offset).unwrap_or((text, ""));
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = after.find('\n').map_or(text.len(), |newline| offset + newline);
        Self { start, text: text.get(start..end).unwrap_or_default() }
    }

    /// The place of a part of the line.
    fn span_of(&self, part: &str) -> Option<Range<usize>> {
        let within = part.as_ptr().addr().checked_sub(self.text.as_ptr().addr())?;
        Some(self.start + within..self.start + within + part.len())
    }

    fn explained(
        &self,
        text: &str,
        root: &Table,
        error: &toml::de::Error,
        place: &Range<usize>,
    ) -> Option<SyntaxError> {
        if error.message() == "duplicate key" {
            return self.duplicate(text, root, place);
        }
        let line = without_comment(self.text.trim());
        if let Some(table) = line.strip_prefix('[').filter(|table| is_plain_key(table)) {
            let wanted = format!("[{table}]");
            return Some(SyntaxError {
                span: self.span_of(line)?.into(),
                kind: ProblemKind::Syntax,
                message: format!("a table without its second bracket; write {wanted}"),
                fix: Some(wanted),
                other: None,
            });
        }
        let key_len = line.find(|c: char| !is_bare(c)).unwrap_or(line.len());
        let (key, rest) = line.split_at(key_len);
        if key.is_empty() {
            return None;
        }
        match rest.trim_start().split_at_checked(1)? {
            (":", value) => self.yaml(key, without_comment(value)),
            ("=", value) => self.value(without_comment(value)),
            _ => None,
        }
    }

    fn yaml(&self, key: &str, value: &str) -> Option<SyntaxError> {
        let line = without_comment(self.text.trim());
        let wanted = if value.is_empty() {
            format!("[{key}]")
        } else {
            format!("{key} = {}", as_toml(value)?)
        };
        // No advice that would be the next error.
        toml::from_str::<toml::Table>(&wanted).ok()?;
        Some(SyntaxError {
            span: self.span_of(line)?.into(),
            kind: ProblemKind::YamlColon,
            message: format!("a colon, as in YAML; write {wanted}"),
            fix: Some(wanted),
            other: None,
        })
    }

    /// Explains an error in the value of a key.
    fn value(&self, value: &str) -> Option<SyntaxError> {
        let (what, wanted) = if value.is_empty() {
            let span = self.span_of(value)?;
            let message = "no value; write for example \"text\", 3, true or [\"a\", \"b\"]";
            return Some(SyntaxError {
                span: span.into(),
                kind: ProblemKind::Syntax,
                message: message.to_owned(),
                fix: None,
                other: None,
            });
        } else if value.contains(TYPOGRAPHIC) {
            ("typographic quotes", value.replace(TYPOGRAPHIC, "\""))
        } else if value.starts_with(['[', '{', '\'']) {
            return None;
        } else if value.starts_with('"') && value.matches('"').count() == 1 {
            ("a string without its second quote", format!("{value}\""))
        } else if !plain(value) {
            // A backslash would mean something else between quotes.
            return None;
        } else {
            ("a string without quotes", format!("\"{value}\""))
        };
        // No advice that would be the next error.
        toml::from_str::<toml::Table>(&format!("key = {wanted}")).ok()?;
        Some(SyntaxError {
            span: self.span_of(value)?.into(),
            kind: ProblemKind::Unquoted,
            message: format!("{what}; write {wanted}"),
            fix: Some(wanted),
            other: None,
        })
    }

    fn duplicate(&self, text: &str, root: &Table, place: &Range<usize>) -> Option<SyntaxError> {
        let key = text.get(place.clone())?.trim();
        let name = key.trim_matches(['"', '\'']);
        let header = header(self.text);
        let first = match header {
            Some(table) => first_header(text, self.start, table)
                .or_else(|| Some(root.get(name)?.key_span).filter(|span| precedes(*span, place)))?,
            None => last_before(root, name, place)?,
        };
        let line = text.get(..first.start as usize)?.matches('\n').count() + 1;
        let what = if header.is_some() { "table" } else { "key" };
        Some(SyntaxError {
            span: place.clone().into(),
            kind: ProblemKind::Duplicate,
            message: format!("duplicate {what}, first in line {line}; merge both"),
            fix: None,
            other: Some((first, "first here")),
        })
    }
}

fn is_plain_key(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_bare)
}

/// Whether a character can stand in a key without quotes, or in a dotted key.
fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

fn without_comment(value: &str) -> &str {
    let end = value.find(" #").or_else(|| value.starts_with('#').then_some(0));
    value.get(..end.unwrap_or(value.len())).unwrap_or(value).trim()
}

/// Whether a text can stand between double quotes as it is.
fn plain(text: &str) -> bool {
    !text.contains(['"', '\\']) && !text.chars().any(char::is_control)
}

/// A value of YAML as one of TOML: numbers, flags, lists and quoted strings are the same.
fn as_toml(value: &str) -> Option<String> {
    let as_is = value.parse::<i64>().is_ok()
        || matches!(value, "true" | "false")
        || value.starts_with(['"', '[', '{', '\'']);
    if as_is { Some(value.to_owned()) } else { plain(value).then(|| format!("\"{value}\"")) }
}

/// The name of the table whose header a line is.
fn header(line: &str) -> Option<&str> {
    let inner = line.trim_start().strip_prefix('[')?;
    Some(inner.get(..inner.find(']')?)?.trim())
}

/// The first header of a table, before an offset.
fn first_header(text: &str, before: usize, table: &str) -> Option<Span> {
    let mut start = 0;
    for line in text.get(..before)?.split_inclusive('\n') {
        if header(line) == Some(table) {
            let at = start + line.find(table)?;
            return Some((at..at + table.len()).into());
        }
        start += line.len();
    }
    None
}

fn precedes(span: Span, place: &Range<usize>) -> bool {
    (span.start as usize) < place.start
}

/// The last key of this name before a place, in any table.
fn last_before(table: &Table, name: &str, place: &Range<usize>) -> Option<Span> {
    let own = table.get(name).map(|node| node.key_span).filter(|span| precedes(*span, place));
    let inner = table.values().filter_map(|node| match &node.value {
        Value::Table(inner) => last_before(inner, name, place),
        _ => None,
    });
    inner.chain(own).max_by_key(|span| span.start)
}

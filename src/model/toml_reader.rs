//! Reads the administrator's TOML and reports every problem at once, each with its file, line,
//! column and dotted key.
//!
//! Called by the spec and config subsystems. serde stops at the first wrong value; this module
//! walks the parsed tree instead. A [`Section`] is one table, merged from all the files that may
//! fill it (a spec over its defaults); a [`Field`] is one key of it. A key that the caller never
//! requests is unknown. It must never do I/O and never panic, whatever the bytes.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use jiff::SignedDuration;

use super::problem::{Fix, Problem, ProblemKind, Span, shown};
use tree::{Node, Table, Value};

mod advice;
mod declared;
mod document;
mod field;
mod refused;
mod setting;
mod syntax;
mod tree;

pub use declared::{Declared, KeyDoc, Shape, declared};
pub use document::Document;
pub use refused::Refused;
pub use setting::{Origin, Setting};

/// Largest file read, in bytes: a spec has one or two thousand; more is a mistake or an attack on
/// memory.
pub const FILE_BYTES_MAX: usize = 256 * 1024;
/// Most problems kept of one reading, so that status files stay small.
const PROBLEMS_MAX: usize = 100;
/// Longest key in a table of the administrator's own keys, in bytes.
const KEY_BYTES_MAX: usize = 64;
/// Most elements of a list.
const LIST_MAX: usize = 64;
/// The range of a duration: a shorter wait is always a mistake, and after a week an operator has
/// noticed.
const DURATION_RANGE: RangeInclusive<SignedDuration> =
    SignedDuration::from_secs(1)..=SignedDuration::from_hours(7 * 24);

/// The results of a reading so far.
#[derive(Debug, Default)]
struct Findings {
    problems: Vec<Problem>,
    /// The problems of unknown keys by their numbers, each with its table and key: their advice
    /// needs the keys of all tables.
    unknown: Vec<(usize, String, String)>,
    /// The keys of every table.
    known: KnownKeys,
    /// The keys that are set, by their dotted paths: no replacement may set one twice.
    set: BTreeSet<String>,
    /// The effective values; `None` if the caller does not want them.
    settings: Option<Vec<Setting>>,
    /// The requested keys; `None` if the caller does not want them.
    declared: Option<Vec<Declared>>,
}

/// The known keys of every table, by the table's dotted path.
type KnownKeys = BTreeMap<String, BTreeSet<&'static str>>;

/// Whether required keys must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Yes: the documents are complete.
    Whole,
    /// No: the document is a part, such as defaults, that another one completes.
    Part,
}

/// One table, merged from the files that fill it, the most specific first.
#[derive(Debug)]
pub struct Section<'a> {
    /// The most specific file, for which missing keys are reported, and the place of the table in
    /// it.
    home: (&'a Document, Option<Span>),
    layers: Vec<(&'a Document, &'a Table)>,
    path: String,
    extent: Extent,
    idle: bool,
    known: BTreeSet<&'static str>,
    /// Keys that are reported already.
    forbidden: BTreeSet<&'static str>,
    findings: &'a RefCell<Findings>,
}

/// One key of a table, present or not.
#[derive(Debug)]
#[must_use]
pub struct Field<'a> {
    home: (&'a Document, Option<Span>),
    values: Vec<(&'a Document, &'a Node)>,
    path: String,
    extent: Extent,
    /// The kind of a value that is refused, unless another one is more exact.
    kind: Option<ProblemKind>,
    fallback: Option<Value>,
    idle: bool,
    /// The reason why it is unused.
    why_idle: Option<String>,
    is_required: bool,
    findings: &'a RefCell<Findings>,
}

/// Reads `top` over the documents `below` it, the most specific first, with `body`. The result is
/// valid only without problems.
pub fn read<T>(
    top: &Document,
    below: &[&Document],
    extent: Extent,
    body: impl FnOnce(&mut Section<'_>) -> T,
) -> (T, Vec<Problem>) {
    let (value, mut findings) = walk(top, below, extent, Findings::default(), body);
    findings.advise_on_unknown();
    let mut problems = findings.problems;
    problems.sort_by_key(|problem| (problem.file != top.name(), problem.at));
    (value, problems)
}

/// Returns the effective values with their origins, in the order in which `body` requests them.
/// Only for documents in which [`read`] finds no problem.
pub fn settings<T>(
    top: &Document,
    below: &[&Document],
    body: impl FnOnce(&mut Section<'_>) -> T,
) -> Vec<Setting> {
    let findings = Findings { settings: Some(Vec::new()), ..Findings::default() };
    let (_, findings) = walk(top, below, Extent::Whole, findings, body);
    findings.settings.unwrap_or_default()
}

fn walk<T>(
    top: &Document,
    below: &[&Document],
    extent: Extent,
    findings: Findings,
    body: impl FnOnce(&mut Section<'_>) -> T,
) -> (T, Findings) {
    let findings = RefCell::new(findings);
    let layers = std::iter::once(top).chain(below.iter().copied());
    let mut section = Section {
        home: (top, None),
        layers: layers.map(|document| (document, &document.root)).collect(),
        path: String::new(),
        extent,
        idle: false,
        known: BTreeSet::new(),
        forbidden: BTreeSet::new(),
        findings: &findings,
    };
    let value = body(&mut section);
    section.finish();
    (value, findings.into_inner())
}

impl Findings {
    /// Adds the advice about unknown keys, now that the keys of all tables are known. A key that is
    /// there under a wrong name or in a wrong table is not missing, too.
    fn advise_on_unknown(&mut self) {
        let mut meant: BTreeSet<String> = BTreeSet::new();
        for (number, table, key) in std::mem::take(&mut self.unknown) {
            if let Some(problem) = self.problems.get_mut(number) {
                let advice = advice::unknown_key(&table, &key, &self.known);
                problem.message = shown(&advice.message);
                let free = advice.key.filter(|key| self.set.insert(join(&table, key)));
                problem.fix = problem.span.zip(free).map(|(span, text)| Fix { span, text }.into());
                meant.extend(advice.meant);
            }
        }
        self.problems.retain(|problem| {
            problem.kind != ProblemKind::MissingKey || !meant.contains(&problem.key)
        });
    }
}

impl<'a> Section<'a> {
    /// Returns one key, which becomes known.
    pub fn key(&mut self, key: &'static str) -> Field<'a> {
        self.known.insert(key);
        let value =
            |(document, table): &(&'a Document, &'a Table)| Some((*document, table.get(key)?));
        Field {
            home: self.home,
            values: self.layers.iter().filter_map(value).collect(),
            path: join(&self.path, key),
            extent: self.extent,
            kind: None,
            fallback: None,
            idle: self.idle,
            why_idle: None,
            is_required: false,
            findings: self.findings,
        }
    }

    /// Whether the key is present. This does not make it known.
    pub fn has(&self, key: &str) -> bool {
        self.layers.iter().any(|(_, table)| table.contains_key(key))
    }

    /// Stops reporting missing keys, because the key that decides which are required was refused.
    pub fn excuse_missing(&mut self) {
        self.extent = Extent::Part;
    }

    /// Refuses a key because of other keys, in whichever file it is. Does nothing for a part, which
    /// other documents complete.
    pub fn refuse(&self, key: &str, message: &str) {
        if self.extent == Extent::Whole {
            let said = |(document, table): &(&'a Document, &Table)| {
                table.get(key).map(|node| (*document, Some(node.span)))
            };
            let (document, span) = self.layers.iter().find_map(said).unwrap_or(self.home);
            let refused = Refused::new(ProblemKind::Conflict, message);
            report(self.findings, document, span, &join(&self.path, key), refused);
        }
    }

    /// Refuses a key that must never be there, with a message of its own.
    pub fn forbid(&mut self, key: &'static str, kind: ProblemKind, message: &str) {
        self.forbidden.insert(key);
        for (document, table) in &self.layers {
            if let Some(node) = table.get(key) {
                let refused = Refused::new(kind, message);
                let path = join(&self.path, key);
                report(self.findings, document, Some(node.key_span), &path, refused);
            }
        }
    }

    /// Reads every key by `read`, in a table of the administrator's own keys: 1 to 64 letters,
    /// digits, `_` or `-`.
    pub fn each<T>(&mut self, read: impl Fn(&str, Field<'_>) -> Option<T>) -> BTreeMap<String, T> {
        self.declare_own_keys();
        let mut nodes: BTreeMap<&String, (&'a Document, &'a Node)> = BTreeMap::new();
        for (document, table) in std::mem::take(&mut self.layers) {
            for (key, node) in table {
                nodes.entry(key).or_insert((document, node));
            }
        }
        let mut values = BTreeMap::new();
        for (key, (document, node)) in nodes {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(is_plain) {
                let message = format!("must be 1 to {KEY_BYTES_MAX} letters, digits, `_` or `-`");
                let path = join(&self.path, key);
                let refused = Refused::new(ProblemKind::BadText, &message);
                report(self.findings, document, Some(node.key_span), &path, refused);
                continue;
            }
            let field = Field {
                home: self.home,
                values: vec![(document, node)],
                path: join(&self.path, key),
                extent: self.extent,
                kind: None,
                fallback: None,
                idle: self.idle,
                why_idle: None,
                is_required: false,
                findings: self.findings,
            };
            values.extend(read(key, field).map(|value| (key.clone(), value)));
        }
        values
    }

    fn finish(self) {
        let mut findings = self.findings.borrow_mut();
        for (document, table) in &self.layers {
            let is_unknown = |(key, _): &(&String, _)| {
                let key = key.as_str();
                !self.known.contains(key) && !self.forbidden.contains(key)
            };
            findings.set.extend(table.keys().map(|key| join(&self.path, key)));
            for (key, node) in table.iter().filter(is_unknown) {
                let number = findings.problems.len();
                if number < PROBLEMS_MAX {
                    let path = join(&self.path, key);
                    let place = Some(node.key_span);
                    let kind = ProblemKind::UnknownKey;
                    findings.problems.push(document.problem(place, &path, kind, "", None));
                    findings.unknown.push((number, self.path.clone(), key.clone()));
                }
            }
        }
        findings.known.entry(self.path).or_default().extend(self.known);
    }
}

/// Parses a duration (`20m`, `1h 30m`) from one second to seven days.
pub fn duration(text: &str) -> Result<Duration, Refused> {
    let refused = |message: &str| Refused::new(ProblemKind::BadDuration, message);
    let Ok(duration) = text.parse::<SignedDuration>() else {
        if let Some(seconds) = text.parse().ok().map(SignedDuration::from_secs)
            && DURATION_RANGE.contains(&seconds)
        {
            let in_units = match format!("{seconds:#}") {
                same if same == format!("{text}s") => String::new(),
                other => format!(" or \"{other}\""),
            };
            let message = format!("`{text}` has no unit; for seconds write \"{text}s\"{in_units}");
            return Err(refused(&message).fixed_by(format!("\"{text}s\"")));
        }
        let message = format!("`{text}` is not a duration; write for example 20m or 1h 30m");
        return Err(refused(&message));
    };
    if !DURATION_RANGE.contains(&duration) {
        return Err(refused(&format!("`{text}` is out of range, 1s to 168h is allowed")));
    }
    Ok(duration.unsigned_abs())
}

fn report(
    findings: &RefCell<Findings>,
    document: &Document,
    place: Option<Span>,
    path: &str,
    refused: Refused,
) {
    let problems = &mut findings.borrow_mut().problems;
    if problems.len() < PROBLEMS_MAX {
        let kind = refused.kind.unwrap_or_default();
        problems.push(document.problem(place, path, kind, &refused.message, refused.fix));
    }
}

fn join(path: &str, key: &str) -> String {
    let dot = if path.is_empty() || key.is_empty() { "" } else { "." };
    format!("{path}{dot}{key}")
}

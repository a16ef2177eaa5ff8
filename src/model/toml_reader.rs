//! Reads the administrator's TOML and reports every problem at once, each with its file, line,
//! column and dotted key.
//!
//! Called by the spec and config subsystems. serde stops at the first wrong value; this module
//! walks the parsed tree instead. A [`Section`] is one table, merged from all the files that may
//! fill it (a spec over its defaults); a [`Field`] is one key of it. A key that the caller never
//! requests is unknown. It must never do I/O and never panic, whatever the bytes.

use std::{cell::RefCell, collections::BTreeMap, ops::RangeInclusive, time::Duration};

use jiff::SignedDuration;

use super::problem::Problem;
use document::{Node, Table, Value};

mod document;
mod setting;

pub use document::Document;
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
    /// The effective values; `None` if the caller does not want them.
    settings: Option<Vec<Setting>>,
}

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
    /// The most specific file, for which missing keys are reported, and the offset of the table in
    /// it.
    home: (&'a Document, Option<usize>),
    layers: Vec<(&'a Document, &'a Table)>,
    path: String,
    extent: Extent,
    idle: bool,
    known: Vec<&'static str>,
    findings: &'a RefCell<Findings>,
}

/// One key of a table, present or not.
#[derive(Debug)]
#[must_use]
pub struct Field<'a> {
    home: (&'a Document, Option<usize>),
    values: Vec<(&'a Document, &'a Node)>,
    path: String,
    extent: Extent,
    fallback: Option<Value>,
    idle: bool,
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
    let (value, findings) = walk(top, below, extent, Findings::default(), body);
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
        known: Vec::new(),
        findings: &findings,
    };
    let value = body(&mut section);
    section.finish();
    (value, findings.into_inner())
}

impl<'a> Section<'a> {
    /// Returns one key, which becomes known.
    pub fn key(&mut self, key: &'static str) -> Field<'a> {
        self.known.push(key);
        let value =
            |(document, table): &(&'a Document, &'a Table)| Some((*document, table.get(key)?));
        Field {
            home: self.home,
            values: self.layers.iter().filter_map(value).collect(),
            path: join(&self.path, key),
            extent: self.extent,
            fallback: None,
            idle: self.idle,
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
                table.get(key).map(|node| (*document, Some(node.offset)))
            };
            let (document, offset) = self.layers.iter().find_map(said).unwrap_or(self.home);
            report(self.findings, document, offset, &join(&self.path, key), message);
        }
    }

    /// Reads every key by `read`, in a table of the administrator's own keys: 1 to 64 letters,
    /// digits, `_` or `-`.
    pub fn each<T>(&mut self, read: impl Fn(&str, Field<'_>) -> Option<T>) -> BTreeMap<String, T> {
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
                report(self.findings, document, Some(node.key_offset), &path, &message);
                continue;
            }
            let field = Field {
                home: self.home,
                values: vec![(document, node)],
                path: join(&self.path, key),
                extent: self.extent,
                fallback: None,
                idle: self.idle,
                findings: self.findings,
            };
            values.extend(read(key, field).map(|value| (key.clone(), value)));
        }
        values
    }

    fn finish(self) {
        for (document, table) in &self.layers {
            let unknown = |(key, _): &(&String, _)| !self.known.contains(&key.as_str());
            for (key, node) in table.iter().filter(unknown) {
                let message = match nearest(key, &self.known) {
                    Some(near) => format!("unknown key; did you mean `{near}`?"),
                    None => "unknown key".to_owned(),
                };
                let path = join(&self.path, key);
                report(self.findings, document, Some(node.key_offset), &path, &message);
            }
        }
    }
}

impl Field<'_> {
    /// Reports the key if it is missing.
    pub fn required(self) -> Self {
        if self.values.is_empty() && self.extent == Extent::Whole {
            let (document, offset) = self.home;
            report(self.findings, document, offset, &self.path, "missing");
        }
        self
    }

    /// Sets the key's default: a string, an integer or a flag.
    pub fn or(mut self, fallback: impl Into<toml::Value>) -> Self {
        self.fallback = Value::plain(fallback.into());
        self
    }

    /// Marks the key as unused because of other keys. Its value is still checked, but is not
    /// effective. In the most specific file, it is refused with the reason `why`: only a default
    /// may be unused.
    pub fn idle(mut self, why: &str) -> Self {
        self.idle = true;
        if let Some((document, node)) = self.values.first()
            && self.extent == Extent::Whole
            && std::ptr::eq(*document, self.home.0)
        {
            report(self.findings, document, Some(node.offset), &self.path, why);
        }
        self
    }

    /// Reads a string by `parse`.
    pub fn text<T>(self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.scalar("a string", |value| value.as_str().map(parse))
    }

    /// Reads one word of a closed set.
    pub fn choice<T: Copy>(self, words: &[(&str, T)]) -> Option<T> {
        self.text(|text| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                format!("`{text}` is not one of {}", all.join(", "))
            })
        })
    }

    /// Reads `true` or `false`.
    pub fn flag(self) -> Option<bool> {
        self.scalar("true or false", |value| {
            if let Value::Boolean(flag) = value { Some(Ok(*flag)) } else { None }
        })
    }

    /// Reads an integer by `parse`.
    pub fn integer<T>(self, parse: impl FnOnce(i64) -> Result<T, String>) -> Option<T> {
        self.scalar("an integer", |value| match value {
            Value::Integer(number) => Some(parse(*number)),
            // Checked as the nearest number, and reported as written.
            Value::HugeInteger(text) => {
                let nearest = if text.starts_with('-') { i64::MIN } else { i64::MAX };
                Some(Err(match parse(nearest) {
                    Err(why) => why.replace(&nearest.to_string(), text),
                    Ok(_) => format!("{text} is out of range"),
                }))
            }
            _ => None,
        })
    }

    /// Reads a list of strings, each by `parse`.
    pub fn list<T>(self, mut parse: impl FnMut(&str) -> Result<T, String>) -> Option<Vec<T>> {
        let (document, list) = *self.values.first()?;
        let Value::List(array) = &list.value else {
            self.wrong(list.offset, &wrong_type("a list of strings", &list.value));
            return None;
        };
        if array.len() > LIST_MAX {
            self.wrong(list.offset, &format!("{} elements, at most {LIST_MAX}", array.len()));
            return None;
        }
        let mut values = Vec::with_capacity(array.len());
        for element in array {
            let value = &element.value;
            match value.as_str().map_or_else(|| Err(wrong_type("a string", value)), &mut parse) {
                Ok(value) => values.push(value),
                Err(message) => {
                    report(self.findings, document, Some(element.offset), &self.path, &message);
                }
            }
        }
        (values.len() == array.len()).then(|| self.accept(list, values))
    }

    /// Reads one string or a list of any length.
    pub fn text_or_list<T, U>(
        self,
        mut parse: impl FnMut(&str) -> Result<U, String>,
        one: impl FnOnce(U) -> T,
        many: impl FnOnce(Vec<U>) -> T,
    ) -> Option<T> {
        let (_, node) = *self.values.first()?;
        match &node.value {
            Value::List(_) => self.list(parse).map(many),
            _ => self.text(|text| parse(text)).map(one),
        }
    }

    /// Reads one string or a list of at least one.
    pub fn one_or_list<T>(
        self,
        mut parse: impl FnMut(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let (_, node) = *self.values.first()?;
        let Value::List(list) = &node.value else {
            return self.text(|text| parse(text)).map(|value| vec![value]);
        };
        if list.is_empty() {
            self.wrong(node.offset, "an empty list, must name at least one");
            return None;
        }
        self.list(parse)
    }

    /// Reads a table by `body`, even an absent one, so that its missing keys are reported and its
    /// defaults apply.
    pub fn table<T>(self, body: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let mut layers = Vec::with_capacity(self.values.len());
        let mut home = (self.home.0, None);
        let mut extent = self.extent;
        for (document, value) in &self.values {
            if let Value::Table(table) = &value.value {
                layers.push((*document, table));
                if std::ptr::eq(*document, home.0) {
                    home.1 = Some(value.offset);
                }
            } else {
                let message = wrong_type("a table", &value.value);
                report(self.findings, document, Some(value.offset), &self.path, &message);
                extent = Extent::Part;
            }
        }
        let mut section = Section {
            home,
            layers,
            path: self.path.clone(),
            extent,
            idle: self.idle,
            known: Vec::new(),
            findings: self.findings,
        };
        let value = body(&mut section);
        section.finish();
        value
    }

    /// Returns the table as a document for another reader. Its problems still point into the file.
    pub fn document(self) -> Option<Document> {
        let (document, value) = *self.values.first()?;
        let Value::Table(table) = &value.value else {
            self.wrong(value.offset, &wrong_type("a table", &value.value));
            return None;
        };
        Some(document.below(&self.path, table))
    }

    fn scalar<T>(
        self,
        expected: &str,
        get: impl FnOnce(&Value) -> Option<Result<T, String>>,
    ) -> Option<T> {
        let Some((_, node)) = self.values.first() else {
            let fallback = self.fallback.as_ref()?;
            self.note(fallback, || Origin::Default);
            return get(fallback)?.ok();
        };
        match get(&node.value) {
            Some(Ok(good)) => Some(self.accept(node, good)),
            Some(Err(message)) => {
                self.wrong(node.offset, &message);
                None
            }
            None => {
                self.wrong(node.offset, &wrong_type(expected, &node.value));
                None
            }
        }
    }

    /// Notes a valid value as the effective one.
    fn accept<T>(&self, node: &Node, value: T) -> T {
        if let Some((document, _)) = self.values.first() {
            self.note(&node.value, || document.origin(node.offset));
        }
        value
    }

    fn note(&self, value: &Value, origin: impl FnOnce() -> Origin) {
        if let Some(settings) = &mut self.findings.borrow_mut().settings
            && !self.idle
        {
            settings.push(Setting {
                key: self.path.clone(),
                value: value.to_toml(),
                origin: origin(),
            });
        }
    }

    fn wrong(&self, offset: usize, message: &str) {
        if let Some((document, _)) = self.values.first() {
            report(self.findings, document, Some(offset), &self.path, message);
        }
    }
}

/// Parses a duration (`20m`, `1h 30m`) from one second to seven days.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration: SignedDuration = text
        .parse()
        .map_err(|_| format!("`{text}` is not a duration; write for example 20m or 1h 30m"))?;
    if !DURATION_RANGE.contains(&duration) {
        return Err(format!("`{text}` is out of range, 1s to 168h is allowed"));
    }
    Ok(duration.unsigned_abs())
}

fn report(
    findings: &RefCell<Findings>,
    document: &Document,
    offset: Option<usize>,
    path: &str,
    message: &str,
) {
    let problems = &mut findings.borrow_mut().problems;
    if problems.len() < PROBLEMS_MAX {
        problems.push(document.problem(offset, path, message));
    }
}

fn wrong_type(expected: &str, value: &Value) -> String {
    let is_scalar = !matches!(value, Value::List(_) | Value::Table(_));
    let quotes = if is_scalar && expected == "a string" { "; put it in quotes" } else { "" };
    format!("{}, must be {expected}{quotes}", value.kind())
}

fn join(path: &str, key: &str) -> String {
    let dot = if path.is_empty() || key.is_empty() { "" } else { "." };
    format!("{path}{dot}{key}")
}

/// Finds the known key nearest to a mistyped one, at most two keystrokes away.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    const STROKES_MAX: usize = 2;
    // The distance takes time proportional to the product of both lengths.
    if key.len() > 64 {
        return None;
    }
    known
        .iter()
        .map(|candidate| (strsim::osa_distance(key, candidate), *candidate))
        .filter(|(strokes, candidate)| *strokes <= STROKES_MAX.min(candidate.len() / 2))
        .min()
        .map(|(_, candidate)| candidate)
}

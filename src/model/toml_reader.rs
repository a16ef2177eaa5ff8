//! Reading TOML that people wrote: every problem at once, each with its file, line, column and dotted key.
//!
//! Called by the spec and config rooms. serde stops at the first wrong value, so this walks the parsed tree instead: a [`Section`]
//! is one table, seen through all the files that may fill it (a spec over its defaults); a [`Field`] is one key of it. What no
//! reader asked for is an unknown key. It must never do I/O and never panic, whatever the bytes.

use std::{cell::RefCell, collections::BTreeMap, ops::RangeInclusive, time::Duration};

use jiff::SignedDuration;
use serde::{Serialize, Serializer};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::Problem;

/// Largest file read, in bytes: a spec has one or two thousand; more is a mistake or an attack on memory.
pub const FILE_BYTES_MAX: usize = 256 * 1024;
/// What a message says of a valid value that hostler does not act on yet. Such a value is refused: ignoring it would surprise.
pub const NOT_YET: &str = "not supported yet";
/// Most problems kept of one reading: nobody reads more at once, and status files stay small.
const PROBLEMS_MAX: usize = 100;
/// Longest key and message in characters: a value quoted in a message may have the size of the file.
const SHOWN_CHARS_MAX: usize = 300;
/// Most elements of a list.
const LIST_MAX: usize = 64;
/// Bounds of a duration: a shorter wait is always a mistake, and after a week somebody has come to look.
const DURATION_RANGE: RangeInclusive<SignedDuration> =
    SignedDuration::from_secs(1)..=SignedDuration::from_hours(7 * 24);

/// One parsed file, or one table of it.
#[derive(Clone, Debug)]
pub struct Document {
    name: String,
    text: String,
    /// Dotted path of `root` in the file; empty for the whole file.
    prefix: String,
    root: Table,
}

type Table = BTreeMap<String, Node>;

/// A value with the bytes at which its key (if it has one) and it itself begin.
#[derive(Clone, Debug)]
struct Node {
    key_offset: usize,
    offset: usize,
    value: Value,
}

/// A TOML value.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(toml::value::Datetime),
    List(Vec<Node>),
    #[serde(serialize_with = "serialize_table")]
    Table(Table),
}

/// Whether required keys must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Yes: this is all there is.
    Whole,
    /// No: this is a part, such as defaults, that something else completes.
    Part,
}

/// One table, seen through the files that fill it, the most specific first.
#[derive(Debug)]
pub struct Section<'a> {
    /// The most specific file, which is to blame for what is missing, and where this table begins in it.
    home: (&'a Document, Option<usize>),
    layers: Vec<(&'a Document, &'a Table)>,
    path: String,
    extent: Extent,
    known: Vec<&'static str>,
    problems: &'a RefCell<Vec<Problem>>,
}

/// One key of a table, present or not.
#[derive(Debug)]
pub struct Field<'a> {
    home: (&'a Document, Option<usize>),
    values: Vec<(&'a Document, &'a Node)>,
    path: String,
    extent: Extent,
    later: bool,
    problems: &'a RefCell<Vec<Problem>>,
}

/// Reads `layers`, the most specific first (at least one), with `body`; what it returns is good only if no problem came with it.
pub fn read<T>(
    top: &Document,
    below: &[&Document],
    extent: Extent,
    body: impl FnOnce(&mut Section<'_>) -> T,
) -> (T, Vec<Problem>) {
    let problems = RefCell::default();
    let mut section = Section {
        home: (top, None),
        layers: std::iter::once(top)
            .chain(below.iter().copied())
            .map(|document| (document, &document.root))
            .collect(),
        path: String::new(),
        extent,
        known: Vec::new(),
        problems: &problems,
    };
    let value = body(&mut section);
    section.finish();
    let mut problems = problems.into_inner();
    problems.sort_by_key(|problem| (problem.file != top.name, problem.at));
    (value, problems)
}

impl Document {
    /// Parses a file. `name` is how messages call it. On failure: all syntax errors.
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

    /// How messages call the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn problem(&self, offset: Option<usize>, path: &str, message: &str) -> Problem {
        let key = if self.prefix.is_empty() || path.is_empty() {
            format!("{}{path}", self.prefix)
        } else {
            format!("{}.{path}", self.prefix)
        };
        Problem {
            file: self.name.clone(),
            at: offset.map(|offset| line_and_column(self.text.as_bytes(), offset)),
            key: shown(&key),
            message: shown(message),
        }
    }
}

/// Documents are equal when they say the same, wherever it stands.
impl PartialEq for Document {
    fn eq(&self, other: &Self) -> bool {
        self.root == other.root
    }
}

/// The values, without their places.
impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_table(&self.root, serializer)
    }
}

impl<'a> Section<'a> {
    /// One key. Asking for it makes it known.
    pub fn key(&mut self, key: &'static str) -> Field<'a> {
        self.known.push(key);
        let value =
            |(document, table): &(&'a Document, &'a Table)| Some((*document, table.get(key)?));
        Field {
            home: self.home,
            values: self.layers.iter().filter_map(value).collect(),
            path: join(&self.path, key),
            extent: self.extent,
            later: false,
            problems: self.problems,
        }
    }

    /// Whether the key is there. It does not make it known.
    pub fn has(&self, key: &str) -> bool {
        self.layers.iter().any(|(_, table)| table.contains_key(key))
    }

    /// Accepts every key that is a string: a table whose keys are the administrator's own.
    pub fn any_strings(&mut self) {
        for (document, table) in std::mem::take(&mut self.layers) {
            for (key, node) in table.iter().filter(|(_, node)| node.value.as_str().is_none()) {
                let path = join(&self.path, key);
                let message = wrong_type("a string", &node.value);
                report(self.problems, document.problem(Some(node.offset), &path, &message));
            }
        }
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
                report(self.problems, document.problem(Some(node.key_offset), &path, &message));
            }
        }
    }
}

impl Field<'_> {
    /// Reports the key if it is missing.
    pub fn required(self) -> Self {
        if self.values.is_empty() && self.extent == Extent::Whole {
            let (document, offset) = self.home;
            report(self.problems, document.problem(offset, &self.path, "missing"));
        }
        self
    }

    /// Refuses the key as [`NOT_YET`] if its value is good, so that it has to be well formed even so.
    pub fn later(mut self) -> Self {
        self.later = true;
        self
    }

    /// A string, read by `parse`.
    pub fn text<T>(self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.scalar("a string", |value| value.as_str().map(parse))
    }

    /// One of a closed set of words; a word without a value is [`NOT_YET`].
    pub fn choice<T: Copy>(self, words: &[(&str, Option<T>)]) -> Option<T> {
        self.text(|text| match words.iter().find(|(word, _)| *word == text) {
            Some((_, Some(value))) => Ok(*value),
            Some((word, None)) => Err(format!("`{word}` is {NOT_YET}")),
            None => {
                let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                Err(format!("`{text}` is not one of {}", all.join(", ")))
            }
        })
    }

    /// `true` or `false`.
    pub fn flag(self) -> Option<bool> {
        self.scalar("true or false", |value| {
            if let Value::Boolean(flag) = value { Some(Ok(*flag)) } else { None }
        })
    }

    /// An integer, checked by `parse`.
    pub fn integer<T>(self, parse: impl FnOnce(i64) -> Result<T, String>) -> Option<T> {
        self.scalar("an integer", |value| {
            if let Value::Integer(number) = value { Some(parse(*number)) } else { None }
        })
    }

    /// A list of strings, each read by `parse`.
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
        let before = self.problems.borrow().len();
        let mut values = Vec::with_capacity(array.len());
        for element in array {
            let value = &element.value;
            match value.as_str().map_or_else(|| Err(wrong_type("a string", value)), &mut parse) {
                Ok(value) => values.push(value),
                Err(message) => {
                    let problem = document.problem(Some(element.offset), &self.path, &message);
                    report(self.problems, problem);
                }
            }
        }
        let good = self.problems.borrow().len() == before;
        if good { self.unless_later(list.offset, values) } else { None }
    }

    /// One string or a list of at least one.
    pub fn one_or_list<T>(
        self,
        mut parse: impl FnMut(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let (_, node) = *self.values.first()?;
        match &node.value {
            Value::List(list) if list.is_empty() => {
                self.wrong(node.offset, "an empty list, must name at least one");
                None
            }
            Value::List(_) => self.list(parse),
            _ => self.text(|text| parse(text)).map(|value| vec![value]),
        }
    }

    /// A table, read by `body` even if it is absent: so its own required keys are missed and its defaults apply.
    pub fn table<T>(self, body: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let before = self.problems.borrow().len();
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
                report(self.problems, document.problem(Some(value.offset), &self.path, &message));
                extent = Extent::Part;
            }
        }
        let mut section = Section {
            home,
            layers,
            path: self.path.clone(),
            extent,
            known: Vec::new(),
            problems: self.problems,
        };
        let value = body(&mut section);
        section.finish();
        if let Some((_, first)) = self.values.first()
            && self.later
            && self.problems.borrow().len() == before
        {
            self.wrong(first.offset, NOT_YET);
        }
        value
    }

    /// The table as a document of its own, to be read by somebody else. Its problems still point into the file.
    pub fn document(self) -> Option<Document> {
        let (document, value) = *self.values.first()?;
        let Value::Table(table) = &value.value else {
            self.wrong(value.offset, &wrong_type("a table", &value.value));
            return None;
        };
        Some(Document {
            name: document.name.clone(),
            text: document.text.clone(),
            prefix: self.path,
            root: table.clone(),
        })
    }

    fn scalar<T>(
        self,
        expected: &str,
        get: impl FnOnce(&Value) -> Option<Result<T, String>>,
    ) -> Option<T> {
        let (_, value) = *self.values.first()?;
        let offset = value.offset;
        match get(&value.value) {
            Some(Ok(good)) => self.unless_later(offset, good),
            Some(Err(message)) => {
                self.wrong(offset, &message);
                None
            }
            None => {
                self.wrong(offset, &wrong_type(expected, &value.value));
                None
            }
        }
    }

    fn unless_later<T>(&self, offset: usize, value: T) -> Option<T> {
        if self.later {
            self.wrong(offset, NOT_YET);
        }
        (!self.later).then_some(value)
    }

    fn wrong(&self, offset: usize, message: &str) {
        if let Some((document, _)) = self.values.first() {
            report(self.problems, document.problem(Some(offset), &self.path, message));
        }
    }
}

impl Value {
    fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
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

/// The parser's tree, which borrows the text, as one that can be kept.
fn table(table: DeTable<'_>) -> Table {
    table
        .into_iter()
        .map(|(key, value)| {
            let offset = key.span().start;
            (key.into_inner().into_owned(), Node { key_offset: offset, ..node(value) })
        })
        .collect()
}

/// The parser limits how deep values are nested.
fn node(spanned: Spanned<DeValue<'_>>) -> Node {
    let offset = spanned.span().start;
    let value = match spanned.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        // TOML promises 64 bits; more is out of every range here as well.
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(i64::MAX))
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Value::Boolean(flag),
        DeValue::Datetime(datetime) => Value::Datetime(datetime),
        DeValue::Array(list) => Value::List(list.into_iter().map(node).collect()),
        DeValue::Table(inner) => Value::Table(table(inner)),
    };
    Node { key_offset: offset, offset, value }
}

/// A duration as people write it (`20m`, `1h 30m`), from one second to seven days.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration: SignedDuration = text
        .parse()
        .map_err(|_| format!("`{text}` is not a duration; write for example 20m or 1h 30m"))?;
    if !DURATION_RANGE.contains(&duration) {
        return Err(format!("`{text}` is out of range, 1s to 168h is allowed"));
    }
    Ok(duration.unsigned_abs())
}

fn report(problems: &RefCell<Vec<Problem>>, problem: Problem) {
    let mut problems = problems.borrow_mut();
    if problems.len() < PROBLEMS_MAX {
        problems.push(problem);
    }
}

fn wrong_type(expected: &str, value: &Value) -> String {
    let quotes = match value {
        Value::List(_) | Value::Table(_) => "",
        _ if expected == "a string" => "; put it in quotes",
        _ => "",
    };
    format!("{}, must be {expected}{quotes}", value.kind())
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A mistyped key is rarely more than two strokes away from the right one.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    const STROKES_MAX: usize = 2;
    // The distance costs the product of both lengths.
    if key.len() > 64 {
        return None;
    }
    known
        .iter()
        .map(|candidate| (strsim::osa_distance(key, candidate), *candidate))
        .filter(|(strokes, candidate)| {
            *strokes <= STROKES_MAX && *strokes < candidate.len() / 2 + 1
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// Where the first line begins that git leaves behind in a conflict.
fn conflict_marker(text: &str) -> Option<usize> {
    const MARKER: &str = "<<<<<<<";
    if text.starts_with(MARKER) {
        Some(0)
    } else {
        text.find("\n<<<<<<<").map(|newline| newline + 1)
    }
}

/// Both from 1; the column counts characters.
fn line_and_column(text: &[u8], offset: usize) -> (u32, u32) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start =
        before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    // Continuation bytes of UTF-8 begin no character.
    let columns = before.iter().skip(line_start).filter(|byte| **byte & 0xc0 != 0x80).count();
    let from_1 = |count: usize| u32::try_from(count + 1).unwrap_or(u32::MAX);
    (from_1(lines), from_1(columns))
}

/// Fit to be printed: no control characters, which could forge lines of a log, and not too long.
fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(SHOWN_CHARS_MAX));
    for (index, char) in text.chars().enumerate() {
        if index == SHOWN_CHARS_MAX {
            shown.push('…');
            break;
        }
        if char.is_control() {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    shown
}

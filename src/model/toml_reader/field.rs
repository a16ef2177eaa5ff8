//! Readers of one key: its type, its default, and the advice if its value is wrong.
//!
//! Called by the schemas of specs and of the configuration. A problem of the value must never stop
//! the reading of the other keys.

use std::{cell::RefCell, collections::BTreeSet};

use super::{
    Document, Extent, Field, Findings, LIST_MAX, Node, Origin, Refused, Section, Setting, Shape,
    Span, Value, advice, declared::accepted, report,
};
use crate::model::problem::ProblemKind;

impl Field<'_> {
    /// Sets the kind of problem that a wrong value is.
    pub fn of_kind(mut self, kind: ProblemKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Reports the key if it is missing. `example` is a value for it, as TOML.
    pub fn required(mut self, example: &str) -> Self {
        self.is_required = true;
        self.required_because("", example)
    }

    /// Reports the key if it is missing, with the setting that makes it necessary.
    pub fn required_because(self, reason: &str, example: &str) -> Self {
        if self.values.is_empty() && self.extent == Extent::Whole {
            let (document, place) = self.home;
            let (table, key) = self.path.rsplit_once('.').unwrap_or(("", &self.path));
            let because = if reason.is_empty() { "" } else { ", needed because of " };
            let message =
                format!("missing{because}{reason}; add to [{table}] for example {key} = {example}");
            let refused = Refused::new(ProblemKind::MissingKey, &message);
            report(self.findings, document, place, &self.path, refused);
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
        self.why_idle = Some(why.to_owned());
        if let Some((document, node)) = self.values.first()
            && self.extent == Extent::Whole
            && std::ptr::eq(*document, self.home.0)
        {
            let refused = Refused::new(ProblemKind::UselessKey, why);
            report(self.findings, document, Some(node.span), &self.path, refused);
        }
        self
    }

    /// Reads a string by `parse`.
    pub fn text<T, E: Into<Refused>>(self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let kind = self.kind;
        self.declare(|| Shape::Text(kind));
        self.scalar(ProblemKind::BadText, |value, raw| as_text(value, raw, kind, parse))
    }

    /// Reads one word of a closed set.
    pub fn choice<T: Copy>(self, words: &[(&str, T)]) -> Option<T> {
        self.declare(|| Shape::Word(words.iter().map(|(word, _)| (*word).to_owned()).collect()));
        self.text(|text| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                advice::unknown_word(text, &all)
            })
        })
    }

    /// Reads `true` or `false`.
    pub fn flag(self) -> Option<bool> {
        self.declare(|| Shape::Flag);
        self.scalar(ProblemKind::WrongType, |value, _| match value {
            Value::Boolean(flag) => Ok(*flag),
            value => Err(advice::no_flag(value)),
        })
    }

    /// Reads an integer by `parse`.
    pub fn integer<T>(self, parse: impl Fn(i64) -> Result<T, String>) -> Option<T> {
        self.declare(|| accepted(&parse));
        self.scalar(ProblemKind::BadNumber, |value, _| match value {
            Value::Integer(number) => parse(*number).map_err(Refused::from),
            // Checked as the nearest number, and reported as written.
            Value::HugeInteger(text) => {
                let nearest = if text.starts_with('-') { i64::MIN } else { i64::MAX };
                Err(match parse(nearest) {
                    Err(why) => why.replace(&nearest.to_string(), text),
                    Ok(_) => format!("{text} is out of range"),
                }
                .into())
            }
            value => Err(advice::no_integer(value)),
        })
    }

    /// Reads a list of strings, each by `parse`.
    pub fn list<T, E: Into<Refused>>(
        self,
        mut parse: impl FnMut(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        self.declare(|| Shape::List);
        let (document, list) = *self.values.first()?;
        let Value::List(array) = &list.value else {
            let raw = document.text_of(list.span);
            let refused = advice::no_list(&list.value, raw, |text| parse(text).is_ok());
            self.wrong(list.span, ProblemKind::WrongType, refused);
            return None;
        };
        if array.len() > LIST_MAX {
            let message = format!("{} elements, at most {LIST_MAX}", array.len());
            let refused = Refused::new(ProblemKind::BadList, &message);
            self.wrong(list.span, ProblemKind::BadList, refused);
            return None;
        }
        let mut values = Vec::with_capacity(array.len());
        for element in array {
            let raw = document.text_of(element.span);
            match as_text(&element.value, raw, self.kind, &mut parse) {
                Ok(value) => values.push(value),
                Err(refused) => self.wrong(element.span, ProblemKind::BadText, refused),
            }
        }
        (values.len() == array.len()).then(|| self.accept(list, values))
    }

    /// Reads one string or a list of any length.
    pub fn text_or_list<T, U, E: Into<Refused>>(
        self,
        mut parse: impl FnMut(&str) -> Result<U, E>,
        one: impl FnOnce(U) -> T,
        many: impl FnOnce(Vec<U>) -> T,
    ) -> Option<T> {
        self.declare(|| Shape::TextOrList);
        let (_, node) = *self.values.first()?;
        match &node.value {
            Value::List(_) => self.list(parse).map(many),
            _ => self.text(|text| parse(text)).map(one),
        }
    }

    /// Reads one string or a list of at least one.
    pub fn one_or_list<T, E: Into<Refused>>(
        self,
        mut parse: impl FnMut(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        self.declare(|| Shape::TextOrList);
        let (_, node) = *self.values.first()?;
        let Value::List(list) = &node.value else {
            return self.text(|text| parse(text)).map(|value| vec![value]);
        };
        if list.is_empty() {
            let message = "an empty list, must name at least one";
            let refused = Refused::new(ProblemKind::BadList, message);
            self.wrong(node.span, ProblemKind::BadList, refused);
            return None;
        }
        self.list(parse)
    }

    /// Reads a table by `body`, even an absent one, so that its missing keys are reported and its
    /// defaults apply.
    pub fn table<T>(self, body: impl FnOnce(&mut Section<'_>) -> T) -> T {
        self.declare(|| Shape::Table { is_optional: false });
        let mut layers = Vec::with_capacity(self.values.len());
        let mut home = (self.home.0, None);
        let mut extent = self.extent;
        for (document, value) in &self.values {
            if let Value::Table(table) = &value.value {
                layers.push((*document, table));
                if std::ptr::eq(*document, home.0) {
                    home.1 = Some(value.span);
                }
            } else {
                let refused = advice::wrong_type("a table", &value.value);
                report(self.findings, document, Some(value.span), &self.path, refused);
                extent = Extent::Part;
            }
        }
        let mut section = Section {
            home,
            layers,
            path: self.path.clone(),
            extent,
            idle: self.idle,
            known: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            findings: self.findings,
        };
        let value = body(&mut section);
        section.finish();
        value
    }

    /// Reads a table by `body` if it is there. Otherwise only its keys become known, for advice.
    pub fn table_if_there<T>(self, body: impl FnOnce(&mut Section<'_>) -> T) -> Option<T> {
        if !self.values.is_empty() {
            return Some(self.table(body));
        }
        self.declare(|| Shape::Table { is_optional: true });
        let findings = self.findings;
        let declared = findings.borrow_mut().declared.take();
        let scratch = RefCell::new(Findings { declared, ..Findings::default() });
        Field { findings: &scratch, extent: Extent::Part, ..self }.table(body);
        let mut scratch = scratch.into_inner();
        let mut findings = findings.borrow_mut();
        findings.declared = scratch.declared;
        findings.known.append(&mut scratch.known);
        None
    }

    /// Returns the table as a document for another reader. Its problems still point into the file.
    pub fn document(self) -> Option<Document> {
        self.declare(|| Shape::Foreign);
        let (document, value) = *self.values.first()?;
        let Value::Table(table) = &value.value else {
            let refused = advice::wrong_type("a table", &value.value);
            self.wrong(value.span, ProblemKind::WrongType, refused);
            return None;
        };
        Some(document.below(&self.path, table))
    }

    /// Reads a value that is no table, with its text in the file. `kind` is the kind of a refused
    /// one, unless the field or `get` says another one.
    fn scalar<T>(
        self,
        kind: ProblemKind,
        get: impl FnOnce(&Value, &str) -> Result<T, Refused>,
    ) -> Option<T> {
        let Some((document, node)) = self.values.first() else {
            let fallback = self.fallback.as_ref()?;
            self.note(fallback, || Origin::Default);
            return get(fallback, "").ok();
        };
        match get(&node.value, document.text_of(node.span)) {
            Ok(good) => Some(self.accept(node, good)),
            Err(refused) => {
                self.wrong(node.span, kind, refused);
                None
            }
        }
    }

    /// Notes a valid value as the effective one.
    fn accept<T>(&self, node: &Node, value: T) -> T {
        if let Some((document, _)) = self.values.first() {
            self.note(&node.value, || document.origin(node.span));
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

    fn wrong(&self, place: Span, kind: ProblemKind, refused: Refused) {
        if let Some((document, _)) = self.values.first() {
            let kind = refused.kind.or(self.kind).unwrap_or(kind);
            let refused = Refused { kind: Some(kind), ..refused };
            report(self.findings, document, Some(place), &self.path, refused);
        }
    }
}

/// Reads a value as a string. If it is another scalar, the advice to quote it must be right.
fn as_text<T, E: Into<Refused>>(
    value: &Value,
    raw: &str,
    kind: Option<ProblemKind>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, Refused> {
    match value.as_str() {
        Some(text) => parse(text).map_err(Into::into),
        None => Err(advice::no_text(value, raw, kind, parse(raw).err().map(Into::into))),
    }
}

//! Reads the spec directory: one TOML file for each machine becomes a checked spec.
//!
//! Called by the agent at every wake of the watcher, and by the commands that read spec files. All
//! problems of a file are reported at once, each with line, column and key. This module must never
//! write, never read outside of the spec directory, and never take an unreadable file for a missing
//! one.

use std::path::Path;

use crate::model::{
    attached::AttachedContent,
    ids::NodeName,
    problem::{Problem, ProblemKind},
    spec::NodeSpec,
    toml_reader::{Declared, Document, Extent, Setting, declared, read, settings},
};

mod attachments;
mod bmc;
mod boot_check;
mod check;
mod clash;
mod directory;
mod keys;
mod schema;
#[cfg(test)]
mod tests;
mod values;

pub use attachments::{ATTACHED_BYTES_MAX, ATTACHMENT_BYTES_MAX};
pub use check::{
    CheckContext, CheckReport, Naming, check_dir, check_text, directory_of, never_read,
};
pub use clash::clashes;
pub use directory::{
    DEFAULTS_FILE, ReadError, Reader, SPECS_MAX, Snapshot, not_nodes, read_dir, read_file,
    read_file_settings,
};

/// The defaults of every spec: `_defaults.toml`, over the agent's `[defaults]`.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    file: Option<Document>,
    agent: Option<Document>,
    problems: Vec<Problem>,
}

impl Defaults {
    /// Checks both layers, of which each is optional. `file` is the name for messages and the
    /// content of `_defaults.toml`.
    pub fn new(file: Option<(&str, &[u8])>, agent: Option<&Document>) -> Self {
        let mut defaults = Self { agent: agent.cloned(), ..Self::default() };
        match file.map(|(name, bytes)| Document::parse(name, bytes)).transpose() {
            Ok(document) => defaults.file = document,
            Err(problems) => defaults.problems = problems,
        }
        for document in defaults.file.iter().chain(&defaults.agent) {
            defaults.problems.extend(part(document));
        }
        defaults
    }

    /// Defaults that cannot be read.
    fn broken(problem: Problem) -> Self {
        Self { problems: vec![problem], ..Self::default() }
    }

    /// The documents, the most specific first.
    fn layers(&self) -> Vec<&Document> {
        self.file.iter().chain(&self.agent).collect()
    }

    /// The problems of the defaults. While there is one, no spec is valid, because its meaning is
    /// unknown.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// Reads an attached file by its path in the spec directory; the error is the reason in words.
pub type ReadAttachment<'a> = dyn Fn(&str) -> Result<AttachedContent, String> + 'a;

/// Checks one spec. `file` is the name for messages, and its stem is the node's name. `attachment`
/// reads attached files. The error has every problem of the spec and the first one of the defaults.
pub fn parse(
    file: &str,
    bytes: &[u8],
    defaults: &Defaults,
    attachment: &ReadAttachment<'_>,
) -> Result<NodeSpec, Vec<Problem>> {
    parse_as(node_name(file), file, bytes, defaults, attachment)
}

/// Checks one spec as the node of this name.
fn parse_as(
    name: Result<NodeName, Problem>,
    file: &str,
    bytes: &[u8],
    defaults: &Defaults,
    attachment: &ReadAttachment<'_>,
) -> Result<NodeSpec, Vec<Problem>> {
    let (document, syntax) = Document::parse_recovering(file, bytes);
    let mut problems: Vec<Problem> = name.as_ref().err().cloned().into_iter().collect();
    // `_default.toml` is meant for the defaults, and `defaults.toml` may be a node's.
    let is_misnamed_defaults = name.is_err() && is_nearly_defaults(file);
    let mut checked = None;
    match &document {
        // Broken defaults may have the keys that the spec lacks, and misnamed ones lack some.
        Some(document)
            if syntax.is_empty() && defaults.problems.is_empty() && !is_misnamed_defaults =>
        {
            let name = name.ok();
            let (spec, found) = read(document, &defaults.layers(), Extent::Whole, |section| {
                schema::node(section, name, Some(attachment))
            });
            problems.extend(found);
            checked = spec;
        }
        Some(document) => {
            problems.extend_from_slice(&syntax);
            problems.extend(beside(&syntax, document));
        }
        None => problems.extend(syntax),
    }
    problems.extend(defaults.problems.first().cloned());
    checked.filter(|_| problems.is_empty()).ok_or(problems)
}

/// Every key of a spec, in the order of the schema. Defaults and requirements are those of a spec
/// that says nothing else.
pub fn keys() -> Vec<Declared> {
    keys_of(&Document::empty())
}

/// Every key that the schema requests of a document.
fn keys_of(document: &Document) -> Vec<Declared> {
    declared(document, |section| schema::node(section, None, None), keys::KEYS)
}

/// Returns the effective values of a valid spec with their origins, in the order of the schema.
/// Errors are those of [`parse`].
fn parse_settings(
    file: &str,
    bytes: &[u8],
    defaults: &Defaults,
    attachment: &ReadAttachment<'_>,
) -> Result<Vec<Setting>, Vec<Problem>> {
    parse(file, bytes, defaults, attachment)?;
    let document = Document::parse(file, bytes)?;
    Ok(settings(&document, &defaults.layers(), |section| schema::node(section, None, None)))
}

/// The problems of a file beside its syntax errors, as far as these leave the meaning of the rest
/// in no doubt.
fn beside(syntax: &[Problem], document: &Document) -> Vec<Problem> {
    let is_of_one_value =
        |error: &Problem| matches!(error.kind, ProblemKind::Unquoted | ProblemKind::Duplicate);
    if !syntax.iter().all(is_of_one_value) {
        return Vec::new();
    }
    let line = |problem: &Problem| problem.at.map(|(line, _)| line);
    let is_other = |problem: &Problem| syntax.iter().all(|error| line(error) != line(problem));
    part(document).into_iter().filter(is_other).collect()
}

/// The problems of a file that other files complete.
fn part(document: &Document) -> Vec<Problem> {
    read(document, &[], Extent::Part, |section| schema::node(section, None, None)).1
}

/// Whether a file's name is a mistyped `_defaults.toml`.
fn is_nearly_defaults(file: &str) -> bool {
    let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    strsim::osa_distance(&stem.to_ascii_lowercase(), "_defaults") <= 2
}

/// The node that a spec file's name names.
fn node_name(file: &str) -> Result<NodeName, Problem> {
    let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.parse().map_err(|message: String| {
        let hint = if is_nearly_defaults(file) { "; did you mean _defaults.toml?" } else { "" };
        Problem::of_file(file, format!("{message}{hint}")).of_kind(ProblemKind::BadFileName)
    })
}

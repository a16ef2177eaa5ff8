//! The administrator's files: a directory with one TOML file for each machine, read into checked
//! specs.
//!
//! Called by the agent at every wake of the watcher, and by the commands that look at spec files.
//! All problems of a file are reported at once, each with line, column and key. This module must
//! never write, never look past the spec directory, and never take a file it could not read for a
//! file that is not there.

use std::path::Path;

use crate::model::{
    attached::AttachedContent,
    ids::NodeName,
    problem::Problem,
    spec::NodeSpec,
    toml_reader::{Document, Extent, Setting, read, settings},
};

mod attachments;
mod bmc;
mod boot_check;
mod clash;
mod directory;
mod schema;
#[cfg(test)]
mod tests;
mod values;

pub use attachments::{ATTACHED_BYTES_MAX, ATTACHMENT_BYTES_MAX};
pub use clash::clashes;
pub use directory::{
    DEFAULTS_FILE, ReadError, Reader, Report, SPECS_MAX, Snapshot, check, not_nodes, read_dir,
    read_file, read_file_settings,
};

/// The layers under every spec: `_defaults.toml`, and under that the agent's `[defaults]`.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    file: Option<Document>,
    agent: Option<Document>,
    problems: Vec<Problem>,
}

impl Defaults {
    /// Checks both; neither has to be there. `file` is the name to show and the content of
    /// `_defaults.toml`.
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

    /// Defaults that could not even be read.
    fn broken(problem: Problem) -> Self {
        Self { problems: vec![problem], ..Self::default() }
    }

    /// The most specific first.
    fn layers(&self) -> Vec<&Document> {
        self.file.iter().chain(&self.agent).collect()
    }

    /// Their problems. While there is one, no spec is valid: nobody can tell what it was meant to
    /// say.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// Reads a file that a spec names, by its path in the spec directory: what is in it, or why it
/// cannot be had.
pub type ReadAttachment<'a> = dyn Fn(&str) -> Result<AttachedContent, String> + 'a;

/// Checks one spec. `file` is the name to show; its stem is the node's name. `attachment` reads the
/// files that it attaches. On failure: every problem, and the first of the defaults'.
pub fn parse(
    file: &str,
    bytes: &[u8],
    defaults: &Defaults,
    attachment: &ReadAttachment<'_>,
) -> Result<NodeSpec, Vec<Problem>> {
    let name = node_name(file);
    let document = Document::parse(file, bytes);
    let mut problems: Vec<Problem> = name.as_ref().err().cloned().into_iter().collect();
    let mut checked = None;
    match &document {
        Err(syntax) => problems.extend_from_slice(syntax),
        // Broken defaults may hold the keys that seem to be missing.
        Ok(document) if !defaults.problems.is_empty() => {
            problems.extend(part(document));
        }
        Ok(document) => {
            let name = name.ok();
            let (spec, found) = read(document, &defaults.layers(), Extent::Whole, |section| {
                schema::node(section, name, Some(attachment))
            });
            problems.extend(found);
            checked = spec;
        }
    }
    problems.extend(defaults.problems.first().cloned());
    checked.filter(|_| problems.is_empty()).ok_or(problems)
}

/// Every value in force of a good spec, in the order of the schema, with where it was said. On
/// failure: what [`parse`] says.
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

/// The problems of a file that others complete.
fn part(document: &Document) -> Vec<Problem> {
    read(document, &[], Extent::Part, |section| schema::node(section, None, None)).1
}

/// The node a spec file speaks of.
fn node_name(file: &str) -> Result<NodeName, Problem> {
    let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.parse().map_err(|message: String| {
        // A name that was meant for the defaults.
        let near = strsim::osa_distance(&stem.to_ascii_lowercase(), "_defaults") <= 2;
        let hint = if near { "; did you mean _defaults.toml?" } else { "" };
        Problem::of_file(file, format!("{message}{hint}"))
    })
}

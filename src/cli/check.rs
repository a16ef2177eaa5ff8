//! `hostler check`: every problem of every spec, as `file:line:column: key: message`.

use std::{io::Write, path::Path, process::ExitCode};

use crate::{model::toml_reader::Document, spec_dir};

use super::{Failure, NoDirectory, configuration};

pub(super) fn check(
    dir: Option<&Path>,
    config: Option<&Path>,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let config = configuration(config)?;
    let defaults = config.as_ref().and_then(|config| config.defaults.clone());
    let specs = config.map(|config| config.specs.dir);
    let dir = &*dir.map(Path::to_owned).or(specs).ok_or(NoDirectory)?;
    let report = if dir.is_file() {
        of_file(dir, defaults.as_ref())
    } else {
        spec_dir::check(dir, defaults.as_ref())?
    };
    for problem in &report.problems {
        writeln!(out, "{problem}")?;
    }
    for passed_over in &report.passed_over {
        writeln!(out, "note: {passed_over}")?;
    }
    let (good, problems) = (report.good.len(), report.problems.len());
    let plural = if problems == 1 { "" } else { "s" };
    writeln!(out, "{}: {good} good, {problems} problem{plural}", dir.display())?;
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks a single spec with the `_defaults.toml` beside it. Its clashes with other specs do not
/// show.
fn of_file(file: &Path, defaults: Option<&Document>) -> spec_dir::CheckReport {
    let (good, problems) = match spec_dir::read_file(file, defaults) {
        Ok(spec) => (vec![spec.name], Vec::new()),
        Err(problems) => (Vec::new(), problems),
    };
    spec_dir::CheckReport { good, problems, passed_over: Vec::new() }
}

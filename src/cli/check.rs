//! `hostler check`: every problem of every spec, as `file:line:column: key: message`.

use std::{io::Write, path::Path, process::ExitCode};

use crate::{config, spec};

use super::Failure;

pub(super) fn check(
    dir: &Path,
    config: Option<&Path>,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let defaults = config.map(config::read).transpose()?.and_then(|config| config.defaults);
    let report = spec::check(dir, defaults.as_ref())?;
    for problem in &report.problems {
        writeln!(out, "{problem}")?;
    }
    let (good, problems) = (report.good.len(), report.problems.len());
    let plural = if problems == 1 { "" } else { "s" };
    writeln!(out, "{}: {good} good, {problems} problem{plural}", dir.display())?;
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

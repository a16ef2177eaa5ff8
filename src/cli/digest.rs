//! `hostler digest`: the identity of what a spec wants installed, for whoever writes the spec and
//! then waits.

use std::{io::Write, path::Path, process::ExitCode};

use crate::spec_dir;

use super::{Failure, Problems, configuration};

pub(super) fn digest(
    file: &Path,
    config: Option<&Path>,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let defaults = configuration(config)?.and_then(|config| config.defaults);
    let spec = spec_dir::read_file(file, defaults.as_ref()).map_err(Problems)?;
    writeln!(out, "{}", spec.digest())?;
    Ok(ExitCode::SUCCESS)
}

//! `hostler digest`: the identity of a spec's installation, for scripts that write the spec and
//! then wait.

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

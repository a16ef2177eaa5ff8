//! `hostler generate`: manual pages and completions of shells, for packages.
//!
//! Hidden from the help, because a package brings both. They come from the commands' own help, so
//! that they cannot differ from it.

use std::{fs, io::Write, path::PathBuf, process::ExitCode};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Args, Failure};

#[derive(Debug, clap::Subcommand)]
pub(super) enum GenerateCommand {
    /// Write one manual page for each command.
    Man {
        /// The directory for the pages; it is made if it does not exist.
        dir: PathBuf,
    },
    /// Print a shell's completions.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

pub(super) fn run(command: &GenerateCommand, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let mut hostler = Args::command();
    match command {
        GenerateCommand::Man { dir } => {
            fs::create_dir_all(dir)?;
            clap_mangen::generate_to(hostler, dir)?;
        }
        GenerateCommand::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut hostler, "hostler", &mut text);
            out.write_all(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

//! `hostler generate`: manual pages, completions of shells, and pages of the reference.
//!
//! Hidden from the help, because a package brings them. They come from the commands' own help and
//! from the readers' own keys, so that they cannot differ from either.

use std::{fs, io::Write, path::PathBuf, process::ExitCode};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{
    Args, Failure,
    keys::{KeyFile, page},
};

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
    /// Print a page of the reference, in Markdown.
    Reference {
        /// The kind of file.
        file: KeyFile,
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
        GenerateCommand::Reference { file } => write!(out, "{}", page(*file))?,
    }
    Ok(ExitCode::SUCCESS)
}

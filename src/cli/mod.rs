//! The commands: what an administrator types.
//!
//! Called by the `hostler` binary. Looking needs no agent: `check` reads specs, `status` and `watch` read status files. `approve`
//! and `retry` ask the running agent. Nothing here changes a node by itself.

mod check;
mod orders;
mod run;
mod status;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    config::{self, Config},
    model::admin::Order,
    ramdisk::build::{self, BuildOptions},
};

/// Bare-metal provisioning for one site: a directory of TOML specs in, installed machines out.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent.
    Run {
        /// The agent's configuration.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        /// Print the effective configuration and exit.
        #[arg(long)]
        print_config: bool,
    },
    /// Check every spec in a directory; exit code 1 if one has a problem.
    Check {
        /// The directory of specs.
        dir: PathBuf,
        /// The agent's configuration, for its [defaults].
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Show where every node stands.
    Status {
        #[command(flatten)]
        place: Place,
        /// How to show it.
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Show every change of every node as it happens, until interrupted.
    Watch {
        #[command(flatten)]
        place: Place,
    },
    /// Let held nodes go on: consent to wipe machines that are on, for example. Exit code 1 if a node was not held.
    Approve(orders::For),
    /// Try failed nodes again, and those that wait for their next attempt at once. Exit code 1 if there was nothing to try again.
    Retry(orders::For),
    /// Work with the deploy ramdisk.
    Ramdisk {
        #[command(subcommand)]
        command: RamdiskCommand,
    },
}

#[derive(Debug, Subcommand)]
enum RamdiskCommand {
    /// Make the deploy kernel and ramdisk from an unpacked kernel package, always the same from the same.
    Build {
        /// The unpacked kernel package: a directory with boot/ and lib/modules/.
        #[arg(long)]
        kernel_package: PathBuf,
        /// The static hostler-ramdisk binary.
        #[arg(long)]
        binary: PathBuf,
        /// Where vmlinuz and initramfs are written.
        #[arg(long)]
        out: PathBuf,
    },
}

/// Where the status files are.
#[derive(Debug, clap::Args)]
struct Place {
    /// The directory with the status files; by default what the configuration says.
    dir: Option<PathBuf>,
    /// The agent's configuration.
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Columns for people.
    Table,
    /// All of every status, for programs.
    Json,
}

/// An error as its chain of causes, for the binary to print one a line.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Args {
    /// Whether this is the agent, which logs in full.
    pub fn is_agent(&self) -> bool {
        matches!(self.command, Command::Run { .. })
    }

    /// Does what was asked, writing what it has to say to `out`.
    pub fn run(self, out: &mut impl Write) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Run { config, print_config } => {
                let config = config::read(&config)?;
                if print_config {
                    write!(out, "{}", config.to_toml())?;
                    return Ok(ExitCode::SUCCESS);
                }
                run::run(config)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Check { dir, config } => check::check(&dir, config.as_deref(), out),
            Command::Status { place, output } => {
                status::show(&place.directory()?, output, out)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Watch { place } => status::watch(&place.directory()?, out),
            Command::Approve(whom) => orders::give(Order::Approve, whom, out),
            Command::Retry(whom) => orders::give(Order::Retry, whom, out),
            Command::Ramdisk {
                command: RamdiskCommand::Build { kernel_package, binary, out: dir },
            } => {
                let built = build::build(&BuildOptions { kernel_package, binary, out: dir })?;
                let kib = built.initramfs_bytes / 1024;
                writeln!(out, "{}: Linux {}", built.kernel.display(), built.release)?;
                writeln!(
                    out,
                    "{}: {kib} KiB, {} modules",
                    built.initramfs.display(),
                    built.modules.len()
                )?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Place {
    fn directory(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let Config { specs, .. } = config::read(&self.config)?;
        Ok(specs.status_dir.unwrap_or(specs.dir))
    }
}

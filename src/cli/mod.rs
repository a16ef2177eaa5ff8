//! The commands of the command line.
//!
//! The `hostler` binary runs them. Read-only commands need no agent: `check`, `show` and `digest`
//! read specs, `status`, `watch`, `wait` and `explain` read status files, and `plan` both.
//! `approve`, `retry`, `bmc` and `show-boot` ask the running agent, and `cache` shares its images
//! with it. `ramdisk` and `loaders` prepare a site's boot files. No command changes a node by
//! itself.

mod agent_alive;
mod bmc;
mod cache;
mod check;
mod debian;
mod dhcp_snippet;
mod digest;
mod doctor;
mod explain;
mod generate;
mod keys;
mod loaders;
pub mod log;
mod orders;
mod plan;
pub mod print;
mod ramdisk;
mod run;
mod schema;
mod show;
mod show_boot;
mod status;
mod text;
mod wait;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    admin::AdminError,
    config::{self, Config, ConfigError},
    model::{admin::Order, ids::NodeName, problem::Problem, toml_reader::Document},
};

/// The first steps, for `--help`.
const FIRST_STEPS: &str = "\
The agent is `hostler run`, as a service; /etc/hostler/hostler.toml names its
directory of specs. A spec is NODE.toml in that directory. In this order:
  hostler doctor        is the site ready: ports, boot files, BMCs, images, DHCP?
  hostler check         is every spec good?
  hostler plan          what would the agent do, and which disks would it WIPE?
  hostler watch         what is the agent doing?
  hostler explain NODE  why is a node stuck, and what helps?";

/// Bare-metal provisioning for one site: a directory of TOML specs in, installed machines out.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = FIRST_STEPS,
    max_term_width = 80
)]
pub struct Args {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the agent.
    Run {
        /// The agent's configuration.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        /// Print the effective configuration and exit.
        #[arg(long)]
        print_config: bool,
    },
    /// Check specs: every problem of each, with its line.
    #[command(after_help = check::EXIT_CODES)]
    Check(check::CheckArgs),
    /// Check all that the site needs: configuration, ports, directories, boot loaders, ramdisk,
    /// password files, BMCs, images, and the DHCP server. Changes nothing.
    #[command(after_help = doctor::EXIT_CODES)]
    Doctor(doctor::DoctorArgs),
    /// Show the phase of every node, and whether an agent runs.
    #[command(after_help = status::EXIT_CODES)]
    Status {
        #[command(flatten)]
        place: StatusDirArgs,
        /// The format of the output.
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Show every change of every node as it happens, until interrupted.
    Watch {
        #[command(flatten)]
        place: StatusDirArgs,
    },
    /// Show a node's effective spec, each value with the file that sets it.
    Show {
        #[command(flatten)]
        place: NodeArgs,
    },
    /// Print the digest that the status shows as `spec_digest` once the agent acts on this spec.
    Digest {
        /// The spec; `_defaults.toml` is read beside it.
        file: PathBuf,
        /// The agent's configuration, for its [defaults]; without it the one of this machine, if
        /// there is one.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Wait until a node has reached its goal.
    #[command(after_help = wait::EXIT_CODES)]
    Wait {
        #[command(flatten)]
        place: NodeArgs,
        #[command(flatten)]
        goal: wait::Goal,
    },
    /// Show the timeline of a node: its history, its evidence, the next step, and your options. Or
    /// explain a code of `hostler check`.
    Explain(explain::ExplainArgs),
    /// Show what the agent would do with a directory of specs, and which disks it would WIPE.
    #[command(after_help = plan::EXIT_CODES)]
    Plan(plan::PlanArgs),
    /// Release held nodes: consent to WIPE machines that are on, for example. Exit code 1 if a node
    /// was not held.
    Approve(orders::Approval),
    /// Retry failed nodes, and at once those that wait for their next attempt. Exit code 1 if there
    /// was nothing to retry.
    Retry(orders::For),
    /// Send a command to a node's BMC, or read its state, through the running agent.
    #[command(after_help = bmc::NOTES)]
    Bmc(bmc::BmcArgs),
    /// Show the boot menu that a machine with this network interface would get now.
    ShowBoot(show_boot::ShowBootArgs),
    /// List the images in the cache, fetch images ahead of time, and make space. The agent may be
    /// running.
    Cache {
        #[command(subcommand)]
        command: cache::CacheCommand,
    },
    /// Print a configuration of the site's DHCP server, by which its machines boot from this agent.
    DhcpSnippet(dhcp_snippet::DhcpSnippetArgs),
    /// Build the deploy ramdisk.
    Ramdisk {
        #[command(subcommand)]
        command: ramdisk::RamdiskCommand,
    },
    /// Install the boot loaders that machines load by TFTP.
    Loaders {
        #[command(subcommand)]
        command: loaders::LoadersCommand,
    },
    /// Print a JSON Schema of the specs or of the configuration, for editors.
    Schema {
        /// The kind of file.
        file: keys::KeyFile,
    },
    /// Explain a command, or a key of a spec or of the configuration.
    Help {
        /// A command, or a key such as `boot.after`.
        words: Vec<String>,
    },
    /// Generate manual pages, completions and the pages of the reference, for packages.
    #[command(hide = true)]
    Generate {
        #[command(subcommand)]
        command: generate::GenerateCommand,
    },
}

/// The arguments that select a status directory.
#[derive(Debug, clap::Args)]
struct StatusDirArgs {
    /// The directory of the status files; by default that of the configuration.
    dir: Option<PathBuf>,
    /// The agent's configuration.
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

/// The arguments that select a node and its directory.
#[derive(Debug, clap::Args)]
struct NodeArgs {
    /// The node's name.
    node: NodeName,
    /// The directory of the node's status file; by default that of the configuration.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The agent's configuration; without it the one of this machine, if there is one.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// The arguments that select the running agent.
#[derive(Debug, clap::Args)]
struct AgentArgs {
    /// The agent's configuration, which names its socket.
    #[arg(long, global = true, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The agent's socket, instead of the one in the configuration.
    #[arg(long, global = true)]
    socket: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A table for operators.
    Table,
    /// Every status as JSON, for programs.
    Json,
}

/// The problems of a command's files, one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
struct Problems(Vec<Problem>);

/// An error as its chain of causes, for the binary to print one a line.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Args {
    /// Whether the command runs the agent, which logs at level info.
    pub fn is_agent(&self) -> bool {
        matches!(self.command, CliCommand::Run { .. })
    }

    /// Runs the command, and writes its answer to `out`.
    pub fn run(self, out: &mut impl Write, left_out: log::LeftOut) -> Result<ExitCode, Failure> {
        let out = &mut print::Printer(out);
        match self.command {
            CliCommand::Run { config, print_config } => {
                let config = config::read(&config)?;
                if print_config {
                    write!(out, "{}", print::toml(&config.to_toml()))?;
                    return Ok(ExitCode::SUCCESS);
                }
                run::run(config, left_out)?;
                Ok(ExitCode::SUCCESS)
            }
            CliCommand::Check(args) => check::check(&args, out),
            CliCommand::Doctor(args) => doctor::doctor(&args, out),
            CliCommand::Status { place, output } => {
                status::show(&place.directory()?, &place.specs()?, output, out)
            }
            CliCommand::Watch { place } => status::watch(&place.directory()?, out),
            CliCommand::Show { place } => show::show(&place, out),
            CliCommand::Digest { file, config } => digest::digest(&file, config.as_deref(), out),
            CliCommand::Wait { place, goal } => wait::wait(&place, &goal),
            CliCommand::Explain(args) => explain::explain(args, out),
            CliCommand::Plan(args) => plan::plan(&args, out),
            CliCommand::Approve(approval) => orders::approve(approval, out),
            CliCommand::Retry(whom) => orders::give(Order::Retry, whom, out),
            CliCommand::Bmc(args) => bmc::bmc(&args, out),
            CliCommand::ShowBoot(args) => show_boot::show(&args, out),
            CliCommand::Cache { command } => command.run(out),
            CliCommand::DhcpSnippet(args) => dhcp_snippet::print(&args, out),
            CliCommand::Ramdisk { command } => ramdisk::run(command, out),
            CliCommand::Loaders { command } => loaders::run(command, out),
            CliCommand::Schema { file } => schema::show(file, out),
            CliCommand::Help { words } => keys::help(&words, out),
            CliCommand::Generate { command } => generate::run(&command, out),
        }
    }
}

impl AgentArgs {
    /// Sends a request to the agent's socket.
    fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&Path) -> Result<T, AdminError>,
    ) -> Result<T, Failure> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => &config::read(&self.config)?.admin.socket,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(question(socket))?)
    }
}

impl StatusDirArgs {
    fn directory(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.dir {
            let node = dir.to_str().and_then(|text| text.parse().ok()).filter(|_| !dir.exists());
            return node.map_or_else(|| Ok(dir.clone()), |node| Err(NotDirectory(node).into()));
        }
        let Config { specs, .. } = config::read(&self.config)?;
        Ok(specs.status_dir.unwrap_or(specs.dir))
    }

    /// The directory of the specs.
    fn specs(&self) -> Result<PathBuf, Failure> {
        match &self.dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(config::read(&self.config)?.specs.dir),
        }
    }
}

impl NodeArgs {
    /// The node's spec file, and the agent's `[defaults]`.
    fn spec(&self) -> Result<(PathBuf, Option<Document>), Failure> {
        let config = configuration(self.config.as_deref())?;
        let defaults = config.as_ref().and_then(|config| config.defaults.clone());
        let dir = self.dir.clone().or_else(|| Some(config?.specs.dir)).ok_or(NoDirectory)?;
        Ok((dir.join(format!("{}.toml", self.node)), defaults))
    }

    /// The node's spec file, if its status files are in `status_dir`.
    fn spec_beside(&self, status_dir: &Path) -> Result<PathBuf, Failure> {
        let specs = match configuration(self.config.as_deref()) {
            // A given directory needs no configuration.
            Err(_) if self.dir.is_some() && self.config.is_none() => None,
            config => config?.map(|config| config.specs),
        };
        let are_elsewhere = |specs: &config::Specs| {
            self.dir.is_none() || specs.status_dir.as_deref() == Some(status_dir)
        };
        let dir =
            specs.filter(are_elsewhere).map_or_else(|| status_dir.to_owned(), |specs| specs.dir);
        Ok(dir.join(format!("{}.toml", self.node)))
    }

    /// The directory with the status files.
    fn status_dir(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let Config { specs, .. } = configuration(self.config.as_deref())?.ok_or(NoDirectory)?;
        Ok(specs.status_dir.unwrap_or(specs.dir))
    }
}

/// The argument is a node, and must be a directory.
#[derive(Debug, thiserror::Error)]
#[error("{0}: no such directory; for one node run `hostler explain {0}`")]
struct NotDirectory(NodeName);

/// Neither a directory nor a configuration is given.
#[derive(Debug, thiserror::Error)]
#[error(
    "no directory: name it, or the agent's configuration; there is no {}",
    config::DEFAULT_PATH
)]
struct NoDirectory;

/// Reads the given configuration, or this machine's. A missing one is no error: specs are also read
/// on other machines.
fn configuration(named: Option<&Path>) -> Result<Option<Config>, ConfigError> {
    match config::read(named.unwrap_or(Path::new(config::DEFAULT_PATH))) {
        Err(ConfigError::Unreadable { source, .. })
            if named.is_none() && source.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        config => config.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_help_of_every_command_fits_a_terminal_of_80_columns() {
        let mut commands = vec![Args::command()];
        commands[0].build();
        let mut count = 0;
        while let Some(mut command) = commands.pop() {
            commands.extend(command.get_subcommands().cloned());
            count += 1;
            for help in [command.render_help(), command.render_long_help()] {
                for line in help.to_string().lines() {
                    assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
                }
            }
        }
        assert!(count > 20, "{count}");
    }
}

//! The commands: what an administrator types.
//!
//! Called by the `hostler` binary. Looking needs no agent: `check`, `show` and `digest` read specs,
//! `status`, `watch`, `wait` and `explain` read status files, and `plan` both. `approve`, `retry`,
//! `bmc` and `show-boot` ask the running agent, and `cache` shares its images with it. Nothing here
//! changes a node by itself.

mod agent_alive;
mod bmc;
mod cache;
mod check;
mod dhcp_snippet;
mod digest;
mod explain;
pub mod log;
mod orders;
mod plan;
pub mod print;
mod ramdisk;
mod run;
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
    ramdisk::build::{self, BuildOptions},
};

/// Where to begin, for `--help`.
const FIRST_STEPS: &str = "\
The agent is `hostler run`, as a service; /etc/hostler/hostler.toml says where its specs are.
A spec is NODE.toml in that directory. In this order:
  hostler check         is every spec good?
  hostler plan          what would be done, and which disks it would WIPE
  hostler watch         what is done
  hostler explain NODE  why it is not done, and what helps";

/// Bare-metal provisioning for one site: a directory of TOML specs in, installed machines out.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = FIRST_STEPS)]
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
    /// Check every spec in a directory, or one; exit code 1 if one has a problem.
    Check {
        /// The directory of specs, or one of them; by default the agent's own directory.
        dir: Option<PathBuf>,
        /// The agent's configuration, for its [defaults]; without it the one of this machine, if
        /// there is one.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Show where every node stands, and whether an agent runs.
    #[command(after_help = status::EXIT_CODES)]
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
    /// Show a node's spec as it is in force, each value with where it was said.
    Show {
        #[command(flatten)]
        place: NodePlace,
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
    /// Wait until a node has come to where it should.
    #[command(after_help = wait::EXIT_CODES)]
    Wait {
        #[command(flatten)]
        place: NodePlace,
        #[command(flatten)]
        goal: wait::Goal,
    },
    /// Tell the story of a node: what was done, seen and said, what comes next, and what you can
    /// do.
    Explain {
        #[command(flatten)]
        place: NodePlace,
    },
    /// Show what the agent would do about a directory of specs, and what it would WIPE.
    #[command(after_help = plan::EXIT_CODES)]
    Plan(plan::PlanArgs),
    /// Let held nodes go on: consent to WIPE machines that are on, for example. Exit code 1 if a
    /// node was not held.
    Approve(orders::Approval),
    /// Try failed nodes again, and those that wait for their next attempt at once. Exit code 1 if
    /// there was nothing to try again.
    Retry(orders::For),
    /// Have a node's BMC do or say something, through the running agent.
    #[command(after_help = bmc::NOTES)]
    Bmc(bmc::BmcArgs),
    /// Show what the boot loader of a machine with this network interface would be served now.
    ShowBoot(show_boot::ShowBootArgs),
    /// Look at the images that are kept for all machines, fetch them ahead of time, and make space.
    /// The agent may be running.
    Cache {
        #[command(subcommand)]
        command: cache::Command,
    },
    /// Print what the site's DHCP server has to say for its machines to boot from this agent.
    DhcpSnippet(dhcp_snippet::DhcpSnippetArgs),
    /// Work with the deploy ramdisk.
    Ramdisk {
        #[command(subcommand)]
        command: RamdiskCommand,
    },
}

#[derive(Debug, Subcommand)]
enum RamdiskCommand {
    /// Make the deploy kernel and ramdisk from an unpacked kernel package, always the same from the
    /// same.
    ///
    /// Prints which drivers are in it, which of the usual ones the kernel lacks, and which firmware
    /// they may ask for and the packages have not.
    Build {
        /// The unpacked kernel package: a directory with boot/ and lib/modules/. Packages of
        /// firmware may be unpacked into the same directory, or beside it in directories of their
        /// own.
        #[arg(long)]
        kernel_package: PathBuf,
        /// Take this module, too, and what it needs. May be given several times.
        #[arg(long = "module", value_name = "NAME")]
        modules: Vec<String>,
        /// Take all drivers of network interfaces and disk controllers, also of old ones and of
        /// storage networks, but none of USB storage.
        #[arg(long)]
        all_drivers: bool,
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

/// One node, and where its files are.
#[derive(Debug, clap::Args)]
struct NodePlace {
    /// The node's name.
    node: NodeName,
    /// The directory with its file; by default what the configuration says.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The agent's configuration; without it the one of this machine, if there is one.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Where the running agent listens.
#[derive(Debug, clap::Args)]
struct AgentPlace {
    /// The agent's configuration, which says where it listens.
    #[arg(long, global = true, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The agent's socket, instead of what the configuration says.
    #[arg(long, global = true)]
    socket: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Columns for people.
    Table,
    /// All of every status, for programs.
    Json,
}

/// The problems of the files that a command needs, one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
struct Problems(Vec<Problem>);

/// An error as its chain of causes, for the binary to print one a line.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Args {
    /// Whether this is the agent, which logs in full.
    pub fn is_agent(&self) -> bool {
        matches!(self.command, Command::Run { .. })
    }

    /// Does what was asked, writing what it has to say to `out`.
    pub fn run(self, out: &mut impl Write, left_out: log::LeftOut) -> Result<ExitCode, Failure> {
        let out = &mut print::Printer(out);
        match self.command {
            Command::Run { config, print_config } => {
                let config = config::read(&config)?;
                if print_config {
                    write!(out, "{}", print::toml(&config.to_toml()))?;
                    return Ok(ExitCode::SUCCESS);
                }
                run::run(config, left_out)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Check { dir, config } => check::check(dir.as_deref(), config.as_deref(), out),
            Command::Status { place, output } => {
                status::show(&place.directory()?, &place.specs()?, output, out)
            }
            Command::Watch { place } => status::watch(&place.directory()?, out),
            Command::Show { place } => show::show(&place, out),
            Command::Digest { file, config } => digest::digest(&file, config.as_deref(), out),
            Command::Wait { place, goal } => wait::wait(&place, &goal),
            Command::Explain { place } => explain::explain(&place, out),
            Command::Plan(args) => plan::plan(&args, out),
            Command::Approve(approval) => orders::approve(approval, out),
            Command::Retry(whom) => orders::give(Order::Retry, whom, out),
            Command::Bmc(args) => bmc::bmc(&args, out),
            Command::ShowBoot(args) => show_boot::show(&args, out),
            Command::Cache { command } => command.run(out),
            Command::DhcpSnippet(args) => dhcp_snippet::print(&args, out),
            Command::Ramdisk {
                command:
                    RamdiskCommand::Build { kernel_package, modules, all_drivers, binary, out: dir },
            } => {
                let options =
                    BuildOptions { kernel_package, modules, all_drivers, binary, out: dir };
                ramdisk::show(&build::build(&options)?, out)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl AgentPlace {
    /// Asks the agent at its socket.
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

impl Place {
    fn directory(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.dir {
            let node = dir.to_str().and_then(|text| text.parse().ok()).filter(|_| !dir.exists());
            return node.map_or_else(|| Ok(dir.clone()), |node| Err(NotDirectory(node).into()));
        }
        let Config { specs, .. } = config::read(&self.config)?;
        Ok(specs.status_dir.unwrap_or(specs.dir))
    }

    /// The directory of the specs, as far as that is known.
    fn specs(&self) -> Result<PathBuf, Failure> {
        match &self.dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(config::read(&self.config)?.specs.dir),
        }
    }
}

impl NodePlace {
    /// The node's spec file, and the agent's `[defaults]`.
    fn spec(&self) -> Result<(PathBuf, Option<Document>), Failure> {
        let config = configuration(self.config.as_deref())?;
        let defaults = config.as_ref().and_then(|config| config.defaults.clone());
        let dir = self.dir.clone().or_else(|| Some(config?.specs.dir)).ok_or(NoDirectory)?;
        Ok((dir.join(format!("{}.toml", self.node)), defaults))
    }

    /// The node's spec file, where the status files are in `status_dir`.
    fn spec_beside(&self, status_dir: &Path) -> Result<PathBuf, Failure> {
        let specs = match configuration(self.config.as_deref()) {
            // Who names the directory needs no configuration.
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

/// A node where a directory belongs.
#[derive(Debug, thiserror::Error)]
#[error("{0}: no such directory; of one node tells `hostler explain {0}`")]
struct NotDirectory(NodeName);

/// Nobody said where to look.
#[derive(Debug, thiserror::Error)]
#[error(
    "no directory: name it, or the agent's configuration; there is no {}",
    config::DEFAULT_PATH
)]
struct NoDirectory;

/// The configuration named, or the one of this machine. Having none is no error: specs are also
/// looked at elsewhere.
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

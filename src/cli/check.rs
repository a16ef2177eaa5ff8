//! `hostler check`: every problem of every spec, drawn in its file or for programs.
//!
//! Needs no agent. It must never leave a file out without a word.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    config::{Config, ConfigError},
    model::{
        ids::NodeName,
        problem::{Problem, ProblemKind, Severity},
        toml_reader::FILE_BYTES_MAX,
    },
    regular_file,
    spec_dir::{self, CheckContext, CheckReport, DEFAULTS_FILE, Naming},
    status_file::{self, StatusFiles},
};

use super::{Failure, NoDirectory, configuration, print};

mod draw;

/// Standard input, as a path.
const STDIN: &str = "-";
/// The name of standard input in messages, unless `--stdin-filename` says another one.
const STDIN_SHOWN_AS: &str = "<stdin>";

/// The exit codes, for `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  every spec is good; warnings do not count
  1  a spec has a problem, a directory has no spec, or a file cannot be read;
     with --deny-warnings also a warning
`hostler explain HS012` tells more about a code.";

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Directories of specs, single specs, or `-` for standard input; by default the agent's own
    /// directory.
    paths: Vec<PathBuf>,
    /// The agent's configuration, for its [defaults]; without it the one of this machine, if there
    /// is one.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The format of the output.
    #[arg(long, value_enum, default_value_t = CheckFormat::Full)]
    format: CheckFormat,
    /// Check standard input as the content of this file, with the defaults and attached files
    /// beside it.
    #[arg(long, value_name = "FILE")]
    stdin_filename: Option<PathBuf>,
    /// Accept a directory without any spec.
    #[arg(long)]
    allow_empty: bool,
    /// End with exit code 1 if there is a warning.
    #[arg(long)]
    deny_warnings: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum CheckFormat {
    /// Each problem with its line, a caret and advice; in color on a terminal, unless `NO_COLOR` is
    /// set.
    Full,
    /// One line for each problem.
    Short,
    /// One JSON document.
    Json,
    /// Annotations of a GitHub workflow.
    Github,
}

pub(super) fn check(
    args: &CheckArgs,
    out: &mut print::Printer<&mut impl Write>,
) -> Result<ExitCode, Failure> {
    let mut report = CheckReport::default();
    let mut place = match args.paths.as_slice() {
        [one] if one != Path::new(STDIN) => Some(one.to_string_lossy().into_owned()),
        _ => None,
    };
    match configuration(args.config.as_deref()) {
        Ok(config) => {
            let checker = Checker { args, config: config.as_ref() };
            checker.check_all(&mut report)?;
            let is_own = args.paths.is_empty() && args.stdin_filename.is_none();
            let own = config.filter(|_| is_own).map(|config| config.specs.dir);
            place = place.or(own.map(|dir| dir.to_string_lossy().into_owned()));
        }
        // Specs have no meaning without the agent's [defaults].
        Err(ConfigError::Invalid(problems)) => report.add(of_configuration(args, problems)),
        Err(error) => return Err(error.into()),
    }
    if args.allow_empty {
        report.problems.retain(|problem| problem.kind != ProblemKind::NothingFound);
    }
    let totals = Totals::of(&report, place);
    match args.format {
        // The drawing has nothing but its own control characters.
        CheckFormat::Full if print::may_color() => {
            out.0.write_all(draw::full(&report, &totals, true).as_bytes())?;
        }
        CheckFormat::Full => write!(out, "{}", draw::full(&report, &totals, false))?,
        CheckFormat::Short => write!(out, "{}", draw::short(&report, &totals))?,
        CheckFormat::Json => writeln!(out, "{}", draw::json(&report, &totals)?)?,
        CheckFormat::Github => write!(out, "{}", draw::github(&report, &totals))?,
    }
    let is_good = totals.errors == 0 && (totals.warnings == 0 || !args.deny_warnings);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The numbers of a report.
struct Totals {
    /// The only argument.
    place: Option<String>,
    good: usize,
    errors: usize,
    warnings: usize,
}

impl Totals {
    fn of(report: &CheckReport, place: Option<String>) -> Self {
        let count = |severity| {
            report.problems.iter().filter(|problem| problem.kind.severity() == severity).count()
        };
        Self {
            place,
            good: report.good.len(),
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
        }
    }
}

/// The problems of the agent's configuration, with its text.
fn of_configuration(args: &CheckArgs, problems: Vec<Problem>) -> CheckReport {
    let mut report = CheckReport::default();
    let path = args.config.clone().unwrap_or_else(|| crate::config::DEFAULT_PATH.into());
    let text = read(&path).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    report.texts.extend(text.map(|text| (path.to_string_lossy().into_owned(), text)));
    report.problems.extend(problems);
    report
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    regular_file::read_start(regular_file::open(path)?, FILE_BYTES_MAX as u64 + 1)
}

fn not_checked(file: &Path, why: &str) -> CheckReport {
    let problem = Problem::of_file(file.to_string_lossy(), why);
    CheckReport::of(problem.of_kind(ProblemKind::NotChecked))
}

struct Checker<'a> {
    args: &'a CheckArgs,
    config: Option<&'a Config>,
}

impl Checker<'_> {
    fn check_all(&self, report: &mut CheckReport) -> Result<(), Failure> {
        let own = self.own_dir();
        let paths = match self.args.paths.as_slice() {
            [] if self.args.stdin_filename.is_some() => vec![STDIN.into()],
            [] => vec![own.ok_or(NoDirectory)?],
            paths => paths.to_vec(),
        };
        // The wanted files of each directory; `None`: all.
        let mut dirs: BTreeMap<(PathBuf, String), Option<BTreeSet<OsString>>> = BTreeMap::new();
        for path in paths {
            let name = path.file_name().unwrap_or_default();
            if path == Path::new(STDIN) {
                report.add(self.standard_input()?);
            } else if path.is_dir() {
                let shown_as = path.to_string_lossy();
                let shown_as = shown_as.trim_end_matches('/').to_owned();
                dirs.insert((path, shown_as), None);
            } else if name == DEFAULTS_FILE && path.exists() {
                // They are a part of every spec beside them.
                dirs.insert(spec_dir::directory_of(&path), None);
            } else if let Some(why) = spec_dir::never_read(&path).filter(|_| path.exists()) {
                report.add(not_checked(&path, why));
            } else if !path.exists() || name.to_string_lossy().starts_with(['.', '#']) {
                report.add(self.single(&path));
            } else {
                let wanted =
                    dirs.entry(spec_dir::directory_of(&path)).or_insert(Some(BTreeSet::new()));
                if let Some(wanted) = wanted {
                    wanted.insert(name.to_owned());
                }
            }
        }
        for ((dir, shown_as), wanted) in &dirs {
            match self.directory(dir, shown_as, wanted.as_ref()) {
                Ok(found) => report.add(found),
                Err(error) => {
                    let message = error.to_string();
                    let problem = Problem::of_file(dir.to_string_lossy(), message);
                    report.add(CheckReport::of(problem));
                }
            }
        }
        Ok(())
    }

    /// The agent's own directory of specs.
    fn own_dir(&self) -> Option<PathBuf> {
        self.config.map(|config| config.specs.dir.clone())
    }

    fn directory(
        &self,
        dir: &Path,
        shown_as: &str,
        wanted: Option<&BTreeSet<OsString>>,
    ) -> Result<CheckReport, spec_dir::ReadError> {
        let statuses = self.statuses(dir);
        let known_disks = |node: &NodeName| disks_of(&statuses, node);
        spec_dir::check_dir(dir, shown_as, wanted, &self.context(&known_disks))
    }

    /// Checks a temporary file, such as the one that Ansible validates before it puts it in place:
    /// its name is not a node's.
    fn single(&self, path: &Path) -> CheckReport {
        let shown = path.to_string_lossy();
        match read(path) {
            Ok(bytes) => {
                let (beside, _) = spec_dir::directory_of(path);
                let beside = match self.own_dir() {
                    Some(own) if !beside.join(DEFAULTS_FILE).exists() => own,
                    _ => beside,
                };
                self.text(&shown, &bytes, Naming::Temporary, &beside)
            }
            Err(error) => {
                let message = match error.kind() {
                    io::ErrorKind::NotFound => "no such file or directory".to_owned(),
                    _ => format!("cannot be read: {error}"),
                };
                CheckReport::of(Problem::of_file(shown, message))
            }
        }
    }

    fn standard_input(&self) -> Result<CheckReport, Failure> {
        let mut bytes = Vec::new();
        io::stdin().lock().take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
        Ok(if let Some(file) = &self.args.stdin_filename {
            if let Some(why) = spec_dir::never_read(file) {
                return Ok(not_checked(file, why));
            }
            let (beside, _) = spec_dir::directory_of(file);
            self.text(&file.to_string_lossy(), &bytes, Naming::Spec, &beside)
        } else {
            let beside = self.own_dir().unwrap_or_else(|| PathBuf::from("."));
            self.text(STDIN_SHOWN_AS, &bytes, Naming::Temporary, &beside)
        })
    }

    fn text(&self, shown: &str, bytes: &[u8], naming: Naming, beside: &Path) -> CheckReport {
        let statuses = self.statuses(beside);
        let known_disks = |node: &NodeName| disks_of(&statuses, node);
        spec_dir::check_text((shown, bytes), naming, beside, &self.context(&known_disks))
    }

    fn context<'a>(
        &'a self,
        known_disks: &'a dyn Fn(&NodeName) -> Option<u32>,
    ) -> CheckContext<'a> {
        let agent_defaults = self.config.and_then(|config| config.defaults.as_ref());
        CheckContext { agent_defaults, known_disks }
    }

    /// The status files of the specs in a directory.
    fn statuses(&self, dir: &Path) -> StatusFiles {
        let own = self.config.map(|config| &config.specs).filter(|specs| specs.dir == dir);
        let elsewhere = own.and_then(|specs| specs.status_dir.as_deref());
        StatusFiles::new(elsewhere.unwrap_or(dir).to_owned())
    }
}

/// The number of disks in a node's status file. A check needs no status, so that an unreadable one
/// is none.
fn disks_of(statuses: &StatusFiles, node: &NodeName) -> Option<u32> {
    status_file::read(&statuses.path(node)).ok()?.last_seen?.disks
}

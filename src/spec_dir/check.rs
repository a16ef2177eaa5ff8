//! Checks specs for `hostler check`: every problem with its places, warnings, and what is not read.
//!
//! Called by the command. It reads as the agent does, so that a good spec is one that the agent
//! accepts. It must never stop at the first problem.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::Dir;

use crate::model::{
    ids::NodeName,
    problem::{OtherPlace, Problem, ProblemKind},
    spec::{Checksum, DeployRamdisk, NodeSpec},
    toml_reader::Document,
};

use super::{
    DEFAULTS_FILE, Defaults, ReadError, Snapshot,
    attachments::Attachments,
    clash::{self, Clash},
    directory::{defaults_of, named, open_dir, passed_over, read_at},
    node_name, parse_as, read_dir,
};

/// The result of checks.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// The nodes with valid specs.
    pub good: Vec<NodeName>,
    /// All errors and warnings without duplicates, by file and line.
    pub problems: BTreeSet<Problem>,
    /// Files that are not read.
    pub passed_over: Vec<Problem>,
    /// The texts of the files with problems, by their names in messages.
    pub texts: BTreeMap<String, String>,
}

/// The knowledge of a check besides the files.
#[expect(missing_debug_implementations, reason = "it holds a closure")]
pub struct CheckContext<'a> {
    /// The agent's `[defaults]`.
    pub agent_defaults: Option<&'a Document>,
    /// The number of disks that a node's machine had when hostler last saw them.
    pub known_disks: &'a dyn Fn(&NodeName) -> Option<u32>,
}

impl CheckReport {
    /// Adds another report.
    pub fn add(&mut self, other: Self) {
        self.good.extend(other.good);
        self.problems.extend(other.problems);
        self.passed_over.extend(other.passed_over);
        self.texts.extend(other.texts);
    }

    /// Adds the text of the agent's configuration, if a problem is in its `[defaults]`.
    fn add_agent_text(&mut self, context: &CheckContext<'_>) {
        if let Some(agent) = context.agent_defaults
            && self.problems.iter().any(|problem| problem.file == agent.name())
        {
            self.texts.insert(agent.name().to_owned(), agent.text().to_owned());
        }
    }

    /// A report with a single problem.
    pub fn of(problem: Problem) -> Self {
        Self { problems: [problem].into(), ..Self::default() }
    }
}

/// Checks a directory, or only its specs with these file names. `shown_as` is the directory's name
/// in messages, or empty.
pub fn check_dir(
    dir: &Path,
    shown_as: &str,
    only: Option<&BTreeSet<OsString>>,
    context: &CheckContext<'_>,
) -> Result<CheckReport, ReadError> {
    let snapshot = read_dir(dir, shown_as, context.agent_defaults)?;
    let handle = open_dir(dir)
        .map_err(|errno| ReadError::Io { path: dir.to_owned(), source: errno.into() })?;
    let mut checked = CheckedDir { handle, shown_as, context, texts: BTreeMap::new() };
    let is_wanted = |file: &OsStr| only.is_none_or(|only| only.contains(file));
    let mut report = CheckReport::default();
    if only.is_none() {
        report.passed_over.extend(snapshot.passed_over.iter().cloned());
        report.passed_over.extend(checked.other_files(&snapshot));
        if !snapshot.files.iter().any(|file| file != DEFAULTS_FILE) {
            let message = "the directory has no spec; write NODE.toml, or give --allow-empty";
            let problem = Problem::of_file(dir.to_string_lossy(), message);
            report.problems.insert(problem.of_kind(ProblemKind::NothingFound));
        }
    }
    // The problems of defaults concern every spec.
    let unwanted: BTreeSet<String> = snapshot
        .files
        .iter()
        .filter(|file| *file != DEFAULTS_FILE && !is_wanted(file))
        .map(|file| named(shown_as, file))
        .collect();
    let of_directory = snapshot.problems.iter().filter(|problem| !unwanted.contains(&problem.file));
    report.problems.extend(of_directory.cloned());
    let mut clashes = checked.clashes(&snapshot, &is_wanted);
    for (name, spec) in &snapshot.nodes {
        if !is_wanted(OsStr::new(&format!("{name}.toml"))) {
            continue;
        }
        match (spec, clashes.remove(name)) {
            (Err(problems), _) => report.problems.extend(problems.iter().cloned()),
            (Ok(_), Some(clashes)) => report.problems.extend(clashes),
            (Ok(spec), None) => {
                report.problems.extend(checked.warnings(spec));
                report.good.push(name.clone());
            }
        }
    }
    for problem in &report.problems {
        checked.load_text(&problem.file);
        if let Some(other) = &problem.other {
            checked.load_text(&other.file);
        }
    }
    report.texts = checked.texts;
    report.add_agent_text(context);
    Ok(report)
}

/// The name of a text's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// The name in messages is that of a spec.
    Spec,
    /// The file is temporary, and can be any node's.
    Temporary,
}

/// Checks a text as a spec. `shown_as` is its name in messages. The defaults and the attached files
/// are those in `beside`.
pub fn check_text(
    (shown_as, bytes): (&str, &[u8]),
    naming: Naming,
    beside: &Path,
    context: &CheckContext<'_>,
) -> CheckReport {
    let is_defaults = Path::new(shown_as).file_name() == Some(OsStr::new(DEFAULTS_FILE));
    let handle = open_dir(beside).ok();
    let defaults_name = beside.to_string_lossy();
    let defaults_name = defaults_name.trim_end_matches('/');
    let defaults_name = if defaults_name == "." { "" } else { defaults_name };
    let defaults = if is_defaults {
        Defaults::new(Some((shown_as, bytes)), context.agent_defaults)
    } else {
        match &handle {
            Some(dir) => defaults_of(dir, defaults_name, context.agent_defaults),
            None => Defaults::new(None, context.agent_defaults),
        }
    };
    let mut report = CheckReport::default();
    if is_defaults {
        report.problems.extend(defaults.problems().iter().cloned());
    } else {
        let attachments = handle.as_ref().map(Attachments::beside);
        let attachment = |path: &str| match &attachments {
            Some(attachments) => attachments.read(path),
            None => Err(format!("`{path}` is not there")),
        };
        let name = match naming {
            Naming::Spec => node_name(shown_as),
            Naming::Temporary => node_name("unnamed.toml"),
        };
        match parse_as(name, shown_as, bytes, &defaults, &attachment) {
            Ok(spec) => {
                let document = Document::parse(shown_as, bytes).ok();
                let layers: Vec<&Document> = document.iter().chain(defaults.layers()).collect();
                let disks = match naming {
                    Naming::Spec => (context.known_disks)(&spec.name),
                    Naming::Temporary => None,
                };
                let found = warned_of(&spec, disks);
                report.problems.extend(placed_warnings(found, shown_as, &layers));
                report.good.push(spec.name);
            }
            Err(problems) => report.problems.extend(problems),
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        report.texts.insert(shown_as.to_owned(), text.to_owned());
    }
    if let Some(handle) = handle {
        let mut beside =
            CheckedDir { handle, shown_as: defaults_name, context, texts: BTreeMap::new() };
        beside.load_text(&named(defaults_name, OsStr::new(DEFAULTS_FILE)));
        report.texts.append(&mut beside.texts);
    }
    report.add_agent_text(context);
    report
}

/// A directory with its specs read.
struct CheckedDir<'a> {
    handle: OwnedFd,
    shown_as: &'a str,
    context: &'a CheckContext<'a>,
    /// The texts of files, by their names in messages.
    texts: BTreeMap<String, String>,
}

impl CheckedDir<'_> {
    /// Reads the text of a file of this directory once.
    fn load_text(&mut self, shown: &str) -> Option<&str> {
        if !self.texts.contains_key(shown) {
            let name = Path::new(shown).file_name()?;
            if named(self.shown_as, name) != shown {
                return None;
            }
            let (bytes, _) = read_at(&self.handle, name).ok()?;
            self.texts.insert(shown.to_owned(), String::from_utf8(bytes).ok()?);
        }
        self.texts.get(shown).map(String::as_str)
    }

    fn document(&mut self, shown: &str) -> Option<Document> {
        Document::parse(shown, self.load_text(shown)?.as_bytes()).ok()
    }

    /// The problems of each wanted node that shares its machine with another one.
    fn clashes(
        &mut self,
        snapshot: &Snapshot,
        is_wanted: &dyn Fn(&OsStr) -> bool,
    ) -> BTreeMap<NodeName, Vec<Problem>> {
        let good = snapshot.nodes.values().filter_map(|spec| spec.as_deref().ok());
        let mut found: BTreeMap<NodeName, Vec<Problem>> = BTreeMap::new();
        for clash in clash::shared(good) {
            for node in &clash.nodes {
                if is_wanted(OsStr::new(&format!("{node}.toml"))) {
                    let problem = self.placed(&clash, node);
                    found.entry((*node).clone()).or_default().push(problem);
                }
            }
        }
        found
    }

    /// The problem of one node of a clash, with its place and one other.
    fn placed(&mut self, clash: &Clash<'_>, node: &NodeName) -> Problem {
        let problem = clash.problem(self.shown_as, node);
        let Some(own) = self.document(&problem.file) else { return problem };
        let placed = own.problem_at(clash.key, problem.kind, &problem.message);
        let other = clash.nodes.iter().find(|other| **other != node);
        let other = other.and_then(|other| {
            let document =
                self.document(&named(self.shown_as, OsStr::new(&format!("{other}.toml"))))?;
            Some(document.other_place(document.value_span(clash.key)?, "the same machine"))
        });
        Problem { other: other.map(OtherPlace::into), ..placed }
    }

    fn warnings(&mut self, spec: &NodeSpec) -> Vec<Problem> {
        let found = warned_of(spec, (self.context.known_disks)(&spec.name));
        if found.is_empty() {
            return Vec::new();
        }
        let shown = named(self.shown_as, OsStr::new(&format!("{}.toml", spec.name)));
        let own = self.document(&shown);
        let defaults = self.document(&named(self.shown_as, OsStr::new(DEFAULTS_FILE)));
        let agent = self.context.agent_defaults;
        let layers: Vec<&Document> = own.iter().chain(&defaults).chain(agent).collect();
        placed_warnings(found, &shown, &layers)
    }

    /// A note about the files that are neither specs nor attached to one.
    fn other_files(&self, snapshot: &Snapshot) -> Option<Problem> {
        let attached: BTreeSet<&str> = snapshot
            .nodes
            .values()
            .filter_map(|spec| spec.as_ref().ok()?.config_drive.as_deref())
            .flat_map(|drive| [&drive.user_data, &drive.network_config, &drive.vendor_data])
            .flatten()
            .map(|attachment| attachment.path.as_str())
            .collect();
        let mut files: Vec<String> = Dir::read_from(&self.handle)
            .ok()?
            .filter_map(Result::ok)
            .filter(|entry| !entry.file_type().is_dir())
            .filter(|entry| passed_over::is_unexplained(entry.file_name().to_bytes()))
            .map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned())
            .filter(|name| !name.to_str().is_some_and(|name| attached.contains(name)))
            .map(|name| name.to_string_lossy().escape_debug().to_string())
            .collect();
        files.sort();
        let more = files.len().saturating_sub(OTHER_FILES_MAX);
        files.truncate(OTHER_FILES_MAX);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let dir = if self.shown_as.is_empty() { "." } else { self.shown_as };
        let message =
            format!("not read, because no name ends in .toml: {}{more}", files.join(", "));
        let note = Problem::of_file(dir, message).of_kind(ProblemKind::OtherFiles);
        (!files.is_empty()).then_some(note)
    }
}

/// Most files listed that are not read.
const OTHER_FILES_MAX: usize = 10;

/// A warning without its place: its kind, key and message.
type Warning = (ProblemKind, &'static str, String);

/// Places the warnings of a good spec where their keys are set. `layers` has the spec and its
/// defaults.
fn placed_warnings(found: Vec<Warning>, file: &str, layers: &[&Document]) -> Vec<Problem> {
    found
        .into_iter()
        .map(|(kind, key, message)| {
            let said = layers.iter().find(|layer| layer.value_span(key).is_some());
            said.map_or_else(
                || Problem {
                    key: key.to_owned(),
                    ..Problem::of_file(file, &message).of_kind(kind)
                },
                |layer| layer.problem_at(key, kind, &message),
            )
        })
        .collect()
}

/// Finds what is allowed in a good spec and seldom meant.
fn warned_of(spec: &NodeSpec, disks: Option<u32>) -> Vec<Warning> {
    let mut found = Vec::new();
    if !spec.boot.require_chap && spec.boot.ramdisk == DeployRamdisk::Hostler {
        let message = "everybody on the deploy network can write the disk during the installation; \
            leave it out, unless the ramdisk is Ironic's";
        found.push((ProblemKind::NoChap, "boot.require_chap", message.to_owned()));
    }
    if let Some(disks) = disks.filter(|disks| *disks > 1 && spec.root_device.is_empty()) {
        let message = format!(
            "no root device hint, and the machine has {disks} disks; name the disk that hostler is \
             to WIPE, for example by root_device.serial"
        );
        found.push((ProblemKind::NoHint, "root_device", message));
    }
    if let Checksum::Listed(list) = &spec.image.checksum
        && is_plain_http(list)
        && is_plain_http(&spec.image.source)
    {
        let message = "the list comes over plain HTTP, as the image does, so that one attacker can \
            replace both; write the digest itself, or an https:// list";
        found.push((ProblemKind::ChecksumOverHttp, "image.checksum", message.to_owned()));
    }
    found
}

fn is_plain_http(place: &str) -> bool {
    place.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"))
}

/// The reason why the agent would never read a file with this name, if it is one.
pub fn never_read(file: &Path) -> Option<&'static str> {
    let name = file.file_name().map(OsStr::as_bytes).unwrap_or_default();
    if name.ends_with(b".status.toml") {
        Some("a status file, which hostler writes itself; a spec is NODE.toml")
    } else if !name.ends_with(b".toml") {
        Some("not a spec by its name; a spec is NODE.toml")
    } else {
        None
    }
}

/// The directory of a file, and its name in messages.
pub fn directory_of(file: &Path) -> (PathBuf, String) {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let shown = parent.map(|parent| parent.to_string_lossy().into_owned()).unwrap_or_default();
    (parent.unwrap_or(Path::new(".")).to_owned(), shown)
}

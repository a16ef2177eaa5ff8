//! Files that look like specs and are not read: a mistyped ending, a subdirectory.
//!
//! Called at each scan, for each name in the directory. It must never open a file, descend far, or
//! take long: a wrong spec directory may hold anything.

use std::os::fd::OwnedFd;

use rustix::fs::Dir;

use super::{DEFAULTS_FILE, is_spec, open_dir_at};
use crate::model::problem::{Problem, ProblemKind, shown};

/// Most entries read in subdirectories.
const BENEATH_MAX: usize = 10_000;
/// Most files listed for one subdirectory.
const NAMED_MAX: usize = 3;
/// Depth of the search for specs.
const DEPTH_MAX: usize = 3;
/// Endings of backups, templates and disabled files.
const SET_ASIDE: [&str; 17] = [
    "bak", "backup", "disabled", "dist", "example", "j2", "new", "off", "old", "orig", "part",
    "rej", "sample", "save", "swp", "tmp", "tmpl",
];

/// Judges the entries of a spec directory that are no specs.
pub(super) struct UnreadEntries<'a> {
    pub(super) dir: &'a OwnedFd,
    /// The directory's name in messages.
    pub(super) shown_as: &'a str,
}

impl UnreadEntries<'_> {
    /// Returns a problem if an entry that is not read looks like a spec, or has specs in it.
    pub(super) fn problem(&self, name: &[u8], entries_read: &mut usize) -> Option<Problem> {
        if is_spec(name) || is_meant_for_others(name) {
            return None;
        }
        let why = match mistyped_ending(name) {
            Some(why) => why,
            None => self.of_directory(name, entries_read)?,
        };
        let file = format!("{}/{}", self.shown_as, shown(&String::from_utf8_lossy(name)));
        Some(Problem::of_file(file, why).of_kind(ProblemKind::PassedOver))
    }

    fn of_directory(&self, name: &[u8], entries_read: &mut usize) -> Option<String> {
        let dir = open_dir_at(self.dir, name).ok()?;
        let mut found = Vec::new();
        find(&dir, "", DEPTH_MAX, entries_read, &mut found);
        found.sort();
        let few: Vec<&str> = found.iter().take(NAMED_MAX).map(String::as_str).collect();
        let more = if found.len() > few.len() { ", …" } else { "" };
        let (files, are) = if found.len() == 1 { ("file", "is") } else { ("files", "are") };
        (!found.is_empty()).then(|| {
            format!(
                "{} {files} in it {are} not read ({}{more}): specs lie in {} itself",
                found.len(),
                few.join(", "),
                self.shown_as
            )
        })
    }
}

/// Whether a file is neither a spec, nor hostler's own, nor reported because of its name, nor a
/// text for people.
pub(in crate::spec_dir) fn is_unexplained(name: &[u8]) -> bool {
    let is_own = |part: &str| String::from_utf8_lossy(name).contains(part);
    !is_spec(name)
        && !is_meant_for_others(name)
        && mistyped_ending(name).is_none()
        && !name.starts_with(b"README")
        && ![".status.toml", ".console.log", ".ramdisk.log", ".history.jsonl"]
            .iter()
            .any(|p| is_own(p))
}

/// Finds the specs in a directory and its subdirectories, by their relative paths.
fn find(
    dir: &OwnedFd,
    path: &str,
    depth: usize,
    entries_read: &mut usize,
    found: &mut Vec<String>,
) {
    let Ok(entries) = Dir::read_from(dir) else { return };
    for entry in entries.map_while(Result::ok) {
        *entries_read += 1;
        if *entries_read > BENEATH_MAX {
            return;
        }
        let name = entry.file_name().to_bytes();
        let shown = format!("{path}{}", shown(&String::from_utf8_lossy(name)));
        if is_spec(name) {
            found.push(shown);
        } else if depth > 1
            && !is_meant_for_others(name)
            && entry.file_type().is_dir()
            && let Ok(beneath) = open_dir_at(dir, name)
        {
            find(&beneath, &format!("{shown}/"), depth - 1, entries_read, found);
        }
    }
}

/// Whether an entry is hidden, hostler's own, the defaults, or an editor's backup.
fn is_meant_for_others(name: &[u8]) -> bool {
    name.starts_with(b".")
        || name.starts_with(b"#")
        || name.ends_with(b"~")
        || name.ends_with(b".status.toml")
        || name == DEFAULTS_FILE.as_bytes()
}

/// The message about a file with a mistyped ending `.toml`.
fn mistyped_ending(name: &[u8]) -> Option<String> {
    let lower = String::from_utf8_lossy(name).to_ascii_lowercase();
    let (before, after) = lower.rsplit_once(".toml")?;
    let is_set_aside = after.strip_prefix('.').is_some_and(|ending| {
        SET_ASIDE.contains(&ending) || ending.bytes().any(|byte| byte.is_ascii_digit())
    });
    if before.is_empty() || is_set_aside {
        return None;
    }
    Some("not read: the name of a spec ends in .toml, in lower case".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::spec_dir::read_dir;

    /// Invariant (spec): A file that only looks like a spec is reported, by its name alone, and
    /// once.
    #[test]
    fn what_looks_like_a_spec_and_is_not_read_is_named_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        for dir in ["rack-a/row-1", "cloud", ".git", "empty", "deep/a/b/c"] {
            fs::create_dir_all(path(dir)).unwrap();
        }
        for file in [
            "edge-02.TOML",
            "edge-03.toml.txt",
            "edge-04.Toml ",
            "edge-05.toml.j2",
            "edge-06.toml~",
            "edge-07.toml.bak",
            "edge-08.toml.1234.2026-11-30@10:00:00~",
            "user-data",
            "README.md",
            "edge-09.status.toml",
            "rack-a/edge-10.toml",
            "rack-a/edge-12.toml",
            "rack-a/edge-13.toml",
            "rack-a/edge-14.toml",
            "rack-a/row-1/edge-11.toml",
            "cloud/edge.yaml",
            ".git/x.toml",
            "deep/a/b/c/edge.toml",
            ".toml",
            "_defaults.toml",
        ] {
            fs::write(path(file), "").unwrap();
        }
        std::os::unix::fs::symlink("rack-a", path("linked")).unwrap();
        let passed_over = read_dir(place.path(), "nodes", None).unwrap().passed_over;
        let reported: Vec<String> = passed_over.iter().map(ToString::to_string).collect();
        let ending = "not read: the name of a spec ends in .toml, in lower case";
        let beneath = "5 files in it are not read (edge-10.toml, edge-12.toml, edge-13.toml, …): \
                       specs lie in nodes itself";
        assert_eq!(
            reported,
            [
                format!("nodes/edge-02.TOML: {ending}"),
                format!("nodes/edge-03.toml.txt: {ending}"),
                format!("nodes/edge-04.Toml : {ending}"),
                format!("nodes/linked: {beneath}"),
                format!("nodes/rack-a: {beneath}"),
            ]
        );
    }
}

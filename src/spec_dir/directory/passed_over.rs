//! Files that look like specs and are not read: a mistyped ending, a subdirectory.
//!
//! Called for each reading of the directory, by names alone. It must never open a file, follow a
//! directory far, or take long: a wrong spec directory may hold anything.

use std::os::fd::OwnedFd;

use rustix::fs::Dir;

use super::{DEFAULTS_FILE, is_spec, open_dir_at};
use crate::model::problem::{Problem, shown};

/// Entries looked at beneath the spec directory.
const BENEATH_MAX: usize = 10_000;
/// Files named of one subdirectory.
const NAMED_MAX: usize = 3;
/// How deep specs are looked for.
const DEPTH_MAX: usize = 3;
/// Endings that editors, packages and people append to files they set aside or make specs from.
const SET_ASIDE: [&str; 17] = [
    "bak", "backup", "disabled", "dist", "example", "j2", "new", "off", "old", "orig", "part",
    "rej", "sample", "save", "swp", "tmp", "tmpl",
];

/// A file or directory beside the specs, looked at by its name.
pub(super) struct Passed<'a> {
    pub(super) dir: &'a OwnedFd,
    /// The directory's name in messages.
    pub(super) shown_as: &'a str,
}

impl Passed<'_> {
    /// The likely meaning of an entry that is not read.
    pub(super) fn over(&self, name: &[u8], looked_at: &mut usize) -> Option<Problem> {
        if is_spec(name) || is_meant_for_others(name) {
            return None;
        }
        let why = match meant(name) {
            Some(why) => why,
            None => self.of_directory(name, looked_at)?,
        };
        let file = format!("{}/{}", self.shown_as, shown(&String::from_utf8_lossy(name)));
        Some(Problem::of_file(file, why))
    }

    fn of_directory(&self, name: &[u8], looked_at: &mut usize) -> Option<String> {
        let dir = open_dir_at(self.dir, name).ok()?;
        let mut found = Vec::new();
        find(&dir, "", DEPTH_MAX, looked_at, &mut found);
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

/// The specs that lie in a directory and further down, by their paths in it.
fn find(dir: &OwnedFd, path: &str, depth: usize, looked_at: &mut usize, found: &mut Vec<String>) {
    let Ok(entries) = Dir::read_from(dir) else { return };
    for entry in entries.map_while(Result::ok) {
        *looked_at += 1;
        if *looked_at > BENEATH_MAX {
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
            find(&beneath, &format!("{shown}/"), depth - 1, looked_at, found);
        }
    }
}

/// Hidden, hostler's own, the defaults, or set aside by an editor.
fn is_meant_for_others(name: &[u8]) -> bool {
    name.starts_with(b".")
        || name.starts_with(b"#")
        || name.ends_with(b"~")
        || name.ends_with(b".status.toml")
        || name == DEFAULTS_FILE.as_bytes()
}

/// Why a file whose name speaks of TOML is not read.
fn meant(name: &[u8]) -> Option<String> {
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

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
/// How deep specs are looked for.
const DEPTH_MAX: usize = 3;
/// What editors, packages and people append to what they set aside or make specs from.
const SET_ASIDE: [&str; 17] = [
    "bak", "backup", "disabled", "dist", "example", "j2", "new", "off", "old", "orig", "part",
    "rej", "sample", "save", "swp", "tmp", "tmpl",
];

/// A file or directory beside the specs, looked at by its name.
pub(super) struct Passed<'a> {
    pub(super) dir: &'a OwnedFd,
    /// What messages call the directory.
    pub(super) shown_as: &'a str,
}

impl Passed<'_> {
    /// What somebody may have meant by an entry that is not read.
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
        let specs = count(&dir, DEPTH_MAX, looked_at);
        let (files, are) = if specs == 1 { ("file", "is") } else { ("files", "are") };
        (specs > 0).then(|| {
            format!("{specs} {files} in it {are} not read: specs lie in {} itself", self.shown_as)
        })
    }
}

/// How many specs lie in a directory and further down.
fn count(dir: &OwnedFd, depth: usize, looked_at: &mut usize) -> usize {
    let Ok(entries) = Dir::read_from(dir) else { return 0 };
    let mut specs = 0;
    for entry in entries.map_while(Result::ok) {
        *looked_at += 1;
        if *looked_at > BENEATH_MAX {
            return specs;
        }
        let name = entry.file_name().to_bytes();
        if is_spec(name) {
            specs += 1;
        } else if depth > 1
            && !is_meant_for_others(name)
            && entry.file_type().is_dir()
            && let Ok(beneath) = open_dir_at(dir, name)
        {
            specs += count(&beneath, depth - 1, looked_at);
        }
    }
    specs
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

    use crate::spec::read_dir;

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
        let told: Vec<String> = passed_over.iter().map(ToString::to_string).collect();
        let ending = "not read: the name of a spec ends in .toml, in lower case";
        assert_eq!(
            told,
            [
                format!("nodes/edge-02.TOML: {ending}"),
                format!("nodes/edge-03.toml.txt: {ending}"),
                format!("nodes/edge-04.Toml : {ending}"),
                "nodes/linked: 2 files in it are not read: specs lie in nodes itself".to_owned(),
                "nodes/rack-a: 2 files in it are not read: specs lie in nodes itself".to_owned(),
            ]
        );
    }
}

//! Small file systems against the programs that read them: blkid, the checkers, mtools, isoinfo and
//! cloud-init.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use tempfile::TempDir;

mod config_drives;
mod made;
mod roots;

fn blkid(place: &Place) -> String {
    run("blkid", &["-p", "-o", "export", place.text("image")])
}

fn tag<'t>(tags: &'t str, name: &str) -> &'t str {
    let value = |line: &'t str| line.strip_prefix(name)?.strip_prefix('=');
    tags.lines().find_map(value).unwrap_or_else(|| panic!("no {name}: {tags}")).trim()
}

/// Runs a program, which must exist and succeed; returns its output.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; run ./testbed/install"));
    let said = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Asserts that the checker reports no errors and no lost clusters.
fn assert_clean_fat(place: &Place) {
    let said = run("fsck.vfat", &["-n", "-v", place.text("image")]);
    assert!(!said.contains("Reclaim"), "{said}");
}

/// A directory with a file `image` in it.
struct Place(TempDir);

impl Place {
    fn with(image: &[u8]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("image"), image).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> &'static str {
        self.path(name).to_str().unwrap().to_owned().leak()
    }
}

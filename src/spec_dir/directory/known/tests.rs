//! Tests of repeated scans: no unchanged file is parsed, and no change is missed.

use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    model::spec::NodeSpec,
    spec_dir::{Reader, Snapshot},
};

fn spec(redeploy: &str) -> String {
    format!(
        "redeploy = {redeploy:?}\n[boot]\nmac = \"52:54:00:00:00:01\"\n[bmc]\n\
         address = \"192.0.2.1\"\npassword_file = \"p\"\n\
         [image]\nsource = \"i\"\nchecksum = \"sha256:{}\"\n",
        "a".repeat(64)
    )
}

struct Place {
    dir: TempDir,
    reader: Reader,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), reader: Reader::default() }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn read(&mut self) -> Snapshot {
        self.reader.read(self.dir.path(), "nodes", None).unwrap()
    }

    fn node(&mut self) -> Arc<NodeSpec> {
        self.read().nodes.into_values().next().unwrap().unwrap()
    }

    fn redeploy(&mut self) -> String {
        self.node().redeploy.clone().unwrap()
    }

    /// Scans until the files are old enough for the next scan to know them.
    fn settle(&mut self) -> Arc<NodeSpec> {
        for _ in 0..2000 {
            let (one, other) = (self.node(), self.node());
            if Arc::ptr_eq(&one, &other) {
                return other;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("an unchanged spec is parsed each time");
    }
}

#[test]
fn an_unchanged_spec_is_not_parsed_again_and_a_changed_one_is() {
    let mut place = Place::new();
    place.write("a.toml", &spec("one"));
    place.settle();
    place.write("a.toml", &spec("two"));
    assert_eq!(place.redeploy(), "two");
}

#[test]
fn a_spec_that_is_in_memory_is_not_there_twice_and_one_that_differs_is_read() {
    let mut place = Place::new();
    place.write("a.toml", &spec("one"));
    let recorded = Arc::new(place.node().as_ref().clone());
    place.reader = Reader::with_specs([Arc::clone(&recorded)]);
    assert!(Arc::ptr_eq(&place.node(), &recorded));
    // Changed defaults have everything parsed again, even without an effect.
    place.write("_defaults.toml", "timeouts.ramdisk = \"20m\"\n");
    assert!(Arc::ptr_eq(&place.node(), &recorded));
    place.write("a.toml", &spec("two"));
    place.reader = Reader::with_specs([recorded]);
    assert_eq!(place.redeploy(), "two");
}

/// Invariant (spec): No change of a spec, its defaults or its attachments is missed for being known
/// before.
#[test]
fn a_change_that_keeps_size_time_and_name_is_seen() {
    let mut place = Place::new();
    place.write("a.toml", &spec("one"));
    place.settle();
    let old = fs::metadata(place.path("a.toml")).unwrap().modified().unwrap();
    let put_back = |path: &Path| {
        File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    };
    // Changed in place.
    place.write("a.toml", &spec("two"));
    put_back(&place.path("a.toml"));
    assert_eq!(place.redeploy(), "two");
    // Replaced by another file.
    place.write("next", &spec("six"));
    put_back(&place.path("next"));
    fs::rename(place.path("next"), place.path("a.toml")).unwrap();
    assert_eq!(place.redeploy(), "six");
}

/// Invariant (spec): No change of a spec, its defaults or its attachments is missed for being known
/// before.
#[test]
fn changes_in_the_same_moment_are_all_seen() {
    let mut place = Place::new();
    for n in 100..400 {
        place.write("a.toml", &spec(&n.to_string()));
        assert_eq!(place.redeploy(), n.to_string());
    }
}

/// Invariant (spec): No change of a spec, its defaults or its attachments is missed for being known
/// before.
#[test]
fn changed_defaults_and_attachments_are_seen_in_unchanged_specs() {
    let mut place = Place::new();
    place.write("user-data", "one");
    let attaches = "[config_drive]\nuser_data_file = \"user-data\"\n";
    place.write("a.toml", &(spec("x") + attaches));
    let first = place.settle();
    place.write("user-data", "two");
    let second = place.node();
    assert_ne!(first.config_drive, second.config_drive);
    place.settle();
    fs::remove_file(place.path("user-data")).unwrap();
    assert!(place.read().nodes.into_values().next().unwrap().is_err());
    place.write("user-data", "two");
    place.settle();
    place.write("_defaults.toml", "[retry]\nattempts = 7\n");
    assert_eq!(place.node().retry.attempts, 7);
    place.settle();
    place.write("_defaults.toml", "[retry]\nattempts = ");
    assert!(place.read().nodes.into_values().next().unwrap().is_err());
    fs::remove_file(place.path("_defaults.toml")).unwrap();
    assert_eq!(place.node().retry.attempts, first.retry.attempts);
}

#[test]
fn a_file_that_goes_and_comes_back_is_gone_meanwhile() {
    let mut place = Place::new();
    place.write("a.toml", &spec("one"));
    place.settle();
    fs::rename(place.path("a.toml"), place.path("away")).unwrap();
    assert!(place.read().nodes.is_empty());
    fs::rename(place.path("away"), place.path("a.toml")).unwrap();
    assert_eq!(place.redeploy(), "one");
}

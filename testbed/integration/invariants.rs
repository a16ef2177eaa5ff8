//! `docs/contributing/invariants.md`, made of the doc comments above the tests that keep them:
//!
//! ```text
//! /// Invariant (consent): Drift never reinstalls.
//! #[test]
//! ```
//!
//! A sentence may stand above several tests. `UPDATE_EXPECT=1` writes the page anew.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use crate::layers::sources;

const PAGE: &str = "docs/contributing/invariants.md";
const WIDTH: usize = 100;

/// Every group, in the order of the page, with its heading.
const GROUPS: [(&str, &str); 15] = [
    ("consent", "Consent"),
    ("machine", "The right machine and disk"),
    ("attempt", "Attempts and waits"),
    ("spec", "Specs and their directory"),
    ("state", "Records and the state directory"),
    ("status", "Status files and commands"),
    ("agents", "Two agents over one directory"),
    ("fair", "No node and no stranger delays another"),
    ("bmc", "Power and BMCs"),
    ("netboot", "Boot files and menus"),
    ("ramdisk", "Callbacks and the deploy ramdisk"),
    ("image", "Images and the cache"),
    ("disk", "The content of a disk"),
    ("secrets", "Secrets and hostile input"),
    ("log", "Logs"),
];
/// The last group, beside the rules of the code itself.
const CODE: (&str, &str) = ("code", "Code and documents");

const HEAD: &str = "\
# Invariants

Rules that always hold, each with the tests that keep it. Doc comments above these tests are the
source of this page: `UPDATE_EXPECT=1 cargo test --locked --test integration invariants` writes it.
";

const SIMULATION: &str = "
## The simulated site

`testbed/sim` holds the whole core to the rules below. It knows machines, disks and operators by
itself, kills the core at any point, also between two effects of one step, garbles and loses its
files, sets its clock and lets operators do as operators do.
[Testing](testing.md#the-simulated-site) says how to replay a seed.

";

/// A sentence above a test.
struct Kept {
    group: String,
    sentence: String,
    path: String,
    test: String,
}

#[test]
fn the_page_of_invariants_is_what_the_tests_say() {
    let page = page(&kept(), &rules());
    let path = root().join(PAGE);
    if env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    let differs = written.lines().zip(page.lines()).position(|(one, other)| one != other);
    assert!(
        written == page,
        "{PAGE} differs, from line {:?} on: run \
         UPDATE_EXPECT=1 cargo test --locked --test integration invariants",
        differs.map(|line| line + 1)
    );
}

#[test]
fn every_invariant_is_a_whole_sentence_above_a_test() {
    let kept = kept();
    assert!(kept.len() > 300, "only {} are found", kept.len());
    for Kept { group, sentence, path, test } in kept {
        let known = GROUPS.iter().chain([&CODE]).any(|(name, _)| *name == group);
        assert!(known, "{path}: {test}: there is no group {group:?}");
        assert!(sentence.ends_with('.'), "{path}: {test}: {sentence:?} does not end");
        let vague =
            ["What ", "Whose ", "That ", "Of "].iter().any(|word| sentence.starts_with(word));
        assert!(!vague, "{path}: {test}: {sentence:?} begins with no noun");
    }
}

fn kept() -> Vec<Kept> {
    let mut kept = Vec::new();
    for path in [sources("src"), sources("testbed")].concat() {
        let text = fs::read_to_string(&path).unwrap();
        let path = relative(&path);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let Some(rest) = line.strip_prefix("/// Invariant (") else { continue };
            let (group, first) = rest.split_once("): ").unwrap_or_else(|| panic!("{path}: {line}"));
            let following = lines.iter().skip(at + 1);
            let more = following.map_while(|line| line.strip_prefix("/// "));
            let more: Vec<&str> =
                more.take_while(|line| !line.starts_with("Invariant (")).collect();
            let sentence = [&[first], more.as_slice()].concat().join(" ");
            let below = lines.iter().skip(at + 1);
            let below: Vec<&str> =
                below.copied().take_while(|line| !line.starts_with('}')).take(20).collect();
            let is_test = below.iter().any(|line| line.starts_with("#[") && line.contains("test"));
            let test =
                below.iter().find_map(|line| line.split_once("fn ")?.1.split(['(', '<']).next());
            let test = test.filter(|_| is_test);
            let test = test.unwrap_or_else(|| panic!("{path}: no test below {line}")).to_owned();
            kept.push(Kept { group: group.to_owned(), sentence, path: path.clone(), test });
        }
    }
    kept
}

/// The names of the simulation's rules.
fn rules() -> Vec<String> {
    let text = fs::read_to_string(root().join("testbed/sim/invariants/mod.rs")).unwrap();
    let (_, rest) = text.split_once("RULES: [").unwrap();
    let list = rest.split_once("];").unwrap().0;
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

fn page(kept: &[Kept], rules: &[String]) -> String {
    let mut page = HEAD.to_owned();
    for (group, heading) in GROUPS.iter().chain([&CODE]) {
        // By sentence, then by file.
        let mut sentences = BTreeMap::<&str, BTreeMap<&str, Vec<&str>>>::new();
        for kept in kept.iter().filter(|kept| kept.group == *group) {
            let files = sentences.entry(&kept.sentence).or_default();
            files.entry(&kept.path).or_default().push(&kept.test);
        }
        write!(page, "\n## {heading}\n\n").unwrap();
        for (sentence, files) in sentences {
            wrapped(&mut page, "- ", sentence);
            for (path, mut tests) in files {
                tests.sort_unstable();
                let tests: Vec<String> = tests.iter().map(|test| format!("`{test}`")).collect();
                wrapped(&mut page, "  - ", &format!("`{path}`: {}", tests.join(", ")));
            }
        }
    }
    page.push_str(SIMULATION);
    for rule in rules {
        writeln!(page, "- `{rule}`").unwrap();
    }
    page
}

/// Appends a list item, wrapped between words.
fn wrapped(page: &mut String, bullet: &str, text: &str) {
    let mut line = bullet.to_owned();
    for word in text.split(' ') {
        let is_first = line.trim_end() == bullet.trim_end();
        if !is_first && line.len() + 1 + word.len() > WIDTH {
            writeln!(page, "{line}").unwrap();
            line = format!("{}{word}", " ".repeat(bullet.len()));
        } else {
            if !is_first {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    writeln!(page, "{line}").unwrap();
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

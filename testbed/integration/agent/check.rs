//! `hostler check`: the corpus of mistakes, its formats, its arguments, and its codes.

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use expect_test::{expect, expect_file};
use hostler::{
    model::problem::{ProblemKind, Severity},
    status_file::{self, StatusFiles},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    NODE,
    machine::Machine,
    site::{Site, answer, hostler},
};

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testbed/corpus/check");
const EXPECTED: &str = "expected";
const PAGE: &str = "docs/using/reference/errors.md";
const WIDTH: usize = 100;

/// `hostler` in the corpus' directory.
fn in_corpus(arguments: &[&str]) -> Command {
    let mut command = hostler(arguments);
    command.current_dir(CORPUS);
    command
}

/// The cases of the corpus: a spec or a directory each.
fn cases() -> Vec<String> {
    let names = fs::read_dir(CORPUS).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let mut cases: Vec<String> =
        names.filter(|name| !name.ends_with(EXPECTED) && name != "README.md").collect();
    cases.sort();
    cases
}

/// A case's report as JSON.
fn report(command: &mut Command) -> Value {
    let (_, said, errors) = answer(command);
    assert_eq!(errors, "");
    serde_json::from_str(&said).unwrap()
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

/// Invariant (spec): Every mistake of the corpus is shown with its place and with advice.
#[test]
fn every_mistake_of_the_corpus_is_shown_as_expected() {
    let cases = cases();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    for case in cases {
        let (code, said, errors) = answer(&mut in_corpus(&["check", &case]));
        assert_eq!(errors, "", "{case}");
        assert_eq!(code, i32::from(!said.contains(" 0 problems")), "{case}: {said}");
        expect_file![format!("{CORPUS}/{case}.{EXPECTED}")].assert_eq(&said);
    }
}

/// Invariant (spec): A spec is good, or free of that problem, once the advice about it is followed.
#[test]
fn a_file_is_good_once_the_advice_is_followed() {
    let mut followed = 0;
    let is_file = |case: &&String| Path::new(case).extension().is_some_and(|end| end == "toml");
    for case in cases().iter().filter(is_file) {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join(case);
        copy(&Path::new(CORPUS).join(case), &file);
        let check = || report(hostler(&["check", "--format", "json"]).arg(&file));
        // Advice on a table in brackets may show what was hidden.
        for round in 0..2 {
            let report = check();
            let problems = report["problems"].as_array().unwrap();
            let mut fixes: Vec<&Value> = problems
                .iter()
                .map(|problem| &problem["fix"])
                .filter(|fix| fix.is_object())
                .collect();
            if fixes.is_empty() {
                break;
            }
            assert_eq!(round, 0, "{case}: {report:#}");
            let all_have_one = fixes.len() == problems.len();
            fixes.sort_by_key(|fix| std::cmp::Reverse(fix["start_byte"].as_u64()));
            let mut text = fs::read(&file).unwrap();
            for fix in fixes {
                let [start, end] = ["start_byte", "end_byte"]
                    .map(|key| usize::try_from(fix[key].as_u64().unwrap()).unwrap());
                text.splice(start..end, fix["text"].as_str().unwrap().bytes());
            }
            fs::write(&file, text).unwrap();
            if all_have_one && case != "yaml.toml" {
                followed += 1;
                let report = check();
                assert_eq!(report["good"], 1, "{case}: {report:#}");
                break;
            }
        }
    }
    assert!(followed >= 20, "{followed} cases");
}

/// Invariant (spec): Each kind of problem has an example in the corpus, or a test of its own.
#[test]
fn the_corpus_has_every_kind_of_problem() {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for case in cases() {
        let report = report(&mut in_corpus(&["check", "--format", "json", &case]));
        let problems =
            ["problems", "passed_over"].map(|key| report[key].as_array().unwrap().clone());
        seen.extend(problems.concat().iter().map(|p| p["code"].as_str().unwrap().to_owned()));
    }
    let elsewhere = [
        ProblemKind::Unreadable,
        ProblemKind::TooLarge,
        ProblemKind::NotChecked,
        ProblemKind::NoHint,
    ];
    for kind in ProblemKind::ALL.iter().filter(|kind| !elsewhere.contains(kind)) {
        assert!(seen.contains(kind.code()), "{} {}", kind.code(), kind.title());
    }
}

#[test]
fn programs_get_every_problem_as_json_and_github_as_annotations() {
    let arguments = ["key-mistyped.toml", "warnings.toml", "clash"];
    let json = ["check", "--format", "json"].into_iter().chain(arguments).collect::<Vec<_>>();
    let report = report(&mut in_corpus(&json));
    let numbers = ["good", "errors", "warnings"].map(|key| report[key].as_u64().unwrap());
    assert_eq!(numbers, [1, 3, 2]);
    let expected = json!({
        "severity": "error", "code": "HS010", "file": "key-mistyped.toml",
        "at": { "line": 3, "column": 1 }, "end": { "line": 3, "column": 9 },
        "key": "boot.firmwaer", "message": "unknown key", "help": "did you mean `firmware`?",
        "other": null, "fix": { "start_byte": 33, "end_byte": 41, "text": "firmware" },
    });
    let problems = report["problems"].as_array().unwrap();
    assert!(problems.contains(&expected), "{report:#}");
    let clash = problems.iter().find(|problem| problem["code"] == "HS041").unwrap();
    assert_eq!(clash["other"]["file"], "clash/edge-08.toml");
    assert_eq!(clash["other"]["at"]["line"], 6);

    let github = ["check", "--format", "github"].into_iter().chain(arguments).collect::<Vec<_>>();
    let (code, said, _) = answer(&mut in_corpus(&github));
    assert_eq!(code, 1);
    expect![[r#"
        ::error title=hostler (HS041),file=clash/edge-07.toml,line=6,col=11,endLine=6,endColumn=23::clash/edge-07.toml:6:11: bmc.address: 192.0.2.20:623 is also in clash/edge-08.toml
        ::error title=hostler (HS041),file=clash/edge-08.toml,line=6,col=11,endLine=6,endColumn=23::clash/edge-08.toml:6:11: bmc.address: 192.0.2.20:623 is also in clash/edge-07.toml
        ::error title=hostler (HS010),file=key-mistyped.toml,line=3,col=1,endLine=3,endColumn=9::key-mistyped.toml:3:1: boot.firmwaer: unknown key; did you mean `firmware`?
        ::warning title=hostler (HS203),file=warnings.toml,line=3,col=16,endLine=3,endColumn=21::warnings.toml:3:16: boot.require_chap: everybody on the deploy network can write the disk during the installation; leave it out, unless the ramdisk is Ironic's
        ::warning title=hostler (HS202),file=warnings.toml,line=12,col=12,endLine=12,endColumn=46::warnings.toml:12:12: image.checksum: the list comes over plain HTTP, as the image does, so that one attacker can replace both; write the digest itself, or an https:// list
        1 good, 3 problems, 2 warnings
    "#]].assert_eq(&said);
    let short = ["check", "--format", "short"].into_iter().chain(arguments).collect::<Vec<_>>();
    expect![[r#"
        clash/edge-07.toml:6:11: bmc.address: 192.0.2.20:623 is also in clash/edge-08.toml
        clash/edge-08.toml:6:11: bmc.address: 192.0.2.20:623 is also in clash/edge-07.toml
        key-mistyped.toml:3:1: boot.firmwaer: unknown key; did you mean `firmware`?
        warning: warnings.toml:3:16: boot.require_chap: everybody on the deploy network can write the disk during the installation; leave it out, unless the ramdisk is Ironic's
        warning: warnings.toml:12:12: image.checksum: the list comes over plain HTTP, as the image does, so that one attacker can replace both; write the digest itself, or an https:// list
        1 good, 3 problems, 2 warnings
    "#]].assert_eq(&answer(&mut in_corpus(&short)).1);
}

/// A good spec of a machine.
fn good(number: u8) -> String {
    let text = fs::read_to_string(format!("{CORPUS}/clash/edge-07.toml")).unwrap();
    text.replace("00:01\"", &format!("00:{number:02x}\"")).replace("2.20", &format!("2.{number}"))
}

/// A directory with these files.
fn place(files: &[(&str, &str)]) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(place.path().join(name), text).unwrap();
    }
    place
}

/// `hostler check --format short` there.
fn check_there(place: &TempDir, arguments: &[&str]) -> (i32, String) {
    let mut command = hostler(&["check", "--format", "short"]);
    let (code, said, errors) = answer(command.args(arguments).current_dir(place.path()));
    (code, said + &errors)
}

#[test]
fn files_and_directories_are_checked_together_and_no_problem_hides_another() {
    let broken = "[boot\n";
    let place = place(&[("a.toml", &good(1)), ("b.toml", broken), ("c.toml", &good(3))]);
    let other = place.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("d.toml"), good(4).replace("uefi", "efi")).unwrap();
    let (code, said) = check_there(&place, &["a.toml", "b.toml", "other", "nowhere.toml"]);
    assert_eq!(code, 1);
    expect![[r#"
        b.toml:1:1: a table without its second bracket; write [boot]
        nowhere.toml: no such file or directory
        other/d.toml:3:12: boot.firmware: `efi` is not one of uefi, bios; did you mean "uefi"?
        1 good, 3 problems
    "#]]
    .assert_eq(&said);
    // A single file is compared with the specs beside it, whose own mistakes do not matter.
    assert_eq!(check_there(&place, &["a.toml"]).0, 0);
    fs::write(place.path().join("e.toml"), good(1)).unwrap();
    let (code, said) = check_there(&place, &["a.toml"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.starts_with("a.toml:2:7: boot.mac: 52:54:00:00:00:01 is also in e.toml\n"),
        "{said}"
    );
    assert!(said.ends_with("a.toml: 0 good, 2 problems\n"), "{said}");
}

#[test]
fn a_directory_without_a_spec_and_a_file_that_is_none_are_problems() {
    let place = place(&[("a.status.toml", "phase = \"held\"\n"), ("b.yaml", "boot:\n")]);
    let (code, said) = check_there(&place, &["."]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(".: the directory has no spec"), "{said}");
    assert!(said.contains("note: .: not read, because no name ends in .toml: b.yaml"), "{said}");
    assert_eq!(check_there(&place, &[".", "--allow-empty"]).0, 0);
    let (code, said) = check_there(&place, &["a.status.toml", "b.yaml"]);
    assert_eq!(code, 1, "{said}");
    expect![[r#"
        a.status.toml: a status file, which hostler writes itself; a spec is NODE.toml
        b.yaml: not a spec by its name; a spec is NODE.toml
        0 good, 2 problems
    "#]]
    .assert_eq(&said);
}

#[test]
fn warnings_count_only_if_they_are_denied() {
    for (arguments, expected) in [(&["check"][..], 0), (&["check", "--deny-warnings"], 1)] {
        let (code, said, _) = answer(in_corpus(arguments).arg("warnings.toml"));
        assert_eq!(code, expected, "{said}");
        assert!(said.ends_with("warnings.toml: 1 good, 0 problems, 2 warnings\n"), "{said}");
    }
}

#[test]
fn the_defaults_are_checked_with_every_spec_beside_them() {
    let place = place(&[("_defaults.toml", "[boot]\nfirmware = \"bios\"\n"), ("a.toml", &good(1))]);
    assert_eq!(check_there(&place, &["_defaults.toml"]).0, 0);
    let aarch64 = good(1).replace("firmware = \"uefi\"", "arch = \"aarch64\"");
    fs::write(place.path().join("a.toml"), aarch64).unwrap();
    let (code, said) = check_there(&place, &["_defaults.toml"]);
    assert_eq!(code, 1);
    assert!(said.starts_with("_defaults.toml:2:12: boot.firmware: an aarch64 machine"), "{said}");
}

/// `hostler check` of this standard input.
fn check_input(place: &TempDir, arguments: &[&str], input: &str) -> (i32, String) {
    let mut command = hostler(&["check", "--format", "short", "-"]);
    command.args(arguments).current_dir(place.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut checking = command.spawn().unwrap();
    checking.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = checking.wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn standard_input_counts_as_the_file_of_stdin_filename() {
    let place = place(&[("_defaults.toml", "[bmc]\nusername = 7\n")]);
    let elsewhere = tempfile::tempdir().unwrap();
    assert_eq!(check_input(&elsewhere, &[], &good(1)), (0, "1 good, 0 problems\n".to_owned()));
    let (code, said) = check_input(&elsewhere, &[], &good(1).replace("uefi", "efi"));
    assert_eq!(code, 1);
    assert!(said.starts_with("<stdin>:3:12: boot.firmware: `efi` is not one of"), "{said}");
    let (code, said) = check_input(&place, &["--stdin-filename", "a.toml"], &good(1));
    assert_eq!(code, 1);
    assert!(said.starts_with("_defaults.toml:2:12: bmc.username: an integer"), "{said}");
    let (code, said) = check_input(&elsewhere, &["--stdin-filename", "A.toml"], &good(1));
    assert_eq!(code, 1);
    assert!(said.starts_with("A.toml: node name `A`"), "{said}");
    let (code, said) = check_input(&elsewhere, &["--stdin-filename", "a.yaml"], &good(1));
    assert!(code == 1 && said.starts_with("a.yaml: not a spec by its name"), "{said}");

    let mut alone = hostler(&["check", "--format", "short", "--stdin-filename", "a.toml"]);
    alone.current_dir(elsewhere.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut checking = alone.spawn().unwrap();
    checking.stdin.take().unwrap().write_all(good(1).as_bytes()).unwrap();
    let output = checking.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1 good, 0 problems\n", "without -");
}

/// Invariant (spec): The hook of `.pre-commit-hooks.yaml` is a command that takes files.
#[test]
fn the_hook_for_pre_commit_takes_the_changed_files() {
    let hooks = concat!(env!("CARGO_MANIFEST_DIR"), "/.pre-commit-hooks.yaml");
    let hooks = fs::read_to_string(hooks).unwrap();
    let entry = hooks.lines().find_map(|line| line.trim().strip_prefix("entry: hostler ")).unwrap();
    let words: Vec<&str> = entry.split_whitespace().collect();
    let place = tempfile::tempdir().unwrap();
    let nodes = place.path().join("nodes");
    fs::create_dir(&nodes).unwrap();
    for number in [1, 2] {
        fs::write(nodes.join(format!("edge-{number}.toml")), good(number)).unwrap();
    }
    fs::write(nodes.join("_defaults.toml"), "[retry]\nattempts = 5\n").unwrap();
    let files = ["nodes/edge-1.toml", "nodes/_defaults.toml"];
    let run = || answer(hostler(&words).args(files).current_dir(place.path()));
    assert_eq!(run(), (0, "2 good, 0 problems\n".to_owned(), String::new()));
    fs::write(nodes.join("_defaults.toml"), "[retry]\nattempts = 500\n").unwrap();
    assert_eq!(run().0, 1);
}

/// Ansible names the temporary file `.source.toml`, in a directory of its own.
#[test]
fn a_temporary_file_is_checked_over_the_agents_defaults_whatever_its_name() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let spec = machine.spec(&site).to_toml();
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join(".source.toml");
    fs::write(&file, &spec).unwrap();
    let check = || answer(site.hostler(&["check"]).arg(&file));
    assert_eq!(check().0, 0, "{}", check().1);
    fs::write(site.path("nodes/_defaults.toml"), "[boot]\nfirmwaer = \"bios\"\n").unwrap();
    let (code, said, _) = check();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("did you mean `firmware`?"), "{said}");
}

/// Invariant (spec): A spec without a root device hint is warned of once the machine is known to
/// have several disks.
#[test]
fn several_known_disks_without_a_hint_are_a_warning() {
    let place = place(&[("edge-07.toml", &good(1))]);
    let full = concat!(env!("CARGO_MANIFEST_DIR"), "/src/status_file/full.status.toml");
    let mut status = status_file::read(Path::new(full)).unwrap();
    for (disks, hint, warnings) in
        [(1, "", 0), (2, "", 1), (2, "[root_device]\nserial = \"a\"\n", 0)]
    {
        status.last_seen.as_mut().unwrap().disks = Some(disks);
        StatusFiles::new(place.path()).write(&status).unwrap();
        fs::write(place.path().join("edge-07.toml"), good(1) + hint).unwrap();
        for path in [".", "edge-07.toml"] {
            let (code, said) = check_there(&place, &[path]);
            assert_eq!(code, 0, "{said}");
            let warning =
                "warning: edge-07.toml: root_device: no root device hint, and the machine has 2";
            let warning = if path == "." {
                warning.replace(": edge", ": ./edge")
            } else {
                warning.to_owned()
            };
            assert_eq!(usize::from(said.contains(&warning)), warnings, "{said}");
        }
    }
}

#[test]
fn a_terminal_gets_colors_unless_no_color_says_otherwise() {
    for (no_color, is_colored) in [("", true), ("1", false)] {
        let line = format!("'{}' check key-mistyped.toml", env!("CARGO_BIN_EXE_hostler"));
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("NO_COLOR", no_color).current_dir(CORPUS);
        let (code, said, _) = answer(&mut script);
        assert_eq!(code, 1);
        assert!(said.contains("firmwaer"), "{said}");
        assert_eq!(said.contains('\u{1b}'), is_colored, "{said}");
    }
}

#[test]
fn a_code_is_explained() {
    let (code, said, _) = answer(&mut hostler(&["explain", "HS012"]));
    assert_eq!(code, 0);
    expect![[r#"
        HS012 (error): a value of the wrong type

        The key takes another type: a string in quotes, an integer, true or false, a
        list in brackets, or a table.
    "#]]
    .assert_eq(&said);
    let (code, said, errors) = answer(&mut hostler(&["explain", "HS999"]));
    assert_eq!((code, said.as_str()), (1, ""));
    assert!(errors.contains("there is no code HS999"), "{errors}");
}

/// Invariant (code): The page of codes is made of their table.
#[test]
fn the_page_of_codes_is_what_the_table_says() {
    let mut page = PAGE_HEAD.to_owned();
    for (severity, heading) in
        [(Severity::Error, "Errors"), (Severity::Warning, "Warnings"), (Severity::Note, "Notes")]
    {
        write!(page, "\n## {heading}\n").unwrap();
        for kind in ProblemKind::ALL.iter().filter(|kind| kind.severity() == severity) {
            write!(page, "\n### {}: {}\n\n", kind.code(), kind.title()).unwrap();
            page.push_str(&wrapped(kind.explanation()));
        }
    }
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/")).join(PAGE);
    expect_file![path].assert_eq(&page);
}

const PAGE_HEAD: &str = "\
# Codes of `hostler check`

`hostler check` gives each problem a code, and `hostler explain HS012` prints the entry of this
page. A code never changes its meaning. Warnings and notes leave a spec good.
";

/// Breaks a paragraph into lines of the documents' width.
fn wrapped(paragraph: &str) -> String {
    let mut text = String::new();
    let mut width = 0;
    for word in paragraph.split_whitespace() {
        let word_width = word.chars().count();
        if width > 0 && width + 1 + word_width > WIDTH {
            text.push('\n');
            width = 0;
        } else if width > 0 {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += word_width;
    }
    text + "\n"
}

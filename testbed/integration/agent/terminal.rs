//! Foreign texts in status files and specs, as commands print them.

use std::{fs, process::Command};

use hostler::{
    model::{
        printable::is_escaped,
        status::{Phase, Status},
    },
    status_file::StatusFiles,
};

use super::{
    NODE,
    machine::Machine,
    site::{Site, answer, hostler},
};

/// A text that sets the title, clears the screen, begins a new line, and reverses the direction of
/// writing.
const HOSTILE: &str =
    "\u{1b}]0;OWN\u{7}\u{1b}[2JX\r\nFORGED\u{202e}\u{2066}\u{2028}\u{85}\u{200b}\u{9b}31m\u{7f}";

/// Replaces every free text of a status; returns the number of them.
fn spoil(status: &mut toml::Value, at: &[usize], whole: &mut impl FnMut(&[usize], &str) -> bool) {
    let entries: Vec<&mut toml::Value> = match status {
        toml::Value::String(text) => {
            if whole(at, HOSTILE) {
                HOSTILE.clone_into(text);
            }
            return;
        }
        toml::Value::Array(values) => values.iter_mut().collect(),
        toml::Value::Table(table) => table.iter_mut().map(|(_, value)| value).collect(),
        _ => return,
    };
    for (number, entry) in entries.into_iter().enumerate() {
        spoil(entry, &[at, &[number]].concat(), whole);
    }
}

/// The text at this place of a status.
fn at<'a>(status: &'a mut toml::Value, place: &[usize]) -> &'a mut toml::Value {
    place.iter().fold(status, |value, number| match value {
        toml::Value::Array(values) => values.get_mut(*number).unwrap(),
        toml::Value::Table(table) => table.iter_mut().nth(*number).unwrap().1,
        _ => unreachable!("only these have places"),
    })
}

fn is_status(value: &toml::Value) -> bool {
    toml::from_str::<Status>(&toml::to_string(value).unwrap()).is_ok()
}

/// Runs a command; returns its output, which must be harmless.
fn harmless(command: &mut Command) -> String {
    let said = without_controls(command);
    let forged = said.lines().any(|line| line.starts_with("FORGED"));
    assert!(!forged, "{command:?}: {said}");
    said
}

/// Runs a command whose output may have more lines: in TOML, a text of several lines is one value.
fn without_controls(command: &mut Command) -> String {
    let (_, said, errors) = answer(command.env_remove("HOSTLER_LOG"));
    for text in [&said, &errors] {
        let bad = text.chars().find(|char| is_escaped(*char) && !matches!(char, '\n' | '\t'));
        assert_eq!(bad, None, "{command:?}: {}", text.escape_debug());
    }
    said + &errors
}

/// Invariant (secrets): No text from outside does anything to a terminal; JSON and TOML read back
/// the same.
#[test]
fn nothing_that_others_have_written_does_anything_to_a_terminal() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    // A failed attempt's status has most fields.
    let spec = machine.spec(&site);
    site.write(NODE, &spec.clone().with("image.source", "none.raw"));
    site.until_phase(NODE, Phase::Failed);
    assert!(agent.terminate().0.success());

    let path = site.path(&format!("nodes/{NODE}.status.toml"));
    let good: toml::Value = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let mut places = Vec::new();
    spoil(&mut good.clone(), &[], &mut |place, text| {
        let mut tried = good.clone();
        *at(&mut tried, place) = text.into();
        is_status(&tried) && {
            places.push(place.to_vec());
            true
        }
    });
    let mut hostile = good.clone();
    for place in &places {
        *at(&mut hostile, place) = HOSTILE.into();
    }
    assert!(places.len() >= 5 && is_status(&hostile), "{places:?}");
    // With a correct checksum, which every user who can write there can make.
    let status: Status = toml::from_str(&toml::to_string(&hostile).unwrap()).unwrap();
    StatusFiles::new(site.path("nodes")).write(&status).unwrap();

    let nodes = site.path("nodes").display().to_string();
    let node = &["--dir", &nodes, NODE];
    let of_node = |words: &[&str]| hostler(&[words, node].concat());
    let watch = || {
        let mut timed = Command::new("timeout");
        let watch = hostler(&["watch", &nodes]);
        timed.arg("3").arg(watch.get_program()).args(watch.get_args());
        timed
    };
    for mut command in [
        hostler(&["status", &nodes]),
        of_node(&["explain"]),
        of_node(&["wait", "--timeout", "1s"]),
        watch(),
    ] {
        let said = harmless(&mut command);
        assert!(said.contains("FORGED"), "{command:?} shows it escaped: {said}");
    }
    let json = harmless(&mut hostler(&["status", "-o", "json", &nodes]));
    let read: serde_json::Value =
        serde_json::Deserializer::from_str(&json).into_iter().next().unwrap().unwrap();
    assert!(read.to_string().contains(&serde_json::json!(HOSTILE).to_string()), "{read}");
    harmless(&mut hostler(&["plan", &nodes]));
    harmless(&mut hostler(&["plan", "-o", "json", &nodes]));

    // Unreadable files.
    for broken in [format!("x = {HOSTILE}"), "phase = \"\u{1b}[2J\"".to_owned()] {
        fs::write(&path, broken).unwrap();
        harmless(&mut hostler(&["status", &nodes]));
        harmless(&mut of_node(&["explain"]));
        harmless(&mut of_node(&["wait", "--timeout", "1s"]));
    }
}

#[test]
fn nothing_in_an_argument_does_anything_to_a_terminal() {
    let hostile = "\u{202e}\u{9b}31m\u{2066}";
    for words in [&["status", "-o", hostile][..], &[hostile], &["wait", "a", "--timeout", hostile]]
    {
        let (code, said, errors) = answer(&mut hostler(words));
        assert!(code == 1 && said.is_empty(), "{code} {said}");
        assert!(errors.contains("u{202e}"), "{errors}");
        assert!(
            !errors.contains(|char: char| hostile.contains(char) && !char.is_ascii()),
            "{errors}"
        );
    }
}

#[test]
fn nothing_in_a_spec_does_anything_to_a_terminal() {
    let site = Site::new();
    let spec = Machine::new(&site, NODE).spec(&site);
    let nodes = site.path("nodes").display().to_string();
    // The agent's configuration adds one of these texts to every spec.
    let toml = toml::Value::from(HOSTILE);
    site.configure_more(&format!("[defaults]\nredeploy = {toml}"));
    site.write(NODE, &spec);
    for more in [
        String::new(),
        format!("redeploy = {toml}\n"),
        format!("{toml} = 1\n"),
        format!("power = {toml}\n"),
        "x = \"\u{1b}[2J\u{202e}\"\n".to_owned(),
        format!("x = {HOSTILE}"),
    ] {
        let text = format!("{more}{}", spec.to_toml());
        fs::write(site.path(&format!("nodes/{NODE}.toml")), text).unwrap();
        harmless(&mut site.hostler(&["check", &nodes]));
        harmless(&mut site.hostler(&["show", NODE]));
        harmless(&mut site.hostler(&["plan", &nodes]));
        harmless(&mut site.hostler(&["plan", "-o", "json"]));
        harmless(&mut site.hostler(&["explain", NODE]));
        without_controls(&mut site.hostler(&["run", "--print-config"]));
        harmless(&mut hostler(&["digest", &format!("{nodes}/{NODE}.toml")]));
    }
}

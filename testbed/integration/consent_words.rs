//! No text names an act that lets hostler wipe a disk without the word WIPE: messages, hints and
//! help of the program, the documents, and the examples.

use std::{fs, path::Path};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use crate::{
    documents::{documents, read},
    layers::sources,
};

/// Texts that name such an act without advice, each with the reason.
const NO_ADVICE: [(&str, &str); 6] = [
    ("redeploy changed from", "`plan` says why, beside what it WIPES"),
    ("cannot reach this agent", "the socket is missing"),
    ("there is no BMC to switch it off", "a machine that is kept off"),
    ("`hostler retry` reach the agent", "where it listens"),
    ("A changed `image.kernel`", "what needs no `redeploy`"),
    ("It stands for the image", "what a digest is of"),
];

/// Whether a text names an act of consent: another `redeploy`, an approval, or a machine switched
/// off.
fn names_an_act(text: &str) -> bool {
    // A single word is a key, a command or an order's name.
    let text = without_names(text);
    let is_sentence = text.trim().contains(' ');
    let acts = ["redeploy", "approve", "approval", "switch it off", "switching it off"];
    is_sentence && acts.iter().any(|act| text.contains(act))
}

/// Removes placeholders, whose names resemble the acts, and the names of tests.
fn without_names(text: &str) -> String {
    let put_in = |part: &str| {
        part.split_once('}').map_or_else(|| part.to_owned(), |(_, rest)| rest.to_owned())
    };
    let mut parts = text.split('{');
    let first = parts.next().unwrap_or_default().to_owned();
    let text = parts.fold(first, |text, part| text + &put_in(part));
    let is_no_name = |part: &&str| part.matches('_').count() < 3 && !part.contains("::");
    text.split('`').filter(is_no_name).collect::<Vec<_>>().join("`")
}

fn judge(place: &str, text: &str, found: &mut Vec<String>, named: &mut usize) {
    if !names_an_act(text) || NO_ADVICE.iter().any(|(part, _)| text.contains(part)) {
        return;
    }
    *named += 1;
    if !text.contains("WIPE") {
        found.push(format!("{place}: {text}"));
    }
}

/// Collects the texts of a Rust file: string literals and, for clap's help, doc comments.
fn texts(tokens: TokenStream, is_help: bool, found: &mut Vec<String>) {
    let mut doc = String::new();
    let (mut is_test, mut is_inner) = (false, false);
    for token in tokens {
        match token {
            TokenTree::Group(group) if is_doc(&group) => {
                if is_help && !std::mem::take(&mut is_inner) {
                    doc = format!("{doc} {}", content(&group.stream().into_iter().last().unwrap()));
                }
            }
            TokenTree::Group(group) if group.to_string() == "[cfg (test)]" => is_test = true,
            TokenTree::Group(group) => {
                found.extend((!doc.is_empty()).then(|| std::mem::take(&mut doc)));
                let is_body = group.delimiter() == Delimiter::Brace;
                if !(is_body && std::mem::take(&mut is_test)) {
                    texts(group.stream(), is_help, found);
                }
            }
            TokenTree::Literal(_) => found.push(content(&token)),
            TokenTree::Punct(punct) if punct.as_char() == '#' => is_inner = false,
            TokenTree::Punct(punct) if punct.as_char() == '!' => is_inner = true,
            TokenTree::Punct(_) | TokenTree::Ident(_) => {
                found.extend((!doc.is_empty()).then(|| std::mem::take(&mut doc)));
            }
        }
    }
}

fn is_doc(group: &Group) -> bool {
    let first = group.stream().into_iter().next();
    matches!(first, Some(TokenTree::Ident(ident)) if ident == "doc")
}

/// A literal in one line, without its quotes.
fn content(literal: &TokenTree) -> String {
    let text = literal.to_string().replace("\\\n", "");
    let text = text.trim_start_matches('r').trim_matches('#').trim_matches('"');
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Invariant (consent): No text advises an act that wipes without the word WIPE.
#[test]
fn no_message_hint_or_help_names_an_act_that_wipes_without_the_word_wipe() {
    let (mut found, mut named) = (Vec::new(), 0);
    for file in sources("src") {
        let place = file.to_string_lossy().into_owned();
        if place.contains("tests") {
            continue;
        }
        let source: TokenStream = fs::read_to_string(&file).unwrap().parse().unwrap();
        let mut all = Vec::new();
        texts(source, place.contains("/cli/"), &mut all);
        for text in all {
            judge(&place, &text, &mut found, &mut named);
        }
    }
    assert_eq!(found, Vec::<String>::new());
    assert!(named > 6, "only {named} texts are found at all");
}

/// Splits Markdown into paragraphs, list items and table rows; a block of code belongs to the text
/// before it.
fn paragraphs(markdown: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let (mut in_code, mut begins) = (false, true);
    for line in markdown.lines() {
        if line.starts_with("```") {
            (in_code, begins) = (!in_code, false);
        } else if line.trim().is_empty() {
            begins = !in_code;
            continue;
        }
        let item = !in_code && (line.starts_with("- ") || line.starts_with('|'));
        match all.last_mut() {
            Some(last) if !begins && !item => *last = format!("{last} {line}"),
            _ => all.push(line.to_owned()),
        }
        begins = false;
    }
    all
}

/// Invariant (consent): No text advises an act that wipes without the word WIPE.
#[test]
fn no_document_and_no_example_names_an_act_that_wipes_without_the_word_wipe() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut named) = (Vec::new(), 0);
    // Only documents for administrators: the others explain such acts without advice.
    let is_advice = |document: &&String| {
        ["README.md", "SECURITY.md"].contains(&document.as_str())
            || document.starts_with("docs/using/")
    };
    for document in documents().iter().filter(is_advice) {
        for paragraph in paragraphs(&read(document)) {
            judge(document, &paragraph, &mut found, &mut named);
        }
    }
    for example in walk(&root.join("examples")) {
        let text = fs::read_to_string(&example).unwrap();
        // Each comment is beside its value.
        let mut comment = String::new();
        for line in text.lines().chain([""]) {
            if let Some(words) = line.trim_start().strip_prefix('#') {
                comment = format!("{comment} {words}");
            } else {
                let comment = std::mem::take(&mut comment);
                judge(&example.to_string_lossy(), &comment, &mut found, &mut named);
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
    assert!(named > 6, "only {named} texts are found at all");
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

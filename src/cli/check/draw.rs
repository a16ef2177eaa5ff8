//! The formats of `hostler check`.
//!
//! Names and texts of files may hold anything. A drawing must have no control character but line
//! breaks and, if it is styled, its own colors.

use std::fmt::Write as _;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde_json::{Value, json};

use super::Totals;
use crate::{
    cli::print,
    model::{
        printable::{escaped, is_escaped},
        problem::{OtherPlace, Problem, Severity, Span},
    },
    spec_dir::CheckReport,
};

/// Longest part of a line that is drawn, in bytes.
const LINE_BYTES_MAX: usize = 4096;

/// Draws each problem in its file.
pub(super) fn full(report: &CheckReport, totals: &Totals, styled: bool) -> String {
    let renderer = if styled { Renderer::styled() } else { Renderer::plain() };
    let mut text = String::new();
    for problem in report.problems.iter().chain(&report.passed_over) {
        text.push_str(&renderer.render(&[group(problem, report)]));
        text.push_str("\n\n");
    }
    if let Some(problem) = report.problems.first() {
        let code = problem.kind.code();
        writeln!(text, "for more about a code: hostler explain {code}").unwrap_or_default();
    }
    text.push_str(&summary(totals));
    text
}

/// One line for each problem.
pub(super) fn short(report: &CheckReport, totals: &Totals) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        let prefix = match problem.kind.severity() {
            Severity::Error => "",
            Severity::Warning => "warning: ",
            Severity::Note => "note: ",
        };
        writeln!(text, "{prefix}{problem}").unwrap_or_default();
    }
    for note in &report.passed_over {
        writeln!(text, "note: {note}").unwrap_or_default();
    }
    text.push_str(&summary(totals));
    text
}

/// One document for programs.
pub(super) fn json(report: &CheckReport, totals: &Totals) -> serde_json::Result<String> {
    let all = |problems: &mut dyn Iterator<Item = &Problem>| -> Vec<Value> {
        problems.map(|problem| as_json(problem, report)).collect()
    };
    print::json(&json!({
        "good": totals.good,
        "errors": totals.errors,
        "warnings": totals.warnings,
        "problems": all(&mut report.problems.iter()),
        "passed_over": all(&mut report.passed_over.iter()),
    }))
}

/// Workflow commands of GitHub: `::error file=…,line=…::message`.
pub(super) fn github(report: &CheckReport, totals: &Totals) -> String {
    let mut text = String::new();
    for problem in report.problems.iter().chain(&report.passed_over) {
        let command = match problem.kind.severity() {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "notice",
        };
        let code = problem.kind.code();
        let mut properties = format!("title=hostler ({code}),file={}", property(&problem.file));
        if let Some((line, column)) = problem.at {
            write!(properties, ",line={line},col={column}").unwrap_or_default();
        }
        if let Some((line, column)) = end(problem, report) {
            write!(properties, ",endLine={line},endColumn={column}").unwrap_or_default();
        }
        let message = data(&format!("{problem}"));
        writeln!(text, "::{command} {properties}::{message}").unwrap_or_default();
    }
    text.push_str(&summary(totals));
    text
}

/// The last line, for people.
fn summary(totals: &Totals) -> String {
    let Totals { place, good, errors, warnings } = totals;
    let count =
        |count: &usize, what: &str| format!("{count} {what}{}", if *count == 1 { "" } else { "s" });
    let place = place.as_ref().map(|place| format!("{}: ", escaped(place))).unwrap_or_default();
    let warnings = match warnings {
        0 => String::new(),
        warnings => format!(", {}", count(warnings, "warning")),
    };
    format!("{place}{good} good, {}{warnings}\n", count(errors, "problem"))
}

fn as_json(problem: &Problem, report: &CheckReport) -> Value {
    let (message, help) = problem.message_and_help();
    let place =
        |at: Option<(u32, u32)>| at.map(|(line, column)| json!({ "line": line, "column": column }));
    let other = problem.other.as_ref().map(
        |other| json!({ "file": other.file, "at": place(Some(other.at)), "label": other.label }),
    );
    // GitLab, editors and scripts apply it to the bytes of the file.
    let fix = problem.fix.as_ref().map(
        |fix| json!({ "start_byte": fix.span.start, "end_byte": fix.span.end, "text": fix.text }),
    );
    json!({
        "severity": problem.kind.severity().as_str(),
        "code": problem.kind.code(),
        "file": problem.file,
        "at": place(problem.at),
        "end": place(end(problem, report)),
        "key": problem.key,
        "message": message,
        "help": help,
        "other": other,
        "fix": fix,
    })
}

/// Line and column after the problem's place.
fn end(problem: &Problem, report: &CheckReport) -> Option<(u32, u32)> {
    let (line, column) = problem.at?;
    let part = report.texts.get(&problem.file)?.get(std::ops::Range::from(problem.span?))?;
    let lines = u32::try_from(part.matches('\n').count()).ok()?;
    let last = part.rsplit('\n').next().unwrap_or_default();
    let width = u32::try_from(last.chars().count()).ok()?;
    Some(if lines == 0 { (line, column + width) } else { (line + lines, 1 + width) })
}

/// Escapes the message of a workflow command.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes a property of a workflow command.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

fn group<'a>(problem: &'a Problem, report: &CheckReport) -> Group<'a> {
    let level = match problem.kind.severity() {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let (message, help) = problem.message_and_help();
    let key = if problem.key.is_empty() { String::new() } else { format!("{}: ", problem.key) };
    let title = level.primary_title(escaped(&format!("{key}{message}")));
    let mut group = Group::with_title(title.id(problem.kind.code()));
    let other = problem.other.as_deref();
    let here = other.filter(|other| other.file == problem.file);
    let snippet = problem
        .span
        .and_then(|span| drawn(report.texts.get(&problem.file)?, &problem.file, span, here));
    group = match snippet {
        Some(snippet) => group.element(snippet),
        None => group.element(origin(&problem.file, problem.at)),
    };
    if let Some(other) = other.filter(|_| here.is_none()) {
        let elsewhere = report.texts.get(&other.file).and_then(|text| {
            let excerpt = Excerpt::of(text, &[other.span])?;
            let [span] = excerpt.spans.as_slice() else { return None };
            let annotation = AnnotationKind::Context.span(span.clone()).label(other.label.clone());
            Some(excerpt.snippet(&other.file).annotation(annotation))
        });
        group = match elsewhere {
            Some(snippet) => group.element(snippet),
            None => group.element(origin(&other.file, Some(other.at))),
        };
    }
    match help {
        Some(help) => group.element(Level::HELP.message(escaped(help))),
        None => group,
    }
}

fn origin(file: &str, at: Option<(u32, u32)>) -> Origin<'static> {
    let origin = Origin::path(escaped(file));
    match at {
        Some((line, column)) => origin.line(line as usize).char_column(column as usize),
        None => origin,
    }
}

fn drawn(
    text: &str,
    file: &str,
    span: Span,
    other: Option<&OtherPlace>,
) -> Option<Snippet<'static, annotate_snippets::Annotation<'static>>> {
    let spans: Vec<Span> =
        [Some(span), other.map(|other| other.span)].into_iter().flatten().collect();
    let excerpt = Excerpt::of(text, &spans).or_else(|| Excerpt::of(text, &[span]))?;
    let mut spans = excerpt.spans.clone().into_iter();
    let mut snippet = excerpt.snippet(file).annotation(AnnotationKind::Primary.span(spans.next()?));
    if let Some((span, other)) = spans.next().zip(other) {
        let label = other.label.clone();
        snippet = snippet.annotation(AnnotationKind::Context.span(span).label(label));
    }
    Some(snippet)
}

/// Lines of a file without anything that a terminal acts on.
struct Excerpt {
    text: String,
    /// The first line's number.
    line: usize,
    /// The places in `text`, each within one line.
    spans: Vec<std::ops::Range<usize>>,
}

impl Excerpt {
    /// The lines from the first to the last of these places. `None` if they are too long, or not
    /// in the text.
    fn of(text: &str, spans: &[Span]) -> Option<Self> {
        let first = spans.iter().map(|span| span.start as usize).min()?;
        let last = spans.iter().map(|span| span.start as usize).max()?;
        let start = text.get(..first)?.rfind('\n').map_or(0, |newline| newline + 1);
        let end = text.get(last..)?.find('\n').map_or(text.len(), |newline| last + newline);
        let lines = text.get(start..end).filter(|lines| lines.len() <= LINE_BYTES_MAX)?;
        let mut shown = String::with_capacity(lines.len());
        // The new offset of each old one.
        let mut moved = Vec::with_capacity(lines.len() + 1);
        let mut chars = lines.chars().peekable();
        while let Some(char) = chars.next() {
            moved.extend(std::iter::repeat_n(shown.len(), char.len_utf8()));
            let ends_line = char == '\r' && chars.peek().is_none_or(|next| *next == '\n');
            match char {
                '\u{feff}' => {}
                _ if ends_line => {}
                '\n' | '\t' => shown.push(char),
                _ if is_escaped(char) => shown.push(char::REPLACEMENT_CHARACTER),
                _ => shown.push(char),
            }
        }
        moved.push(shown.len());
        let place = |span: &Span| {
            let [from, to] = [span.start, span.end].map(|at| at as usize - start);
            let from = *moved.get(from)?;
            let to = moved.get(to).copied().unwrap_or(shown.len());
            let rest = shown.get(from..)?;
            let line_end = from + rest.find('\n').unwrap_or(rest.len());
            // An empty place is drawn as one character.
            let next = rest.chars().next().map_or(0, char::len_utf8);
            Some(from..to.max(from + next).min(line_end).max(from))
        };
        let spans = spans.iter().map(place).collect::<Option<_>>()?;
        let line = text.get(..start)?.matches('\n').count() + 1;
        Some(Self { text: shown, line, spans })
    }

    fn snippet(&self, file: &str) -> Snippet<'static, annotate_snippets::Annotation<'static>> {
        Snippet::source(self.text.clone()).line_start(self.line).path(escaped(file))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::spec_dir::{CheckContext, Naming, check_text};

    /// Pieces of specs and of attacks on terminals.
    const PIECES: [&str; 18] = [
        "[boot]\n",
        "mac = ",
        "\"52:54\"",
        "\n",
        "\r\n",
        "\t",
        "\u{feff}",
        "\u{1b}[2J",
        "\u{202e}",
        "“",
        "ü",
        ":",
        "=",
        "\"",
        "boot",
        "firmware = \"efi\"\n",
        "\u{9b}",
        "🚀",
    ];

    proptest! {
        /// Invariant (secrets): No text from outside does anything to a terminal; JSON and TOML
        /// read back the same.
        #[test]
        fn any_text_is_drawn_without_its_control_characters(
            pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..30),
        ) {
            let context = CheckContext { agent_defaults: None, known_disks: &|_| None };
            let text = pieces.concat();
            let nowhere = Path::new("/proc/nowhere");
            let name = "a\u{1b}.toml";
            let report = check_text((name, text.as_bytes()), Naming::Temporary, nowhere, &context);
            let totals = Totals { place: Some(name.to_owned()), good: 0, errors: 1, warnings: 0 };
            let drawn = full(&report, &totals, false);
            prop_assert!(!drawn.contains(|c| is_escaped(c) && c != '\n'), "{drawn:?}");
            let styled = full(&report, &totals, true);
            let own = styled.split('\u{1b}').skip(1).all(|rest| {
                rest.trim_start_matches(|c: char| c == '[' || c == ';' || c.is_ascii_digit())
                    .starts_with('m')
            });
            prop_assert!(own, "{styled:?}");
            prop_assert!(!json(&report, &totals).unwrap().contains(|c| is_escaped(c) && c != '\n'));
        }
    }
}

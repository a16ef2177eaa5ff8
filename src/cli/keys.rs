//! `hostler help KEY`, and the pages of the reference.
//!
//! Made of the keys that the readers request, so that they cannot differ from what `hostler check`
//! accepts.

use std::{fmt::Write as _, io::Write, process::ExitCode};

use clap::{CommandFactory as _, ValueEnum};

use crate::{
    config,
    model::{
        problem::ProblemKind,
        toml_reader::{Declared, Shape},
    },
    spec_dir,
};

use super::{Args, Failure, text::filled};

#[cfg(test)]
mod tests;

/// The width of the text on a terminal, without its margin.
const WIDTH: usize = 76;
/// The width of prose on a page.
const PAGE_WIDTH: usize = 100;

/// A kind of file with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum KeyFile {
    /// A spec, or `_defaults.toml`.
    Spec,
    /// The agent's configuration.
    Config,
}

impl KeyFile {
    const ALL: [Self; 2] = [Self::Spec, Self::Config];

    /// Every key, in the order of the reader.
    pub(super) fn keys(self) -> Vec<Declared> {
        match self {
            Self::Spec => spec_dir::keys(),
            Self::Config => config::keys(),
        }
    }

    /// The title of the schema.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Spec => "hostler: spec of a machine, or _defaults.toml",
            Self::Config => "hostler: configuration of the agent",
        }
    }

    const fn of(self) -> &'static str {
        match self {
            Self::Spec => "of a spec",
            Self::Config => "of hostler.toml",
        }
    }

    const fn page_head(self) -> &'static str {
        match self {
            Self::Spec => {
                "# Keys of a spec\n\n`_defaults.toml` and `[defaults]` of the configuration have \
                 the same keys. A required key may\nbe there instead of in the spec itself. \
                 `hostler help boot.mac` prints one key.\n"
            }
            Self::Config => {
                "# Keys of the configuration\n\n`/etc/hostler/hostler.toml` is read when the agent \
                 starts. `hostler help tftp.block_max` prints one\nkey, and `hostler run \
                 --print-config` the effective configuration.\n"
            }
        }
    }
}

/// Neither a command nor a key.
#[derive(Debug, thiserror::Error)]
#[error("`{word}` is neither a command nor a key of a spec or of hostler.toml{advice}")]
struct Unknown {
    word: String,
    advice: String,
}

/// Prints the help of a command, or of a key if there is no such command.
pub(super) fn help(words: &[String], out: &mut impl Write) -> Result<ExitCode, Failure> {
    let mut hostler = Args::command();
    hostler.build();
    let mut command = Some(&mut hostler);
    for word in words {
        command = command.and_then(|command| command.find_subcommand_mut(word));
    }
    if let Some(command) = command {
        write!(out, "{}", command.render_long_help())?;
        return Ok(ExitCode::SUCCESS);
    }
    let word = words.join(".").replace(['[', ']'], "");
    let entries: Vec<String> = KeyFile::ALL.iter().filter_map(|file| entry(*file, &word)).collect();
    if entries.is_empty() {
        return Err(Unknown { advice: advice(&word), word }.into());
    }
    write!(out, "{}", entries.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The help of one key.
fn entry(file: KeyFile, word: &str) -> Option<String> {
    let keys = file.keys();
    let key = keys.iter().find(|key| key.key == word)?;
    let is_table = matches!(key.shape, Shape::Table { .. });
    let (name, kind) =
        if is_table { (format!("[{word}]"), "table") } else { (word.to_owned(), "key") };
    let mut text = format!("{name}: {kind} {}\n\n", file.of());
    text.push_str(&indented(key.meaning));
    text.push('\n');
    if is_table {
        let below = keys.iter().filter(|other| is_in(other, word));
        for other in below {
            text.push_str(&indented(&other.key));
        }
        return Some(text);
    }
    text.push_str(&indented(&format!("values:  {}", values(&key.shape).replace('`', ""))));
    text.push_str(&indented(&format!("default: {}", default(key).replace('`', ""))));
    if let Some(why) = &key.idle {
        text.push_str(&indented(&format!("note:    {why}")));
    }
    if let Some(example) = example(key) {
        text.push_str(&indented(&format!("example: {word} = {example}")));
    }
    Some(text)
}

fn indented(text: &str) -> String {
    filled(text, WIDTH).lines().fold(String::new(), |all, line| all + "  " + line + "\n")
}

fn is_in(key: &Declared, table: &str) -> bool {
    key.key.rsplit_once('.').map_or("", |(parent, _)| parent) == table
}

/// The keys that an unknown word may mean.
fn advice(word: &str) -> String {
    let all: Vec<String> =
        KeyFile::ALL.iter().flat_map(|file| file.keys()).map(|key| key.key).collect();
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let same: Vec<&String> = all.iter().filter(|key| last(key) == last(word)).collect();
    if !same.is_empty() {
        let same: Vec<String> = same.iter().map(|key| format!("`{key}`")).collect();
        return format!("; did you mean {}?", same.join(" or "));
    }
    let distance = |key: &&String| {
        let whole = strsim::osa_distance(key, word);
        whole.min(strsim::osa_distance(&last(key), &last(word)))
    };
    let nearest = all.iter().min_by_key(distance).filter(|key| distance(key) <= 2);
    nearest.map_or_else(
        || "; the pages of the reference list all keys".to_owned(),
        |key| format!("; did you mean `{key}`?"),
    )
}

/// A value of the key as TOML, better not its default.
pub(super) fn example(key: &Declared) -> Option<String> {
    let default = key.default.as_deref();
    match &key.shape {
        _ if !key.example.is_empty() => Some(key.example.to_owned()),
        Shape::Word(words) => {
            let quoted = words.iter().map(|word| format!("\"{word}\""));
            quoted.into_iter().find(|word| Some(word.as_str()) != default)
        }
        Shape::Flag => Some((default != Some("true")).to_string()),
        _ => default.map(str::to_owned),
    }
}

/// The values that a key accepts, in Markdown.
fn values(shape: &Shape) -> String {
    let listed = |values: Vec<String>| match values.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => values.concat(),
    };
    match shape {
        Shape::Table { .. } | Shape::Foreign => "a table".to_owned(),
        Shape::OwnKeys => "a table of texts and lists of texts".to_owned(),
        Shape::Text(kind) => text_values(*kind).to_owned(),
        Shape::Word(words) => listed(words.iter().map(|word| format!("`\"{word}\"`")).collect()),
        Shape::Flag => "`true` or `false`".to_owned(),
        Shape::Number(least, None) => format!("an integer, at least {least}"),
        Shape::Number(least, Some(most)) => format!("an integer, {least} to {most}"),
        Shape::NumberOf(numbers) => listed(numbers.iter().map(ToString::to_string).collect()),
        Shape::List => "a list of strings".to_owned(),
        Shape::TextOrList => "a string or a list of strings".to_owned(),
    }
}

fn text_values(kind: Option<ProblemKind>) -> &'static str {
    match kind {
        Some(ProblemKind::BadSize) => "a size such as `\"20GiB\"`",
        Some(ProblemKind::BadDuration) => {
            "a duration such as `\"90s\"`, `\"20m\"` or `\"1h 30m\"`, 1s to 168h"
        }
        Some(ProblemKind::BadPath) => "a path",
        Some(ProblemKind::BadAddress) => "an address",
        Some(ProblemKind::BadChecksum) => "a digest",
        Some(ProblemKind::BadAttachment) => "a path in the spec directory",
        _ => "a string",
    }
}

/// The default in Markdown, or whether the key is required.
fn default(key: &Declared) -> String {
    match &key.default {
        Some(default) if default != "\"\"" => format!("`{default}`"),
        _ if key.is_required => "required".to_owned(),
        _ => "none".to_owned(),
    }
}

/// A page of the reference, in Markdown.
pub(super) fn page(file: KeyFile) -> String {
    let keys = file.keys();
    let mut page = file.page_head().to_owned();
    let tables = keys.iter().filter(|key| matches!(key.shape, Shape::Table { .. }));
    for table in std::iter::once(None).chain(tables.map(Some)) {
        let path = table.map_or("", |table| table.key.as_str());
        let is_row =
            |key: &&Declared| is_in(key, path) && !matches!(key.shape, Shape::Table { .. });
        let rows: Vec<&Declared> = keys.iter().filter(is_row).collect();
        if rows.is_empty() {
            continue;
        }
        // Cannot fail: the page is a string.
        if let Some(table) = table {
            let meaning = filled(table.meaning, PAGE_WIDTH);
            write!(page, "\n## `[{path}]`\n\n{meaning}").unwrap_or_default();
            if let Some(why) = &table.idle {
                writeln!(page, "\nThe table {}", sentence(why)).unwrap_or_default();
            }
        }
        page.push_str("\n| key | values | default | meaning |\n|---|---|---|---|\n");
        for key in rows {
            let [values, default] = [values(&key.shape), default(key)];
            let idle = key.idle.as_ref().map(|why| format!(" It {}", sentence(why)));
            let (key, meaning, idle) = (&key.key, key.meaning, idle.unwrap_or_default());
            writeln!(page, "| `{key}` | {values} | {default} | {meaning}{idle} |")
                .unwrap_or_default();
        }
    }
    page
}

/// A reason as the end of a sentence, with its key as code.
fn sentence(why: &str) -> String {
    match why.split_once("unless ") {
        Some((start, key)) => format!("{start}unless `{key}`."),
        None => format!("{why}."),
    }
}

//! Output of all commands: no command writes to the terminal directly.
//!
//! Status files, specs and machines hold arbitrary text. Printed text must not control a terminal,
//! imitate another line, or change its reading order; JSON and TOML must still read back the same.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::model::printable::{escaped, is_escaped};

/// Escapes control characters, except line breaks and tabs, which belong to the command: it escapes
/// values that may hold some itself.
#[derive(Debug)]
pub struct Printer<W>(pub W);

impl<W: Write> Write for Printer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let own = |char: char| matches!(char, '\n' | '\t');
        if text.contains(|char| is_escaped(char) && !own(char)) {
            for piece in text.split_inclusive(own) {
                let line = piece.strip_suffix(own).unwrap_or(piece);
                self.0.write_all(escaped(line).as_bytes())?;
                self.0.write_all(piece.get(line.len()..).unwrap_or_default().as_bytes())?;
            }
        } else {
            self.0.write_all(text.as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Standard error, for messages beside the answer.
pub(super) fn stderr() -> Printer<io::StderrLock<'static>> {
    Printer(io::stderr().lock())
}

/// Whether the answer may have colors: standard output is a terminal, and `NO_COLOR` is not set
/// (no-color.org).
pub(super) fn may_color() -> bool {
    let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !is_refused
}

/// Encodes JSON without characters that control a terminal.
pub(super) fn json(value: &impl Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string_pretty(value)?;
    // Such a character can only be in a string. Beyond the first plane JSON needs two escapes.
    Ok(rewritten(&text, |char, text| {
        for unit in char.encode_utf16(&mut [0; 2]) {
            write!(text, "\\u{unit:04x}").unwrap_or_default();
        }
    }))
}

/// Escapes TOML in the same way. An escape in a literal string, which a value with backslashes may
/// become, is plain text: a value with both does not read back the same.
pub(super) fn toml(text: &str) -> String {
    rewritten(text, |char, text| {
        write!(text, "\\U{:08x}", u32::from(char)).unwrap_or_default();
    })
}

/// Replaces each unprintable character, except line breaks and tabs.
fn rewritten(text: &str, rewrite: impl Fn(char, &mut String)) -> String {
    let mut rewritten = String::with_capacity(text.len());
    for char in text.chars() {
        if is_escaped(char) && !matches!(char, '\n' | '\t') {
            rewrite(char, &mut rewritten);
        } else {
            rewritten.push(char);
        }
    }
    rewritten
}

/// Escapes every text of a value, line breaks too.
pub(super) fn printable<T: Serialize + DeserializeOwned>(value: &T) -> serde_json::Result<T> {
    fn escape(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => *text = escaped(text),
            serde_json::Value::Array(values) => values.iter_mut().for_each(escape),
            serde_json::Value::Object(values) => values.values_mut().for_each(escape),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(value)?;
    escape(&mut value);
    serde_json::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::{toml as quoted, *};

    const HOSTILE: &str = "a\u{1b}[2J\r\u{7f}\u{9b}\u{202e}\u{2028}\u{e0041}z";

    #[test]
    fn what_is_written_does_nothing_to_a_terminal() {
        let mut printer = Printer(Vec::new());
        writeln!(printer, "\tone {HOSTILE}\ntwo").unwrap();
        printer.write_all(b"\xff\n").unwrap();
        let escapes = "a\\u{1b}[2J\\r\\u{7f}\\u{9b}\\u{202e}\\u{2028}\\u{e0041}z";
        let expected = format!("\tone {escapes}\ntwo\n\u{fffd}\n");
        assert_eq!(String::from_utf8(printer.0).unwrap(), expected);
    }

    /// Invariant (secrets): No text from outside does anything to a terminal; JSON and TOML read
    /// back the same.
    #[test]
    fn json_and_toml_read_back_the_same() {
        let value = serde_json::json!({ "b": [HOSTILE, "x\ny"], HOSTILE: 1 });
        let text = json(&value).unwrap();
        assert!(!text.contains(|char| is_escaped(char) && char != '\n'), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);

        let table: toml::Table = [("a".to_owned(), HOSTILE.into())].into_iter().collect();
        let text = quoted(&table.to_string());
        assert!(!text.contains(|char| is_escaped(char) && char != '\n'), "{text}");
        assert_eq!(text.parse::<toml::Table>().unwrap(), table);
    }

    #[test]
    fn a_value_is_escaped_in_every_text() {
        let value = serde_json::json!([{ "a": ["x\ny", 7] }, HOSTILE]);
        let printable = printable(&value).unwrap();
        assert_eq!(printable[0]["a"][0], "x\\ny");
        assert!(!printable[1].as_str().unwrap().contains(is_escaped));
    }
}

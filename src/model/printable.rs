//! Escapes untrusted texts for terminals, logs and status files.
//!
//! Called by whatever writes to a terminal, a log or a status file. An escaped text must never act
//! on a terminal, forge a log line, or show in another order than it is written.

use std::fmt::{self, Write};

/// Whether a character must be escaped: controls (C0, DEL, C1), and Unicode's invisible format
/// characters and separators (Cf, Zl, Zp), which can change how other characters show.
pub fn is_escaped(char: char) -> bool {
    char.is_control() || is_format(char)
}

/// Unicode 16, categories Cf, Zl and Zp.
fn is_format(char: char) -> bool {
    matches!(char,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
        | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}

/// A writer that escapes unprintable characters: `\n`, `\u{1b}`, `\u{202e}`.
#[derive(Debug)]
pub struct Escaping<W>(pub W);

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_escaped) {
            let (clean, from) = rest.split_at(at);
            self.0.write_str(clean)?;
            let mut chars = from.chars();
            if let Some(char) = chars.next() {
                write!(self.0, "{}", char.escape_default())?;
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

/// Escapes a text.
pub fn escaped(text: &str) -> String {
    let mut escaped = Escaping(String::with_capacity(text.len()));
    // Writing to a string does not fail.
    escaped.write_str(text).unwrap_or_default();
    escaped.0
}

/// Escapes the first `chars_max` characters of a text, with `…` for the rest.
pub fn excerpt(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => escaped(text.get(..end).unwrap_or_default()) + "…",
        None => escaped(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_or_hides_is_escaped_and_all_else_is_left() {
        for (text, shown) in [
            ("", ""),
            ("Zürich 東京 👍 é", "Zürich 東京 👍 é"),
            ("\u{1b}[2J\r\n\t\0", "\\u{1b}[2J\\r\\n\\t\\u{0}"),
            ("\u{7f}\u{85}\u{9b}", "\\u{7f}\\u{85}\\u{9b}"),
            ("a\u{202e}b\u{2066}c\u{2028}d\u{200b}e", "a\\u{202e}b\\u{2066}c\\u{2028}d\\u{200b}e"),
            ("\u{feff}\u{ad}\u{e0041}", "\\u{feff}\\u{ad}\\u{e0041}"),
        ] {
            assert_eq!(escaped(text), shown);
        }
    }

    #[test]
    fn an_excerpt_counts_the_characters_of_the_text() {
        for (text, shown) in [("é\n", "é\\n"), ("é\nc", "é\\n…"), ("", "")] {
            assert_eq!(excerpt(text, 2), shown);
        }
    }
}

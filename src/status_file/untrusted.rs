//! Filters texts of machines for console logs and ramdisk logs.
//!
//! Called by `console` and `ramdisk_log`. The machine may be hostile: a kept text must never act on
//! the reader's terminal. Only the agent's user and group may read the files. The attempt's key,
//! which a kernel prints with its command line, is replaced.

use std::{iter::Peekable, ops::RangeInclusive, str::Chars};

use crate::model::{printable::is_escaped, secret::AttemptKey};

/// The mode of files with untrusted texts.
pub(super) const MODE: u32 = 0o640;
/// The least part of a key, in digits, that is replaced; shorter ones may be anything else.
const KEY_DIGITS_MIN: usize = 16;
const BLANK: &str = "<key>";

/// Returns the whole lines in the last `bytes_max` bytes of a text: half a line may be half an
/// escape sequence or half a key.
pub(super) fn last_lines(text: &str, bytes_max: usize) -> &str {
    let earliest = text.len().saturating_sub(bytes_max);
    let end = (earliest..text.len()).find_map(|at| text.get(at..)).unwrap_or_default();
    end.split_once('\n').map_or(end, |(_, lines)| lines)
}

/// Removes everything that a terminal would act on: control characters except line breaks and tabs,
/// escape sequences (ECMA-48), and characters that are invisible or turn the direction of writing.
pub(super) fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut clean = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\u{1b}' => skip_escape(&mut chars),
            '\n' | '\t' => clean.push(char),
            unprintable if is_escaped(unprintable) => {}
            plain => clean.push(plain),
        }
    }
    clean
}

/// Skips the rest of an escape sequence (ECMA-48 §5.3 to §5.6). An unterminated one ends with its
/// line.
fn skip_escape(chars: &mut Peekable<Chars<'_>>) {
    fn skip(chars: &mut Peekable<Chars<'_>>, range: RangeInclusive<char>) {
        while chars.next_if(|char| range.contains(char)).is_some() {}
    }
    match chars.peek() {
        Some('[') => {
            chars.next();
            skip(chars, ' '..='?');
            chars.next_if(|end| ('@'..='~').contains(end));
        }
        // A control string, which BEL or the next escape sequence ends.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while chars.next_if(|char| !matches!(char, '\n' | '\u{7}' | '\u{1b}')).is_some() {}
        }
        _ => {
            skip(chars, ' '..='/');
            chars.next_if(|end| ('0'..='~').contains(end));
        }
    }
}

/// Replaces the attempt's key, and any part of it at the end of a line.
pub(super) fn without_key(text: &str, key: &AttemptKey) -> String {
    let key = key.expose();
    let text = text.replace(key, BLANK);
    let mut blank = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find(is_digit) {
        let (before, from) = rest.split_at(at);
        let (digits, after) = from.split_at(from.find(|c| !is_digit(c)).unwrap_or(from.len()));
        let is_part = digits.len() >= KEY_DIGITS_MIN && key.contains(digits);
        blank.push_str(before);
        blank.push_str(if is_part { BLANK } else { digits });
        rest = after;
    }
    blank + rest
}

/// Whether a key may contain this character.
fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || ('a'..='f').contains(&c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Invariant (secrets): A kept console or ramdisk's log has neither the attempt's key nor
    /// anything that a terminal acts on.
    #[test]
    fn no_part_of_the_attempts_key_is_kept() {
        let bytes: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 7 + 3).unwrap());
        let key = AttemptKey::from_bytes(&bytes);
        let hex = key.expose();
        let (start, end) = hex.split_at(29);
        for (text, kept) in [
            (format!("hostler.key={hex} x"), "hostler.key=<key> x"),
            (format!("a{hex}{hex}b"), "a<key><key>b"),
            // Keys that the kernel truncates, or that a console's line break splits.
            (format!("hostler.key={start}\n"), "hostler.key=<key>\n"),
            (format!("{start}\n{end} x"), "<key>\n<key> x"),
            ("deadbeefdeadbeefdeadbeef 0123".to_owned(), "deadbeefdeadbeefdeadbeef 0123"),
            (hex.get(..15).unwrap().to_owned(), hex.get(..15).unwrap()),
            (String::new(), ""),
        ] {
            assert_eq!(without_key(&text, &key), kept);
        }
    }

    proptest! {
        #[test]
        fn cleaning_never_panics_on_any_bytes_and_leaves_nothing_to_clean(bytes: Vec<u8>) {
            let once = clean(&bytes);
            prop_assert!(!once.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
            prop_assert_eq!(clean(once.as_bytes()), once);
        }
    }
}

//! Advice about wrong values and unknown keys: words and keys that were meant, right spellings.
//!
//! Called by the readers of keys. Advice must be right when it is followed: a key or value that it
//! names is one that exists.

use super::{KnownKeys, Refused, join, tree::Value};
use crate::model::problem::ProblemKind;

/// Words of other programs, with hostler's.
const OTHER_WORDS: [(&str, &str); 13] = [
    ("amd64", "x86_64"),
    ("x64", "x86_64"),
    ("arm64", "aarch64"),
    ("legacy", "bios"),
    ("mbr", "msdos"),
    ("nocloud", "cidata"),
    ("configdrive", "config-2"),
    ("iso", "iso9660"),
    ("local", "disk"),
    ("active", "deployed"),
    ("present", "deployed"),
    ("true", "on"),
    ("false", "off"),
];

/// Keys of other programs, with hostler's.
const OTHER_KEYS: [(&str, &str); 14] = [
    ("user", "username"),
    ("login", "username"),
    ("host", "address"),
    ("ip", "address"),
    ("hostname", "address"),
    ("url", "source"),
    ("image_source", "source"),
    ("image_checksum", "checksum"),
    ("sha256", "checksum"),
    ("digest", "checksum"),
    ("mac_address", "mac"),
    ("mac_addresses", "mac"),
    ("boot_mode", "firmware"),
    ("user_data", "user_data_file"),
];

/// Refuses a word that is none of `words`.
pub(super) fn unknown_word(text: &str, words: &[&str]) -> Refused {
    let known = OTHER_WORDS.iter().find(|(other, _)| *other == text.to_ascii_lowercase());
    let meant = known.map(|(_, word)| *word).filter(|word| words.contains(word));
    let meant = meant.or_else(|| nearest(text, words));
    let message = format!("`{text}` is not one of {}", words.join(", "));
    match meant {
        Some(word) => {
            let message = format!("{message}; did you mean \"{word}\"?");
            Refused::new(ProblemKind::UnknownWord, &message).fixed_by(format!("\"{word}\""))
        }
        None => Refused::new(ProblemKind::UnknownWord, &message),
    }
}

/// The advice about an unknown key.
pub(super) struct KeyAdvice {
    pub(super) message: String,
    /// The right key, in the same table.
    pub(super) key: Option<String>,
    /// The dotted keys that may be meant.
    pub(super) meant: Vec<String>,
}

/// The advice about an unknown key of `table`.
pub(super) fn unknown_key(table: &str, key: &str, known: &KnownKeys) -> KeyAdvice {
    let own: Vec<&str> = known.get(table).into_iter().flatten().copied().collect();
    let other = OTHER_KEYS.iter().find(|(other, _)| *other == key).map(|(_, meant)| *meant);
    let wanted = other.unwrap_or(key);
    let elsewhere: Vec<(&String, &str)> = known
        .iter()
        .filter(|(path, _)| *path != table)
        .filter_map(|(path, keys)| Some((path, *keys.iter().find(|known| is_same(known, wanted))?)))
        .collect();
    let meant = own.iter().find(|own| is_same(own, wanted)).copied();
    let meant = meant.or_else(|| elsewhere.is_empty().then(|| nearest(key, &own)).flatten());
    if let Some(meant) = meant {
        return KeyAdvice {
            message: format!("unknown key; did you mean `{meant}`?"),
            key: Some(meant.to_owned()),
            meant: vec![join(table, meant)],
        };
    }
    let places: Vec<String> = elsewhere
        .iter()
        .map(|(path, _)| match path.as_str() {
            "" => "at the top of the file".to_owned(),
            path => format!("in [{path}]"),
        })
        .collect();
    let name = match elsewhere.first() {
        Some((_, meant)) if *meant != key => format!(" as `{meant}`"),
        _ => String::new(),
    };
    let message = if places.is_empty() {
        "unknown key".to_owned()
    } else {
        format!("unknown key; it belongs{name} {}", places.join(" or "))
    };
    let meant = elsewhere.iter().map(|(path, meant)| join(path, meant)).collect();
    KeyAdvice { message, key: None, meant }
}

/// Refuses a value of the wrong type.
pub(super) fn wrong_type(expected: &str, value: &Value) -> Refused {
    let message = format!("{}, must be {expected}", value.kind());
    Refused::new(ProblemKind::WrongType, &message)
}

/// Refuses a value that is no string. `refused` says why its text `raw` would be refused in quotes.
pub(super) fn no_text(
    value: &Value,
    raw: &str,
    kind: Option<ProblemKind>,
    refused: Option<Refused>,
) -> Refused {
    let wrong = wrong_type("a string", value);
    if matches!(value, Value::List(_) | Value::Table(_)) {
        return wrong;
    }
    let is_number = matches!(value, Value::Integer(_) | Value::Float(_) | Value::HugeInteger(_));
    match refused {
        Some(why) => {
            let message = format!("{}: {}", wrong.message, why.message);
            Refused { message, fix: why.fix, ..wrong }
        }
        None if is_number && kind == Some(ProblemKind::BadSize) => {
            let message = format!(
                "{} with a unit; write for example \"{raw}GB\" or \"{raw}GiB\"",
                wrong.message
            );
            Refused { message, ..wrong }
        }
        None => {
            let quoted = format!("\"{raw}\"");
            let message = format!("{}; put it in quotes: {quoted}", wrong.message);
            Refused { message, ..wrong }.fixed_by(quoted)
        }
    }
}

/// Refuses a value that is neither `true` nor `false`.
pub(super) fn no_flag(value: &Value) -> Refused {
    let wrong = wrong_type("true or false", value);
    let meant = match value.as_str().map(str::to_ascii_lowercase).as_deref() {
        Some("true" | "yes" | "on") => "true",
        Some("false" | "no" | "off") => "false",
        _ => return wrong,
    };
    let message = format!("{}; write {meant} without quotes", wrong.message);
    Refused { message, ..wrong }.fixed_by(meant.to_owned())
}

/// Refuses a value that is no integer.
pub(super) fn no_integer(value: &Value) -> Refused {
    let wrong = wrong_type("an integer", value);
    match value.as_str().map(str::parse::<i64>) {
        Some(Ok(number)) => {
            let message = format!("{}; write {number} without quotes", wrong.message);
            Refused { message, ..wrong }.fixed_by(number.to_string())
        }
        _ => wrong,
    }
}

/// Refuses a value that is no list. `is_good` judges one element.
pub(super) fn no_list(value: &Value, raw: &str, is_good: impl FnOnce(&str) -> bool) -> Refused {
    let wrong = wrong_type("a list of strings", value);
    if !value.as_str().is_some_and(is_good) {
        return wrong;
    }
    let list = format!("[{raw}]");
    let message = format!("{}; write {list}", wrong.message);
    Refused { message, ..wrong }.fixed_by(list)
}

/// Whether two keys differ only in case and in their separators.
fn is_same(one: &str, other: &str) -> bool {
    let plain = |key: &str| key.replace('-', "_").to_ascii_lowercase();
    one.len() == other.len() && plain(one) == plain(other)
}

/// Finds the known word nearest to a mistyped one, at most two keystrokes away.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    const STROKES_MAX: usize = 2;
    // The distance takes time proportional to the product of both lengths.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase();
    known
        .iter()
        .map(|candidate| (strsim::osa_distance(&word, candidate), *candidate))
        .filter(|(strokes, candidate)| *strokes <= STROKES_MAX.min(candidate.len() / 2))
        .min()
        .map(|(_, candidate)| candidate)
}

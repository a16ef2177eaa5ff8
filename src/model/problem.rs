//! Problems of the administrator's files, with their places.
//!
//! Made by the spec and config readers; shown by `hostler check` and in status files.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::printable::excerpt;

/// Longest key and message of a problem, in characters: a quoted value may be as large as the file.
const SHOWN_CHARS_MAX: usize = 300;

/// One problem in one file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The file's name, as hostler got it.
    pub file: String,
    /// Line and column, both from 1; `None` for the whole file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<(u32, u32)>,
    /// The dotted key (`image.checksum`), or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// The problem, and the right form.
    pub message: String,
}

impl Problem {
    /// Makes a problem of a whole file.
    pub fn of_file(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self { file: file.into(), at: None, key: String::new(), message: message.into() }
    }
}

/// Shows for example `nodes/edge-07.toml:12:12: image.checksum: 63 hex digits, sha256 needs 64`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some((line, column)) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

/// Escapes and truncates a text that may quote a file.
pub(crate) fn shown(text: &str) -> String {
    excerpt(text, SHOWN_CHARS_MAX)
}

//! Effective values with their origins.

use std::{fmt, path::Path};

/// A key with its effective value, after all files and defaults are merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The dotted key (`image.checksum`).
    pub key: String,
    /// The value as TOML.
    pub value: String,
    /// The value's origin.
    pub origin: Origin,
}

/// The origin of an effective value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File {
        /// The file's name, as hostler got it.
        file: String,
        /// The line, from 1.
        line: u32,
        /// The table that the document is, or empty for a whole file.
        table: String,
    },
    /// hostler's own default.
    Default,
}

/// Shows `edge-07.toml:12`, `hostler.toml:30 [defaults]` or `default`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, table } => {
                let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
                write!(f, "{name}:{line}")?;
                if table.is_empty() { Ok(()) } else { write!(f, " [{table}]") }
            }
            Self::Default => f.write_str("default"),
        }
    }
}

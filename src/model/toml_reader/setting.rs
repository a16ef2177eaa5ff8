//! A value in force and where it was said, for those who want to see both.

use std::{fmt, path::Path};

/// One key with the value it has after all files and defaults were laid over each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key, dotted (`image.checksum`).
    pub key: String,
    /// Its value as TOML.
    pub value: String,
    /// Where it was said.
    pub origin: Origin,
}

/// Where a value was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a file.
    File {
        /// The file, as it was named to hostler.
        file: String,
        /// The line, from 1.
        line: u32,
        /// The table the whole document is in; empty for most.
        table: String,
    },
    /// Nowhere: hostler's own default.
    Default,
}

/// `edge-07.toml:12`, `hostler.toml:30 [defaults]` or `default`
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

//! The content of attached files, and metadata for config drives.
//!
//! The spec reader reads it; the drive subsystem writes it to config drives, and the store to
//! records. It may be secret, so that `Debug` shows only its size.

use std::{fmt, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

/// The bytes of an attached file. Records hold them as text if they are text, or as base64.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Recorded", into = "Recorded")]
pub struct AttachedContent(Arc<[u8]>);

/// The form of attached content in a record.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Recorded {
    Text(String),
    Bytes { base64: String },
}

impl AttachedContent {
    /// The content's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the content as UTF-8 text without control characters, except tabs and line ends; the
    /// error names the first offending byte.
    pub fn as_text(&self) -> Result<&str, String> {
        let text = str::from_utf8(&self.0)
            .map_err(|error| format!("is not UTF-8 from byte {} on", error.valid_up_to()))?;
        let is_binary = |c: char| c < ' ' && !matches!(c, '\t' | '\n' | '\r');
        match text.find(is_binary) {
            Some(at) => Err(format!("is not text: byte {at} is a control character")),
            None => Ok(text),
        }
    }
}

impl fmt::Debug for AttachedContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl From<&str> for AttachedContent {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl From<Vec<u8>> for AttachedContent {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<AttachedContent> for Recorded {
    fn from(content: AttachedContent) -> Self {
        // Text with control characters becomes base64, because JSON needs six bytes for each.
        match content.as_text() {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes { base64: BASE64_STANDARD.encode(&content.0) },
        }
    }
}

impl TryFrom<Recorded> for AttachedContent {
    type Error = String;

    fn try_from(recorded: Recorded) -> Result<Self, Self::Error> {
        match recorded {
            Recorded::Text(text) => Ok(text.as_str().into()),
            Recorded::Bytes { base64 } => BASE64_STANDARD
                .decode(base64)
                .map(Self::from)
                .map_err(|_| "an attached file that is no base64".to_owned()),
        }
    }
}

/// One metadata value of a spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MetaData {
    /// A single text.
    Text(String),
    /// A list of texts, such as `public-keys`.
    List(Vec<String>),
}

impl MetaData {
    /// Returns a single text, or `None` for a list.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::List(_) => None,
        }
    }
}

impl From<&str> for MetaData {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&MetaData> for serde_json::Value {
    fn from(data: &MetaData) -> Self {
        match data {
            MetaData::Text(text) => text.as_str().into(),
            MetaData::List(list) => list.as_slice().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant (disk): A config drive holds its files byte by byte, and so does every record.
    #[test]
    fn any_bytes_are_the_same_after_they_were_written_down_and_text_stays_text() {
        for (bytes, written) in [
            (&b"#cloud-config\n"[..], "\"#cloud-config\\n\""),
            (b"\x1f\x8b\x08\0", r#"{"base64":"H4sIAA=="}"#),
            (b"caf\xe9", r#"{"base64":"Y2Fm6Q=="}"#),
            (b"bell \x07", r#"{"base64":"YmVsbCAH"}"#),
        ] {
            let content = AttachedContent::from(bytes.to_vec());
            assert_eq!(serde_json::to_string(&content).unwrap(), written);
            assert_eq!(serde_json::from_str::<AttachedContent>(written).unwrap(), content);
        }
        assert!(serde_json::from_str::<AttachedContent>(r#"{"base64":"?"}"#).is_err());
    }
}

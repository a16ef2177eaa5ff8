//! The format of the state directory's files, by which a reader verifies that a file is whole.
//!
//! Called by the store. A file is one JSON object. Its first line has the kind of file, its node,
//! the version of the format and the checksum of everything after that line:
//!
//! ```text
//! {"hostler":"record","of":"edge-07","version":2,"sha256":"…",
//! "content":{
//!   …
//! }}
//! ```
//!
//! The reader computes the first line from the rest and accepts no other. It also encodes the
//! content again and accepts no other bytes: an unknown or missing key is damage at any depth. This
//! module must never take a damaged file for one of another version, or for an empty one.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::model::{ids::Digest, problem::shown};

/// The current version. Version 1 had no first line and no checksum.
pub(super) const VERSION: u32 = 2;
const OPENING: &str = "{\"hostler\":";
/// The first line of every file of version 1.
const OPENING_1: &[u8] = b"{\n";
/// More than nearly every file has, so that a secret is in one buffer only, which is wiped after
/// use.
const BYTES_USUAL: usize = 16 << 10;
const CONTENT: &[u8] = b"\"content\":";
const END: &[u8] = b"}\n";

/// The verdict on the bytes of a file.
#[derive(Debug)]
pub(super) enum SealCheck<'a> {
    /// The content of a whole file of this version, as JSON.
    Content(&'a [u8]),
    /// The file begins as one of version 1 does.
    Format1,
    /// The damage, in words.
    Damaged(String),
}

/// Encodes a file. The attempt's key and CHAP secret may be in it.
pub(super) fn seal<T: Serialize>(
    kind: &str,
    of: &str,
    content: &T,
) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut body = Zeroizing::new(Vec::with_capacity(BYTES_USUAL));
    body.extend_from_slice(CONTENT);
    serde_json::to_writer_pretty(&mut *body, content)?;
    body.extend_from_slice(END);
    let first = first_line(kind, of, &body);
    let mut bytes = Zeroizing::new(Vec::with_capacity(first.len() + body.len()));
    bytes.extend_from_slice(first.as_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Whether a file that begins so has a first line with a checksum.
pub(super) fn is_sealed(start: &[u8]) -> bool {
    start.starts_with(OPENING.as_bytes())
}

/// Verifies a file and finds its content.
pub(super) fn unseal<'a>(kind: &str, of: &str, bytes: &'a [u8]) -> SealCheck<'a> {
    if bytes.is_empty() {
        return SealCheck::Damaged("it is empty".to_owned());
    }
    let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
    let (first, body) = bytes.split_at(end);
    if first == first_line(kind, of, body).as_bytes() {
        let content = body.strip_prefix(CONTENT).and_then(|body| body.strip_suffix(END));
        return content.map_or_else(|| SealCheck::Damaged(MISMATCH.to_owned()), SealCheck::Content);
    }
    if first == OPENING_1 {
        return SealCheck::Format1;
    }
    SealCheck::Damaged(newer_version(first).unwrap_or_else(|| MISMATCH.to_owned()))
}

const MISMATCH: &str = "its checksum does not match: it was damaged, cut short or edited";

fn first_line(kind: &str, of: &str, body: &[u8]) -> String {
    let digest = Digest::of(body).to_string();
    let hash = digest.trim_start_matches("sha256:");
    format!("{OPENING}\"{kind}\",\"of\":\"{of}\",\"version\":{VERSION},\"sha256\":\"{hash}\",\n")
}

/// The message for a first line that a newer hostler seems to have written; it may be damage, too.
fn newer_version(first: &[u8]) -> Option<String> {
    let (_, rest) = std::str::from_utf8(first).ok()?.split_once("\"version\":")?;
    let version: u32 = rest.split(',').next()?.parse().ok()?;
    (version > VERSION).then(|| {
        format!(
            "it has format {version}, of a newer hostler, or is damaged; this one reads {VERSION}"
        )
    })
}

/// Parses JSON strictly: no unknown and no missing key.
pub(super) fn parse<T: Serialize + DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    // An error may quote the file.
    let content: T = serde_json::from_slice(json).map_err(|error| shown(&error.to_string()))?;
    let mut again = Zeroizing::new(Vec::with_capacity(json.len()));
    serde_json::to_writer_pretty(&mut *again, &content)
        .map_err(|error| shown(&error.to_string()))?;
    if *again == json {
        Ok(content)
    } else {
        Err("it holds something that this hostler would not have written".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn sealed() -> Vec<u8> {
        let content = serde_json::json!({"installed": null, "lost": true});
        seal("record", "edge-07", &content).unwrap().to_vec()
    }

    fn is_whole(bytes: &[u8]) -> bool {
        match unseal("record", "edge-07", bytes) {
            SealCheck::Content(_) => true,
            SealCheck::Format1 => {
                // Version 1 wrote JSON with no unknown key.
                assert!(serde_json::from_slice::<serde_json::Value>(bytes).is_err());
                false
            }
            SealCheck::Damaged(_) => false,
        }
    }

    #[test]
    fn a_file_is_one_json_object_that_programs_can_read() {
        let text = String::from_utf8(sealed()).unwrap();
        expect![[r#"
            {"hostler":"record","of":"edge-07","version":2,"sha256":"0162e140227ed8cbf9fc6af9dcc502c04af70e6660bf949eeb21ae0f80acbba4",
            "content":{
              "installed": null,
              "lost": true
            }}
        "#]]
        .assert_eq(&text);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["content"]["lost"], true);
    }

    /// Invariant (state): No flipped bit, truncation or missing file wipes a machine; the log names
    /// the file.
    #[test]
    fn every_single_flipped_bit_and_every_truncation_is_noticed() {
        let whole = sealed();
        assert!(is_whole(&whole));
        for bit in 0..8 * whole.len() {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_whole(&bytes), "bit {bit}");
        }
        for length in 0..whole.len() {
            assert!(!is_whole(&whole[..length]), "{length} bytes");
        }
        let (_, body) = whole.split_at(whole.iter().position(|byte| *byte == b'\n').unwrap() + 1);
        assert!(!is_whole(body), "without its first line");
    }

    #[test]
    fn content_that_says_more_or_less_than_its_type_is_damaged_at_any_depth() {
        #[derive(Debug, serde::Serialize, serde::Deserialize)]
        struct Outer {
            inner: Inner,
            note: Option<u32>,
        }
        #[derive(Debug, serde::Serialize, serde::Deserialize)]
        struct Inner {
            held: bool,
        }
        let pretty = |text: &str| {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            serde_json::to_vec_pretty(&value).unwrap()
        };
        parse::<Outer>(&pretty(r#"{"inner":{"held":true},"note":null}"#)).unwrap();
        for text in [
            r#"{"inner":{"held":true}}"#,
            r#"{"inner":{"held":true},"note":null,"more":1}"#,
            r#"{"inner":{"held":true,"helm":true},"note":null}"#,
            r#"{"inner":{},"note":null}"#,
        ] {
            parse::<Outer>(&pretty(text)).unwrap_err();
        }
    }

    #[test]
    fn the_file_of_another_node_or_kind_is_not_taken_for_this_one() {
        for (kind, of) in [("record", "edge-08"), ("site", "edge-07")] {
            let bytes = seal(kind, of, &serde_json::json!({})).unwrap();
            assert!(!is_whole(&bytes), "{kind} {of}");
        }
    }

    #[test]
    fn a_newer_format_is_called_that() {
        let text = String::from_utf8(sealed()).unwrap().replace("\"version\":2", "\"version\":3");
        let SealCheck::Damaged(why) = unseal("record", "edge-07", text.as_bytes()) else {
            panic!()
        };
        assert!(why.contains("format 3, of a newer hostler"), "{why}");
    }
}

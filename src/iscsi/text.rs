//! Text keys of the login, RFC 7143 §6.1: `key=value` pairs, each ended by a NUL.
//!
//! The login uses it, and bounds a target's text before. This module logs nothing.

use super::error::IscsiErrorKind;

/// Longest key name, RFC 7143 §6.1.
const KEY_BYTES_MAX: usize = 63;

/// Most pairs in one answer, more than any login has.
const PAIRS_MAX: usize = 64;

/// Collects pairs to send.
#[derive(Debug, Default)]
pub(super) struct Pairs(Vec<u8>);

impl Pairs {
    /// Adds one pair.
    pub(super) fn push(&mut self, key: &str, value: &str) {
        for part in [key, "=", value, "\0"] {
            self.0.extend_from_slice(part.as_bytes());
        }
    }

    /// The bytes of the data segment.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Parses the pairs in a data segment, in order.
pub(super) fn parse(text: &[u8]) -> Result<Vec<(&str, &str)>, IscsiErrorKind> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for piece in text.split(|byte| *byte == 0).filter(|piece| !piece.is_empty()) {
        let pair = std::str::from_utf8(piece).ok().and_then(|piece| piece.split_once('='));
        let Some((key, value)) = pair.filter(|(key, _)| (1..=KEY_BYTES_MAX).contains(&key.len()))
        else {
            return Err(IscsiErrorKind::Protocol("a login text is not key=value".to_owned()));
        };
        if pairs.iter().any(|(known, _)| *known == key) {
            return Err(IscsiErrorKind::Protocol(format!("login key {key:?} given twice")));
        }
        if pairs.len() == PAIRS_MAX {
            return Err(IscsiErrorKind::Protocol(format!("more than {PAIRS_MAX} login keys")));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// Parses a number: decimal, or hexadecimal after `0x`.
pub(super) fn number(value: &str) -> Option<u32> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u32::from_str_radix(digits, 16).ok()
        }
        None if value.bytes().all(|b| b.is_ascii_digit()) => value.parse().ok(),
        _ => None,
    }
}

/// Parses a binary value: hexadecimal after `0x`, or base64 after `0b`.
pub(super) fn binary(value: &str) -> Option<Vec<u8>> {
    let (prefix, digits) = value.split_at_checked(2)?;
    match prefix {
        "0x" | "0X" => from_hex(digits.as_bytes()),
        "0b" | "0B" => from_base64(digits.trim_end_matches('=').as_bytes()),
        _ => None,
    }
}

/// Decodes hexadecimal digits; an odd number of them implies a leading zero (RFC 7143 §6.1).
fn from_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit =
        |byte: &u8| char::from(*byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (lead, pairs) = digits.split_at(digits.len() % 2);
    let mut bytes: Vec<u8> = lead.iter().map(digit).collect::<Option<_>>()?;
    for pair in pairs.chunks_exact(2) {
        let [high, low] = pair else { return None };
        bytes.push(digit(high)? << 4 | digit(low)?);
    }
    (!bytes.is_empty()).then_some(bytes)
}

fn from_base64(digits: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for byte in digits {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    (!bytes.is_empty() && held < 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs_come_back_as_they_were_sent() {
        let mut pairs = Pairs::default();
        pairs.push("HeaderDigest", "CRC32C");
        pairs.push("X-empty", "");
        let bytes = pairs.into_bytes();
        assert_eq!(bytes, b"HeaderDigest=CRC32C\0X-empty=\0");
        assert_eq!(parse(&bytes).unwrap(), [("HeaderDigest", "CRC32C"), ("X-empty", "")]);
    }

    #[test]
    fn texts_that_are_not_pairs_are_refused() {
        for bad in [&b"no equals\0"[..], b"=x\0", b"\xff=1\0", b"A=1\0A=2\0"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let long = format!("{}=1\0", "k".repeat(64));
        assert!(parse(long.as_bytes()).is_err());
        let many: Vec<String> = (0..65).map(|n| format!("k{n}=1")).collect();
        assert!(parse(many.join("\0").as_bytes()).is_err());
    }

    #[test]
    fn numbers_and_binary_values_read_in_each_notation() {
        assert_eq!(number("262144"), Some(262_144));
        assert_eq!(number("0x40000"), Some(262_144));
        for bad in ["", "-1", "+1", "0x", "0x+1", "4294967296", "1.5"] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
        assert_eq!(binary("0x0aF"), Some(vec![0, 0xaf]));
        assert_eq!(binary("0bAQID"), Some(vec![1, 2, 3]));
        assert_eq!(binary("0bAQI="), Some(vec![1, 2]));
        for bad in ["", "0", "0x", "0b", "0xzz", "0bA", "0b*", "12", "é"] {
            assert_eq!(binary(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn reading_text_never_panics_on_any_bytes(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            text in ".{0,40}",
        ) {
            for (_, value) in parse(&bytes).unwrap_or_default() {
                number(value);
                binary(value);
            }
            number(&text);
            for prefix in ["", "0x", "0b"] {
                binary(&format!("{prefix}{text}"));
            }
        }
    }
}

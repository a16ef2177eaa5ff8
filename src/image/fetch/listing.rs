//! Files of checksums, as `sha256sum` and similar tools write them, also signed in clear text.
//!
//! The library uses it for lists beside an image. It must never guess: if two lines fit equally
//! well, it takes neither. Signatures are not verified.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::model::ids::{Digest, DigestAlgorithm};

/// Most names in an error, and most characters of each.
const SHOWN_NAMES_MAX: usize = 10;
const SHOWN_CHARS_MAX: usize = 80;

/// Entry point of the fuzz target: the name, a NUL, and the list.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (name, text) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if let Err(reason) = find(text, name, b"SHA256SUMS") {
        assert!(reason.len() < 4096 && !reason.chars().any(char::is_control), "{reason:?}");
    }
}

/// A line of a file of checksums.
#[derive(Debug, PartialEq, Eq)]
struct ListLine<'a> {
    /// The digest; `None` for an unsupported algorithm.
    digest: Option<Digest>,
    /// The name in the list; `None` if the line has only a digest.
    name: Option<Cow<'a, [u8]>>,
}

/// Finds the digest of the file at the path `source` in the list at the path `list`. Of several
/// files with its name, the one in `source`'s directories is meant; of both algorithms, SHA-256.
pub(super) fn find(text: &[u8], source: &[u8], list: &[u8]) -> Result<Digest, String> {
    let text = plain_text(text);
    let lines: Vec<ListLine<'_>> = text.split(|byte| *byte == b'\n').filter_map(parse).collect();
    let name = last(source);
    if let [ListLine { digest, name: None }] = lines.as_slice() {
        return digest.clone().ok_or_else(|| too_weak(name));
    }
    let found = nearest(&lines, source, list);
    if found.is_empty() {
        // Publishers list the versioned file behind a stable name.
        return match lines.as_slice() {
            [ListLine { digest, .. }] if is_of(last(list), name) => {
                digest.clone().ok_or_else(|| too_weak(name))
            }
            _ => Err(not_listed(&lines, name)),
        };
    }
    for algorithm in [DigestAlgorithm::Sha256, DigestAlgorithm::Sha512] {
        let mut digests = found
            .iter()
            .filter_map(|line| line.digest.as_ref())
            .filter(|digest| digest.algorithm() == algorithm);
        let Some(first) = digests.next() else { continue };
        return match digests.find(|digest| *digest != first) {
            None => Ok(first.clone()),
            Some(other) => {
                Err(format!("has two checksums for {}: {first} and {other}", shown(name)))
            }
        };
    }
    Err(too_weak(name))
}

/// Whether a list's own name announces a single file: `disk.img.sha256`.
fn is_of(list: &[u8], name: &[u8]) -> bool {
    list.strip_prefix(name).is_some_and(|ending| !ending.is_empty())
}

/// The lines for the file at `source` that match most of its path.
fn nearest<'l, 't>(lines: &'l [ListLine<'t>], source: &[u8], list: &[u8]) -> Vec<&'l ListLine<'t>> {
    let wanted = components(source);
    let directory = components(list);
    let inside = directory.split_last().and_then(|(_, directory)| wanted.strip_prefix(directory));
    let rank = |listed: &[u8]| -> Option<(bool, bool, usize)> {
        let listed = components(listed);
        let pairs = listed.iter().rev().zip(wanted.iter().rev());
        let common = pairs.take_while(|(listed, wanted)| listed == wanted).count();
        let is_beside = inside == Some(listed.as_slice());
        (common > 0).then_some((is_beside, common == listed.len(), common))
    };
    for spelling in [exact, loose] {
        let ranked =
            lines.iter().filter_map(|line| Some((rank(&spelling(line.name.as_deref()?))?, line)));
        let ranked: Vec<_> = ranked.collect();
        if let Some(best) = ranked.iter().map(|(rank, _)| *rank).max() {
            return ranked.into_iter().filter(|(rank, _)| *rank == best).map(|(_, l)| l).collect();
        }
    }
    Vec::new()
}

/// The named components of a path.
fn components(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect()
}

fn exact(name: &[u8]) -> Cow<'_, [u8]> {
    Cow::Borrowed(name)
}

/// Normalizes a name: Windows separators, additional white space before it, another column after
/// it.
fn loose(name: &[u8]) -> Cow<'_, [u8]> {
    let name = name.trim_ascii().split(|byte| *byte == b'\t').next().unwrap_or_default();
    let plain = |byte: &u8| if *byte == b'\\' { b'/' } else { *byte };
    Cow::Owned(name.trim_ascii_end().iter().map(plain).collect())
}

/// Converts the text to UTF-8: PowerShell's `>` writes UTF-16.
fn plain_text(text: &[u8]) -> Cow<'_, [u8]> {
    let read: fn([u8; 2]) -> u16 = match text {
        // A byte order mark, or an ASCII digit in UTF-16.
        [0xff, 0xfe, ..] | [1..=u8::MAX, 0, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] | [0, 1..=u8::MAX, ..] => u16::from_be_bytes,
        _ => return Cow::Borrowed(text),
    };
    let units = text.chunks_exact(2).filter_map(|unit| unit.first_chunk().copied()).map(read);
    let text: String =
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    Cow::Owned(text.into_bytes())
}

/// Parses a line; `None` if it holds no checksum: a comment, a part of a signature.
fn parse(line: &[u8]) -> Option<ListLine<'_>> {
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii_end();
    // RFC 9580 section 7.2: in a text signed in clear, "- " precedes a line that begins with a
    // hyphen.
    let line = line.strip_prefix(b"- ").unwrap_or(line);
    // GNU coreutils: a backslash at the beginning means that the name has escapes.
    let (line, is_escaped) = match line.strip_prefix(b"\\") {
        Some(line) => (line, true),
        None => (line, false),
    };
    let (digest, name) = tagged(line).or_else(|| plain(line))?;
    let name = name.map(|name| if is_escaped { unescape(name) } else { Cow::Borrowed(name) });
    Some(ListLine { digest, name })
}

/// The digest if its algorithm is supported, and the name if there is one.
type Parts<'a> = (Option<Digest>, Option<&'a [u8]>);

/// Parses `SHA256 (name) = digest`, or OpenSSL's `SHA2-256(name)= digest`.
fn tagged(line: &[u8]) -> Option<Parts<'_>> {
    let open = line.iter().position(|byte| *byte == b'(')?;
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let name = line.get(open + 1..close)?;
    let tag = line.get(..open)?.trim_ascii();
    let is_tag = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/');
    let after = line.get(close + 1..)?.trim_ascii_start().strip_prefix(b"=")?;
    let digits = hex(after.trim_ascii())?;
    if name.is_empty() || tag.is_empty() || !tag.iter().all(is_tag) {
        return None;
    }
    let algorithm = match tag.to_ascii_uppercase().as_slice() {
        b"SHA256" | b"SHA2-256" => Some("sha256"),
        b"SHA512" | b"SHA2-512" => Some("sha512"),
        _ => None,
    };
    let digest = match algorithm {
        Some(algorithm) => Some(format!("{algorithm}:{digits}").parse().ok()?),
        None => None,
    };
    Some((digest, Some(name)))
}

/// `digest  name`, with an asterisk before the name of a binary file, or only `digest`; `sha256:`
/// may stand before it.
fn plain(line: &[u8]) -> Option<Parts<'_>> {
    let line = line.trim_ascii_start();
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    let (digits, rest) = line.split_at(end);
    let (algorithm, digits) = match digits.iter().position(|byte| *byte == b':') {
        Some(colon) => (digits.get(..colon), digits.get(colon + 1..).unwrap_or_default()),
        None => (None, digits),
    };
    let digits = hex(digits)?;
    let digest = match digits.len() {
        _ if algorithm.is_some_and(|name| !name.eq_ignore_ascii_case(its_name(digits))) => None,
        64 => format!("sha256:{digits}").parse().ok(),
        128 => format!("sha512:{digits}").parse().ok(),
        // MD5, SHA-1, SHA-224, SHA-384
        32 | 40 | 56 | 96 => None,
        _ => return None,
    };
    // Two characters separate digest and name; a name may begin with spaces.
    let name = match rest {
        [] => return Some((digest, None)),
        [_, b' ' | b'*', name @ ..] | [_, name @ ..] => name,
    };
    (!name.is_empty()).then_some((digest, Some(name)))
}

/// The supported algorithm with so many digits.
fn its_name(digits: &str) -> &'static [u8] {
    match digits.len() {
        64 => b"sha256",
        128 => b"sha512",
        _ => b"",
    }
}

fn hex(bytes: &[u8]) -> Option<&str> {
    let is_hex = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_hexdigit);
    std::str::from_utf8(bytes).ok().filter(|_| is_hex)
}

/// Resolves GNU coreutils' escapes: `\\` is a backslash, `\n` a line feed, `\r` a carriage return.
fn unescape(name: &[u8]) -> Cow<'_, [u8]> {
    let mut plain = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(other) => *other,
                None => b'\\',
            },
            byte => *byte,
        });
    }
    Cow::Owned(plain)
}

fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

fn too_weak(name: &[u8]) -> String {
    format!(
        "has only a checksum of another algorithm for {}; sha256 or sha512 is needed",
        shown(name)
    )
}

fn not_listed(lines: &[ListLine<'_>], name: &[u8]) -> String {
    let names: Vec<&[u8]> = lines.iter().filter_map(|line| line.name.as_deref()).collect();
    if names.is_empty() {
        return format!("has no checksum for {}, nor for any other file", shown(name));
    }
    let listed: Vec<String> = names.iter().take(SHOWN_NAMES_MAX).map(|name| shown(name)).collect();
    let more = match names.len() - listed.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("has no checksum for {}, but for {}{more}", shown(name), listed.join(", "))
}

/// A name, escaped and shortened for a message.
fn shown(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    let shown: String = name.escape_debug().take(SHOWN_CHARS_MAX).collect();
    if shown.is_empty() { "a file without a name".to_owned() } else { shown }
}

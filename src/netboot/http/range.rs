//! Ranges of a file (RFC 9110 §14).
//!
//! The server uses it for each request with a `Range`: GRUB skips parts of a kernel by one. Pure.
//! Anything but a single range of bytes is ignored, as the RFC allows.

use std::ops::Range;

/// The requested bytes of a file of `all` bytes; `None` if the range begins past its end.
pub(super) fn wanted(range: &str, all: u64) -> Option<Range<u64>> {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(single) else {
        return Some(0..all);
    };
    let bytes = match (first, last) {
        (Some(first), last) => first..last.map_or(all, |last| last.saturating_add(1)).min(all),
        (None, Some(length)) => all.saturating_sub(length)..all,
        (None, None) => 0..all,
    };
    (bytes.start < bytes.end).then_some(bytes)
}

/// Parses `10-`, `10-19` or `-5`, with the ends in order.
fn single(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (first, last) = text.split_once('-')?;
    let number = |text: &str| match text.trim() {
        "" => Some(None),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok().map(Some),
        _ => None,
    };
    let (first, last) = (number(first)?, number(last)?);
    let ordered = first.zip(last).is_none_or(|(first, last)| first <= last);
    (ordered && (first, last) != (None, None)).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_range_is_taken_and_anything_else_is_the_whole_file() {
        for (range, bytes) in [
            ("bytes=0-", 0..100),
            ("bytes=7-", 7..100),
            ("bytes=7-9", 7..10),
            ("bytes=7-18446744073709551615", 7..100),
            ("bytes=-5", 95..100),
            ("bytes=-500", 0..100),
            ("bytes=9-7", 0..100),
            ("bytes=1-2,5-6", 0..100),
            ("bytes=-", 0..100),
            ("bytes=x-", 0..100),
            ("lines=1-2", 0..100),
        ] {
            assert_eq!(wanted(range, 100), Some(bytes), "{range}");
        }
        for range in ["bytes=100-", "bytes=200-300", "bytes=-0"] {
            assert_eq!(wanted(range, 100), None, "{range}");
        }
    }
}

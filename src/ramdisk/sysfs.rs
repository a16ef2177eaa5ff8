//! Reading sysfs: small text files that may vanish at any moment.
//!
//! All hardware detection in the ramdisk uses it. An unreadable attribute counts as absent; no
//! function fails.

use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
};

/// Largest attribute: a page.
const ATTRIBUTE_BYTES_MAX: u64 = 4096;

/// A directory's entries, sorted; empty if it cannot be read.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// An attribute's bytes.
pub(super) fn bytes(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(ATTRIBUTE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// An attribute's text without surrounding blanks; `None` if it is empty.
pub(super) fn text(path: &Path) -> Option<String> {
    let bytes = bytes(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// An attribute that is a decimal number.
pub(super) fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

/// An attribute that is 0 or 1; `false` if it is absent.
pub(super) fn flag(path: &Path) -> bool {
    number(path) == Some(1)
}

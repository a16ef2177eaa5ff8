//! The names of boot files, as firmware and boot loaders spell them.
//!
//! The servers use it for each request, and for the names in the configuration. Pure. A clean name
//! never leads out of its directory.

use super::refusal::Refusal;

/// Longest file name accepted, in bytes: the longest real ones (`grub/x86_64-efi/…`) have about 60.
const NAME_BYTES_MAX: usize = 255;

/// Normalizes a file's name for the tables: `x` for each of `x`, `/x`, `\x`, `/tftpboot/x` and
/// `./x`, with `/` between the parts.
pub(super) fn clean_name(name: &str) -> Result<String, Refusal> {
    let clean = clean_bytes(name.as_bytes())?;
    // Cuts are between characters only.
    String::from_utf8(clean).map_err(|_| Refusal::NotFound)
}

/// [`clean_name`] for names that need not be UTF-8.
pub(super) fn clean_bytes(name: &[u8]) -> Result<Vec<u8>, Refusal> {
    if name.len() > NAME_BYTES_MAX || name.contains(&0) {
        return Err(Refusal::NotFound);
    }
    let parts = name.split(|byte| matches!(byte, b'/' | b'\\'));
    let mut parts: Vec<&[u8]> = parts.filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(Refusal::NotAllowed);
    }
    if parts.len() > 1 && parts.first() == Some(&&b"tftpboot"[..]) {
        parts.remove(0);
    }
    if parts.is_empty() { Err(Refusal::NotFound) } else { Ok(parts.join(&b'/')) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_may_be_written_in_every_way_firmware_writes_it() {
        for name in ["a/b", "/a/b", "//a//b", "\\a\\b", "/tftpboot/a/b", "tftpboot/a/b", "./a/./b"]
        {
            assert_eq!(clean_name(name).as_deref(), Ok("a/b"), "{name}");
        }
        assert_eq!(clean_name("foo..bar").as_deref(), Ok("foo..bar"));
        assert_eq!(clean_name("tftpboot").as_deref(), Ok("tftpboot"));
        for escaping in ["..", "../etc/passwd", "a/../../b", "..\\..\\b", "/tftpboot/../b"] {
            assert_eq!(clean_name(escaping), Err(Refusal::NotAllowed), "{escaping}");
        }
        for nothing in ["", "/", "\\", ".", "a\0b", &"x".repeat(256)] {
            assert_eq!(clean_name(nothing), Err(Refusal::NotFound), "{nothing}");
        }
    }

    proptest! {
        #[test]
        fn a_clean_name_stays_beneath_its_root(name in "[./\\\\a-c]{0,20}") {
            if let Ok(name) = clean_name(&name) {
                prop_assert!(!name.starts_with('/') && !name.contains('\\'));
                prop_assert!(name.split('/').all(|part| !matches!(part, "" | "." | "..")));
            }
        }
    }
}

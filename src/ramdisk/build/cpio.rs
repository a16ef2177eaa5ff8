//! The initramfs as the kernel unpacks it: a cpio archive in the "newc" format (Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! The builder uses it. The same entries give the same bytes: the archive holds no times, owners or
//! inode numbers of the builder's machine.

use std::collections::BTreeMap;

const REGULAR_FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const TRAILER: &str = "TRAILER!!!";

/// The entry at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Directory,
    File { permissions: u32, contents: Vec<u8> },
    CharacterDevice { major: u32, minor: u32 },
}

/// An archive under construction. Paths have no leading slash; parent directories are added
/// automatically.
#[derive(Clone, Debug, Default)]
pub(super) struct Archive(BTreeMap<String, Entry>);

impl Archive {
    pub(super) fn directory(&mut self, path: &str) {
        self.insert(path, Entry::Directory);
    }

    pub(super) fn file(&mut self, path: &str, permissions: u32, contents: Vec<u8>) {
        self.insert(path, Entry::File { permissions, contents });
    }

    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.insert(path, Entry::CharacterDevice { major, minor });
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        for (slash, _) in path.match_indices('/') {
            if let Some(above) = path.get(..slash) {
                self.0.entry(above.to_owned()).or_insert(Entry::Directory);
            }
        }
        self.0.insert(path.to_owned(), entry);
    }

    /// Encodes the archive; `None` if a file has 4 GiB or more, which the format does not support.
    pub(super) fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        // Sorted by path, so that a directory precedes its content.
        for (inode, (path, entry)) in (1..).zip(&self.0) {
            let (mode, device, contents) = match entry {
                Entry::Directory => (DIRECTORY | 0o755, (0, 0), &[][..]),
                Entry::File { permissions, contents } => {
                    (REGULAR_FILE | permissions, (0, 0), contents.as_slice())
                }
                Entry::CharacterDevice { major, minor } => {
                    (CHARACTER_DEVICE | 0o600, (*major, *minor), &[][..])
                }
            };
            put(&mut bytes, inode, mode, device, path, contents)?;
        }
        put(&mut bytes, 0, 0, (0, 0), TRAILER, &[])?;
        Some(bytes)
    }
}

fn put(
    bytes: &mut Vec<u8>,
    inode: u32,
    mode: u32,
    device: (u32, u32),
    path: &str,
    contents: &[u8],
) -> Option<()> {
    let size = u32::try_from(contents.len()).ok()?;
    let name_size = u32::try_from(path.len() + 1).ok()?;
    bytes.extend(b"070701");
    // inode, mode, uid, gid, links, mtime, size, device, special device, name size, checksum
    let (major, minor) = device;
    for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0] {
        bytes.extend(format!("{field:08x}").bytes());
    }
    bytes.extend(path.bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend(contents);
    pad(bytes);
    Some(())
}

/// Pads a name or a content to a multiple of four.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    fn archive() -> Archive {
        let mut archive = Archive::default();
        archive.file("lib/modules/6.1/a.ko", 0o644, b"module".to_vec());
        archive.file("init", 0o755, b"#!".to_vec());
        archive.directory("proc");
        archive.character_device("dev/console", 5, 1);
        archive
    }

    #[test]
    fn cpio_lists_every_entry_with_its_kind_and_directories_first() {
        let mut cpio = Command::new("cpio")
            .args(["--quiet", "-tvn"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&archive().to_bytes().unwrap()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing: Vec<String> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                format!("{} {}", words[0], words.last().unwrap())
            })
            .collect();
        assert_eq!(
            listing,
            [
                "drwxr-xr-x dev",
                "crw------- dev/console",
                "-rwxr-xr-x init",
                "drwxr-xr-x lib",
                "drwxr-xr-x lib/modules",
                "drwxr-xr-x lib/modules/6.1",
                "-rw-r--r-- lib/modules/6.1/a.ko",
                "drwxr-xr-x proc",
            ]
        );
    }
}

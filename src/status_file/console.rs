//! `<name>.console.log`, beside the status file: a machine's serial console during the attempt that
//! failed last.
//!
//! The agent's publisher writes it when the attempt is over. The machine may be hostile, so that
//! the text must always pass through `untrusted.rs`.

use std::{fmt::Write as _, path::PathBuf};

use jiff::Timestamp;

use super::{
    StatusFileError, StatusFiles,
    untrusted::{MODE, clean, last_lines, without_key},
};
use crate::{
    atomic_file,
    model::{ids::NodeName, secret::AttemptKey},
};

/// Longest part of a console that is kept, in bytes: its end, where the failure is. The most
/// verbose boot of the deploy ramdisk prints about 20 KiB.
pub const CONSOLE_BYTES_MAX: usize = 64 << 10;
const SUFFIX: &str = ".console.log";

/// The console output of a machine during one attempt.
#[derive(Debug)]
pub struct ConsoleLog {
    /// The node.
    pub node: NodeName,
    /// The attempt's number.
    pub attempt: u32,
    /// The start of the recording.
    pub from: Timestamp,
    /// The end of the recording.
    pub to: Timestamp,
    /// The end of the output, unfiltered, at most [`CONSOLE_BYTES_MAX`].
    pub said: Vec<u8>,
    /// The reason for gaps in the recording.
    pub trouble: Option<String>,
    /// The attempt's key, which is replaced in the file.
    pub key: AttemptKey,
}

impl StatusFiles {
    /// The path of a node's console log.
    pub fn console_path(&self, node: &NodeName) -> PathBuf {
        self.dir.join(format!("{node}{SUFFIX}"))
    }

    /// Replaces a node's console log; the directory must exist.
    pub fn write_console(&self, log: &ConsoleLog) -> Result<(), StatusFileError> {
        let path = self.console_path(&log.node);
        atomic_file::replace(&path, MODE, render(log).as_bytes())
            .map_err(|source| StatusFileError::Io { path, source })
    }

    /// Removes a node's console log. A missing file is no error.
    pub fn remove_console(&self, node: &NodeName) -> Result<(), StatusFileError> {
        let path = self.console_path(node);
        atomic_file::remove_if_there(&path).map_err(|source| StatusFileError::Io { path, source })
    }
}

fn render(log: &ConsoleLog) -> String {
    let ConsoleLog { node, attempt, from, to, said, trouble, key } = log;
    let mut text = format!("# {node}, attempt {attempt}: its serial console from {from} to {to}\n");
    // Writing to a string does not fail.
    if let Some(trouble) = trouble {
        writeln!(text, "# {}", clean(trouble.as_bytes()).replace('\n', " ")).unwrap_or_default();
    } else if said.is_empty() {
        text.push_str(
            "# nothing was printed: boot.kernel_args = [\"console=ttyS1,115200n8\"], or \
            ttyS0, or ttyAMA0 on 64-bit Arm, has the deploy ramdisk print there\n",
        );
    }
    let clean = without_key(&clean(said), key);
    let is_cut = said.len() >= CONSOLE_BYTES_MAX || clean.len() > CONSOLE_BYTES_MAX;
    text.push_str(if is_cut { last_lines(&clean, CONSOLE_BYTES_MAX) } else { &clean });
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use expect_test::expect;

    use super::*;

    fn log(said: &[u8]) -> ConsoleLog {
        ConsoleLog {
            node: "edge-07".parse().unwrap(),
            attempt: 2,
            from: Timestamp::from_second(1_795_300_000).unwrap(),
            to: Timestamp::from_second(1_795_300_090).unwrap(),
            said: said.to_vec(),
            trouble: None,
            key: AttemptKey::from_bytes(&[0xab; 32]),
        }
    }

    /// The text after the header.
    fn body(said: &[u8]) -> String {
        render(&log(said)).split_once('\n').unwrap().1.to_owned()
    }

    #[test]
    fn a_console_reads_like_this_and_is_not_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let files = StatusFiles::new(dir.path());
        let said = b"\x1b[2J\x1b[01;01HBooting\r\n[    0.0] Linux\r\n\tno driver";
        files.write_console(&log(b"before")).unwrap();
        files.write_console(&log(said)).unwrap();
        let path = files.console_path(&"edge-07".parse().unwrap());
        expect![[r"
            # edge-07, attempt 2: its serial console from 2026-11-21T22:26:40Z to 2026-11-21T22:28:10Z
            Booting
            [    0.0] Linux
            	no driver
        "]]
        .assert_eq(&fs::read_to_string(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let node = "edge-07".parse().unwrap();
        files.remove_console(&node).unwrap();
        files.remove_console(&node).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn where_nothing_was_printed_it_says_why() {
        assert!(body(b"").starts_with("# nothing was printed: boot.kernel_args"), "{}", body(b""));
        let trouble = Some("bmc 192.0.2.20:623: no answer\n\x1b[31m".to_owned());
        let text = render(&ConsoleLog { trouble, ..log(b"") });
        assert_eq!(text.lines().nth(1), Some("# bmc 192.0.2.20:623: no answer "));
    }

    /// Invariant (secrets): A kept console or ramdisk's log has neither the attempt's key nor
    /// anything that a terminal acts on.
    #[test]
    fn nothing_in_it_does_anything_to_a_terminal() {
        for (said, shown) in [
            (&b"a\x1b[31;1mb\x1b[0mc"[..], "abc\n"),
            (b"a\x1b]0;title\x07b\x1b]52;c;ZXZpbA==\x1b\\c", "abc\n"),
            (b"a\x1bPq#0\x1b\\b\x1b(Bc\x1bcd\x1b7e", "abcde\n"),
            (b"a\x1b]0;no end\nb", "a\nb\n"),
            (b"a\x1b[12\nb\x1b", "a\nb\n"),
            (b"a\x08\x00\x7f\x0bb\r\r\nc\td", "ab\nc\td\n"),
            (b"a\x9b31mb\xc2\x9b31mc\xff", "a\u{fffd}31mb31mc\u{fffd}\n"),
            ("a\u{202e}b\u{2066}c".as_bytes(), "abc\n"),
        ] {
            assert_eq!(body(said), shown, "{said:?}");
        }
    }

    /// Invariant (secrets): A kept console or ramdisk's log has neither the attempt's key nor
    /// anything that a terminal acts on.
    #[test]
    fn the_attempts_key_is_not_in_it_however_it_was_printed() {
        let key = "ab".repeat(32);
        let (start, rest) = key.split_at(20);
        let said = format!("hostler.key={key} x\nhostler.key={start}\x1b[K\r{rest}\n");
        assert_eq!(body(said.as_bytes()), "hostler.key=<key> x\nhostler.key=<key>\n");
        // The beginning is lost in the middle of the key.
        let said = format!("{rest}\n{}", "x\n".repeat(CONSOLE_BYTES_MAX / 2 - 16));
        let said = said.get(said.len() - CONSOLE_BYTES_MAX..).unwrap();
        assert!(said.starts_with("abab") || said.starts_with("baba"));
        assert!(!body(said.as_bytes()).contains("abab"));
    }

    #[test]
    fn the_end_of_much_is_kept_in_whole_lines() {
        let mut said = Vec::new();
        for number in 0..9000 {
            said.extend(format!("{number}: \u{ff}\u{20ac}\n").bytes());
        }
        let said = said.get(said.len() - CONSOLE_BYTES_MAX..).unwrap();
        let text = body(said);
        let first: u32 = text.split_once(':').unwrap().0.parse().unwrap();
        assert!(text.ends_with("\n8999: \u{ff}\u{20ac}\n") && first > 1000);
        // Bytes that are not UTF-8 grow when they are replaced.
        let text = body(&[&b"\xff".repeat(CONSOLE_BYTES_MAX - 6)[..], &b"\nlast\n"[..]].concat());
        assert_eq!(text, "last\n");
        assert!(body(&vec![0xff; CONSOLE_BYTES_MAX]).len() <= CONSOLE_BYTES_MAX + 1);
    }
}

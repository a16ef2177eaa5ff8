//! `<name>.ramdisk.log`, beside the status file: the last log of the node's deploy ramdisk, with
//! its kernel's.
//!
//! The agent's publisher writes it for each received log, over the last one. The machine may be
//! hostile, so that the text must always pass through `untrusted.rs`.

use std::{net::IpAddr, path::PathBuf};

use jiff::Timestamp;

use super::{
    StatusFileError, StatusFiles,
    untrusted::{MODE, clean, last_lines, without_key},
};
use crate::{
    atomic_file,
    model::{
        callback::{LOG_BYTES_MAX, RamdiskLog},
        ids::NodeName,
        secret::AttemptKey,
    },
};

const SUFFIX: &str = ".ramdisk.log";

/// A received log of a deploy ramdisk.
#[derive(Debug)]
pub struct KeptLog {
    /// The node.
    pub node: NodeName,
    /// The attempt's number.
    pub attempt: u32,
    /// The ramdisk's address.
    pub peer: IpAddr,
    /// The time of the call.
    pub at: Timestamp,
    /// The logs, unfiltered.
    pub log: RamdiskLog,
    /// The attempt's key, which is replaced in the file.
    pub key: AttemptKey,
}

impl StatusFiles {
    /// The path of a node's ramdisk log.
    pub fn ramdisk_log_path(&self, node: &NodeName) -> PathBuf {
        self.dir.join(format!("{node}{SUFFIX}"))
    }

    /// Replaces a node's ramdisk log; the directory must exist.
    pub fn write_ramdisk_log(&self, log: &KeptLog) -> Result<(), StatusFileError> {
        let path = self.ramdisk_log_path(&log.node);
        atomic_file::replace(&path, MODE, log.text().as_bytes())
            .map_err(|source| StatusFileError::Io { path, source })
    }

    /// Removes a node's ramdisk log. A missing file is no error.
    pub fn remove_ramdisk_log(&self, node: &NodeName) -> Result<(), StatusFileError> {
        let path = self.ramdisk_log_path(node);
        atomic_file::remove_if_there(&path).map_err(|source| StatusFileError::Io { path, source })
    }
}

impl KeptLog {
    /// The file's text: bounded, without control characters and without the attempt's key.
    pub fn text(&self) -> String {
        let Self { node, attempt, peer, at, log, key } = self;
        let mut text =
            format!("# {node}, attempt {attempt}: its deploy ramdisk's log, from {peer} at {at}\n");
        for (title, part) in [("the kernel", &log.kernel), ("the deploy ramdisk", &log.ramdisk)] {
            let clean = without_key(&clean(part.as_bytes()), key);
            let is_cut = clean.len() > LOG_BYTES_MAX;
            text.push_str("\n# ");
            text.push_str(title);
            text.push('\n');
            text.push_str(if is_cut { last_lines(&clean, LOG_BYTES_MAX) } else { &clean });
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use expect_test::expect;

    use super::*;

    fn kept(kernel: &str, ramdisk: &str) -> KeptLog {
        KeptLog {
            node: "edge-07".parse().unwrap(),
            attempt: 2,
            peer: [192, 0, 2, 101].into(),
            at: Timestamp::from_second(1_795_300_000).unwrap(),
            log: RamdiskLog { kernel: kernel.to_owned(), ramdisk: ramdisk.to_owned() },
            key: AttemptKey::from_bytes(&[0xab; 32]),
        }
    }

    #[test]
    fn a_ramdisks_log_reads_like_this_and_is_not_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let files = StatusFiles::new(dir.path());
        files.write_ramdisk_log(&kept("before", "")).unwrap();
        let kernel = "[    0.000000] Linux version 6.12\n[    0.000000] Kernel command line: \
            hostler.key=KEY quiet\n"
            .replace("KEY", &"ab".repeat(32));
        let ramdisk = "[  0.02]  INFO hostler\n[  9.31] ERROR the agent chose no disk";
        files.write_ramdisk_log(&kept(&kernel, ramdisk)).unwrap();
        let path = files.ramdisk_log_path(&"edge-07".parse().unwrap());
        expect![[r"
            # edge-07, attempt 2: its deploy ramdisk's log, from 192.0.2.101 at 2026-11-21T22:26:40Z

            # the kernel
            [    0.000000] Linux version 6.12
            [    0.000000] Kernel command line: hostler.key=<key> quiet

            # the deploy ramdisk
            [  0.02]  INFO hostler
            [  9.31] ERROR the agent chose no disk
        "]]
        .assert_eq(&fs::read_to_string(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let node = "edge-07".parse().unwrap();
        files.remove_ramdisk_log(&node).unwrap();
        files.remove_ramdisk_log(&node).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// Invariant (secrets): A kept console or ramdisk's log has neither the attempt's key nor
    /// anything that a terminal acts on.
    #[test]
    fn a_hostile_ramdisks_log_is_bounded_and_does_nothing_to_a_terminal() {
        let key = "ab".repeat(32);
        let bad = format!("\x1b[2J\x1b]0;title\x07\u{202e}a\r\0\x1b[3{key}1mb {key}\n");
        for (kernel, ramdisk) in [
            (bad.repeat(2000), bad.repeat(2000)),
            ("x".repeat(3 * LOG_BYTES_MAX), "\u{1b}".repeat(3 * LOG_BYTES_MAX)),
            ("\n".repeat(LOG_BYTES_MAX + 1), "y".repeat(LOG_BYTES_MAX)),
        ] {
            let text = kept(&kernel, &ramdisk).text();
            assert!(text.len() <= 2 * LOG_BYTES_MAX + 256, "{}", text.len());
            assert!(!text.contains(&key), "its key");
            let acts = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
            assert_eq!(text.find(acts), None);
        }
        let lines: Vec<String> = (0..20_000).map(|at| format!("line {at}\n")).collect();
        let text = kept("", &lines.concat()).text();
        assert!(text.ends_with("\nline 19999\n"), "its end says why");
        let first = text.lines().nth(5).unwrap();
        assert!(first.starts_with("line ") && first != "line 0", "whole lines: {first}");
    }
}

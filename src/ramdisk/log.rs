//! The logs of this machine: the ramdisk's own, and the kernel's since its start.
//!
//! [`super::init`] fills the ramdisk's log; the boot sequence sends both to the agent. A read must
//! never wait: what the kernel does not return at once is left out.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::OFlags;

use crate::model::callback::{BODY_BYTES_MAX, LOG_BYTES_MAX, RamdiskLog};

/// The kernel's log device: each read returns a record (Documentation/ABI/testing/dev-kmsg).
const KERNEL_LOG: &str = "/dev/kmsg";
/// Size of the longest record (`PRINTK_MESSAGE_MAX`).
const RECORD_BYTES_MAX: usize = 8 << 10;
/// Most records read. The kernel keeps fewer; a kernel that logs as quickly as this machine reads
/// must not hold up the boot.
const RECORDS_MAX: usize = 100_000;

/// The ramdisk's own log, as a writer. All clones write to the same log.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Tail>>);

/// The last [`LOG_BYTES_MAX`] bytes of a log.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    is_cut: bool,
}

impl Log {
    /// The body of the call that sends this log and the kernel's.
    pub(super) fn body(&self) -> Vec<u8> {
        let own = self.lock().text();
        let kernel = File::options()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(KERNEL_LOG)
            .map_or_else(|error| format!("{KERNEL_LOG}: {error}\n"), kernel_log);
        body(RamdiskLog { kernel, ramdisk: own })
    }

    fn lock(&self) -> MutexGuard<'_, Tail> {
        // No panic can occur between two changes of the locked bytes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tail {
    fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let surplus = self.bytes.len().saturating_sub(LOG_BYTES_MAX);
        self.bytes.drain(..surplus);
        self.is_cut |= surplus > 0;
    }

    /// The text, without an incomplete first line.
    fn text(&self) -> String {
        let (head, tail) = self.bytes.as_slices();
        let text = String::from_utf8_lossy(&[head, tail].concat()).into_owned();
        match text.split_once('\n') {
            Some((_, whole)) if self.is_cut => whole.to_owned(),
            _ => text,
        }
    }
}

/// The end of the kernel's log, as `dmesg` prints it. `records` returns a record for each read,
/// from the kernel's oldest one.
fn kernel_log(mut records: impl Read) -> String {
    let mut tail = Tail::default();
    let mut record = [0; RECORD_BYTES_MAX];
    for _ in 0..RECORDS_MAX {
        match records.read(&mut record) {
            Ok(0) => break,
            Ok(bytes) => tail.append(line(record.get(..bytes).unwrap_or_default()).as_bytes()),
            // The kernel has dropped the oldest record meanwhile, or a signal has interrupted the
            // read.
            Err(error)
                if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => {
                tail.append(format!("{KERNEL_LOG}: {error}\n").as_bytes());
                break;
            }
        }
    }
    tail.text()
}

/// Formats a record as a line. A record is `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,…];MESSAGE` and
/// lines that begin with a blank. The kernel escapes line breaks within the message.
fn line(record: &[u8]) -> String {
    let record = String::from_utf8_lossy(record);
    let first = record.lines().next().unwrap_or_default();
    let (prefix, message) = first.split_once(';').unwrap_or(("", first));
    match prefix.split(',').nth(2).and_then(|since| since.parse::<u64>().ok()) {
        Some(us) => format!("[{:5}.{:06}] {message}\n", us / 1_000_000, us % 1_000_000),
        None => format!("{message}\n"),
    }
}

/// The body of the call. Escaped characters lengthen it: both logs are shortened until it fits.
fn body(mut log: RamdiskLog) -> Vec<u8> {
    loop {
        let body = serde_json::to_vec(&log).unwrap_or_default();
        if body.len() <= BODY_BYTES_MAX {
            return body;
        }
        for text in [&mut log.kernel, &mut log.ramdisk] {
            let half = text.len() / 2;
            let from = text.char_indices().find(|(at, char)| *at >= half && *char == '\n');
            text.drain(..from.map_or(text.len(), |(at, _)| at + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    /// A double of `/dev/kmsg`: returns a record for each read, and then an error.
    struct Records<'a>(slice::Iter<'a, Result<&'a str, ErrorKind>>);

    impl Read for Records<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let record = self.0.next().ok_or(ErrorKind::WouldBlock)?.map_err(io::Error::from)?;
            record.as_bytes().read(into)
        }
    }

    /// A kernel that logs as quickly as it is read.
    struct Endless;

    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            (&b"3,1,2,-;again\n"[..]).read(into)
        }
    }

    #[test]
    fn the_kernels_log_reads_as_dmesg_prints_it_and_its_end_is_waited_for_by_nobody() {
        let records = [
            Ok("6,0,0,-;Linux version 6.12\n"),
            Err(ErrorKind::BrokenPipe),
            Ok("4,711,12345678,-,caller=T1;sda: \\x1b[31m ; end\n SUBSYSTEM=block\n DEVICE=b8:0\n"),
            Ok("no record at all\n"),
            Ok(""),
            Ok("6,712,12345679,-;never read\n"),
        ];
        let text = "[    0.000000] Linux version 6.12\n[   12.345678] sda: \\x1b[31m ; end\n\
            no record at all\n";
        assert_eq!(kernel_log(Records(records.iter())), text);
        let [first, ..] = &records;
        let broken = [*first, Err(ErrorKind::InvalidInput), *first];
        let read = kernel_log(Records(broken.iter()));
        assert!(read.lines().count() == 2 && read.contains("/dev/kmsg: "), "{read}");
    }

    #[test]
    fn a_log_without_an_end_is_not_read_for_ever_and_only_its_last_lines_are_kept() {
        let read = kernel_log(Endless);
        assert!((1..=LOG_BYTES_MAX).contains(&read.len()), "{}", read.len());
        let mut log = Log::default();
        for number in 0..20_000 {
            writeln!(log.clone(), "line {number}").unwrap();
        }
        let text = log.lock().text();
        assert!(text.starts_with("line ") && text.ends_with("\nline 19999\n"), "{text:.40}");
        assert!((LOG_BYTES_MAX - 16..=LOG_BYTES_MAX).contains(&text.len()), "{}", text.len());
        log.write_all(b"half a line").unwrap();
        assert!(log.lock().text().ends_with("\nline 19999\nhalf a line"));
    }

    #[test]
    fn the_longest_logs_fit_into_a_call_and_their_end_is_in_it() {
        let full = |line: &str| line.repeat(LOG_BYTES_MAX / line.len()) + "end\n";
        for line in ["plain\n", "\"\"\"\\\\\\\n", "\u{1}\u{1}\u{1}\n", "\u{1}"] {
            let (kernel, ramdisk) = (full(line), full(line));
            let body = body(RamdiskLog { kernel, ramdisk });
            assert!(body.len() <= BODY_BYTES_MAX, "{}", body.len());
            let sent: RamdiskLog = serde_json::from_slice(&body).unwrap();
            for text in [sent.kernel, sent.ramdisk] {
                assert!(text.ends_with("end\n") || !line.ends_with('\n'), "{line:?}");
            }
        }
    }
}

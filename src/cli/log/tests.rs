//! Tests of whole log lines.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::MetadataExt as _,
    sync::{Arc, Mutex},
    time::Instant,
};

use expect_test::expect;
use tracing::{debug, error, info, subscriber::with_default, warn};

use super::*;

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().map_or(Ok(0), |mut written| written.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The text that the log writes to a destination.
fn written(sink: Sink, log: impl FnOnce(&Kinds)) -> String {
    let (kinds, written) = (Kinds::default(), Written::default());
    let writer = written.clone();
    let filter = EnvFilter::new("debug");
    let subscriber = subscriber(sink, filter, kinds.clone(), move || writer.clone());
    with_default(subscriber, || log(&kinds));
    let bytes = written.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

fn some(_: &Kinds) {
    error!(node = "edge-07", "given up");
    warn!(error = %io::Error::other("a\nb\u{1b}[2J"), "it\u{202e} fails");
    info!(uid = 0, who = ?"root", "approved");
    debug!("details");
}

/// Invariant (log): The journal gets priorities to alert on.
#[test]
fn the_journal_gets_priorities_and_neither_a_time_nor_colours() {
    expect![[r#"
        <3>ERROR given up node="edge-07"
        <4> WARN it\u{202e} fails error=a\nb\u{1b}[2J
        <6> INFO approved uid=0 who="root"
        <7>DEBUG details
    "#]]
    .assert_eq(&written(Sink::Journal, some));
}

#[test]
fn a_file_gets_the_time_and_a_terminal_colours_too() {
    let plain = written(Sink::Plain, some);
    assert!(!plain.contains('\u{1b}') && !plain.contains('<'), "{plain}");
    for (line, rest) in plain.lines().zip(["ERROR given up node=\"edge-07\"", " WARN it"]) {
        let (time, said) = line.split_once(' ').unwrap();
        time.parse::<jiff::Timestamp>().unwrap();
        assert!(said.starts_with(rest), "{line}");
    }
    let coloured = written(Sink::Terminal, some);
    assert!(coloured.contains("\u{1b}[3mnode\u{1b}[0m"), "{coloured}");
    assert!(!coloured.contains("\u{1b}[2J"), "{coloured}");
}

#[test]
fn the_journal_is_known_by_its_stream_and_not_only_by_the_variable() {
    let file = tempfile::tempfile().unwrap();
    let metadata = file.metadata().unwrap();
    let (device, inode) = (metadata.dev(), metadata.ino());
    let other = File::open("/dev/null").unwrap();
    let ours = format!("{device}:{inode}");
    assert_eq!(Sink::of(&file, Some(&ours), true), Sink::Journal);
    for stream in [None, Some("8:1"), Some(""), Some("x:y"), Some(&*format!("{device}"))] {
        assert_eq!(Sink::of(&file, stream, false), Sink::Plain, "{stream:?}");
        assert_eq!(Sink::of(&file, stream, true), Sink::Terminal, "{stream:?}");
    }
    assert_eq!(Sink::of(&other, Some(&ours), false), Sink::Plain);
}

/// Invariant (log): Every log line is one line of some KiB, whatever a machine, target or stranger
/// sends.
#[test]
fn no_value_makes_a_line_long_or_two_of_it() {
    let long = "\u{85}\n".repeat(100_000);
    let text = written(Sink::Journal, |_| {
        info!(value = ?long, "{long}");
        let (a, b, c, d) = (&long, &long, &long, &long);
        warn!(%a, ?b, %c, ?d, last = 7, "{long}");
        info!(wide = %"é".repeat(1000), "after");
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    for line in &lines {
        assert!(line.len() < LINE_MAX, "{} bytes", line.len());
    }
    assert!(lines[2].ends_with("é…"), "{text}");
}

/// Most bytes of a line: the values, and the fields' names.
const LINE_MAX: usize = line::LINE_BYTES_MAX + 200;

/// Logs strangers as the boot server does.
fn strangers(times: usize) {
    for number in 0..times {
        info!(target: "hostler::netboot::catalog", number, "a machine that is no node's");
    }
}

/// Invariant (log): Strangers do not fill the log, and orders and phases are never left out of it.
#[test]
fn what_strangers_cause_is_cut_off_in_a_minute_and_the_rest_is_counted() {
    let text = written(Sink::Journal, |kinds| {
        strangers(20_000);
        kinds.tell(Instant::now());
        kinds.tell(Instant::now() + Duration::from_secs(61));
        strangers(1);
        kinds.tell(Instant::now() + Duration::from_secs(122));
    });
    let lines: Vec<&str> = text.lines().collect();
    let most = usize::try_from(kinds::LINES_MAX).unwrap();
    assert_eq!(lines.len(), most + 2, "{}", lines.len());
    let reported = "<4> WARN a machine that is no node's: 19900 more in the last 61 s, not shown";
    assert_eq!(lines[most], reported);
}

/// Invariant (log): Strangers do not fill the log, and orders and phases are never left out of it.
#[test]
fn what_operators_do_and_nodes_become_is_never_left_out() {
    let text = written(Sink::Journal, |_| {
        for number in 0..1_000 {
            info!(target: "hostler::agent::orders", number, "operator approves");
            info!(target: "hostler::netbooted", number, "no listener");
        }
    });
    assert_eq!(text.lines().count(), 2_000);
}

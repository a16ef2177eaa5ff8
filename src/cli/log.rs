//! The log: the format, length and number of its lines.
//!
//! The `hostler` binary sets it up. Standard error is a terminal, a file, a pipe, or the journal's
//! stream, which reads a line's priority from its beginning (sd-daemon(3)) and adds the time
//! itself. For any input from machines or strangers, a line stays one line of some KiB.

mod kinds;
mod line;

use std::{env, io::IsTerminal as _, os::fd::AsFd, time::Duration};

use rustix::fs::fstat;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, fmt::MakeWriter, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use self::{
    kinds::{Kinds, Limited},
    line::{Fields, Line},
};

/// Interval of the reports about omitted lines: a delay of five seconds in a minute does not
/// matter.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// The log's destination, which decides the format of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sink {
    /// A terminal, with colours.
    Terminal,
    /// A file or a pipe.
    Plain,
    /// The journal.
    Journal,
}

/// The numbers of omitted records, for periodic reports.
#[derive(Clone, Debug)]
pub struct LeftOut(Kinds);

impl LeftOut {
    /// Logs the numbers of omitted records periodically. Never ends.
    pub(super) async fn tell(self) {
        loop {
            tokio::time::sleep(TELL_INTERVAL).await;
            self.0.tell(std::time::Instant::now());
        }
    }
}

/// The prefix of the program's final error: its priority, if standard error is the journal's
/// stream.
pub fn error_prefix() -> &'static str {
    let stream = env::var("JOURNAL_STREAM").ok();
    match Sink::of(std::io::stderr(), stream.as_deref(), false) {
        Sink::Journal => "<3>",
        Sink::Terminal | Sink::Plain => "",
    }
}

/// Sends the log to standard error. `agent` is `true` for the agent, which logs at level info.
pub fn init(agent: bool) -> LeftOut {
    let level = if agent { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("HOSTLER_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let stderr = std::io::stderr();
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let stream = env::var("JOURNAL_STREAM").ok();
    let sink = Sink::of(&stderr, stream.as_deref(), stderr.is_terminal() && !is_set("NO_COLOR"));
    let kinds = Kinds::default();
    subscriber(sink, filter, kinds.clone(), std::io::stderr).init();
    LeftOut(kinds)
}

impl Sink {
    /// Detects the destination. `stream` is `JOURNAL_STREAM`, the device and inode of the journal's
    /// stream; programs inherit it even if their standard error leads elsewhere.
    fn of(stderr: impl AsFd, stream: Option<&str>, coloured: bool) -> Self {
        let ours = |stream: &str| {
            let (device, inode) = stream.split_once(':')?;
            let stat = fstat(&stderr).ok()?;
            Some(device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
        };
        match stream.and_then(ours) {
            Some(true) => Self::Journal,
            _ if coloured => Self::Terminal,
            _ => Self::Plain,
        }
    }
}

fn subscriber<W>(
    sink: Sink,
    filter: EnvFilter,
    kinds: Kinds,
    writer: W,
) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(sink == Sink::Terminal)
        .fmt_fields(Fields)
        .event_format(Line { journal: sink == Sink::Journal });
    Registry::default().with(Limited(kinds)).with(lines.with_filter(filter))
}

#[cfg(test)]
mod tests;

//! Limits the number of lines of one kind, where strangers could cause many.
//!
//! Every event passes through it. A kind is a place in the code. Of each kind at most [`LINES_MAX`]
//! lines are logged in a minute; further ones are counted, and reported after the minute.
//! Operators' acts and nodes' phases are never omitted.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

/// Most lines of one kind in a minute: thirty machines that boot at once need as many.
pub(super) const LINES_MAX: u64 = 100;
const MINUTE: Duration = Duration::from_secs(60);
/// Modules that serve the network, and so log text that anybody can send.
const LISTENERS: [&str; 3] = ["hostler::admin::server", "hostler::callback", "hostler::netboot"];

/// The numbers of recent records of each kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Kinds(Arc<Mutex<BTreeMap<CodePlace, CodePlaceLines>>>);

/// A place in the code: file and line.
type CodePlace = (&'static str, u32);

#[derive(Debug)]
struct CodePlaceLines {
    message: String,
    since: Instant,
    lines: u64,
}

impl Kinds {
    /// Whether another event of its kind is logged.
    fn admits(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        if !is_of_listener(metadata) {
            return true;
        }
        let place = (metadata.file().unwrap_or_default(), metadata.line().unwrap_or_default());
        let mut kinds = self.lock();
        let kind = kinds.entry(place).or_insert_with(|| {
            let mut message = Message(String::new());
            event.record(&mut message);
            CodePlaceLines { message: message.0, since: now, lines: 0 }
        });
        // The report of omitted records comes first.
        if now.duration_since(kind.since) >= MINUTE && kind.lines <= LINES_MAX {
            (kind.since, kind.lines) = (now, 0);
        }
        kind.lines += 1;
        kind.lines <= LINES_MAX
    }

    /// Reports the omitted records of past minutes.
    pub(super) fn tell(&self, now: Instant) {
        let is_over = |kind: &CodePlaceLines| now.duration_since(kind.since) >= MINUTE;
        let over: Vec<CodePlaceLines> = {
            let mut kinds = self.lock();
            let places: Vec<CodePlace> =
                kinds.iter().filter(|(_, kind)| is_over(kind)).map(|(place, _)| *place).collect();
            places.iter().filter_map(|place| kinds.remove(place)).collect()
        };
        for kind in over.iter().filter(|kind| kind.lines > LINES_MAX) {
            let (more, seconds) =
                (kind.lines - LINES_MAX, now.duration_since(kind.since).as_secs());
            tracing::warn!("{}: {more} more in the last {seconds} s, not shown", kind.message);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<CodePlace, CodePlaceLines>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of_listener(metadata: &Metadata<'_>) -> bool {
    LISTENERS.iter().any(|listener| {
        let rest = metadata.target().strip_prefix(listener);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    })
}

/// An event's message.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// The layer that omits surplus records.
#[derive(Debug)]
pub(super) struct Limited(pub(super) Kinds);

impl<S: Subscriber> Layer<S> for Limited {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.0.admits(event, Instant::now())
    }
}

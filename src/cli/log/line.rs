//! One line of the log.
//!
//! Every event passes through it. It must never write more than one line, nor more than
//! [`LINE_BYTES_MAX`] and the fields' names: journald splits a line after 48 KiB, and anybody could
//! forge the second part.

use std::fmt::{self, Write};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Writer},
    },
    registry::LookupSpan,
};

use crate::model::printable::Escaping;

/// Longest value of a field, and longest message, in bytes.
pub(super) const VALUE_BYTES_MAX: usize = 1024;
/// Most bytes of a line's values together.
pub(super) const LINE_BYTES_MAX: usize = 4096;

/// The format of a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// Whether the line is for the journal: with its priority in front, and without the time.
    pub(super) journal: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let format = Format::default().with_target(false);
        if self.journal {
            write!(writer, "<{}>", priority(*event.metadata().level()))?;
            return format.without_time().format_event(context, writer, event);
        }
        format.format_event(context, writer, event)
    }
}

/// A level's priority by syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Formats the fields: the message first, as tracing does, then `name=value`, each shortened and
/// escaped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor =
            Visitor { writer, left_bytes: LINE_BYTES_MAX, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Visitor<'writer> {
    writer: Writer<'writer>,
    /// The bytes that remain for further values.
    left_bytes: usize,
    is_first: bool,
    result: fmt::Result,
}

impl Visit for Visitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.result.is_ok() {
            self.result = self.write(field.name(), value);
        }
    }
}

impl Visitor<'_> {
    fn write(&mut self, name: &str, value: &dyn fmt::Debug) -> fmt::Result {
        if !self.is_first {
            self.writer.write_char(' ')?;
        }
        self.is_first = false;
        if name != "message" {
            if self.writer.has_ansi_escapes() {
                write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?;
            } else {
                write!(self.writer, "{name}=")?;
            }
        }
        let most = VALUE_BYTES_MAX.min(self.left_bytes);
        let mut cut = Cut { writer: &mut self.writer, left_bytes: most, has_more: false };
        let written = write!(Escaping(&mut cut), "{value:?}");
        let Cut { left_bytes, has_more, .. } = cut;
        self.left_bytes -= most - left_bytes;
        // A shortened value is no error.
        if has_more { self.writer.write_char('…') } else { written }
    }
}

/// A writer that passes on so many bytes, and then stops the formatting.
struct Cut<'w, 'writer> {
    writer: &'w mut Writer<'writer>,
    left_bytes: usize,
    has_more: bool,
}

impl Write for Cut<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut fits = self.left_bytes.min(text.len());
        while !text.is_char_boundary(fits) {
            fits -= 1;
        }
        self.writer.write_str(text.get(..fits).unwrap_or_default())?;
        self.left_bytes -= fits;
        if fits < text.len() {
            self.has_more = true;
            return Err(fmt::Error);
        }
        Ok(())
    }
}

//! Formats times, progress and tables for people.
//!
//! Several commands use it. It must never print anything itself.

use jiff::{SignedDuration, Timestamp, Unit};

use crate::model::{printable::escaped, size::show_bytes, status::Progress};

/// Cells of the progress bar.
const BAR_CELLS: u64 = 10;

/// Aligns the cells of rows in columns, and escapes them.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> =
        rows.iter().map(|row| row.each_ref().map(|cell| escaped(cell))).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Formats progress: `write [####······] 42% 31.0 MiB/s, 12s left`, or `fetch 12.0 MiB, 31.0 MiB/s`
/// while the total is unknown.
pub(super) fn progress(progress: &Progress) -> String {
    if progress.total_bytes == 0 {
        let [done, rate] = [progress.done_bytes, progress.rate_bytes].map(show_bytes);
        return format!("{} {done}, {rate}/s", progress.stage.as_str());
    }
    let filled = progress.percent() * BAR_CELLS / 100;
    let bar: String = (0..BAR_CELLS).map(|cell| if cell < filled { '#' } else { '.' }).collect();
    let rest = progress.remaining_s.map(|rest| format!(", {rest}s left")).unwrap_or_default();
    format!(
        "{} [{bar}] {}% {}/s{rest}",
        progress.stage.as_str(),
        progress.percent(),
        show_bytes(progress.rate_bytes)
    )
}

/// Formats a duration: `2m10s`, rounded down to at most two units.
pub(super) fn span(duration: SignedDuration) -> String {
    let s = duration.as_secs().max(0);
    match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s}s"),
        (0, h, m, _) => format!("{h}h{m}m"),
        (d, h, _, _) => format!("{d}d{h}h"),
    }
}

/// Breaks a text into lines of at most so many characters.
pub(super) fn filled(text: &str, chars_max: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= chars_max => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n") + "\n"
}

/// Formats a time to the second, in UTC: administrators compare it with logs.
pub(super) fn clock(at: Timestamp) -> String {
    at.round(Unit::Second).unwrap_or(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_two_units_at_most() {
        for (s, text) in
            [(0, "0s"), (59, "59s"), (130, "2m10s"), (7260, "2h1m"), (90_000, "1d1h"), (-5, "0s")]
        {
            assert_eq!(span(SignedDuration::from_secs(s)), text);
        }
    }
}

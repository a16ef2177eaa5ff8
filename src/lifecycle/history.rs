//! The history of a node's phases, and the durations of an attempt's phases.
//!
//! Called by `settle.rs` at the end of each step. It must never grow without a bound.

use jiff::Timestamp;

use crate::model::status::HistoryEntry;

use super::node::Node;

/// Entries kept in `[[history]]`.
const HISTORY_MAX: usize = 50;

impl Node {
    /// Records a new phase and its time.
    pub(super) fn note_phase(&mut self, now: Timestamp) {
        let phase = self.phase();
        if phase == self.record.phase && !self.record.history.is_empty() {
            return;
        }
        if self.record.phase.is_busy() {
            let spent_ms =
                u64::try_from(now.duration_since(self.record.since).as_millis()).unwrap_or(0);
            let name = format!("{}_ms", self.record.phase.as_str());
            let total_ms = self.record.durations.entry(name).or_default();
            *total_ms = total_ms.saturating_add(spent_ms);
        }
        self.record.phase = phase;
        self.record.since = now;
        let entry = HistoryEntry { at: now, phase, message: self.message() };
        self.record.history.push(entry);
        let surplus = self.record.history.len().saturating_sub(HISTORY_MAX);
        self.record.history.drain(..surplus);
    }
}

//! The ramdisk's comparison of its written disk (`image.verify = "node"`): its progress and its
//! duration, as the ramdisk reports them.
//!
//! Called by `callback.rs`. A report is for operators: it must never move a deadline, change the
//! state or the record, or count as the result, which is the completed notice.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::model::{
    callback::{DiskRange, Reply, VerifyProgress},
    fault::{Fault, Step},
    status::{ImagingStage, Progress},
};

use super::{
    node::{Comparison, Node},
    state::State,
};

impl Node {
    /// Notes a report of the comparison. A ramdisk cannot report more than all bytes, or fewer than
    /// before.
    pub(super) fn note_comparison(
        &mut self,
        now: Timestamp,
        report: VerifyProgress,
    ) -> Result<Reply, &'static str> {
        if matches!(self.record.state, State::Restarting { .. }) {
            // The completed notice has overtaken the report.
            return Ok(Reply::Accepted);
        }
        let State::WaitingCompleted { attempt, .. } = &self.record.state else {
            return Err("no comparison is expected in this phase");
        };
        let total_bytes = bytes_of(&attempt.verify);
        if total_bytes == 0 {
            return Err("no comparison was asked for");
        }
        let before = self.comparison;
        let before_bytes = before.map_or(0, |before| before.progress.done_bytes);
        let done_bytes = report.done_bytes.min(total_bytes).max(before_bytes);
        let advanced_at = match before {
            Some(before) if done_bytes == before_bytes => before.advanced_at,
            _ => now,
        };
        let (had_bytes, began_at) =
            before.map_or((done_bytes, now), |before| (before.had_bytes, before.began_at));
        let elapsed_ms = now.duration_since(began_at).as_millis().max(1).unsigned_abs();
        let rate = u128::from(done_bytes - had_bytes) * 1000 / elapsed_ms;
        let rate_bytes = u64::try_from(rate).unwrap_or(u64::MAX);
        let progress = Progress {
            stage: ImagingStage::Verify,
            done_bytes,
            total_bytes,
            rate_bytes,
            remaining_s: (total_bytes - done_bytes).checked_div(rate_bytes),
        };
        self.comparison = Some(Comparison { progress, had_bytes, began_at, advanced_at });
        Ok(Reply::Accepted)
    }

    /// Notes the reported duration of the comparison, at most the time since the release.
    pub(super) fn note_verified(&mut self, now: Timestamp, verify_ms: u64) {
        let waited_ms = now.duration_since(self.record.since).as_millis();
        let verify_ms = verify_ms.min(u64::try_from(waited_ms).unwrap_or(0));
        self.note_stages(&vec![(ImagingStage::Verify, Duration::from_millis(verify_ms))]);
    }

    /// The fault of a ramdisk whose completed notice did not come in time.
    pub(super) fn completed_timeout(&self, now: Timestamp, ranges: &[DiskRange]) -> Fault {
        let evidence = self.comparison_evidence(now, ranges);
        Fault::passing(
            Step::Completed,
            "CompletedTimeout",
            format!(
                "the disk is written, but the ramdisk's completed notice did not come in \
                 time{evidence}"
            ),
            "look at the machine's console, or raise timeouts.completed; with image.verify = \
             \"node\", or timeouts.imaging",
        )
    }

    /// The remark on a comparison that did not end in time; empty without one.
    fn comparison_evidence(&self, now: Timestamp, ranges: &[DiskRange]) -> String {
        if ranges.is_empty() {
            return String::new();
        }
        let Some(Comparison { progress, advanced_at, .. }) = self.comparison else {
            return "; its comparison of the disk reported no progress".to_owned();
        };
        let still = now.duration_since(advanced_at).max(SignedDuration::ZERO).as_secs();
        format!(
            "; its comparison of the disk came to {} %, and reported no further progress for \
             {still} s",
            progress.percent()
        )
    }
}

fn bytes_of(ranges: &[DiskRange]) -> u64 {
    ranges.iter().fold(0, |sum: u64, range| sum.saturating_add(range.bytes))
}

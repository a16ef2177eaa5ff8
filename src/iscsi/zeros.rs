//! Zeros: how a range of a disk comes to read as zeros with certainty, whatever it held before, and as cheaply as the target allows.
//!
//! Part of the disk; called by the imaging for what an image leaves empty. Every way ends in commands after whose GOOD the SCSI
//! standards leave the range no other content; where a target's word is not enough, zeros are sent.
//!
//! | way | command | certain because |
//! |---|---|---|
//! | [`Zeroing::Unmap`] | WRITE SAME(16) of zeros with UNMAP | SBC-3 §5.45: what is not unmapped is written. What is reads as zeros by LBPRZ, which both READ CAPACITY(16) and VPD page B2h must show, next to LBPWS |
//! | [`Zeroing::Same`] | WRITE SAME(16) of zeros | it is a write |
//! | [`Zeroing::Write`] | WRITE(16) of zeros | it is a write |
//!
//! UNMAP is not used: a target may leave any block of an UNMAP as it was (SBC-3 §4.7.3), so old data could show through, and a target
//! that unmaps with certainty says so by LBPWS. A way the target refuses is not tried again on the same connection.
//!
//! WRITE SAME costs no network, but not every target is quick at it: tgtd writes it block by block, 512 bytes each, slower than the
//! same zeros arrive by a fast network; one behind a slow network is quicker that way. So both zero the first
//! few MiB in turn, and WRITE SAME stays if it is clearly quicker.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{
    disk::{Lun, zeros},
    error::{ErrorKind, IscsiError},
    scsi,
    task::Data,
};
use crate::model::size::show_bytes;

/// The most one unmapping WRITE SAME covers where the target gives no limit; it only changes a map.
const UNMAP_BYTES_MAX: u64 = 256 << 20;
/// The most one WRITE SAME writes where the target gives no limit: a quarter of a second of a slow disk, so that a logout need not
/// wait long.
const SAME_BYTES_MAX: u64 = 32 << 20;
/// What one write of zeros carries at most, and each command of the trial.
const COMMAND_BYTES_MAX: u64 = 1 << 20;
/// What each way zeroes before they are compared: enough to level out a pause of the scheduler.
const TRIAL_BYTES: u64 = 4 << 20;
/// How many times quicker a single WRITE SAME must be than a single write: writes gain by being many at once, as the trial's are not.
const SAME_GAIN: u128 = 2;
/// Writes of zeros one call has under way; the connection bounds them all.
const WRITES_MAX: usize = 8;

/// How a range is made to read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// WRITE SAME(16) with UNMAP: the target may drop its blocks.
    Unmap,
    /// WRITE SAME(16): the target writes zeros by itself.
    Same,
    /// WRITE(16): zeros are sent.
    Write,
}

/// What is known of the ways so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This way, until the target refuses it.
    Settled(Zeroing),
    /// WRITE SAME or WRITE, whichever proves to be quicker.
    Open(Trial),
}

/// What both ways have done and how long they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trial {
    same: Pace,
    write: Pace,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pace {
    bytes: u64,
    taken: Duration,
}

impl Trial {
    /// The way to try next: they take turns.
    fn next(&self) -> Zeroing {
        if self.same.bytes <= self.write.bytes { Zeroing::Same } else { Zeroing::Write }
    }

    /// Takes one result; the way to stay with, when there are enough.
    fn add(&mut self, way: Zeroing, bytes: u64, taken: Duration) -> Option<Zeroing> {
        let pace = if way == Zeroing::Write { &mut self.write } else { &mut self.same };
        pace.bytes += bytes;
        pace.taken += taken;
        let time_of = |pace: Pace, other: Pace| pace.taken.as_nanos() * u128::from(other.bytes);
        (self.same.bytes.min(self.write.bytes) >= TRIAL_BYTES).then(|| {
            if time_of(self.write, self.same) < SAME_GAIN * time_of(self.same, self.write) {
                Zeroing::Write
            } else {
                Zeroing::Same
            }
        })
    }
}

impl Choice {
    /// The choice for a disk as it describes itself, and for what its user insists on.
    pub(super) fn first(wanted: Option<Zeroing>, unmap_is_certain: bool) -> Self {
        match wanted {
            // Nobody can insist on what is not certain.
            Some(Zeroing::Unmap) | None if unmap_is_certain => Self::Settled(Zeroing::Unmap),
            Some(Zeroing::Unmap) | None => Self::Open(Trial::default()),
            Some(way) => Self::Settled(way),
        }
    }

    /// The choice after the target refused a way.
    fn without(refused: Zeroing) -> Self {
        match refused {
            Zeroing::Unmap => Self::Open(Trial::default()),
            Zeroing::Same | Zeroing::Write => Self::Settled(Zeroing::Write),
        }
    }
}

impl Lun {
    /// Makes `bytes` at `offset` read as zeros with certainty, by the cheapest way the target has; both must be multiples of a block.
    /// A call that was cancelled may have zeroed any part.
    pub async fn write_zeros(&self, offset: u64, bytes: u64) -> Result<(), IscsiError> {
        let mut done = 0;
        while done < bytes {
            let (at, left) = (offset + done, bytes - done);
            done += match self.choice() {
                Choice::Settled(Zeroing::Write) => self.send_zeros(at, left).await?,
                Choice::Settled(way) => self.settled(way, at, left).await?,
                Choice::Open(trial) => self.try_out(trial.next(), at, left).await?,
            };
        }
        Ok(())
    }

    fn choice(&self) -> Choice {
        *self.inner.zeroing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn choose(&self, choice: impl FnOnce(&mut Choice)) {
        choice(&mut self.inner.zeroing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// One WRITE SAME; how much is done.
    async fn settled(&self, way: Zeroing, at: u64, left: u64) -> Result<u64, IscsiError> {
        let bytes = left.min(self.same_bytes_max(way));
        match self.write_same(at, bytes, way).await {
            // Whatever is wrong with the disk itself, a write will show.
            Err(IscsiError { kind: ErrorKind::Scsi(failure), .. }) => {
                tracing::debug!(target_iqn = %self.inner.target, ?way, %failure, "refused, another way from now on");
                self.choose(|choice| *choice = Choice::without(way));
                Ok(0)
            }
            result => result.map(|()| bytes),
        }
    }

    /// One command of the trial; how much is done.
    async fn try_out(&self, way: Zeroing, at: u64, left: u64) -> Result<u64, IscsiError> {
        let bytes = left.min(self.command_bytes()).min(self.same_bytes_max(Zeroing::Same));
        let began = Instant::now();
        let done = match way {
            Zeroing::Write => self.write(at, zeros(bytes)).await.map(|()| bytes)?,
            Zeroing::Same | Zeroing::Unmap => self.settled(Zeroing::Same, at, bytes).await?,
        };
        self.choose(|choice| {
            if done > 0
                && let Choice::Open(trial) = choice
                && let Some(quicker) = trial.add(way, done, began.elapsed())
            {
                tracing::debug!(target_iqn = %self.inner.target, ?quicker, ?trial, "how zeros are written");
                *choice = Choice::Settled(quicker);
            }
        });
        Ok(done)
    }

    /// Writes zeros, several commands at once; how much is done: all of it.
    async fn send_zeros(&self, at: u64, bytes: u64) -> Result<u64, IscsiError> {
        let (mut done, mut writes) = (0, JoinSet::new());
        while done < bytes || !writes.is_empty() {
            if done < bytes && writes.len() < WRITES_MAX {
                let step = (bytes - done).min(self.command_bytes());
                let (lun, offset) = (self.clone(), at + done);
                writes.spawn(async move { lun.write(offset, zeros(step)).await });
                done += step;
            } else if let Some(Ok(result)) = writes.join_next().await {
                result?;
            }
        }
        Ok(bytes)
    }

    /// What one write of zeros carries.
    fn command_bytes(&self) -> u64 {
        COMMAND_BYTES_MAX.min(self.max_transfer_bytes().into())
    }

    fn same_bytes_max(&self, way: Zeroing) -> u64 {
        let block = u64::from(self.block_bytes());
        let limit = self.inner.features.limits.write_same_blocks;
        let most = if way == Zeroing::Unmap { UNMAP_BYTES_MAX } else { SAME_BYTES_MAX };
        limit.map_or(most, |blocks| blocks.saturating_mul(block).min(most))
    }

    async fn write_same(&self, offset: u64, bytes: u64, way: Zeroing) -> Result<(), IscsiError> {
        let operation = || format!("zeroing of {} at {}", show_bytes(bytes), show_bytes(offset));
        let (lba, blocks) = self.blocks(offset, bytes, operation)?;
        let cdb = scsi::write_same_16(lba, blocks, way == Zeroing::Unmap);
        let block: Bytes = zeros(self.block_bytes().into());
        let outcome = self.run(cdb, Data::Out(block), self.inner.flush_timeout).await;
        self.whole(outcome, operation)?;
        self.count_moved(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_unmapped_only_where_zeros_are_certain_whoever_insists() {
        let (settled, open) = (Choice::Settled, Choice::Open(Trial::default()));
        assert_eq!(Choice::first(None, true), settled(Zeroing::Unmap));
        assert_eq!(Choice::first(None, false), open);
        assert_eq!(Choice::first(Some(Zeroing::Unmap), true), settled(Zeroing::Unmap));
        assert_eq!(Choice::first(Some(Zeroing::Unmap), false), open);
        assert_eq!(Choice::first(Some(Zeroing::Write), true), settled(Zeroing::Write));
        assert_eq!(Choice::first(Some(Zeroing::Same), true), settled(Zeroing::Same));
    }

    #[test]
    fn a_refused_way_gives_way_to_one_with_less_to_refuse() {
        assert_eq!(Choice::without(Zeroing::Unmap), Choice::Open(Trial::default()));
        assert_eq!(Choice::without(Zeroing::Same), Choice::Settled(Zeroing::Write));
    }

    #[test]
    fn write_same_stays_only_if_it_is_clearly_quicker() {
        for (same_ms, write_ms, quicker) in [(3, 5, Zeroing::Write), (2, 5, Zeroing::Same)] {
            let mut trial = Trial::default();
            let mut turns = Vec::new();
            let chosen = loop {
                let way = trial.next();
                turns.push(way);
                let taken = if way == Zeroing::Write { write_ms } else { same_ms };
                if let Some(way) = trial.add(way, 1 << 20, Duration::from_millis(taken)) {
                    break way;
                }
            };
            assert_eq!(chosen, quicker);
            assert_eq!(turns, [Zeroing::Same, Zeroing::Write].repeat(4));
        }
    }
}

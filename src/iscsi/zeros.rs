//! Zeroes a range of a disk with certainty, as cheaply as the target allows.
//!
//! Part of the disk; the imaging calls it for the empty ranges of an image. Every method ends in
//! commands after whose GOOD the SCSI standards allow the range no other content.

use std::{sync::PoisonError, time::Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{
    disk::{Lun, zeros},
    error::{IscsiError, IscsiErrorKind},
    scsi,
    task::Data,
    zeroing::{TRIAL_CALL_BYTES, Zeroing, ZeroingChoice},
};
use crate::model::size::show_bytes;

/// Most bytes of one unmapping WRITE SAME, if the target gives no limit; the command only changes a
/// map.
const UNMAP_BYTES_MAX: u64 = 256 << 20;
/// Most bytes of one WRITE SAME, if the target gives no limit: a quarter of a second of a slow
/// disk, so that a logout need not wait long.
const SAME_BYTES_MAX: u64 = 32 << 20;
/// Most bytes of one write of zeros.
const COMMAND_BYTES_MAX: u64 = 1 << 20;
/// Most writes of zeros of one call in flight; the connection bounds the total.
const WRITES_MAX: usize = 8;

impl Lun {
    /// Makes `bytes` at `offset` read as zeros with certainty, by the target's cheapest method.
    /// Both must be multiples of a block. A cancelled call may have zeroed any part.
    pub async fn write_zeros(&self, offset: u64, bytes: u64) -> Result<(), IscsiError> {
        let mut done = 0;
        while done < bytes {
            let (at, left) = (offset + done, bytes - done);
            done += match self.choice() {
                ZeroingChoice::Settled(Zeroing::Write) => self.send_zeros(at, left).await?,
                ZeroingChoice::Settled(way) => self.settled(way, at, left).await?,
                ZeroingChoice::Open(trial) => self.try_out(trial.next(), at, left).await?,
            };
        }
        Ok(())
    }

    fn choice(&self) -> ZeroingChoice {
        *self.inner.zeroing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn choose(&self, choice: impl FnOnce(&mut ZeroingChoice)) {
        choice(&mut self.inner.zeroing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Sends one WRITE SAME; returns the bytes done.
    async fn settled(&self, way: Zeroing, at: u64, left: u64) -> Result<u64, IscsiError> {
        let bytes = left.min(self.same_bytes_max(way));
        match self.write_same(at, bytes, way).await {
            // A fault of the disk itself shows in the following write.
            Err(IscsiError { kind: IscsiErrorKind::Scsi(failure), .. }) => {
                let target_iqn = &self.inner.target;
                tracing::debug!(%target_iqn, ?way, %failure, "the target refuses this zeroing");
                self.choose(|choice| *choice = ZeroingChoice::without(way));
                Ok(0)
            }
            result => result.map(|()| bytes),
        }
    }

    /// Makes one call of the trial; returns the bytes done.
    async fn try_out(&self, way: Zeroing, at: u64, left: u64) -> Result<u64, IscsiError> {
        let bytes = left.min(TRIAL_CALL_BYTES).min(self.same_bytes_max(Zeroing::Same));
        let began = Instant::now();
        let done = match way {
            Zeroing::Write => self.send_zeros(at, bytes).await?,
            Zeroing::Same | Zeroing::Unmap => self.settled(Zeroing::Same, at, bytes).await?,
        };
        self.choose(|choice| {
            if done > 0
                && let ZeroingChoice::Open(trial) = choice
                && let Some(quicker) = trial.add(way, done, began.elapsed())
            {
                let target_iqn = &self.inner.target;
                tracing::debug!(%target_iqn, ?quicker, ?trial, "the trial of zeroing has ended");
                *choice = ZeroingChoice::Settled(quicker);
            }
        });
        Ok(done)
    }

    /// Writes zeros, several commands at once; returns the bytes done, which are all.
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

    /// Bytes of one write of zeros.
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

//! The pauses, bytes and times of a write that tests shorten.
//!
//! The write of an opened disk takes them. Only tests use other values than the defaults.

use std::time::Duration;

use super::scale_up::ScaleUpThresholds;
use crate::model::backoff::Backoff;

/// The pause before a connection is replaced, which doubles for each further try.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between two tries.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Bytes of the disk between two flushes. An agent that is killed loses up to twice as many.
const FLUSH_BYTES: u64 = 24 << 20;

/// Thresholds of one write.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteThresholds {
    pub(super) scale_up: ScaleUpThresholds,
    /// Pauses before the replacement of a connection.
    pub(super) reconnect: Backoff,
    /// Bytes of the disk between two flushes, until a connection breaks.
    pub(super) flush_bytes: u64,
}

impl Default for WriteThresholds {
    fn default() -> Self {
        Self {
            scale_up: ScaleUpThresholds::default(),
            reconnect: Backoff::doubling(RECONNECT_PAUSE, RECONNECT_PAUSE_MAX),
            flush_bytes: FLUSH_BYTES,
        }
    }
}

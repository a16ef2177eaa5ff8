//! The clock of the agent. Called by the driver's files; the core gets the time as an argument.

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

/// The present time in milliseconds, the precision of status files.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(TimestampRound::new().smallest(Unit::Millisecond).mode(RoundMode::Trunc))
        .unwrap_or(now)
}

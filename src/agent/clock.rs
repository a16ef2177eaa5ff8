//! The time as status files show it.

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

/// The time to the millisecond.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(TimestampRound::new().smallest(Unit::Millisecond).mode(RoundMode::Trunc))
        .unwrap_or(now)
}

//! Limits of time and number that more than one file of the core needs, and the arithmetic of
//! times.
//!
//! A limit that only one file needs stands there.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::model::spec::Timeouts;

use super::event::Operation;

/// Tries of a clean-up before the machine is left as it is, with a message.
pub(super) const CLEANUP_TRIES_MAX: u32 = 8;
/// Tries of a restart: the disk is good, and a BMC's hiccup is no reason to write it again.
pub(super) const RESTART_TRIES_MAX: u32 = 4;
/// Tries to bring a machine into the power state that its spec wants.
pub(super) const POWER_TRIES_MAX: u32 = 4;
/// The time after which a cancelled operation that has not reported is told again to stop.
pub(super) const CANCEL_PATIENCE: Duration = Duration::from_secs(60);
/// The time that is added to an operation's own limits before the core steps in.
const OPERATION_SLACK: Duration = Duration::from_secs(30);

/// The time that a BMC may take to say its power state outside of an attempt. A slow one takes a
/// second or two, also when a datagram is lost.
pub const POLL_LIMIT: Duration = Duration::from_secs(15);

/// The pause between polls of a node without an attempt: BMCs are fragile, and a minute is soon
/// enough for drift.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// The number of programs that poll at the same time: each is a process.
pub(super) const PROGRAM_POLLS_MAX: usize = 64;

/// The limits and permissions that the administrator of the site sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Machines being brought up to be written at the same time, at least 1.
    pub attempts_max: usize,
    /// Disks being written at the same time, at least 1.
    pub imagings_max: usize,
    /// Polls of BMCs at the same time, at least 1.
    pub polls_max: usize,
    /// Whether many reinstalls at once need consent.
    pub breaker: bool,
    /// Whether the power of an installed machine is brought back to what its spec wants.
    pub enforce_power: bool,
}

/// The time that an operation at rest may take to report. Inside an attempt its state has a
/// deadline.
pub(super) fn patience(operation: &Operation, timeouts: &Timeouts) -> Duration {
    let limit = match operation {
        Operation::PollPower => POLL_LIMIT.min(timeouts.power),
        Operation::NetbootFiles { .. } => timeouts.imaging,
        Operation::ConfirmPower
        | Operation::Prepare
        | Operation::PowerOn
        | Operation::Image { .. }
        | Operation::Release(_)
        | Operation::Restart { .. }
        | Operation::ProbePort { .. }
        | Operation::SetPower(_)
        | Operation::CleanUp => return power_limit(timeouts),
    };
    limit.saturating_add(OPERATION_SLACK).max(CANCEL_PATIENCE)
}

/// The time that an operation of the BMC may take: off, boot device and on, each within
/// `timeouts.power`.
pub(super) fn power_limit(timeouts: &Timeouts) -> Duration {
    timeouts.power.saturating_mul(3).saturating_add(OPERATION_SLACK).max(CANCEL_PATIENCE)
}

/// `now` plus a duration; the far end of time if there is no such moment.
pub(super) fn after(now: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait)
        .ok()
        .and_then(|wait| now.checked_add(wait).ok())
        .unwrap_or(Timestamp::MAX)
}
